"""A guest on a socket that keeps to the contract, but for what a test has it do; in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BYTES = 1 << 20
Reply = tuple[bytes, list[int]]
Script = Callable[["ScriptedGuest", list[int]], Reply | None]
"""What to answer instead; None: nothing. It may close `guest.peer`."""


class ScriptedGuest:
    """Counts nothing, writes nothing: one block `ram` of 1 MiB with something in it.

    Args:
        scripts: by the first word of a call; the others are answered as the contract says.
    """

    def __init__(self, path: Path, scripts: dict[str, Script]) -> None:
        self.path = path
        self.scripts = scripts
        self.calls: list[str] = []
        self.state: dict[str, bytes] = {"cpu": b"registers"}
        self.peer: socket.socket | None = None
        self._open: list[int] = []
        self.memory = self.memfd("ram", os.urandom(BYTES))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def memfd(self, name: str, content: bytes = b"", flags: int = os.MFD_ALLOW_SEALING) -> int:
        """A memfd with that content, which lives as long as the guest."""
        fd = os.memfd_create(name, flags)
        os.pwrite(fd, content, 0)
        self._open.append(fd)
        return fd

    def close(self) -> None:
        """End it as a process would."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self.peer is not None:
            with contextlib.suppress(OSError):
                self.peer.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        while self._open:
            os.close(self._open.pop())

    def _serve(self) -> None:
        while True:
            try:
                self.peer, _ = self._listener.accept()
            except OSError:
                return
            with self.peer, contextlib.suppress(OSError):
                self._talk(self.peer)

    def _talk(self, peer: socket.socket) -> None:
        while True:
            call, fds, _, _ = socket.recv_fds(peer, 1 << 16, 64)
            if not call:
                return
            text = call.decode()
            self.calls.append(text.partition("\n")[0])
            script = self.scripts.get(text.split()[0])
            reply = script(self, fds) if script is not None else self.answer(text, fds)
            for fd in fds:
                os.close(fd)
            if reply is not None:
                socket.send_fds(peer, [reply[0]], reply[1])

    def answer(self, call: str, fds: list[int]) -> Reply:
        """What the contract says."""
        first, *lines = call.split("\n")
        if first.startswith("migrate 1 "):
            return f"ok\nram ram {BYTES}".encode(), [self.memory]
        if first == "state":
            names = "".join(f"\nstate {name}" for name in self.state)
            return f"ok{names}".encode(), [self.memfd(n, data) for n, data in self.state.items()]
        if first == "load":
            names_there = [line.removeprefix("state ") for line in lines]
            self.state = {n: os.pread(fd, 1 << 20, 0) for n, fd in zip(names_there, fds, strict=True)}
        return b"ok", []


@contextlib.contextmanager
def scripted_guest(path: Path, **scripts: Any) -> Iterator[ScriptedGuest]:
    """A guest; `migrate_=` and so on are the scripts."""
    guest = ScriptedGuest(path, {name.rstrip("_"): script for name, script in scripts.items()})
    try:
        yield guest
    finally:
        guest.close()


def says(text: str | bytes, *descriptors: Callable[[ScriptedGuest], int]) -> Script:
    """Answer this, with these descriptors."""
    data = text.encode() if isinstance(text, str) else text
    return lambda guest, _: (data, [make(guest) for make in descriptors])
