"""Plays what was recorded of a source into a destination, as fast as it is told.

A QEMU's channels are sent as they are. A native migration is told anew where it must be: the destination
draws a secret that its lanes must name, and the source's words come when their time has come:

    hello → accept, lanes side by side at the rate, state and prepare → prepared, commit → running, settled

Only a migration that went through without a break can be told like that; others are refused by name.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from migrate.config import Address
from migrate.daemon.sockets import shut_down, tune_lane
from migrate.errors import MigrateError, NetworkError, ProtocolError, RamError, RefusedError, StreamError
from migrate.protocol import frames, qemu_wire
from migrate.protocol import messages as m
from migrate.protocol.bandwidth import TokenBucket
from migrate.protocol.schema import MAX_MESSAGE_BYTES, Message

PIECE = 256 << 10
ANSWER_SECONDS = 120.0
"""How long the destination may take for an answer: it proves RAM, and hooks run."""
MOST_CONTROL_BYTES = 512 << 20
_HEAD_BYTES = 8
_SHUT_BYTES = 8
_NOTHING_TO_SAY = (m.Ack, m.Ping, m.Pong)
Wanted = TypeVar("Wanted", bound=Message)


class Replay:
    """One migration into one destination.

    Args:
        paths: what a source sent, a file for each connection, in any order.
        rate: bytes a second, all connections together; 0: unlimited.
    """

    def __init__(self, paths: Sequence[Path], to: Address, rate: int) -> None:
        self.sent = 0
        """Bytes."""
        self._to = to
        self._bucket = TokenBucket(rate, PIECE)
        self._lock = threading.Lock()
        self._paths: dict[bytes, list[Path]] = {}
        for path in paths:
            self._paths.setdefault(_kind(path), []).append(path)

    def run(self) -> str:
        """Play it; returns in a word what became of it there.

        Raises:
            RefusedError: the destination did not take it, or it cannot be told again.
            MigrateError: a file cannot be read, the connection broke, the destination failed.
        """
        if frames.PREFACE_CONTROL in self._paths:
            return self._native()
        mains = self._paths.get(qemu_wire.MAGIC, [])
        if len(mains) != 1:
            raise RefusedError(
                f"{len(mains)} main channels and no control connection: that is no one migration"
            )
        return self._qemu(mains[0], self._paths.get(qemu_wire.MULTIFD_MAGIC, []))

    # --- a QEMU's ----------------------------------------------------------------------------------------

    def _qemu(self, main: Path, channels: Sequence[Path]) -> str:
        with ExitStack() as stack:
            first = self._connect(stack)
            threads = [_Sending(sender) for sender in self._senders(channels, stack)]
            answers: list[bytes] = []
            reader = _Sending(lambda: answers.append(_read_to_end(first)))
            try:
                self._send_file(first, main, 0)
                first.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # what it answered says more
            for thread in (*threads, reader):
                thread.join()
        answer = answers[0] if answers else b""
        shut = answer[-_SHUT_BYTES:]
        if not answer:
            return "sent; there was no return path, or no answer"
        if shut == qemu_wire.encode_shut(0):
            return "loaded"
        raise RefusedError("the destination did not load it: its return path ends without SHUT 0")

    def _senders(self, channels: Sequence[Path], stack: ExitStack) -> list[Callable[[], None]]:
        def sender(path: Path, sock: socket.socket) -> Callable[[], None]:
            def send() -> None:
                with suppress(OSError):
                    self._send_file(sock, path, 0)
                    sock.shutdown(socket.SHUT_WR)

            return send

        return [sender(path, self._connect(stack)) for path in channels]

    # --- a native one ------------------------------------------------------------------------------------

    def _native(self) -> str:
        controls = self._paths[frames.PREFACE_CONTROL]
        if len(controls) != 1:
            raise RefusedError(f"{len(controls)} control connections: the migration broke off on the way")
        said = [each for each in _messages(controls[0]) if not isinstance(each, _NOTHING_TO_SAY)]
        hello = said[0]
        if not isinstance(hello, m.Hello):
            raise StreamError("hello", 0, f"a control connection begins with {hello.TYPE}")
        openings = [_opening(path) for path in self._paths.get(frames.PREFACE_LANE, [])]
        lanes = sorted(opening.lane for opening, _, _ in openings)
        if lanes != list(range(len(lanes))) or any(
            isinstance(each, m.LaneBroken | m.Resumed) for each in said
        ):
            raise RefusedError(f"connections of the lanes {lanes}: a lane broke, or a pause was given up")
        if any(isinstance(each, m.CacheResize) for each in said):
            raise RefusedError("the page caches changed their size on the way, which is not told again")
        with ExitStack() as stack:
            talk = _Talk(self._connect(stack))
            stack.callback(talk.close)
            talk.send(frames.PREFACE_CONTROL, hello)
            accept = talk.wait(m.Accept)
            threads = []
            for opening, path, offset in openings:
                sock = self._connect(stack)
                sock.sendall(
                    frames.PREFACE_LANE + frames.encode_frame(replace(opening, secret=accept.secret))
                )
                threads.append(_Sending(self._lane_sender(sock, path, offset)))
            for message in said[1:]:
                if isinstance(message, m.StateBlob | m.Prepare):
                    for thread in threads:
                        thread.join()
                if isinstance(message, m.Prepare):
                    talk.wait_applied(message.positions)
                if isinstance(message, m.Commit):
                    talk.wait(m.Prepared)
                if isinstance(message, m.Settled):
                    talk.wait(m.Running)
                talk.send(b"", message)
            if not isinstance(said[-1], m.Settled):
                return "told to its end, which was no handover"
            talk.wait(m.Forgotten)
            return "running"

    def _lane_sender(self, sock: socket.socket, path: Path, offset: int) -> Callable[[], None]:
        def send() -> None:
            with suppress(OSError):  # the control connection says why
                self._send_file(sock, path, offset)

        return send

    # --- both --------------------------------------------------------------------------------------------

    def _connect(self, stack: ExitStack) -> socket.socket:
        try:
            sock = socket.create_connection((self._to.host, self._to.port), ANSWER_SECONDS)
        except OSError as error:
            raise NetworkError(f"{self._to} cannot be reached: {error.strerror or error}") from error
        sock.settimeout(None)
        tune_lane(sock, sends=True)
        stack.callback(sock.close)
        stack.callback(shut_down, sock)
        return sock

    def _send_file(self, sock: socket.socket, path: Path, offset: int) -> None:
        buffer = memoryview(bytearray(PIECE))
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while count := file.readinto(buffer):
                with self._lock:
                    delay = self._bucket.delay(time.monotonic(), count)
                time.sleep(delay)
                sock.sendall(buffer[:count])
                with self._lock:
                    self.sent += count


class _Sending:
    """A thread whose error is raised by who joins it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


class _Talk:
    """The control connection: a thread reads, answers pings, and keeps what else was said."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._heard: queue.Queue[Message | MigrateError] = queue.Queue()
        self._applied: dict[int, m.LanePosition] = {}
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, before: bytes, message: Message) -> None:
        """Raises NetworkError."""
        try:
            with self._lock:
                self._socket.sendall(before + frames.encode_frame(message))
        except OSError as error:
            raise NetworkError(f"the control connection broke: {error.strerror or error}") from error

    def wait(self, wanted: type[Wanted]) -> Wanted:
        """The next message that matters. Raises MigrateError: it is another one, or none comes."""
        try:
            heard = self._heard.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise NetworkError(f"no {wanted.TYPE} within {ANSWER_SECONDS:g} s") from None
        if isinstance(heard, MigrateError):
            raise heard
        if isinstance(heard, wanted):
            return heard
        reason = getattr(heard, "reason", "")
        raise RefusedError(
            f"instead of {wanted.TYPE} the destination says {heard.TYPE}: {reason}".rstrip(": ")
        )

    def wait_applied(self, positions: Sequence[m.LanePosition]) -> None:
        """Until every lane was acknowledged up to there. Raises MigrateError: something else came first."""

        def applied() -> bool:
            return [self._applied.get(lane) for lane in range(len(positions))] == list(positions)

        with self._news:
            in_time = self._news.wait_for(lambda: applied() or not self._heard.empty(), ANSWER_SECONDS)
            if in_time and applied():
                return
        self.wait(m.Ack)  # never kept: it is something else, or nothing

    def close(self) -> None:
        shut_down(self._socket)
        self._thread.join()

    def _read(self) -> None:
        reader = frames.FrameReader()
        try:
            while data := self._socket.recv(PIECE):
                for message in reader.feed(data):
                    self._take(message)
            self._keep(NetworkError("the destination closed the control connection"))
        except MigrateError as error:
            self._keep(error)
        except OSError as error:
            self._keep(NetworkError(f"the control connection broke: {error.strerror or error}"))

    def _take(self, message: Message) -> None:
        if isinstance(message, m.Ping):
            self.send(b"", m.Pong(message.number))
        elif isinstance(message, m.Ack):
            with self._news:
                self._applied[message.lane] = m.LanePosition(message.epoch, message.sequence)
                self._news.notify_all()
        elif not isinstance(message, _NOTHING_TO_SAY):
            self._keep(message)

    def _keep(self, heard: Message | MigrateError) -> None:
        with self._news:
            self._heard.put(heard)
            self._news.notify_all()


def _kind(path: Path) -> bytes:
    """The beginning that tells what a recorded connection is. Raises RamError, StreamError."""
    head = _read_bytes(path, _HEAD_BYTES)
    for kind in (frames.PREFACE_CONTROL, frames.PREFACE_LANE, qemu_wire.MAGIC, qemu_wire.MULTIFD_MAGIC):
        if head.startswith(kind):
            return kind
    raise StreamError("magic", 0, f"{path} is nothing that a source says")


def _messages(path: Path) -> list[Message]:
    """All of a control connection. Raises ProtocolError, RamError."""
    data = _read_bytes(path, MOST_CONTROL_BYTES)[len(frames.PREFACE_CONTROL) :]
    said = list(frames.FrameReader().feed(data))
    if not said:
        raise StreamError("truncated", len(data), f"{path} has no whole message")
    return said


def _opening(path: Path) -> tuple[m.LaneOpen, Path, int]:
    """What a lane says first, and where its batches begin. Raises ProtocolError, RamError."""
    head = len(frames.PREFACE_LANE) + frames.HEADER_BYTES
    data = _read_bytes(path, head + MAX_MESSAGE_BYTES)
    end = head + int.from_bytes(data[len(frames.PREFACE_LANE) :][:4], "big")
    found = list(frames.FrameReader().feed(data[len(frames.PREFACE_LANE) : end]))
    if len(found) != 1 or not isinstance(found[0], m.LaneOpen):
        raise ProtocolError(f"{path} does not open a lane")
    return found[0], path, end


def _read_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise RamError(f"{path} cannot be read: {error.strerror}") from error


def _read_to_end(sock: socket.socket) -> bytes:
    """The last bytes of what it answers."""
    tail = b""
    with suppress(OSError):
        while data := sock.recv(PIECE):
            tail = (tail + data)[-_SHUT_BYTES:]
    return tail
