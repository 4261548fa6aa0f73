"""The destination's listening socket: accepts connections, within limits. Telling them apart: greeting.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Coroutine

from migrate.config import Address
from migrate.daemon.greeting import Admission, Greeting, ListenerEvents
from migrate.daemon.name_lookup import LOOKUP_SECONDS, look_up
from migrate.daemon.reporter import Reporter
from migrate.errors import NetworkError, ProtocolError, UsageError

MAX_GREETING = 32
"""Connections that have not said yet what they are."""
BACKLOG = 64

_LISTEN_HINTS = {
    errno.EADDRINUSE: "another migrate-dst may run there",
    errno.EADDRNOTAVAIL: "--listen takes an address of this host; 0.0.0.0 or [::] is all of them",
    errno.EACCES: "ports below 1024 are for root; choose another one",
}


class Listener:
    """Accepts connections until closed.

    Args:
        greeting_timeout: seconds a connection has to say what it is, the handshake of TLS included.
    """

    def __init__(
        self, events: ListenerEvents, reporter: Reporter, greeting_timeout: float, admission: Admission
    ) -> None:
        self._events = events
        self._admission = admission
        self._reporter = reporter
        self._timeout = greeting_timeout
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, address: Address, *, loopback_only: bool) -> Address:
        """Listen; returns the address with the real port. Raises NetworkError.

        Args:
            loopback_only: refuse any other address: UsageError.
        """
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                family, kind, protocol, where = (await look_up(address, socket.AI_PASSIVE))[0]
            if loopback_only and not ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback:
                raise UsageError(
                    f"--listen {address}: without TLS only a loopback address is listened on",
                    side="destination",
                    hint="give --tls-dir; or --insecure, if all who reach this port may write the RAM files",
                )
            sock = socket.socket(family, kind, protocol)
            self._sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(where)
            sock.listen(BACKLOG)
        except OSError as error:
            await self.close()
            hint = _LISTEN_HINTS.get(error.errno or 0)
            raise NetworkError(
                f"cannot listen on {address}: {error.strerror or 'the name is not known'}",
                side="destination",
                hint=hint,
            ) from error
        self._start(self._accept(sock))
        return Address(address.host, sock.getsockname()[1])

    async def close(self) -> None:
        """Stop listening and drop the connections that did not say what they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listening)
            except OSError as error:
                # Out of descriptors, or the peer was gone again: neither may end the daemon.
                self._reporter.event("warning", message=f"a connection was not accepted: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            if len(self._tasks) > MAX_GREETING:
                sock.close()
                continue
            sock.setblocking(False)
            self._start(self._greet(sock, f"{peer[0]}:{peer[1]}"))

    async def _greet(self, sock: socket.socket, peer: str) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await Greeting(self._events, self._admission, sock, peer).run()
        except TimeoutError:
            message = f"connection from {peer} did not say what it is within {self._timeout:g} s"
            self._reporter.event("warning", message=message)
        except (ProtocolError, OSError, EOFError) as error:
            self._reporter.event("warning", message=f"connection from {peer} refused: {error}")

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
