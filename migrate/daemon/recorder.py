"""A TCP proxy that changes nothing and keeps everything: what went through each connection, both directions.

    DIR/0.up      from the first connection's client to the target
    DIR/0.down    back
    DIR/1.up …    connections are numbered in the order of their coming

What is kept is what was passed on. A file that cannot be written ends all of it, and with it the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from migrate.config import Address
from migrate.errors import NetworkError, RamError

READ_BYTES = 1 << 20
BACKLOG = 64
MOST_CONNECTIONS = 1024
"""In one folder."""


class Recorder:
    """Listens, and records until it is cancelled.

    Args:
        directory: exists and has no recording yet.
        listening: called with the address once it is there.
    """

    def __init__(
        self, listen: Address, target: Address, directory: Path, listening: Callable[[Address], None]
    ) -> None:
        self.connections = 0
        self._listen = listen
        self._target = target
        self._directory = directory
        self._listening = listening

    async def run(self) -> None:
        """Serve. Raises NetworkError: it cannot listen; RamError: a file cannot be written."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self._listen.host, self._listen.port))
                listener.listen(BACKLOG)
            except OSError as error:
                raise NetworkError(f"cannot listen on {self._listen}: {error.strerror}") from error
            self._listening(Address(self._listen.host, listener.getsockname()[1]))
            try:
                async with asyncio.TaskGroup() as serving:
                    while self.connections < MOST_CONNECTIONS:
                        client, _ = await loop.sock_accept(listener)
                        serving.create_task(self._serve(client, self.connections))
                        self.connections += 1
            except* RamError as broken:
                raise broken.exceptions[0] from None

    async def _serve(self, client: socket.socket, number: int) -> None:
        target = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with client, target, self._file(number, "up") as up, self._file(number, "down") as down:
            client.setblocking(False)
            for sock in (client, target):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_connect(target, (self._target.host, self._target.port))
                await asyncio.gather(_carry(client, target, up), _carry(target, client, down))

    def _file(self, number: int, direction: str) -> BinaryIO:
        path = self._directory / f"{number}.{direction}"
        try:
            return path.open("xb", buffering=0)
        except OSError as error:
            raise RamError(f"{path} cannot be written: {error.strerror}") from error


async def _carry(source: socket.socket, sink: socket.socket, file: BinaryIO) -> None:
    """To the end of the stream; a broken socket breaks the other one."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(READ_BYTES))
    try:
        while count := await loop.sock_recv_into(source, buffer):
            await loop.sock_sendall(sink, buffer[:count])
            _keep(file, buffer[:count])
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _keep(file: BinaryIO, data: memoryview) -> None:
    try:
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, "no space left")
    except OSError as error:
        raise RamError(f"{file.name} cannot be written: {error.strerror}") from error
