"""Peers that mean harm, or that lose their way, before anybody knows them: bounded time, bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Pki

from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig
from migrate.daemon.destination import DestinationDaemon
from migrate.daemon.nonblocking import receive, receive_frame, send
from migrate.daemon.tls_client import TlsClient
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.stats import MigrationStats
from migrate.protocol.token import token_proof, token_proved

PATIENCE = 30.0
GREETING_SECONDS = 0.4
TOO_LONG = "did not say what it is within"


class Destination:
    """A daemon in this process, and what it warned of (Reporter)."""

    def __init__(self, config: DestinationConfig) -> None:
        self.warnings: list[str] = []
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()
        self.daemon = DestinationDaemon(config, self)

    def event(self, name: str, **fields: object) -> None:
        if name == "listening":
            self.port.set_result(int(str(fields["port"])))
        if name == "warning":
            self.warnings.append(str(fields["message"]))
            self._news.set()

    def progress(self, stats: MigrationStats, now: float) -> None:
        pass

    def summary(self, stats: MigrationStats, now: float, outcome: str, **fields: object) -> None:
        pass

    def error(self, error: Exception) -> None:
        self.warnings.append(str(error))

    async def warned(self, *words: str, times: int = 1) -> None:
        """Wait until so many warnings have all of these words."""
        async with asyncio.timeout(PATIENCE):
            while sum(all(word in text for word in words) for text in self.warnings) < times:
                self._news.clear()
                await self._news.wait()


Start = Callable[..., contextlib.AbstractAsyncContextManager[Destination]]


@pytest.fixture
def start(pki: Pki, shm_dir: Path) -> Start:
    """Run a daemon that gives strangers little time."""

    @contextlib.asynccontextmanager
    async def started(**options: object) -> AsyncIterator[Destination]:
        config = DestinationConfig(
            listen=Address("127.0.0.1", 0),
            ram=(RamSpec("pc.ram", shm_dir / "ram"),),
            tls_dir=pki.good,
            keepalive_timeout=GREETING_SECONDS,
        )
        destination = Destination(replace(config, **options))  # type: ignore[arg-type]
        task = asyncio.ensure_future(destination.daemon.run())
        try:
            async with asyncio.timeout(PATIENCE):
                await destination.port
                yield destination
        finally:
            task.cancel()
            with contextlib.suppress(Exception):
                await task

    return started


async def connection(destination: Destination) -> socket.socket:
    """Non-blocking, connected."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", destination.port.result()))
    return sock


async def secured(destination: Destination, pki: Pki, directory: Path | None = None) -> ssl.SSLSocket:
    """A connection whose handshake is done."""
    context = ssl.create_default_context(cafile=pki.good / "ca-cert.pem")
    at = directory or pki.good
    context.load_cert_chain(at / "client-cert.pem", at / "client-key.pem")
    sock = context.wrap_socket(
        await connection(destination), server_hostname="127.0.0.1", do_handshake_on_connect=False
    )
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await asyncio.sleep(0.001)
        else:
            return sock


def client_hello() -> bytes:
    """What a client says first."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


async def cut_off(sock: socket.socket) -> bytes:
    """Read to the end, which comes from the other side; returns what was said before."""
    said = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError, EOFError):
        while True:
            said += await receive(sock, 1)
    return said


@pytest.mark.parametrize(
    ("bytes_said", "warning"),
    [
        (b"", TOO_LONG),
        (b"\x16", TOO_LONG),
        (client_hello()[:50], TOO_LONG),
        (client_hello(), TOO_LONG),
        (client_hello() + b"\xff" * 4096, "TLS: "),
        (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\x00" * 0x4000, "TLS: "),
        (b"\x16\x03\x01\xff\xff" + b"\x01" * 100, "TLS: "),
        (b"\x16\x03\x03\x00\x01\x14" * 400, "TLS: "),
        (b"MIGRATE\x02" + b"\x00" * 200, "refused"),
    ],
    ids=["silent", "one-byte", "half", "half-open", "garbage", "huge-hello", "huge-record", "alien", "plain"],
)
async def test_before_the_handshake(start: Start, bytes_said: bytes, warning: str) -> None:
    async with start() as destination:
        sock = await connection(destination)
        with sock:
            await send(sock, bytes_said)
            await cut_off(sock)
        await destination.warned(warning)


async def test_a_flood_after_a_bad_handshake_ends(start: Start) -> None:
    """Who goes on talking after the refusal keeps neither the loop nor his place."""
    async with start() as destination:
        sock = await connection(destination)
        sock.setblocking(True)

        def flood() -> None:
            with sock, contextlib.suppress(ConnectionError):
                sock.sendall(client_hello())
                while True:
                    sock.sendall(b"\xff" * (1 << 22))

        await asyncio.to_thread(flood)
        await destination.warned(TOO_LONG)


async def test_half_open_connections_leave_room_for_others(start: Start, pki: Pki) -> None:
    async with start() as destination:
        hello = client_hello()
        strangers = [await connection(destination) for _ in range(40)]
        for stranger in strangers:
            with contextlib.suppress(ConnectionError):
                await send(stranger, hello)
        await destination.warned(TOO_LONG, times=32)
        with await secured(destination, pki) as sock:
            await send(sock, frames.PREFACE_CONTROL)
            assert isinstance(await receive_frame(sock, 1 << 10), m.Welcome)
        for stranger in strangers:
            stranger.close()


@pytest.mark.parametrize(
    ("frame", "warning"),
    [
        (b"", TOO_LONG),
        ((1 << 20).to_bytes(4, "big") + bytes(4), "frame of 1048576 bytes"),
        (frames.encode_frame(m.Ping(1)), "instead of a proof"),
        (frames.encode_frame(m.TokenProof(bytes(32), bytes(32))), "token is not"),
    ],
    ids=["silent", "huge", "other-message", "guessed"],
)
async def test_before_the_token(start: Start, pki: Pki, frame: bytes, warning: str) -> None:
    async with start(token_file=pki.token) as destination:
        with await secured(destination, pki) as sock:
            await send(sock, frames.PREFACE_CONTROL)
            welcome = await receive_frame(sock, 1 << 10)
            assert isinstance(welcome, m.Welcome) and welcome.token
            await send(sock, frame)
            said = await cut_off(sock)
        await destination.warned(warning)
        assert bool(said) == (warning == "token is not"), "only who tries is answered"


async def test_key_updates_without_end(start: Start, pki: Pki) -> None:
    """OpenSSL allows any number of them; the time to say something is up all the same."""
    async with start() as destination:
        client = await asyncio.create_subprocess_exec(
            "openssl",
            "s_client",
            "-connect",
            f"127.0.0.1:{destination.port.result()}",
            "-CAfile",
            str(pki.good / "ca-cert.pem"),
            "-cert",
            str(pki.good / "client-cert.pem"),
            "-key",
            str(pki.good / "client-key.pem"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert client.stdin is not None and client.stdout is not None
        asked = 0
        with contextlib.suppress(ConnectionError):
            while line := await client.stdout.readline():  # until it is cut off
                if asked == 0 or b"KEYUPDATE" in line:
                    client.stdin.write(b"K\n")
                    await client.stdin.drain()
                    asked += 1
        assert asked > 3
        await destination.warned(TOO_LONG)
        client.stdin.close()
        await client.wait()


def hello(attempt: int = 1, resume: bool = False) -> m.Hello:
    """Of a migration of 64 KiB."""
    return m.Hello(
        versions=[m.PROTOCOL_VERSION],
        migration=b"\x07" * 16,
        attempt=attempt,
        resume=resume,
        check=False,
        software="test",
        page_size=4096,
        blocks=[m.Block("pc.ram", 65536)],
        data_bytes=0,
        cache_bytes=0,
        cache_rule="default",
        lanes=2,
        codec="none",
        verify="ram",
        digest_seed=bytes(32),
    )


async def test_a_lane_belongs_to_who_began_the_migration(start: Start, pki: Pki, tmp_path: Path) -> None:
    """Even the lanes' secret does not let in a peer with another certificate, or with none."""
    other = pki.ca.write(tmp_path / "other")
    pki.ca.sign(other, "client", "host-z")
    source = SourceConfig(to=Address("127.0.0.1", 1), ram=(RamSpec("x", Path("x")),), tls_dir=pki.good)
    async with start(keepalive_timeout=PATIENCE) as destination:
        control = await TlsClient(source).greet(await connection(destination), frames.PREFACE_CONTROL)
        with control:
            await send(control, frames.encode_frame(hello()))
            accept = await receive_frame(control, 1 << 10)
            assert isinstance(accept, m.Accept)
            opening = m.LaneOpen(b"\x07" * 16, 1, 0, 1, accept.secret)
            greeting = frames.PREFACE_LANE + frames.encode_frame(opening)
            plain = await connection(destination)
            with plain:
                await send(plain, greeting)
                await cut_off(plain)
            await destination.warned("somebody else (None)")
            with await secured(destination, pki, other) as stranger:
                await send(stranger, greeting)
                await cut_off(stranger)
            await destination.warned("somebody else (host-z)")
            with await secured(destination, pki, other) as stranger:
                await send(stranger, frames.PREFACE_CONTROL)
                assert isinstance(await receive_frame(stranger, 1 << 10), m.Welcome)
                await send(stranger, frames.encode_frame(hello(2, resume=True)))
                reject = await receive_frame(stranger, 1 << 10)
                assert isinstance(reject, m.Reject) and "another source" in reject.reason
            assert destination.daemon.incoming is not None, "the migration goes on"


def test_a_proof_is_worth_nothing_elsewhere() -> None:
    token, certificate, theirs, ours = b"secret" * 4, b"certificate", b"\1" * 32, b"\2" * 32
    proof = token_proof(token, certificate, theirs, ours)
    assert token_proved(token, certificate, theirs, ours, proof)
    for changed in (
        (b"Secret" * 4, certificate, theirs, ours, proof),
        (token, b"another server", theirs, ours, proof),
        (token, certificate, b"\3" * 32, ours, proof),
        (token, certificate, theirs, b"\3" * 32, proof),
        (token, certificate, theirs, ours, bytes(32)),
    ):
        assert not token_proved(*changed)
