"""Looking up a host name without being held by a resolver that does not answer.

getaddrinfo(3) cannot be interrupted, and waits for half a minute and more where the network is cut.
"""

from __future__ import annotations

import socket

from migrate.config import Address
from migrate.daemon.left_behind import left_behind

LOOKUP_SECONDS = 30.0
"""Long enough for two servers of resolv.conf(5) that do not answer; for who has no deadline of his own."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
Found = tuple[socket.AddressFamily, socket.SocketKind, int, SocketAddress]
"""Family, kind, protocol and address, as socket(2) and connect(2), or bind(2), want them."""


async def look_up(address: Address, flags: int = 0) -> list[Found]:
    """All stream addresses of a host, best first; at least one.

    Sets no deadline: whoever waits does. Raises OSError: there is no such name, or nobody knows now.
    """

    def ask() -> list[Found]:
        try:
            rows = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
        except ValueError as error:  # a name that IDNA does not allow is a UnicodeError
            raise OSError(0, f"{address.host!r} is no name") from error
        return [(family, kind, protocol, where) for family, kind, protocol, _, where in rows]

    return await left_behind(ask, "name-lookup")
