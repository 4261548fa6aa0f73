"""The fault proxy against real sockets: what arrives, byte for byte, and how connections end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from migrate.daemon.fault_link import LAG_BYTES, READ_BYTES
from migrate.daemon.fault_proxy import FaultProxy, close
from migrate.daemon.toxics import (
    PACED_SECONDS,
    Bandwidth,
    Corrupt,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
)

MIB = 1 << 20


class Net:
    """A target that listens, a proxy in front of it, and all sockets that a test opened."""

    def __init__(self, listener: socket.socket, proxy: FaultProxy) -> None:
        self.listener = listener
        self.proxy = proxy
        self._sockets: list[socket.socket] = []

    async def connect(self) -> tuple[socket.socket, socket.socket]:
        """A connection through the proxy: the client's end and the target's."""
        client = await self.dial()
        peer, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self._sockets.append(peer)
        return client, peer

    async def dial(self) -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sockets.append(client)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.proxy.port))
        return client

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with FaultProxy("127.0.0.1", listener.getsockname()[1], seed=1) as proxy:
            net = Net(listener, proxy)
            try:
                yield net
            finally:
                net.close()


@pytest.fixture(autouse=True)
def bounded_time() -> Iterator[None]:
    """A test that waits for ever is a failure, not a hang."""

    def expired(*_: object) -> None:
        raise TimeoutError("20 s have passed")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes."""
    data = bytearray()
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        assert piece, f"the stream ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


async def receive_all(sock: socket.socket) -> tuple[bytes, str]:
    """Everything to the end, and how it ended: "eof" or "reset"."""
    data = bytearray()
    try:
        while piece := await asyncio.get_running_loop().sock_recv(sock, MIB):
            data += piece
    except ConnectionResetError:
        return bytes(data), "reset"
    return bytes(data), "eof"


async def both_ends(client: socket.socket, peer: socket.socket) -> tuple[tuple[bytes, str], ...]:
    return tuple(await asyncio.gather(receive_all(client), receive_all(peer)))


async def send_and_finish(sock: socket.socket, data: bytes) -> None:
    """Send and half-close; a connection that breaks meanwhile is the receiver's to report."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await send(sock, data)
        sock.shutdown(socket.SHUT_WR)


async def arrives(sender: socket.socket, receiver: socket.socket, data: bytes) -> tuple[bytes, str]:
    """What comes of sending `data` and a half-close, and how it ends at the receiver."""
    _, result = await asyncio.gather(send_and_finish(sender, data), receive_all(receiver))
    return result


# --- without toxics ------------------------------------------------------------------------------------


async def test_everything_passes_both_ways_and_is_counted(net: Net, rng: random.Random) -> None:
    client, peer = await net.connect()
    there, back = rng.randbytes(5 * MIB + 123), rng.randbytes(3 * MIB + 7)
    results = tuple(await asyncio.gather(arrives(client, peer, there), arrives(peer, client, back)))
    assert results == ((there, "eof"), (back, "eof"))
    connection = net.proxy.connections[0]
    await net.proxy.wait_for(lambda: connection.ended)
    assert connection.ended == "close"
    assert (connection.upstream.received, connection.upstream.delivered) == (len(there), len(there))
    assert (connection.downstream.received, connection.downstream.delivered) == (len(back), len(back))


async def test_one_side_may_finish_and_still_be_answered(net: Net) -> None:
    client, peer = await net.connect()
    await send_and_finish(client, b"question")
    assert await receive_all(peer) == (b"question", "eof")
    assert net.proxy.connections[0].ended is None
    await send_and_finish(peer, b"answer")
    assert await receive_all(client) == (b"answer", "eof")


async def test_connections_are_numbered_as_they_come(net: Net) -> None:
    pairs = [await net.connect() for _ in range(5)]
    for number, (client, _) in enumerate(pairs):
        await send(client, bytes(100 + number))
    await net.proxy.wait_for(
        lambda: [c.upstream.delivered for c in net.proxy.connections] == [100, 101, 102, 103, 104]
    )
    assert [c.index for c in net.proxy.connections] == [0, 1, 2, 3, 4]
    assert [len(await receive(peer, 100 + i)) for i, (_, peer) in enumerate(pairs)] == list(range(100, 105))


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_reset_is_passed_on(net: Net, by_client: bool) -> None:
    client, peer = await net.connect()
    await send(client, b"x")
    await receive(peer, 1)
    breaker, other = (client, peer) if by_client else (peer, client)
    close(breaker, reset=True)
    assert await receive_all(other) == (b"", "reset")


async def test_a_target_that_refuses_resets_the_client(net: Net) -> None:
    net.listener.close()
    client = await net.dial()
    assert await receive_all(client) == (b"", "reset")
    await net.proxy.wait_for(lambda: net.proxy.connections[0].ended == "reset")


@pytest.mark.parametrize("toxics", [(), (Latency(0.01),), (Bandwidth(1e9),)], ids=["plain", "lag", "paced"])
async def test_a_slow_reader_is_felt_by_the_sender(net: Net, toxics: tuple[Toxic, ...]) -> None:
    for toxic in toxics:
        net.proxy.add(toxic)
    client, peer = await net.connect()
    await net.proxy.wait_for(lambda: net.proxy.connections[0])
    link = net.proxy.connections[0].upstream
    held: list[int] = []

    def filled() -> bool:
        held.append(link.received - link.delivered)
        return link.received == 64 * MIB

    watching = asyncio.create_task(net.proxy.wait_for(filled))
    sending = asyncio.create_task(send_and_finish(client, bytes(64 * MIB)))
    await net.proxy.wait_for(lambda: link.received > 256 * 1024)
    data, ending = await receive_all(peer)
    await asyncio.gather(sending, watching)
    assert (len(data), ending) == (64 * MIB, "eof")
    assert max(held) <= READ_BYTES + (
        LAG_BYTES + READ_BYTES if isinstance(next(iter(toxics), None), Latency) else 0
    )


# --- toxics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 1000, READ_BYTES, 3 * READ_BYTES + 17])
async def test_reset_peer_hits_after_exactly_that_byte(net: Net, rng: random.Random, after: int) -> None:
    net.proxy.add(ResetPeer(after=after, connections=lambda index: index == 1))
    untouched = await net.connect()
    data = rng.randbytes(5 * MIB)
    client = await net.dial()
    if after == 0:
        assert await receive_all(client) == (b"", "reset")
    else:
        peer, _ = await asyncio.get_running_loop().sock_accept(net.listener)
        with contextlib.closing(peer):
            assert await arrives(client, peer, data) == (data[:after], "reset")
    assert net.proxy.connections[1].upstream.delivered == after
    assert await arrives(*untouched, data) == (data, "eof")


async def test_a_reset_does_not_wait_for_who_does_not_read(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrate.daemon.fault_link.DRAIN_SECONDS", 0.01)
    net.proxy.add(ResetPeer(after=512 * 1024))
    client, peer = await net.connect()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    await send(client, bytes(512 * 1024))
    await net.proxy.wait_for(lambda: net.proxy.connections[0].ended == "reset")
    data, ending = await receive_all(peer)
    assert ending == "reset"
    assert len(data) < 512 * 1024


async def test_a_reset_loses_nothing_of_what_came_before_it(net: Net, rng: random.Random) -> None:
    net.proxy.add(ResetPeer(after=MIB))
    client, peer = await net.connect()
    peer.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024
    )  # most of it is still with the proxy's kernel
    data = rng.randbytes(2 * MIB)
    assert await arrives(client, peer, data) == (data[:MIB], "reset")


async def test_reset_peer_also_hits_an_idle_connection(net: Net) -> None:
    client, peer = await net.connect()
    await send(client, b"12345")
    await receive(peer, 5)
    net.proxy.add(ResetPeer(after=5))
    assert await both_ends(client, peer) == ((b"", "reset"), (b"", "reset"))


async def test_a_toxic_waits_for_its_byte_on_each_connection_alone(net: Net) -> None:
    net.proxy.add(ResetPeer(after=10, direction="downstream"))
    (client, peer), (other_client, other_peer) = await net.connect(), await net.connect()
    await send(client, bytes(100))  # the wrong direction
    await send(other_peer, bytes(9))  # not enough
    assert await receive(peer, 100) == bytes(100)
    assert await receive(other_client, 9) == bytes(9)
    await send(peer, b"0123456789abc")
    assert await receive_all(client) == (b"0123456789", "reset")
    assert net.proxy.connections[1].ended is None


async def test_reset_peer_with_a_timeout_lets_bytes_pass_until_then(net: Net) -> None:
    client, peer = await net.connect()
    begin = time.monotonic()
    net.proxy.add(ResetPeer(timeout=0.05))
    await send(client, b"x")
    assert await receive_all(peer) == (b"x", "reset")
    assert time.monotonic() - begin >= 0.049


async def test_taking_a_toxic_off_stops_its_clock(net: Net) -> None:
    client, peer = await net.connect()
    net.proxy.remove(net.proxy.add(ResetPeer(timeout=0.02)))
    net.proxy.add(ResetPeer(timeout=0.06, direction="downstream"))
    begin = time.monotonic()
    assert await receive_all(peer) == (b"", "reset")
    assert time.monotonic() - begin >= 0.055
    del client


@pytest.mark.parametrize(("after", "limit"), [(0, 1), (0, 100_000), (1000, 2 * MIB)])
async def test_limit_data_closes_in_good_order(net: Net, rng: random.Random, after: int, limit: int) -> None:
    net.proxy.add(LimitData(limit, after=after))
    client, peer = await net.connect()
    data = rng.randbytes(4 * MIB)
    assert await arrives(client, peer, data) == (data[: after + limit], "eof")
    assert net.proxy.connections[0].ended == "close"


async def test_timeout_holds_everything_until_it_is_taken_off(net: Net, rng: random.Random) -> None:
    toxic = net.proxy.add(Timeout(after=5000))
    client, peer = await net.connect()
    data = rng.randbytes(100_000)
    await send(client, data)
    link = net.proxy.connections[0].upstream
    await net.proxy.wait_for(lambda: link.received > 5000)
    assert await receive(peer, 5000) == data[:5000]
    # Something else goes all the way and back; what is held is still held.
    await send(peer, b"pong")
    assert await receive(client, 4) == b"pong"
    assert link.delivered == 5000
    net.proxy.remove(toxic)
    assert await receive(peer, 95_000) == data[5000:]


async def test_timeout_closes_when_it_is_over(net: Net) -> None:
    begin = time.monotonic()
    net.proxy.add(Timeout(0.05))
    client, peer = await net.connect()
    await send(client, b"lost")
    assert await receive_all(peer) == (b"", "eof")
    assert time.monotonic() - begin >= 0.049
    assert net.proxy.connections[0].upstream.delivered == 0


async def test_latency_delays_but_does_not_hold_up_what_follows(net: Net) -> None:
    client, peer = await net.connect()
    await net.proxy.wait_for(lambda: net.proxy.connections[0])
    net.proxy.add(Latency(3600))
    link = net.proxy.connections[0].upstream
    for i in range(1, 6):
        await send(client, bytes(1000))
        await net.proxy.wait_for(lambda i=i: link.received == 1000 * i)  # type: ignore[misc]
    assert link.delivered == 0
    await send(peer, b"the other way is free")
    await receive(client, 21)


async def test_latency_is_at_least_what_was_asked_for(net: Net) -> None:
    net.proxy.add(Latency(0.03, direction="both"))
    client, peer = await net.connect()
    begin = time.monotonic()
    await send(client, b"ping")
    await receive(peer, 4)
    assert time.monotonic() - begin >= 0.029
    await send(peer, b"pong")
    await receive(client, 4)
    assert time.monotonic() - begin >= 0.059


def test_jitter_spreads_the_latency_both_ways() -> None:
    effect = Latency(0.010, jitter=0.004).effect(random.Random(1), 0)
    lags = sorted(effect.lag() for _ in range(1000))
    assert 0.006 <= lags[0] < 0.0065
    assert 0.0135 < lags[-1] <= 0.014
    assert Latency(0.001, jitter=0.1).effect(random.Random(2), 0).lag() >= 0


async def test_what_is_late_is_not_overtaken_when_the_latency_is_taken_off(net: Net) -> None:
    toxic = net.proxy.add(Latency(0.05))
    client, peer = await net.connect()
    await send(client, b"late ")
    await net.proxy.wait_for(lambda: net.proxy.connections[0].upstream.received == 5)
    net.proxy.remove(toxic)
    await send(client, b"early")
    assert await receive(peer, 10) == b"late early"


async def test_jitter_keeps_the_order(net: Net, rng: random.Random) -> None:
    net.proxy.add(Latency(0.002, jitter=0.002))
    net.proxy.add(Slicer(10_000, size_variation=9_000))
    client, peer = await net.connect()
    data = rng.randbytes(500_000)
    assert await arrives(client, peer, data) == (data, "eof")


async def test_a_limit_is_exact_behind_latency_too(net: Net, rng: random.Random) -> None:
    net.proxy.add(Latency(0.01))
    net.proxy.add(ResetPeer(after=123_456))
    client, peer = await net.connect()
    data = rng.randbytes(MIB)
    assert await arrives(client, peer, data) == (data[:123_456], "reset")


@pytest.mark.parametrize("shared", [False, True])
async def test_bandwidth_is_never_exceeded(net: Net, shared: bool) -> None:
    rate, each = 10_000_000, 800_000
    net.proxy.add(Bandwidth(rate, shared=shared))
    pairs = [await net.connect() for _ in range(2)]
    begin = time.monotonic()
    results = await asyncio.gather(*(arrives(*pair, bytes(each)) for pair in pairs))
    elapsed = time.monotonic() - begin
    assert results == [(bytes(each), "eof")] * 2
    limited = each * (2 if shared else 1)
    assert elapsed >= limited / rate - PACED_SECONDS  # a full bucket at the start


async def test_bandwidth_can_be_lifted_on_the_way(net: Net) -> None:
    toxic = net.proxy.add(Bandwidth(50_000))  # 64 MiB would take 20 minutes
    client, peer = await net.connect()
    receiving = asyncio.create_task(arrives(client, peer, bytes(64 * MIB)))
    await net.proxy.wait_for(lambda: net.proxy.connections[0].upstream.delivered >= 2000)
    net.proxy.remove(toxic)
    assert (await receiving)[1] == "eof"


def test_slices_have_the_average_size_and_end_where_they_end() -> None:
    effect = Slicer(1000, size_variation=400).effect(random.Random(5), 0)
    ends = [0]
    for _ in range(2000):
        end = effect.boundary(ends[-1])
        assert end is not None
        assert effect.boundary((ends[-1] + end) // 2) == end  # a piece that came short changes nothing
        ends.append(end)
    sizes = [after - before for before, after in itertools.pairwise(ends)]
    assert min(sizes) >= 600
    assert max(sizes) <= 1400
    assert len(set(sizes)) > 100
    assert 980 <= sum(sizes) / len(sizes) <= 1020


async def test_slices_leave_one_by_one(net: Net) -> None:
    net.proxy.add(Slicer(1000, delay=0.001))
    client, peer = await net.connect()
    await net.proxy.wait_for(lambda: net.proxy.connections[0])
    link = net.proxy.connections[0].upstream
    seen: set[int] = set()

    def all_there() -> bool:
        seen.add(link.delivered)
        return link.delivered == 10_500

    watching = asyncio.create_task(net.proxy.wait_for(all_there))
    begin = time.monotonic()
    await send(client, bytes(10_500))
    await watching
    assert seen >= {*range(1000, 11_000, 1000), 10_500}
    assert time.monotonic() - begin >= 0.0105
    await receive(peer, 10_500)


async def test_slow_close_passes_the_end_on_late(net: Net) -> None:
    net.proxy.add(SlowClose(0.05))
    client, peer = await net.connect()
    begin = time.monotonic()
    assert await arrives(client, peer, b"data") == (b"data", "eof")
    assert time.monotonic() - begin >= 0.049


async def test_corrupt_flips_exactly_the_named_bits(net: Net, rng: random.Random) -> None:
    offsets = (0, 4095, READ_BYTES, 2 * READ_BYTES - 1, 3_000_000)
    net.proxy.add(Corrupt(offsets, bit=3))
    client, peer = await net.connect()
    data = rng.randbytes(3 * MIB)
    expected = bytearray(data)
    for offset in offsets:
        expected[offset] ^= 8
    assert await arrives(client, peer, data) == (bytes(expected), "eof")


async def corrupted(net: Net, seed: int, slice_size: int) -> bytes:
    """2 MB of zeros through a fresh proxy that flips one byte in 50 000."""
    async with FaultProxy("localhost", net.listener.getsockname()[1], seed=seed) as proxy:
        proxy.add(Corrupt((77,), probability=1 / 50_000, after=50))
        if slice_size:
            proxy.add(Slicer(slice_size, size_variation=slice_size // 2))
        other = Net(net.listener, proxy)
        client, peer = await other.connect()
        data, _ = await arrives(client, peer, bytes(2_000_000))
        other.close()
    return data


async def test_random_faults_can_be_repeated_however_the_stream_is_cut(net: Net) -> None:
    first, again, sliced, other = [
        await corrupted(net, seed, slices) for seed, slices in [(7, 0), (7, 0), (7, 30_000), (8, 0)]
    ]
    assert first == again == sliced
    assert first != other
    flipped = [byte for byte in first if byte]
    assert first[77]
    assert not any(first[:50])
    assert 20 <= len(flipped) <= 70  # 41 on average
    assert all(byte.bit_count() == 1 for byte in flipped)


def test_a_certain_fault_hits_every_byte() -> None:
    piece = bytearray(100)
    Corrupt(probability=1.0, bit=0).effect(random.Random(1), 10).change(10, memoryview(piece))
    assert piece == bytes([1]) * 100


def test_random_faults_come_as_often_as_asked_for() -> None:
    piece = bytearray(20_000)
    Corrupt(probability=0.5, bit=0).effect(random.Random(1), 0).change(0, memoryview(piece))
    assert 9_600 <= sum(piece) <= 10_400


async def test_several_toxics_act_together(net: Net, rng: random.Random) -> None:
    for toxic in (
        Slicer(5000),
        Latency(0.001),
        Bandwidth(100e6),
        Corrupt((500_000,), bit=0),
        LimitData(600_000),
    ):
        net.proxy.add(toxic)
    client, peer = await net.connect()
    data = rng.randbytes(MIB)
    expected = bytearray(data[:600_000])
    expected[500_000] ^= 1
    assert await arrives(client, peer, data) == (bytes(expected), "eof")


# --- partitions ----------------------------------------------------------------------------------------


async def test_a_cut_resets_both_sides_and_refuses_until_it_is_restored(net: Net) -> None:
    pairs = [await net.connect() for _ in range(3)]
    await net.proxy.cut()
    for client, peer in pairs:
        assert await both_ends(client, peer) == ((b"", "reset"), (b"", "reset"))
    assert [c.ended for c in net.proxy.connections] == ["reset"] * 3
    with pytest.raises(ConnectionRefusedError):
        await net.dial()
    await net.proxy.restore()
    client, peer = await net.connect()
    assert await arrives(client, peer, b"again") == (b"again", "eof")
    assert len(net.proxy.connections) == 4


async def test_a_silent_cut_tells_nobody_for_ever(net: Net) -> None:
    client, peer = await net.connect()
    await send(client, b"before")
    await receive(peer, 6)
    await net.proxy.cut("silent")
    await send(client, b"into the void")
    await send(peer, b"and back")
    with pytest.raises(ConnectionRefusedError):
        await net.dial()
    await net.proxy.restore()
    fresh = await net.connect()
    assert await arrives(*fresh, b"after") == (b"after", "eof")
    for sock in (client, peer):
        with pytest.raises(BlockingIOError):  # neither bytes, nor an end
            sock.recv(1)
    assert net.proxy.connections[0].ended == "silent"
    assert net.proxy.connections[0].upstream.delivered == 6


async def test_cutting_and_restoring_twice_changes_nothing(net: Net) -> None:
    port = net.proxy.port
    await net.proxy.cut()
    await net.proxy.cut()
    await net.proxy.restore()
    await net.proxy.restore()
    client, peer = await net.connect()
    assert await arrives(client, peer, b"x") == (b"x", "eof")
    assert net.proxy.port == port


async def test_a_cut_reaches_connections_whose_bytes_are_stuck(net: Net) -> None:
    client, peer = await net.connect()
    sending = asyncio.create_task(send_and_finish(client, bytes(64 * MIB)))  # nobody reads it
    await net.proxy.wait_for(lambda: net.proxy.connections[0].upstream.received > 256 * 1024)
    await net.proxy.cut()
    await sending
    assert (await receive_all(peer))[1] == "reset"


# --- nothing is left -----------------------------------------------------------------------------------


def open_sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += str(entry.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("before_exit", [None, "silent", "reset"])
async def test_leaving_ends_all_tasks_and_closes_all_sockets(before_exit: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        sockets, tasks = open_sockets(), asyncio.all_tasks()
        async with FaultProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
            proxy.add(Timeout(3600, connections=lambda index: index == 1))
            proxy.add(Latency(3600, connections=lambda index: index == 2))
            net = Net(listener, proxy)
            for client, _ in [await net.connect() for _ in range(3)]:
                await send(client, b"on its way")
            if before_exit == "silent":
                await proxy.cut("silent")
            elif before_exit == "reset":
                await proxy.cut("reset")
            assert open_sockets() > sockets
            port = proxy.port
        net.close()
        await asyncio.sleep(0)  # uvloop gives descriptors back in the next turn of the loop
        assert open_sockets() == sockets
        assert asyncio.all_tasks() == tasks
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


async def test_leaving_by_an_error_closes_too(net: Net) -> None:
    sockets = open_sockets()
    with pytest.raises(KeyError, match="of the test"):
        async with FaultProxy("127.0.0.1", net.listener.getsockname()[1]) as proxy:
            client, peer = await Net(net.listener, proxy).connect()
            with client, peer:
                raise KeyError("of the test")
    await asyncio.sleep(0)
    assert open_sockets() == sockets


async def test_a_mistake_in_a_toxic_is_not_swallowed() -> None:
    class Broken(Toxic):
        def effect(self, rng: random.Random, start: int) -> None:  # type: ignore[override]
            return None

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        with pytest.raises(ExceptionGroup):
            async with FaultProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
                proxy.add(Broken(after=1))
                net = Net(listener, proxy)
                client, _ = await net.connect()
                await send(client, b"xx")
                await proxy.wait_for(lambda: proxy.connections[0].ended)
                net.close()


def predicate_of(calls: list[int]) -> Callable[[], bool]:
    def predicate() -> bool:
        calls.append(1)
        return False

    return predicate


async def test_one_may_wait_for_a_connection_to_come(net: Net) -> None:
    waiting = asyncio.create_task(net.proxy.wait_for(lambda: net.proxy.connections[1]))
    await net.connect()
    assert not waiting.done()
    await net.connect()
    await waiting


async def test_a_wait_that_is_given_up_is_forgotten(net: Net) -> None:
    calls: list[int] = []
    waiting = asyncio.create_task(net.proxy.wait_for(predicate_of(calls)))
    client, peer = await net.connect()
    await send(client, b"x")
    await receive(peer, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    asked = len(calls)
    assert asked > 1
    await send(client, b"x")
    await receive(peer, 1)
    assert len(calls) == asked
