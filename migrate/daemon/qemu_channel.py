"""The connection to a QEMU that waits with `-incoming tcp:…`: we send, it answers on the return path.

RAM is sent by a thread over a blocking socket; answers are few and read in the event loop. A PING may stand
anywhere between sections, and its PONG says that all before it was taken: that is the only acknowledgement
that QEMU's protocol has.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from migrate.config import Address
from migrate.daemon.sockets import probe_peer, shut_down, tune_lane
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import MigrateError, NetworkError, ProtocolError
from migrate.protocol.qemu_encode import encode_ping
from migrate.protocol.qemu_return_path import ReturnPath

_CHUNK = 1 << 12


class QemuChannel:
    """One connection; `close` must be called, whatever happens.

    Args:
        timeout: seconds to connect in, and of silence after which it is broken.

    Attributes:
        sent: bytes.
        broken_off: QEMU has closed the connection, or says that it has failed.
        stopped: nothing more is to be sent.
    """

    def __init__(self, to: Address, timeout: float) -> None:
        self.sent = 0
        self.broken_off = False
        self.stopped = False
        self._to = to
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._answers = ReturnPath()
        self._problem: MigrateError | None = None
        self._news = asyncio.Event()
        self._pings = 0

    async def open(self) -> None:
        """Connect. Raises NetworkError."""
        address = (self._to.host, self._to.port)
        work = asyncio.ensure_future(asyncio.to_thread(socket.create_connection, address, self._timeout))
        try:
            sock = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_late)
            raise
        except OSError as error:
            raise NetworkError(
                f"no QEMU answers at {self._to}: {error.strerror or error}",
                side="source",
                hint=f"start it there with -S -incoming tcp:{self._to}",
            ) from error
        self._socket = sock
        sock.settimeout(None)
        tune_lane(sock, sends=True)
        probe_peer(sock, self._timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(self._timeout * 1000)))
        asyncio.get_running_loop().add_reader(sock, self._readable)

    async def in_thread(self, call: Callable[[], None]) -> None:
        """Run what sends; a cancel wakes it up, and waits until it has ended."""
        work = asyncio.ensure_future(asyncio.to_thread(call))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self.stop()
            await uninterrupted(_ended(work))
            raise

    def send_now(self, data: bytes | memoryview) -> None:
        """Send it from a thread that may wait. Raises NetworkError."""
        assert self._socket is not None
        try:
            self._socket.sendall(data)
        except OSError as error:
            self.broken_off = True
            raise NetworkError(
                f"the QEMU at {self._to} broke off after {self.sent} bytes: {error.strerror or error}",
                side="destination",
            ) from error
        self.sent += len(data)

    async def send(self, data: bytes) -> None:
        """Send it. Raises NetworkError."""
        await self.in_thread(partial(self.send_now, data))

    async def confirm(self, seconds: float | None = None) -> None:
        """Wait until QEMU has taken all that was sent. Raises NetworkError, ProtocolError."""
        self._pings += 1
        number = self._pings
        await self.send(encode_ping(number))
        await self._wait(lambda: number in self._answers.pongs, seconds or self._timeout)

    def check(self) -> None:
        """Raise NetworkError, ProtocolError if QEMU is known to have gone."""
        if self._answers.shut is not None:
            self.broken_off = True
            raise NetworkError(f"the QEMU at {self._to} gave up after {self.sent} bytes", side="destination")
        if self._problem is not None:
            raise self._problem

    async def verdict(self, seconds: float) -> int:
        """QEMU's last answer: 0 if it has loaded everything. Raises NetworkError, ProtocolError."""
        await self._wait(lambda: self._answers.shut is not None, seconds)
        assert self._answers.shut is not None
        return self._answers.shut

    def stop(self) -> None:
        """Wake up whoever sends; nothing more can be sent."""
        self.stopped = True
        if self._socket is not None:
            shut_down(self._socket)

    def close(self) -> None:
        """The second call does nothing."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    async def _wait(self, come: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not come():
                    self.check()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise NetworkError(
                f"the QEMU at {self._to} said nothing for {seconds:g} s", side="destination"
            ) from None

    def _readable(self) -> None:
        assert self._socket is not None
        data, reason = b"", "it closed the connection"
        try:
            data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            reason = error.strerror or str(error)
        try:
            self._answers.feed(data)
        except ProtocolError as error:
            self._problem = error.with_context(side="destination")
            data = b""
        if not data:
            with contextlib.suppress(ValueError, OSError):
                asyncio.get_running_loop().remove_reader(self._socket)
            self.broken_off = True
            self._problem = self._problem or NetworkError(
                f"the QEMU at {self._to} broke off after {self.sent} bytes: {reason}", side="destination"
            )
        self._news.set()


async def _ended(work: asyncio.Future[None]) -> None:
    await asyncio.wait([work])
    work.exception()  # whoever cancelled does not want to know


def _close_late(work: asyncio.Future[socket.socket]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()
