"""A TLS socket as a transport: order, flow control, both ends of the stream, and an end in the middle."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
from certificates import Pki

from migrate.daemon.tls_transport import HIGH_WATER_BYTES, TlsTransport

PATIENCE = 30.0
MIB = 1 << 20


class Recorder(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.story: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def eof_received(self) -> bool:
        self.story.append("eof")
        return False

    def pause_writing(self) -> None:
        self.story.append("pause")

    def resume_writing(self) -> None:
        self.story.append("resume")
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def pair(pki: Pki) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Ours, for a transport, and the peer's, blocking; the handshake is done."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki.good / "server-cert.pem", pki.good / "server-key.pem")
    client = ssl.create_default_context(cafile=pki.good / "ca-cert.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = socket.create_connection(listener.getsockname(), PATIENCE)
        accepted, _ = listener.accept()
    accepting = threading.Thread(target=lambda: done.append(server.wrap_socket(accepted, server_side=True)))
    done: list[ssl.SSLSocket] = []
    accepting.start()
    theirs = client.wrap_socket(raw, server_hostname="127.0.0.1")
    accepting.join()
    with done[0] as ours, theirs:
        yield ours, theirs


Pair = tuple[ssl.SSLSocket, ssl.SSLSocket]


def read(sock: ssl.SSLSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (part := sock.recv(1 << 16)):
        data += part
    return bytes(data)


async def test_what_waits_in_openssl_is_not_forgotten(pair: Pair) -> None:
    """The greeting took its bytes out of a record in which more was."""
    ours, theirs = pair
    await asyncio.to_thread(theirs.sendall, b"greeting" + b"rest" * 1000)
    assert ours.recv(8) == b"greeting"
    ours.setblocking(False)
    protocol = Recorder()
    transport = TlsTransport(ours, protocol)
    await protocol.until(lambda: len(protocol.received) == 4000)
    transport.abort()
    assert await protocol.lost is None


async def test_everything_arrives_in_order_both_ways(pair: Pair, rng: random.Random) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    there, back = rng.randbytes(12 * MIB), rng.randbytes(5 * MIB)
    protocol = Recorder()
    transport = TlsTransport(ours, protocol)
    for at in range(0, len(there), 300_000):
        transport.write(there[at : at + 300_000])
    assert transport.get_write_buffer_size() > HIGH_WATER_BYTES and protocol.story == ["pause"]
    assert await asyncio.to_thread(read, theirs, len(there)) == there
    await protocol.until(lambda: protocol.story == ["pause", "resume"])
    await asyncio.to_thread(theirs.sendall, back)
    transport.write(b"the end")
    transport.write_eof()
    transport.write(b"too late")
    assert await asyncio.to_thread(read, theirs, 100) == b"the end"
    theirs.close()
    await protocol.lost  # OpenSSL may complain that we ended the stream and not TLS
    assert bytes(protocol.received) == back


async def test_the_peer_closes_while_we_have_more_to_say(pair: Pair) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    protocol = Recorder()
    transport = TlsTransport(ours, protocol)
    transport.write(bytes(5 * MIB))
    theirs.close()
    async with asyncio.timeout(PATIENCE):
        error = await protocol.lost
    assert error is None or isinstance(error, OSError)
    assert transport.is_closing()


async def test_changed_bytes_end_it(pair: Pair) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    protocol = Recorder()
    TlsTransport(ours, protocol)
    socket.socket.send(theirs, b"\x17\x03\x03\x00\x20" + bytes(32))
    async with asyncio.timeout(PATIENCE):
        error = await protocol.lost
    assert isinstance(error, ssl.SSLError) and "mac" in str(error).lower()
