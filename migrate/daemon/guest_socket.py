"""The connection to a guest's socket: calls with a deadline, answers with descriptors, all of it bounded.

The guest (a VMM, an emulator) listens, the daemon connects: so the socket is there before the migration, and
after a daemon that was killed the next one finds it. What is said: `migrate.protocol.guest_contract`.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from migrate.errors import GuestError, ProtocolError
from migrate.protocol.guest_contract import MAX_DESCRIPTORS, MAX_PACKET_BYTES, Answer, Item, parse_answer

_SCM_CREDENTIALS = 2
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CUT_OFF = socket.MSG_TRUNC | socket.MSG_CTRUNC

Answered = tuple[Answer, list[int]]


class Given(NamedTuple):
    """An item of an answer and the descriptor that came with it."""

    item: Item
    fd: int


class GuestSocket:
    """One connection. The guest answers each call in order, also one whose time was up.

    After the first trouble it is closed, and every call fails.

    Args:
        path: where the guest listens.
        side: whose guest it is, for errors.

    Attributes:
        pid: the guest's process by the kernel's word, once it has answered; None: not seen from here.
        pidfd: of that process, or -1.
        lost: why nothing more can be said to the guest.
        gone: set when that happens.

    Raises:
        GuestError: nobody listens there.
    """

    def __init__(self, path: Path, side: str) -> None:
        self.path = path
        self.pid: int | None = None
        self.pidfd = -1
        self.lost: str | None = None
        self.gone = asyncio.Event()
        self._side = side
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[Answered]] = deque()
        self._turn = asyncio.Lock()
        self._writable: asyncio.Future[None] | None = None
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._sock.connect(os.fspath(path))
        except OSError as error:
            self._sock.close()
            raise GuestError(
                f"the guest's socket {path} cannot be connected to: {error.strerror or error}",
                side=side,
                hint="the guest must listen there (AF_UNIX, SOCK_SEQPACKET) before this program is started",
            ) from None
        self._loop.add_reader(self._sock, self._readable)

    async def call(
        self, call: bytes, time_limit: float, fds: Sequence[int] = ()
    ) -> tuple[Answer, list[Given]]:
        """Ask the guest for something. The caller closes the descriptors that come back.

        Args:
            call: of `migrate.protocol.guest_contract`.
            time_limit: seconds.
            fds: go with it.

        Raises:
            GuestError: the guest said no, nothing or nonsense, or its connection is gone.
        """
        word = call.partition(b"\n")[0].decode()
        answered: asyncio.Future[Answered] = self._loop.create_future()
        try:
            async with asyncio.timeout(time_limit):
                async with self._turn:
                    await self._send(call, fds, answered)
                answer, received = await answered
        except BaseException as problem:
            _drop(answered)
            if isinstance(problem, TimeoutError):
                raise self.error(f"did not answer to {word!r} within {time_limit:g} s") from None
            raise
        if answer.error is not None:
            raise self.error(f"answered to {word!r}: {answer.error}")
        return answer, [Given(item, fd) for item, fd in zip(answer.items, received, strict=True)]

    def error(self, text: str) -> GuestError:
        """An error that names this guest."""
        return GuestError(f"the guest at {self.path} {text}", side=self._side)

    def lose(self, reason: str) -> None:
        """Nothing more can be said to it: close the connection. Only the first reason counts."""
        if self.lost is not None:
            return
        self.lost = reason
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        for answered in self._waiting:
            if not answered.done():
                answered.set_exception(self.error(reason))
        self._waiting.clear()
        self.gone.set()

    def close(self) -> None:
        """Let go of the guest without a word. The second call does nothing."""
        self.lose("is not connected any more")
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    async def _send(self, call: bytes, fds: Sequence[int], answered: asyncio.Future[Answered]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while self.lost is None:
            try:
                self._sock.sendmsg([call], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:  # its queue is full
                self._writable = self._loop.create_future()
                self._loop.add_writer(self._sock, self._may_write)
                await self._writable
            except OSError as error:
                self.lose(f"has closed its connection ({error.strerror})")
            else:
                self._waiting.append(answered)
                return
        raise self.error(self.lost)

    def _may_write(self) -> None:
        self._loop.remove_writer(self._sock)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _readable(self) -> None:
        space = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            packet, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(f"has closed its connection ({error.strerror})")
            return
        fds, pid = _unpack(ancillary)
        if not packet:
            close_all(fds)
            self.lose("has closed its connection")
            return
        try:
            if flags & _CUT_OFF:
                raise ProtocolError(
                    f"it sent more than {MAX_PACKET_BYTES} bytes or {MAX_DESCRIPTORS} descriptors at once"
                )
            answer = parse_answer(packet, len(fds))
            if not self._waiting:
                raise ProtocolError("it said something that nobody asked for")
        except ProtocolError as error:
            close_all(fds)
            self.lose(f"does not keep to the contract: {error}")
            return
        self._hold_process(pid)
        answered = self._waiting.popleft()
        if answered.done():  # its time was up
            close_all(fds)
        else:
            answered.set_result((answer, fds))

    def _hold_process(self, pid: int) -> None:
        if self.pid is None and pid > 0:
            try:
                self.pidfd = os.pidfd_open(pid)
            except OSError:
                return  # a thread's id, or gone
            self.pid = pid


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _drop(answered: asyncio.Future[Answered]) -> None:
    """Nobody waits for this answer any more: what came with it must not stay open."""
    if answered.done() and not answered.cancelled():
        if answered.exception() is None:
            close_all(answered.result()[1])
    else:
        answered.cancel()


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """Descriptors, and the sender's process id, 0 for unknown."""
    fds = array.array("i")
    pid = 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) // fds.itemsize * fds.itemsize])
        elif level == socket.SOL_SOCKET and kind == _SCM_CREDENTIALS and len(data) == _CREDENTIALS.size:
            pid = _CREDENTIALS.unpack(data)[0]
    return list(fds), pid
