"""The destination's listening socket: tells connections apart by their first bytes, within limits.

"MIGRATE" 1   control: the first message must be a hello or a question
"MIGRATE" 2   lane: one lane-open frame, then batches
"MIGRATE" 3   probe: how fast the link is (`link_probe`); one at a time, none beside a migration
"QEVM" 3      main channel of a QEMU's migration
11223344 1    page channel of one, with multifd
TLS           recognised, and refused by name
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Coroutine
from typing import Protocol

from migrate.config import Address
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.link_probe import take_probe
from migrate.daemon.reporter import Reporter
from migrate.errors import NetworkError, ProtocolError
from migrate.protocol import messages as m
from migrate.protocol import qemu_wire
from migrate.protocol.qemu_multifd import OPENING_BYTES, Opening, decode_opening
from migrate.protocol.schema import Message

MAX_GREETING = 32
"""Connections that have not said yet what they are."""
MAX_LANE_OPEN_BYTES = 512
BACKLOG = 64

_LISTEN_HINTS = {
    errno.EADDRINUSE: "another migrate-dst may run there",
    errno.EADDRNOTAVAIL: "--listen takes an address of this host; 0.0.0.0 or [::] is all of them",
    errno.EACCES: "ports below 1024 are for root; choose another one",
}


class ListenerEvents(Protocol):
    """Who takes the connections."""

    def lane_came(self, opening: m.LaneOpen, sock: socket.socket) -> None:
        """A lane connection, blocking; raises ProtocolError if it is not wanted (then it is closed)."""

    async def hello_came(self, hello: m.Hello, channel: ControlChannel) -> None:
        """A control connection that said hello; its owner from here on, unless this raises."""

    def question_came(self, question: m.Question, channel: ControlChannel) -> None:
        """A control connection that asks how far a handover is."""

    def probe_came(self) -> None:
        """Somebody wants to measure the link; raises ProtocolError if that would be in the way."""

    def qemu_came(self, head: bytes, sock: socket.socket, peer: str) -> None:
        """A QEMU's stream, blocking; raises ProtocolError if it is not wanted (then it is closed)."""

    def multifd_came(self, opening: Opening, sock: socket.socket, peer: str) -> None:
        """A page channel of a QEMU, blocking; raises ProtocolError as `qemu_came` does."""


class Listener:
    """Accepts connections until closed.

    Args:
        greeting_timeout: seconds a connection has to say what it is.
    """

    def __init__(self, events: ListenerEvents, reporter: Reporter, greeting_timeout: float) -> None:
        self._events = events
        self._reporter = reporter
        self._timeout = greeting_timeout
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = False

    async def open(self, address: Address) -> Address:
        """Listen; returns the address with the real port. Raises NetworkError."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, where = found[0]
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
                f"cannot listen on {address}: {error.strerror}", side="destination", hint=hint
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
                await self._tell_apart(sock, peer)
        except TimeoutError:
            message = f"connection from {peer} did not say what it is within {self._timeout:g} s"
            self._reporter.event("warning", message=message)
        except (ProtocolError, OSError, EOFError) as error:
            self._reporter.event("warning", message=f"connection from {peer} refused: {error}")

    async def _tell_apart(self, sock: socket.socket, peer: str) -> None:
        """Read the first bytes and hand the socket on; it is closed here only if nobody took it."""
        taken = False
        try:
            preface = await _receive(sock, m.PREFACE_BYTES)
            if preface == m.PREFACE_LANE:
                await self._greet_lane(sock)
                taken = True
            elif preface == m.PREFACE_CONTROL:
                taken = True
                await self._greet_control(sock)
            elif preface == m.PREFACE_PROBE:
                await self._greet_probe(sock)
            elif preface.startswith(qemu_wire.MAGIC):
                sock.setblocking(True)
                self._events.qemu_came(preface, sock, peer)
                taken = True
            elif preface.startswith(qemu_wire.MULTIFD_MAGIC):
                rest = await _receive(sock, OPENING_BYTES - len(preface))
                sock.setblocking(True)
                self._events.multifd_came(decode_opening(preface + rest), sock, peer)
                taken = True
            else:
                raise ProtocolError(_unknown(preface))
        finally:
            if not taken:
                sock.close()

    async def _greet_probe(self, sock: socket.socket) -> None:
        self._events.probe_came()
        if self._probing:
            raise ProtocolError("another one measures the link")
        self._probing = True
        try:
            await take_probe(sock)
        finally:
            self._probing = False

    async def _greet_lane(self, sock: socket.socket) -> None:
        header = await _receive(sock, m.FRAME_HEADER_BYTES)
        length = int.from_bytes(header[:4], "big")
        if length > MAX_LANE_OPEN_BYTES:
            raise ProtocolError(f"a lane opens with a frame of {length} bytes")
        [opening] = m.FrameReader().feed(header + await _receive(sock, length))
        if not isinstance(opening, m.LaneOpen):
            raise ProtocolError(f"a lane opens with {opening.TYPE}")
        sock.setblocking(True)
        self._events.lane_came(opening, sock)

    async def _greet_control(self, sock: socket.socket) -> None:
        """Wait for the first message; who takes it sets the callbacks. The channel owns the socket."""
        first: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def lost(reason: str) -> None:
            if not first.done():
                first.set_exception(ProtocolError(reason))

        channel: ControlChannel

        def message(value: Message) -> None:
            if first.done():  # a second message before the first was answered
                channel.close()
                return
            first.set_result(value)

        channel = ControlChannel(message, lost)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: channel, sock)
        try:
            opening = await first
            if not isinstance(opening, m.Hello | m.Question):
                raise ProtocolError(f"a control connection begins with {opening.TYPE}")
            if isinstance(opening, m.Hello):
                await self._events.hello_came(opening, channel)
            else:
                self._events.question_came(opening, channel)
        except BaseException:
            channel.close()
            raise

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                task.result()


async def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not part:
            raise EOFError("it was closed before it said what it is")
        data += part
    return bytes(data)


def _unknown(preface: bytes) -> str:
    if preface.startswith(b"\x16\x03"):
        return "this is TLS, which this version does not speak"
    return "it does not speak this protocol"
