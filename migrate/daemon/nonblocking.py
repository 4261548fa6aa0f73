"""Opening and awaiting a non-blocking socket, plain or TLS, before it goes to a thread or a transport.

The loop's own `sock_recv` takes no TLS socket and no flags.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from migrate.config import Address
from migrate.daemon.name_lookup import look_up
from migrate.daemon.sockets import shut_down_writing
from migrate.errors import ProtocolError
from migrate.protocol import frames
from migrate.protocol.schema import Message

T = TypeVar("T")
LINGER_SECONDS = 2.0
_DROP_BYTES = 1 << 16


async def retry(sock: socket.socket, operation: Callable[[], T], *, writes: bool = False) -> T:
    """Do something with the socket, again whenever it becomes ready for what stood in the way.

    Args:
        writes: a plain socket that would block waits for room.
    """
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            wants_room = False
        except ssl.SSLWantWriteError:
            wants_room = True
        except BlockingIOError:
            wants_room = writes
        await _ready(sock.fileno(), wants_room)


async def _ready(fd: int, wants_room: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def now() -> None:
        if not ready.done():
            ready.set_result(None)

    if wants_room:
        loop.add_writer(fd, now)
    else:
        loop.add_reader(fd, now)
    try:
        await ready
    finally:
        if wants_room:
            loop.remove_writer(fd)
        else:
            loop.remove_reader(fd)


async def connect(to: Address) -> socket.socket:
    """A connection, to the first address of that name that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    problem: OSError | None = None
    for family, kind, protocol, where in await look_up(to):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            problem = OSError(error.errno, os.strerror(error.errno or 0))  # the loop's own text has no cause
            continue
        except BaseException:
            sock.close()
            raise
        return sock
    raise problem or OSError(f"{to.host} has no address")


async def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly that many bytes. Raises EOFError, OSError."""
    data = bytearray()
    while len(data) < count:
        part = await retry(sock, partial(sock.recv, count - len(data)))
        if not part:
            raise EOFError("it was closed before it said what it is")
        data += part
    return bytes(data)


async def receive_frame(sock: socket.socket, most_bytes: int) -> Message:
    """One control message of at most that many bytes of payload. Raises ProtocolError, EOFError, OSError."""
    header = await receive(sock, frames.HEADER_BYTES)
    length = int.from_bytes(header[:4], "big")
    if length > most_bytes:
        raise ProtocolError(f"the connection begins with a frame of {length} bytes")
    [message] = frames.FrameReader().feed(header + await receive(sock, length))
    return message


async def send(sock: socket.socket, data: bytes) -> None:
    """All of these bytes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[await retry(sock, partial(sock.send, view), writes=True) :]


async def linger(sock: socket.socket) -> None:
    """Say that no more comes and drop what still does, until the peer closes, for a while.

    A socket that is closed with bytes unread tells the peer by a reset, which may overtake the last word.
    """
    shut_down_writing(sock)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while await retry(sock, partial(socket.socket.recv, sock, _DROP_BYTES)):  # noqa: ASYNC110
                await asyncio.sleep(0)  # a flood must not keep the loop from its clock
