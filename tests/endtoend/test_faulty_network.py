"""Real daemons over a network that breaks: the guest is never stopped for it, nothing is lost.

Connection 0 is the first control connection, connection 1 the first lane; reconnects count on.
"""

from __future__ import annotations

import asyncio
import random
from typing import Literal

import pytest

from bench.lab import Event, Lab, Program
from migrate.daemon.fault_proxy import FaultProxy
from migrate.daemon.toxics import (
    Bandwidth,
    Corrupt,
    Ending,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    Timeout,
    Toxic,
)
from tests.failure_table import FailureRow

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
@pytest.mark.failure_row("slow link")
async def test_a_slow_network_is_no_fault(lab: Lab, row: FailureRow, toxic: Toxic) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        proxy.add(toxic)
        move.start(proxy)
        summary = await move.finish()
    assert summary["lane-resets"] == summary["reconnects"] == 0
    row.check(lab, move.guest, move.source, move.destination)


@pytest.mark.failure_row("link cut")
@pytest.mark.parametrize("how", ["reset", "close", "silent"])
async def test_cut_and_restored_in_precopy(lab: Lab, row: FailureRow, how: Ending) -> None:
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
    row.check(lab, move.guest, move.source, move.destination)


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


@pytest.mark.failure_row("bits flipped")
async def test_flipped_bits_are_found_and_sent_again(lab: Lab, row: FailureRow, rng: random.Random) -> None:
    move = Move(lab)
    offsets = tuple(sorted(rng.randrange(100, 2 << 20) for _ in range(2)))
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        for lane in range(1, 6):
            proxy.add(Corrupt(offsets=offsets, connections=lane.__eq__))
        move.start(proxy)
        summary = await move.finish(one_pause=False)
    assert summary["lane-resets"] >= 3
    row.check(lab, move.guest, move.source, move.destination)


async def test_a_flipped_bit_on_the_control_connection_reconnects(lab: Lab) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        proxy.add(Corrupt(offsets=(400,), direction="downstream", connections=(0).__eq__))
        move.start(proxy, "--max-bandwidth=8M")
        summary = await move.finish()
    assert summary["reconnects"] == 1


@pytest.mark.failure_row("link cut in the pause")
async def test_cut_while_it_prepares_resumes_the_guest_and_tries_again(lab: Lab, row: FailureRow) -> None:
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
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("link stays cut")
async def test_a_link_that_stays_cut(lab: Lab, row: FailureRow) -> None:
    move = Move(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", move.port) as proxy:
        move.start(proxy, "--max-bandwidth=8M", "--reconnect-timeout=0.5")
        await proxy.wait_for(lambda: proxy.connections[1].upstream.delivered > 1 << 20)
        await proxy.cut("reset")
        await asyncio.to_thread(move.source.wait)
    row.check(lab, move.guest, move.source)


class Commit:
    """A guest that was committed over a link that is cut in that moment; its start is held up meanwhile."""

    def __init__(self, lab: Lab) -> None:
        self.guest = lab.start_guest("--rate=100")
        self._came, self._goes_on = (lab.witness.with_name(name) for name in ("came", "goes-on"))
        hold = f"touch {self._came}; until test -e {self._goes_on}; do sleep 0.01; done"
        self.destination = lab.start_destination(
            "--once", "--reconnect-timeout=1", f"--on-commit={hold}; {lab.resume_command}", resume=False
        )
        self.port: int = self.destination.wait_event("listening")["port"]

    async def cut(self, proxy: FaultProxy, source: Program) -> None:
        """As soon as the command to start it runs."""
        await asyncio.to_thread(Lab.wait_for_file, self._came)
        await proxy.cut("reset")
        await asyncio.to_thread(source.wait_event, "reconnecting")

    def go_on(self) -> None:
        """The start is over."""
        self._goes_on.touch()


@pytest.mark.failure_row("link cut in the handover")
async def test_a_link_that_is_cut_while_the_guest_is_started(lab: Lab, row: FailureRow) -> None:
    commit = Commit(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", commit.port) as proxy:
        source = lab.start_source(proxy.port, commit.guest, *OPTIONS)
        await commit.cut(proxy, source)
        await proxy.restore()
        commit.go_on()
        await asyncio.to_thread(source.wait)
    assert await asyncio.to_thread(commit.destination.wait) == 0, commit.destination.story()
    row.check(lab, commit.guest, source, commit.destination)
    lab.end_arrived_guest()
    lab.check_witness()


@pytest.mark.failure_row("link stays cut in the handover")
async def test_a_link_that_stays_cut_while_the_guest_is_started(lab: Lab, row: FailureRow) -> None:
    commit = Commit(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", commit.port) as proxy:
        source = lab.start_source(proxy.port, commit.guest, "--reconnect-timeout=0.5")
        await commit.cut(proxy, source)
        await asyncio.to_thread(source.wait)
    row.check(lab, commit.guest, source)
    commit.go_on()
    await asyncio.to_thread(commit.destination.wait)
    recover = lab.run("migrate-src", "recover", f"--state-dir={lab.source_state}")
    assert recover.wait() == 10, "with --once nobody answers any more"
    lab.end_arrived_guest()
    lab.check_witness()


class Prepare:
    """A destination whose preparing is held up, and that gives up soon once the link is cut."""

    def __init__(self, lab: Lab) -> None:
        self.guest = lab.start_guest("--rate=100")
        self._lab = lab
        self._came, self._goes_on = (lab.witness.with_name(name) for name in ("came", "goes-on"))
        self._hold = f"touch {self._came}; until test -e {self._goes_on}; do sleep 0.01; done"
        self.destination = self.start()
        self.port: int = self.destination.wait_event("listening")["port"]

    def start(self, listen: str = "127.0.0.1:0") -> Program:
        """A destination."""
        hook = f"--on-prepare={self._hold}"
        return self._lab.start_destination(hook, "--reconnect-timeout=0.3", listen=listen)

    async def goes_on(self, proxy: FaultProxy, held: Literal["upstream", "downstream"]) -> None:
        """It gets ready, and from then on one direction of the control connection is silent."""
        await asyncio.to_thread(Lab.wait_for_file, self._came)
        proxy.add(Timeout(direction=held, connections=(0).__eq__))
        self._goes_on.touch()


@pytest.mark.failure_row("commit comes too late")
async def test_a_commit_that_comes_too_late(lab: Lab, row: FailureRow) -> None:
    prepare = Prepare(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", prepare.port) as proxy:
        source = lab.start_source(proxy.port, prepare.guest, "--reconnect-timeout=30")
        await prepare.goes_on(proxy, "upstream")
        await asyncio.to_thread(source.wait_event, "committed")
        await proxy.cut("reset")
        await asyncio.to_thread(prepare.destination.wait_event, "error")
        await proxy.restore()
        await asyncio.to_thread(source.wait)
    row.check(lab, prepare.guest, source)


@pytest.mark.parametrize("how", ["declined", "killed"])
async def test_a_prepared_destination_takes_the_guest_at_a_later_pause(lab: Lab, how: str) -> None:
    """The source has never heard that the first pause was prepared, and has resumed its guest."""
    prepare = Prepare(lab)
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", prepare.port) as proxy:
        source = lab.start_source(proxy.port, prepare.guest, "--reconnect-timeout=30")
        await prepare.goes_on(proxy, "downstream")
        await asyncio.to_thread(prepare.destination.wait_event, "prepared")
        if how == "killed":
            prepare.destination.kill()
        await proxy.cut("reset")
        await asyncio.to_thread(source.wait_event, "reconnecting")
        if how == "declined":
            await asyncio.to_thread(prepare.destination.wait_event, "error")
        else:
            prepare.start(f"127.0.0.1:{prepare.port}")
        await proxy.restore()
        assert await asyncio.to_thread(source.wait) == 0, source.story() + prepare.destination.story()
    assert [len(source.found(name)) for name in ("paused", "begun-anew", "committed")] == [2, 1, 1]
    lab.end_arrived_guest()
    lab.check_arrived()
    lab.check_witness()
