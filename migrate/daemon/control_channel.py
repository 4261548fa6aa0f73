"""A control connection on an event loop: frames in, frames out, one owner.

Nothing is written after `close`, nothing is delivered after `on_lost`. What the peer does not read piles up
in the transport only as far as the machines speak unasked (pings, acknowledgements): `drained` is for
whoever has more to say.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from migrate.config import Address
from migrate.daemon.nonblocking import connect
from migrate.daemon.sockets import tune_control
from migrate.daemon.tls import PeerIdentity
from migrate.daemon.tls_client import TlsClient
from migrate.daemon.tls_transport import TlsTransport
from migrate.errors import ProtocolError
from migrate.protocol.frames import PREFACE_CONTROL, FrameReader, encode_frame
from migrate.protocol.messages import MAX_STATE_BYTES
from migrate.protocol.schema import Message

MAX_BACKLOG_BYTES = MAX_STATE_BYTES + (64 << 20)
"""A peer that takes nothing off its connection for that long is gone; bounds our memory."""

LINGER_SECONDS = 2.0
"""How long a peer has to take the last message and close."""


class ControlChannel(asyncio.Protocol):
    """Reads and writes control messages.

    Args:
        on_message: called for every message, in order.
        on_lost: called once, when the connection is gone or spoke nonsense; not after `close`.
        identity: of a peer that came over TLS; None: it came without.
    """

    def __init__(
        self,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
        identity: PeerIdentity | None = None,
    ) -> None:
        self.on_message = on_message
        self.on_lost = on_lost
        self.identity = identity
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._closed = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()

    @property
    def peer(self) -> str:
        """Address of the other side, for a person."""
        address = self._transport.get_extra_info("peername") if self._transport else None
        return str(Address(*address[:2])) if address else "unknown"

    @property
    def lost(self) -> bool:
        """The connection is gone, whether or not anybody was told."""
        return self._closed or self._gone.is_set()

    @property
    def address(self) -> tuple[str, int]:
        """Numeric address and port of the other side; lanes go to the same."""
        assert self._transport is not None
        host, port, *rest = self._transport.get_extra_info("peername")
        if (
            len(rest) == 2 and rest[1] and "%" not in host
        ):  # a link-local address means nothing without its scope
            host = f"{host}%{rest[1]}"
        return host, port

    def send(self, message: Message) -> None:
        """Queue a message; lost if the connection is."""
        if self._transport is None or self._closed or self._transport.is_closing():
            return
        self._transport.write(encode_frame(message))
        if self._transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
            self._lose("the peer does not read what is sent to it")

    async def drained(self) -> None:
        """Wait until there is room for more, or the connection is gone."""
        await self._writable.wait()

    def close(self) -> None:
        """Say that no more will come, close when the peer does; no more calls of either callback.

        A socket that is closed with bytes unread tells the peer by a reset, which may overtake the last
        message. So only our direction is closed at first, and what still comes is dropped, for a while.
        """
        if self._closed:
            return
        self._closed = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.abort)

    async def closed(self, seconds: float) -> None:
        """Wait until the transport is gone, at most that many seconds; then it is cut."""
        try:
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            tune_control(sock)

    def data_received(self, data: bytes) -> None:
        """Queue the bytes behind what threads have told the loop already.

        A lane thread tells of a batch before it sends it; uvloop, though, reads sockets before it looks at
        that queue, so that an acknowledgement could be seen before the batch.
        """
        asyncio.get_running_loop().call_soon(self._take, data)

    def _take(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            for message in self._reader.feed(data):
                self.on_message(message)
                if self._closed:
                    return
        except ProtocolError as error:
            self._lose(str(error))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._writable.set()
        self._gone.set()
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or (str(error) if error else "the peer closed the connection")
        asyncio.get_running_loop().call_soon(self._lose, reason)  # behind the last bytes

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _lose(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        self.on_lost(reason)


async def open_control(to: Address, channel: ControlChannel, tls: TlsClient | None) -> None:
    """Connect a channel to the first address of a host that answers, up to where the hello goes.

    Raises:
        RefusedError, NetworkError: over TLS; see `TlsClient.greet`.
        ProtocolError, EOFError, OSError
    """
    sock = await connect(to)
    if tls is not None:
        TlsTransport(await tls.greet(sock, PREFACE_CONTROL), channel)
        return
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
    transport.write(PREFACE_CONTROL)
