"""One fault of the network at every byte of a migration: it goes on, or ends as it must.

The same seed gives the same conversation up to the fault, so "every byte" means every byte.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sim_network import Channel, Fault
from sim_random import draw
from simulation import Scenario, World, run

from migrate.errors import NetworkError, ProtocolError
from migrate.protocol import messages as m

TINY = Scenario(pages=(2,), small_writes=True, codec="zlib", reconnect_timeout=20.0)
TWO_LANES = Scenario(pages=(2, 2), lanes=2, small_writes=True, codec="zlib", reconnect_timeout=20.0)


def _reported(world: World, name: str, side: str = "source") -> bool:
    return any(where == side and report.name == name for where, report in world.reports)


def _check(world: World) -> None:
    """The only ends that one fault of the network may lead to."""
    source, guest = world.source, world.guest
    commit_arrived = any(isinstance(message, m.Commit) for _, message in world.messages)
    assert guest.runs_there == commit_arrived, "the destination runs it exactly if it got the commit whole"
    if not _reported(world, "negotiated"):
        assert isinstance(world.error, NetworkError | ProtocolError), "nothing to come back to yet"
    elif world.commit_sent:
        answered = world.was_received(m.Running)
        assert source.machine.outcome == ("completed" if answered else "undecided")
    else:
        pytest.fail("a broken link before the commit must be survived")
    assert source.machine.stats.remaining_pages == 0 or not commit_arrived
    _check_pauses(world)


def _check_pauses(world: World) -> None:
    """The guest is stopped once; a second time only if the fault was noticed while it stood."""
    names = [report.name for side, report in world.reports if side == "source"]
    pauses = names.count("pausing")
    given_up = names.count("resumed")
    assert given_up <= 1
    assert pauses <= 1 + given_up
    if given_up:
        before = names[: names.index("resumed")]
        assert "pausing" in before and before.count("reconnecting") + before.count("lane-reset") <= 1


def _positions(world: World, channel: Channel, step: int, rng: random.Random) -> Iterator[int]:
    """Byte positions of a conversation, `step` apart, beginning anywhere below that."""
    return iter(range(rng.randrange(step), world.network.delivered[channel], step))


CHANNELS = pytest.mark.parametrize("channel", ["control up", "control down", "lane up"])


@CHANNELS
def test_cut_after_every_byte(shm_dir: Path, rng: random.Random, channel: Channel) -> None:
    seed = rng.getrandbits(32)
    whole = run(shm_dir, TINY, seed)
    outcomes = set()
    for at in _positions(whole, channel, 1, rng):
        scenario = _with(TINY, Fault(channel, at))
        world = run(shm_dir, scenario, seed)
        assert world.network.fired
        _check(world)
        outcomes.add(world.source.machine.outcome)
    if channel == "lane up":
        assert outcomes == {"completed"}
    else:
        assert outcomes == {"failed", "completed"}, "one cut leaves nothing undecided"


@CHANNELS
def test_a_bit_flipped(shm_dir: Path, rng: random.Random, channel: Channel) -> None:
    seed = rng.getrandbits(32)
    whole = run(shm_dir, TINY, seed)
    for at in _positions(whole, channel, 4, rng):
        world = run(shm_dir, _with(TINY, Fault(channel, at, "flip", rng.randrange(8))), seed)
        assert world.network.fired
        _check(world)


@CHANNELS
def test_silence(shm_dir: Path, rng: random.Random, channel: Channel) -> None:
    """The connection stands, but nothing comes through any more."""
    seed = rng.getrandbits(32)
    whole = run(shm_dir, TINY, seed)
    for at in _positions(whole, channel, 20, rng):
        world = run(shm_dir, _with(TINY, Fault(channel, at, "silence")), seed)
        assert world.network.fired
        _check(world)


@CHANNELS
@pytest.mark.parametrize("lanes", [1, 2])
def test_the_whole_network_is_down_for_a_while(
    shm_dir: Path, rng: random.Random, lanes: int, channel: Channel
) -> None:
    plain = TINY if lanes == 1 else TWO_LANES
    seed = rng.getrandbits(32)
    whole = run(shm_dir, plain, seed)
    for at in _positions(whole, channel, 30, rng):
        world = run(shm_dir, _with(plain, Fault(channel, at, outage=rng.uniform(0.01, 8.0))), seed)
        _check(world)


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_one_lane_of_two(shm_dir: Path, rng: random.Random, how: str) -> None:
    seed = rng.getrandbits(32)
    whole = run(shm_dir, TWO_LANES, seed)
    for at in _positions(whole, "lane up", 9, rng):
        fault = Fault("lane up", at, how, rng.randrange(8))  # type: ignore[arg-type]
        world = run(shm_dir, _with(TWO_LANES, fault), seed)
        _check(world)
        assert not _reported(world, "reconnecting"), "a lane is no reason to leave the control connection"


def test_a_network_that_never_comes_back(shm_dir: Path, rng: random.Random) -> None:
    seed = rng.getrandbits(32)
    whole = run(shm_dir, TINY, seed)
    for at in _positions(whole, "control up", 40, rng):
        world = run(shm_dir, _with(TINY, Fault("control up", at, outage=1e6)), seed)
        if world.was_received(m.Running):
            assert world.source.machine.outcome == "completed"
        elif world.commit_sent:
            assert world.source.machine.outcome == "undecided"
        else:
            assert isinstance(world.error, NetworkError)
            assert world.guest.runs_here
        if not world.guest.runs_there and world.destination.machine is not None:
            assert isinstance(world.destination.error, NetworkError)


def test_without_reconnecting(shm_dir: Path, rng: random.Random) -> None:
    """--reconnect-timeout 0: a broken connection ends the migration at once, at both sides."""
    scenario = Scenario(pages=(2,), small_writes=True, reconnect_timeout=0.0)
    seed = rng.getrandbits(32)
    whole = run(shm_dir, scenario, seed)
    for at in _positions(whole, "control down", 25, rng):
        world = run(shm_dir, _with(scenario, Fault("control down", at)), seed)
        if not world.commit_sent:
            assert isinstance(world.error, NetworkError)
            assert world.count_reports("reconnecting") == 0


def test_many_cuts(shm_dir: Path, rng: random.Random) -> None:
    """Every connection of a lane is cut after a few batches: what was applied counts, so it gets there."""
    scenario = Scenario(
        pages=(20, 20),
        lanes=2,
        batch_limit=1,
        write_seconds=0.1,
        faults=(Fault("lane up", 5000, each=True),),
    )
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    assert world.source.machine.stats.lane_resets >= 4


@pytest.mark.parametrize("how", ["cut", "flip", "silence"])
def test_a_lane_that_gets_nothing_across(shm_dir: Path, rng: random.Random, how: str) -> None:
    """Reset again and again without progress: an end, with the last reason, and the guest runs."""
    fault = Fault("lane up", 500, how, 3, each=True)  # type: ignore[arg-type]
    scenario = Scenario(pages=(20,), keepalive_timeout=0.5, faults=(fault,))
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert isinstance(world.error, NetworkError)
    assert "11 times in a row" in str(world.error)
    reasons = {"cut": "reset|closed", "flip": "damaged", "silence": "nothing was acknowledged"}
    assert re.search(reasons[how], str(world.error)), world.error
    assert world.guest.runs_here and world.guest.pauses == 0
    assert world.source.machine.stats.lane_resets == 11
    assert world.now > 1010, "the first retries come at once, later ones are patient"


def test_random_faults(shm_dir: Path, rng: random.Random) -> None:
    """Several faults of all kinds at once: whatever comes of it, the promises hold (simulation.World)."""
    outcomes: dict[str, int] = {}
    for _ in range(60):
        outcome = run(shm_dir, draw(rng), rng.getrandbits(32)).source.machine.outcome
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["completed"] > 10, outcomes


def _with(scenario: Scenario, *faults: Fault) -> Scenario:
    """The scenario with these faults."""
    return replace(scenario, faults=faults)
