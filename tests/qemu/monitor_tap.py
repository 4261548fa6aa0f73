"""Stands between a daemon and a QEMU's monitor, and does something at one moment of their talk."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BEFORE, AFTER, ANSWER = "before", "after", "answer"


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end is gone."""
    with suppress(BlockingIOError):
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False


class MonitorTap:
    """Passes everything on, descriptors too; a context manager.

    Args:
        listen: unix socket that is made here, for the daemon.
        monitor: QEMU's.
        moment: ("before", COMMAND) what is to be done while that command is held back; ("after", COMMAND)
            while its answer is; ("answer", TEXT) while the first word of QEMU's that holds the text is.
        act: what; called once, in a thread.
    """

    def __init__(
        self,
        listen: Path,
        monitor: Path,
        moment: tuple[str, str] = ("", ""),
        act: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = listen
        self._monitor = monitor
        self._when, self._what = moment
        self._act = act
        self._asked = threading.Event()
        self._acted = threading.Event()
        self._ends: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(listen))
        self._listening.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> MonitorTap:
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        for end in (self._listening, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        if kind is None and self._what:
            assert self._acted.is_set(), f"the moment {self._when} {self._what} never came"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                qemu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                qemu.connect(str(self._monitor))
                self._ends += [client, qemu]
                for work in (
                    lambda c=client, q=qemu: self._ask(c, q),
                    lambda c=client, q=qemu: self._tell(q, c),
                ):
                    thread = threading.Thread(target=work, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _ask(self, client: socket.socket, qemu: socket.socket) -> None:
        """A command is one write of the client's, smaller than what is read at once."""
        with suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(client, 1 << 16, 4)
                if not data:
                    break
                asked = f'"execute":"{self._what}"'.encode() in data.replace(b" ", b"")
                if asked and self._when == BEFORE:
                    self._do()
                    if has_ended(client):
                        break  # it died before it said so
                if asked and self._when == AFTER:
                    self._asked.set()
                socket.send_fds(qemu, [data], fds)
                for fd in fds:
                    socket.close(fd)
        with suppress(OSError):
            qemu.shutdown(socket.SHUT_RDWR)

    def _tell(self, qemu: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := qemu.recv(1 << 16):
                answered = self._when == AFTER and self._asked.is_set() and b'"return"' in data
                if answered or (self._when == ANSWER and self._what.encode() in data):
                    self._do()
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _do(self) -> None:
        if not self._acted.is_set():
            self._acted.set()
            self._act()
