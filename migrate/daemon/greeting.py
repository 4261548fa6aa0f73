"""One new connection at the destination, until it is known what it is and who opened it.

It is told by its first bytes:

16            TLS; what follows is told again by the first bytes inside
"MIGRATE" 1   control: a hello or a question; over TLS behind `welcome` and, with a token, its proof
"MIGRATE" 2   lane: one lane-open frame, then batches
"MIGRATE" 3   probe: how fast the link is (`link_probe`), behind the same; one at a time, and alone
"QEVM" 3      main channel of a QEMU's migration
11223344 1    page channel of one, with multifd

With TLS configured nothing else is taken, but for a QEMU's stream where the person allows it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from typing import Protocol

from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.link_probe import take_probe
from migrate.daemon.nonblocking import linger, receive, receive_frame, retry, send
from migrate.daemon.tls import PeerIdentity
from migrate.daemon.tls_refusals import ALERT_PROTOCOL_VERSION, tls_text
from migrate.daemon.tls_server import TlsServer
from migrate.daemon.tls_transport import TlsTransport
from migrate.errors import ProtocolError
from migrate.protocol import frames, qemu_wire
from migrate.protocol import messages as m
from migrate.protocol.qemu_multifd import OPENING_BYTES, Opening, decode_opening
from migrate.protocol.schema import Message

MAX_LANE_OPEN_BYTES = 512
TLS_FIRST_BYTE = b"\x16"
"""Of a ClientHello, record type handshake (RFC 8446, section 5.1); nothing else of ours begins so."""
_NO_TLS = m.Reject(
    "it takes connections over TLS only",
    "--tls-dir, or --token-file with --tls-fingerprint",
    "source",
)


class ListenerEvents(Protocol):
    """Who takes the connections."""

    def lane_came(self, opening: m.LaneOpen, sock: socket.socket, identity: PeerIdentity | None) -> None:
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


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may come in."""

    tls: TlsServer | None
    """None: everybody, without TLS."""
    allow_qemu: bool
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while somebody measures the link."""


class Greeting:
    """The first words with one connection.

    Args:
        sock: non-blocking; closed here unless somebody takes it.
        peer: address, for a person.
    """

    def __init__(self, events: ListenerEvents, admission: Admission, sock: socket.socket, peer: str) -> None:
        self._events = events
        self._tls = admission.tls
        self._allow_qemu = admission.allow_qemu
        self._probe = admission.probe
        self._sock = sock
        self._peer = peer
        self._identity: PeerIdentity | None = None
        """None: it came without TLS."""
        self._taken = False

    async def run(self) -> None:
        """Hand the socket on. Raises ProtocolError, OSError, EOFError: why it is not wanted."""
        try:
            if await self._first_byte() == TLS_FIRST_BYTE:
                await self._secure()
            await self._tell_apart()
        except ssl.SSLError as error:
            raise ProtocolError(tls_text(error)) from error
        finally:
            if not self._taken:
                self._sock.close()

    async def _first_byte(self) -> bytes:
        """Look, and leave it there for OpenSSL."""
        return await retry(self._sock, lambda: self._sock.recv(1, socket.MSG_PEEK))

    async def _secure(self) -> None:
        if self._tls is None:
            await send(self._sock, ALERT_PROTOCOL_VERSION)
            await linger(self._sock)
            raise ProtocolError("it speaks TLS, which this migrate-dst does only with --tls-dir")
        secured = self._tls.wrap(self._sock)
        self._sock = secured
        try:
            await retry(secured, secured.do_handshake)
        except ssl.SSLError:
            await linger(secured)  # OpenSSL has sent why
            raise
        self._identity = PeerIdentity.of(secured)

    async def _tell_apart(self) -> None:
        preface = await receive(self._sock, frames.PREFACE_BYTES)
        if preface == frames.PREFACE_LANE:
            await self._greet_lane()
        elif preface in (frames.PREFACE_CONTROL, frames.PREFACE_PROBE):
            reject = await self._refusal()
            if reject is not None:
                await send(self._sock, frames.encode_frame(reject))
                await linger(self._sock)
                raise ProtocolError(reject.reason)
            if preface == frames.PREFACE_CONTROL:
                await self._greet_control()
            else:
                await self._greet_probe()
        elif preface.startswith(qemu_wire.MAGIC):
            self._check_qemu()
            self._sock.setblocking(True)
            self._events.qemu_came(preface, self._sock, self._peer)
            self._taken = True
        elif preface.startswith(qemu_wire.MULTIFD_MAGIC):
            self._check_qemu()
            rest = await receive(self._sock, OPENING_BYTES - len(preface))
            self._sock.setblocking(True)
            self._events.multifd_came(decode_opening(preface + rest), self._sock, self._peer)
            self._taken = True
        else:
            raise ProtocolError("it does not speak this protocol")

    async def _refusal(self) -> m.Reject | None:
        """Why a control connection, or a probe, is not let in, if so."""
        if self._tls is None:
            return None
        if self._identity is None or not isinstance(self._sock, ssl.SSLSocket):
            return _NO_TLS
        return self._tls.refusal(self._identity) or await self._tls.welcome(self._sock)

    def _check_qemu(self) -> None:
        """A QEMU can show a certificate, but knows nothing of tokens. Raises ProtocolError."""
        if self._tls is None or self._allow_qemu:
            return
        if self._identity is None or not self._identity.fingerprint:
            raise ProtocolError(
                "this is a QEMU that shows no certificate: give it `tls-creds`, or start with --allow-qemu"
            )
        reject = self._tls.refusal(self._identity)
        if reject is not None:
            raise ProtocolError(reject.reason)

    async def _greet_probe(self) -> None:
        self._events.probe_came()
        if self._probe.locked():
            raise ProtocolError("another one measures the link")
        async with self._probe:
            await take_probe(self._sock)

    async def _greet_lane(self) -> None:
        """Whether it belongs to the migration is told by its secret and by its identity, none included."""
        opening = await receive_frame(self._sock, MAX_LANE_OPEN_BYTES)
        if not isinstance(opening, m.LaneOpen):
            raise ProtocolError(f"a lane opens with {opening.TYPE}")
        self._sock.setblocking(True)
        self._events.lane_came(opening, self._sock, self._identity)
        self._taken = True

    async def _greet_control(self) -> None:
        """Wait for the first message; who takes it sets the callbacks. The channel owns the socket."""
        loop = asyncio.get_running_loop()
        first: asyncio.Future[Message] = loop.create_future()

        def lost(reason: str) -> None:
            if not first.done():
                first.set_exception(ProtocolError(reason))

        channel: ControlChannel

        def message(value: Message) -> None:
            if first.done():  # a second message before the first was answered
                channel.close()
                return
            first.set_result(value)

        channel = ControlChannel(message, lost, self._identity)
        self._taken = True
        if isinstance(self._sock, ssl.SSLSocket):
            TlsTransport(self._sock, channel)
        else:
            await loop.connect_accepted_socket(lambda: channel, self._sock)
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
