"""Real daemons over a network that breaks: the guest is never stopped for it, nothing is lost.

Connection 0 is the first control connection, connection 1 the first lane; reconnects count on.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from bench.lab import Event, Lab, Program
from migrate.daemon.fault_proxy import FaultProxy
from migrate.daemon.toxics import Bandwidth, Corrupt, Ending, Latency, LimitData, ResetPeer, Slicer, Toxic

OPTIONS = ("--downtime-limit=2000", "--keepalive-timeout=2", "--reconnect-timeout=30")


class Move:
    """A guest on its way through the proxy."""

    def __init__(self, lab: Lab, rate: str = "--rate=5000") -> None:
        self.lab = lab
        self.guest = lab.start_guest("--workload=mixed", rate)
        self.destination = lab.start_destination("--once", "--keepalive-timeout=2")
        self.port: int = self.destination.wait_event("listening")["port"]
        self.source: Program

    def start(self, proxy: FaultProxy, *options: str) -> None:
        self.source = self.lab.start_source(proxy.port, self.guest, *OPTIONS, *options)

    async def finish(self, *, one_pause: bool = True) -> Event:
        """Wait for a good end and check everything; returns the source's summary.

        A fault that may come at any time may also come in the pause; then a second one follows.
        """
        assert await asyncio.to_thread(self.source.wait) == 0, self.source.story() + self.destination.story()
        assert await asyncio.to_thread(self.destination.wait) == 0
        await asyncio.to_thread(self.lab.end_arrived_guest, 0.05)
        self.lab.check_guest(self.lab.destination_ram)
        self.lab.check_witness()
        if one_pause:
            assert len(self.source.found("paused")) == 1, "the guest was stopped more often than once"
        return self.source.summary


@pytest.mark.parametrize(
    "toxic",
    [
        Latency(latency=0.02, jitter=0.01, direction="both"),
        Slicer(average_size=700, size_variation=600, direction="both"),
        Bandwidth(rate=20e6),
    ],
    ids=lambda toxic: type(toxic).__name__,
)
async def test_a_slow_network_is_no_fault(lab: Lab, toxic: Toxic) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        proxy.add(toxic)
        move.start(proxy)
        summary = await move.finish()
    assert summary["lane-resets"] == summary["reconnects"] == 0


@pytest.mark.parametrize("how", ["reset", "close", "silent"])
async def test_cut_and_restored_in_precopy(lab: Lab, how: Ending) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        move.start(proxy, "--max-bandwidth=8M")
        await proxy.wait_for(lambda: proxy.connections[1].upstream.delivered > 1 << 20)
        await proxy.cut(how)
        await asyncio.to_thread(move.source.wait_event, "reconnecting")
        await proxy.restore()
        summary = await move.finish()
    assert summary["reconnects"] == 1
    assert summary["lane-resets"] >= 1


async def test_the_lane_alone_is_cut_many_times(lab: Lab, rng: random.Random) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        for lane in range(1, 8):  # the control connection, number 0, stays
            proxy.add(LimitData(bytes=rng.randrange(1 << 16, 3 << 20), connections=lane.__eq__))
        move.start(proxy)
        summary = await move.finish(one_pause=False)
    assert summary["lane-resets"] >= 3
    assert summary["reconnects"] == 0


async def test_the_control_connection_alone_is_reset(lab: Lab) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        move.start(proxy, "--max-bandwidth=8M")
        await proxy.wait_for(lambda: proxy.connections[1].upstream.delivered > 1 << 20)
        proxy.add(ResetPeer(connections=(0).__eq__))
        summary = await move.finish()
    assert summary["reconnects"] == 1


async def test_flipped_bits_are_found_and_sent_again(lab: Lab, rng: random.Random) -> None:
    move = Move(lab)
    offsets = tuple(sorted(rng.randrange(100, 2 << 20) for _ in range(2)))
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        for lane in range(1, 6):
            proxy.add(Corrupt(offsets=offsets, connections=lane.__eq__))
        move.start(proxy)
        summary = await move.finish(one_pause=False)
    assert summary["lane-resets"] >= 3


async def test_a_flipped_bit_on_the_control_connection_reconnects(lab: Lab) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        proxy.add(Corrupt(offsets=(400,), direction="downstream", connections=(0).__eq__))
        move.start(proxy, "--max-bandwidth=8M")
        summary = await move.finish()
    assert summary["reconnects"] == 1


async def test_cut_while_it_prepares_resumes_the_guest_and_tries_again(lab: Lab) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=1000")
    flag = lab.witness.with_name("first")
    hook = f"test -e {flag} || {{ touch {flag}; sleep 20; }}"
    destination = lab.start_destination("--once", f"--on-prepare={hook}", "--keepalive-timeout=2")
    async with (
        asyncio.timeout(60),
        FaultProxy("127.0.0.1", destination.wait_event("listening")["port"]) as proxy,
    ):
        source = lab.start_source(proxy.port, guest, *OPTIONS)
        await asyncio.to_thread(source.wait_event, "paused")
        while not flag.exists():  # noqa: ASYNC110 - a file that another process makes
            await asyncio.sleep(0.005)
        await proxy.cut("reset")
        await asyncio.to_thread(source.wait_event, "resumed")
        await proxy.restore()
        assert await asyncio.to_thread(source.wait) == 0, source.story() + destination.story()
    assert len(source.found("paused")) == 2
    await asyncio.to_thread(lab.end_arrived_guest, 0.05)
    lab.check_guest(lab.destination_ram)
    lab.check_witness()
