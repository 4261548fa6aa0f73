"""Looking up a host name without being held by a resolver that does not answer.

getaddrinfo(3) cannot be interrupted, and waits for half a minute and more where the network is cut. The
loop's own pool of threads is joined when the loop closes and once more when the program exits, so a lookup
there keeps a cancelled program alive for as long. A daemon thread of its own is simply left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

from migrate.config import Address

LOOKUP_SECONDS = 30.0
"""Long enough for two servers of resolv.conf(5) that do not answer; for who has no deadline of his own."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
Found = tuple[socket.AddressFamily, socket.SocketKind, int, SocketAddress]
"""Family, kind, protocol and address, as socket(2) and connect(2), or bind(2), want them."""


async def look_up(address: Address, flags: int = 0) -> list[Found]:
    """All stream addresses of a host, best first; at least one.

    Sets no deadline: whoever waits does. Raises OSError: there is no such name, or nobody knows now.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Found]] = loop.create_future()

    def tell(found: list[Found], problem: Exception | None) -> None:
        if answer.done():
            return
        if problem is not None:
            answer.set_exception(problem)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[Found] = []
        problem: Exception | None = None
        try:
            rows = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
            found = [(family, kind, protocol, where) for family, kind, protocol, _, where in rows]
        except Exception as error:  # a name that IDNA does not allow is a UnicodeError
            problem = error if isinstance(error, OSError) else OSError(0, f"{address.host!r} is no name")
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            loop.call_soon_threadsafe(tell, found, problem)

    threading.Thread(target=ask, name="name-lookup", daemon=True).start()
    return await answer
