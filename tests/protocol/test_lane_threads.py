"""The two lane threads over a real socket: what they hold back is neither lost nor told late, and they obey.

Each test runs over a plain connection and over TLS, whose sockets know no flags and hold bytes of their own.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from lane_pair import LanePair, lane_pair
from protocol_support import PAGE

from migrate.config import Address, RamSpec, SourceConfig
from migrate.daemon.lane_receiver import HELD_BATCHES, LaneReceiver
from migrate.daemon.lane_sender import LaneSender
from migrate.daemon.tls_client import TlsClient
from migrate.kernel.results import STAGE_BULK
from migrate.protocol.bandwidth import TokenBucket
from migrate.protocol.batch import HEADER_BYTES, BatchHeader, Kind
from migrate.protocol.lane_destination import AppliedBatch
from migrate.protocol.lane_source import SourceLane
from tests.tls.certificates import Authority

PATIENCE = 30.0
BATCHES = 20
"""Batches of records in the streams below, a page each."""


class Receiver:
    """Takes what the destination's thread tells."""

    def __init__(self) -> None:
        self.told: list[list[AppliedBatch]] = []
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    @property
    def sequences(self) -> list[int]:
        return [batch.sequence for batches in self.told for batch in batches]

    def batches_applied(self, lane: int, batches: list[AppliedBatch]) -> None:
        assert lane == 0 and not self.ended.done()
        self.told.append(batches)
        self._changed.set()

    def receiver_ended(self, lane: int, problem: Exception | None) -> None:
        self.ended.set_result(problem)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what was told."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def _stream(pair: LanePair, rng: random.Random) -> list[bytes]:
    """A bulk round of one page a batch: the opening batch, BATCHES of records, the end of the round."""
    for page in range(BATCHES):
        pair.here.write(0, page, rng.randbytes(PAGE))
    pair.open(0)
    pair.start_round(STAGE_BULK)
    batches = []
    while (made := pair.make(0, limit=1)) is not None:
        batches.append(made[0])
        pair.source[0].acknowledge(1, made[1].sequence)
    assert len(batches) == BATCHES + 2
    return batches


class Wire:
    """Connections as the lanes get them."""

    def __init__(self, tls_dir: Path | None) -> None:
        self.client: TlsClient | None = None
        self._server: ssl.SSLContext | None = None
        if tls_dir is not None:
            block = (RamSpec("pc.ram", Path("ram")),)
            self.client = TlsClient(SourceConfig(Address("127.0.0.1", 1), block, tls_dir=tls_dir))
            self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.load_cert_chain(tls_dir / "server-cert.pem", tls_dir / "server-key.pem")

    def accept(self, listener: socket.socket) -> socket.socket:
        """The destination's end, blocking."""
        sock, _ = listener.accept()
        return sock if self._server is None else self._server.wrap_socket(sock, server_side=True)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The destination's end and the source's, blocking."""
        accepted: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = threading.Thread(target=lambda: accepted.append(self.accept(listener)))
            accepting.start()
            there = socket.create_connection(listener.getsockname(), PATIENCE)
            if self.client is not None:
                secured = self.client.wrap(there)
                secured.do_handshake()
                there = secured
            accepting.join()
        return accepted[0], there


@pytest.fixture(params=["plain", "tls"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Wire:
    if request.param == "plain":
        return Wire(None)
    authority = Authority("test CA")
    directory = authority.write(tmp_path / "tls")
    authority.sign(directory, "server", "destination", ["127.0.0.1"])
    authority.sign(directory, "client", "source")
    return Wire(directory)


def _receiver(pair: LanePair, here: socket.socket) -> tuple[LaneReceiver, Receiver]:
    events = Receiver()
    return LaneReceiver(pair.destination[0], here, events), events


async def test_what_waits_in_the_socket_is_told_together(
    wire: Wire, shm_dir: Path, rng: random.Random
) -> None:
    with lane_pair(shm_dir, pages=(BATCHES,)) as pair:
        batches = _stream(pair, rng)
        here, there = wire.connect()
        with there:
            there.sendall(b"".join(batches))
            thread, events = _receiver(pair, here)
            thread.start()
            await events.until(lambda: len(events.sequences) == len(batches))
            thread.stop()
            assert await events.ended is None
            thread.join()
    assert events.sequences == list(range(1, len(batches) + 1))
    assert max(len(batches) for batches in events.told) <= HELD_BATCHES
    assert [events.told[0][-1].kind, events.told[-1][-1].kind] == [Kind.RESET, Kind.ROUND_END]
    pair.check_equal()


async def test_nothing_is_held_while_the_thread_waits(wire: Wire, shm_dir: Path, rng: random.Random) -> None:
    """A slow link: every batch is acknowledged before the next one comes."""
    with lane_pair(shm_dir, pages=(BATCHES,)) as pair:
        batches = _stream(pair, rng)
        here, there = wire.connect()
        with there:
            thread, events = _receiver(pair, here)
            thread.start()
            for number, batch in enumerate(batches, 1):
                there.sendall(batch)
                await events.until(lambda number=number: events.sequences[-1:] == [number])  # type: ignore[misc]
            thread.stop()
            assert await events.ended is None
            thread.join()
    assert [len(batches) for batches in events.told] == [1] * len(batches)


async def test_what_was_applied_is_told_before_the_end(wire: Wire, shm_dir: Path, rng: random.Random) -> None:
    """The connection breaks, or bad bytes come, right behind batches that are held."""
    for bad in (b"", b"\xff" * HEADER_BYTES):
        with lane_pair(shm_dir / str(len(bad)), pages=(BATCHES,)) as pair:
            good = _stream(pair, rng)[:5]
            here, there = wire.connect()
            there.sendall(b"".join(good) + bad)
            there.close()
            thread, events = _receiver(pair, here)
            thread.start()
            assert isinstance(await events.ended, Exception)
            thread.join()
            assert events.sequences == [1, 2, 3, 4, 5]
            assert pair.destination[0].position == (1, 5)


class Sender:
    """Takes what the source's thread tells."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.noted = 0

    def batches_noted(self, lane: int) -> None:
        assert lane == 0
        self.noted += 1

    def lane_ended(self, lane: int, problem: Exception | None) -> None:
        self.ended.set_result(problem)


def _sender(wire: Wire, lane: SourceLane, listener: socket.socket, events: Sender) -> LaneSender:
    address, bucket = listener.getsockname(), TokenBucket(0, 1)
    return LaneSender(lane, address, b"hi", bucket, 1, PATIENCE, events, wire.client)


async def test_a_batch_is_noted_before_its_first_byte_leaves(
    wire: Wire, shm_dir: Path, rng: random.Random
) -> None:
    """Who fetches the notes when a batch arrives finds it there, whatever the loop was told."""
    loop = asyncio.get_running_loop()
    with lane_pair(shm_dir, pages=(BATCHES,)) as pair, socket.create_server(("127.0.0.1", 0)) as listener:
        for page in range(BATCHES):
            pair.here.write(0, page, rng.randbytes(PAGE))
        lane, events = pair.source[0], Sender()
        lane.open(1)
        sender = _sender(wire, lane, listener, events)
        sender.start()
        sender.post(partial(lane.start_round, 1, STAGE_BULK, pair.harvest(first=True)))
        peer = await asyncio.to_thread(wire.accept, listener)
        known: list[int] = []

        def read(count: int) -> bytes:
            data = b""
            while len(data) < count:
                data += peer.recv(count - len(data))
            return data

        with peer:
            assert await asyncio.to_thread(read, 2) == b"hi"
            kind = None
            while kind is not Kind.ROUND_END:
                header = BatchHeader.decode(await asyncio.to_thread(read, HEADER_BYTES))
                kind = header.kind
                known += [batch.sequence for batch in sender.take_sent()]
                assert header.sequence in known, "a batch came before its note"
                await asyncio.to_thread(read, header.wire_length)
            sender.stop()
            assert await events.ended is None
        await loop.run_in_executor(None, sender.join)
    assert known == list(range(1, len(known) + 1))
    assert events.noted > 0


async def test_a_receiver_that_waits_is_woken(wire: Wire, shm_dir: Path) -> None:
    with lane_pair(shm_dir, pages=(1,)) as pair:
        pair.open(0)
        here, there = wire.connect()
        with there:
            thread, events = _receiver(pair, here)
            thread.start()
            thread.stop()
            async with asyncio.timeout(PATIENCE):
                assert await events.ended is None
            thread.join()


async def test_a_sender_that_cannot_send_is_woken(wire: Wire, shm_dir: Path, rng: random.Random) -> None:
    """Nobody reads: it stands in the middle of a batch, or of a TLS record."""
    pages = 2048
    with lane_pair(shm_dir, pages=(pages,)) as pair, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for page in range(pages):
            pair.here.write(0, page, rng.randbytes(PAGE))
        lane, events = pair.source[0], Sender()
        lane.open(1)
        sender = _sender(wire, lane, listener, events)
        sender.start()
        sender.post(partial(lane.start_round, 1, STAGE_BULK, pair.harvest(first=True)))
        with await asyncio.to_thread(wire.accept, listener):
            noted = -1
            async with asyncio.timeout(PATIENCE):
                while noted != events.noted or not noted:
                    noted = events.noted
                    await asyncio.sleep(0.05)
            sender.stop()
            async with asyncio.timeout(PATIENCE):
                assert await events.ended is None
        sender.join()


async def test_a_sender_is_woken_in_the_handshake(wire: Wire, shm_dir: Path) -> None:
    """The peer took the connection and says nothing."""
    with lane_pair(shm_dir, pages=(1,)) as pair, socket.create_server(("127.0.0.1", 0)) as listener:
        lane, events = pair.source[0], Sender()
        lane.open(1)
        sender = _sender(wire, lane, listener, events)
        sender.start()
        peer, _ = await asyncio.to_thread(listener.accept)
        with peer:
            await asyncio.to_thread(peer.recv, 1)  # it has begun
            sender.stop()
            async with asyncio.timeout(PATIENCE):
                assert await events.ended is None
        sender.join()
