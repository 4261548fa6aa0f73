"""The control socket: a unix socket of mode 0600 on which several clients speak QMP.

It is bound and listening under a name of its own before it gets its path, so that whoever sees the path can
connect. A socket that is there already is replaced only if nobody answers on it. At the end the path is
removed, unless it belongs to somebody else by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from migrate.errors import UsageError
from migrate.protocol import qmp
from migrate.protocol.qmp import QmpError, Request

MAX_CLIENTS = 16
MAX_BACKLOG = 1 << 20
"""Bytes that wait for one client; with more it is cut off: it does not read."""
BACKLOG = 8
CLOSE_SECONDS = 1.0
"""How long clients may take to read the last lines."""
LONGEST_PATH = 107  # sun_path with its NUL, unix(7)


class ControlSocket:
    """Serves clients until closed.

    Args:
        path: where the socket goes.
        execute: carries out one command at once and returns its value; raises QmpError.
    """

    def __init__(self, path: Path, execute: Callable[[Request], object]) -> None:
        self._path = path
        self._execute = execute
        self._clients: set[_Client] = set()
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def open(self) -> None:
        """Listen. Raises UsageError: the path cannot be used, or another program answers there."""
        try:
            with _locked_directory(self._path) as directory:
                _check_free(self._path)
                sock, name = _bind(directory)
                try:
                    self._server = await asyncio.get_running_loop().create_unix_server(
                        self._connected, sock=sock, backlog=BACKLOG
                    )
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    os.rename(name, self._path.name, src_dir_fd=directory, dst_dir_fd=directory)
                except BaseException:
                    sock.close()
                    os.unlink(name, dir_fd=directory)
                    raise
            self._identity = (found.st_dev, found.st_ino)
        except OSError as error:
            raise UsageError(f"--control {self._path}: {error.strerror or error}") from None

    def event(self, name: str, data: Mapping[str, object]) -> None:
        """Tell every client that has negotiated."""
        line = qmp.event(name, data, time.time())
        for client in list(self._clients):
            if client.session.negotiated:
                client.send(line)

    async def close(self) -> None:
        """Remove the path, let clients read what was sent to them, and cut them off."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()
        gone = [client.gone for client in self._clients]
        for client in list(self._clients):
            client.close()
        if gone:
            await asyncio.wait(gone, timeout=CLOSE_SECONDS)
        for client in list(self._clients):
            client.abort()

    def _connected(self) -> _Client:
        return _Client(self._clients, self._execute)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, clients: set[_Client], execute: Callable[[Request], object]) -> None:
        self.session = qmp.Session()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clients = clients
        self._execute = execute
        self._reader = qmp.RequestReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._clients) >= MAX_CLIENTS:
            self._transport.abort()
            return
        self._clients.add(self)
        self.send(qmp.greeting())

    def data_received(self, data: bytes) -> None:
        for request in self._reader.feed(data):
            if self._transport is None or self._transport.is_closing():
                return
            self.send(self._answer(request))

    def _answer(self, request: Request) -> bytes:
        try:
            value = self._execute(request) if self.session.admit(request) else {}
        except QmpError as error:
            return qmp.failure(request, error)
        return qmp.reply(request, value)

    def send(self, line: bytes) -> None:
        """Queue a line; a client that does not read is cut off."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(line)
        if self._transport.get_write_buffer_size() > MAX_BACKLOG:
            self._transport.abort()

    def close(self) -> None:
        """Close once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._clients.discard(self)
        if not self.gone.done():
            self.gone.set_result(None)


@contextlib.contextmanager
def _locked_directory(path: Path) -> Iterator[int]:
    """The directory of the path, held against another daemon that takes a path there. Raises OSError."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {LONGEST_PATH} bytes")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EAGAIN, "another program locks its directory; try again") from None
        yield directory
    finally:
        os.close(directory)


def _check_free(path: Path) -> None:
    """Raise OSError if something is there other than a socket on which nobody answers."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "something else than a socket is there; remove it or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full queue is an answer too
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another program answers there; choose another path")


def _bind(directory: int) -> tuple[socket.socket, str]:
    """A socket of mode 0600 under a name of its own in the directory. Raises OSError."""
    name = f".migrate-{secrets.token_hex(8)}"
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)  # uvloop accepts until nobody is left
        os.fchmod(sock.fileno(), 0o600)  # Linux gives the path this mode: never is it open to others
        sock.bind(f"/proc/self/fd/{directory}/{name}")
    except BaseException:
        sock.close()
        raise
    return sock, name
