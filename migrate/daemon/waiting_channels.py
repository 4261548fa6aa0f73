"""Page channels of a QEMU whose main channel has not said what it is yet: newer ones speak first."""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

from migrate.errors import ProtocolError
from migrate.protocol.qemu_multifd import Opening

MOST = 32


class _Waiting(NamedTuple):
    host: str
    opening: Opening
    sock: socket.socket


class WaitingChannels:
    """Keeps them for a moment.

    Args:
        timeout: seconds until a channel without a main channel is closed.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: dict[_Waiting, asyncio.TimerHandle] = {}

    def add(self, host: str, opening: Opening, sock: socket.socket) -> None:
        """Keep one. Raises ProtocolError: there are too many, and this one is the caller's to close."""
        if len(self._waiting) == MOST:
            raise ProtocolError(f"{MOST} multifd channels wait for their main channels already")
        waiting = _Waiting(host, opening, sock)
        loop = asyncio.get_running_loop()
        self._waiting[waiting] = loop.call_later(self._timeout, self._drop, waiting)

    def take(self, host: str) -> list[tuple[Opening, socket.socket]]:
        """Those from that host, which are the caller's now."""
        found = [waiting for waiting in self._waiting if waiting.host == host]
        for waiting in found:
            self._waiting.pop(waiting).cancel()
        return [(waiting.opening, waiting.sock) for waiting in found]

    def close(self) -> None:
        """Close all of them."""
        for waiting in list(self._waiting):
            self._waiting[waiting].cancel()
            self._drop(waiting)

    def _drop(self, waiting: _Waiting) -> None:
        del self._waiting[waiting]
        waiting.sock.close()
