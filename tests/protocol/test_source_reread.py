"""The background re-read: a tracker that lies is found out, one that is honest never is (simulation)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sim_guest import LogTracker
from sim_random import draw
from simulation import Scenario, World, run

from migrate.protocol import actions as a
from migrate.protocol import source_reread
from migrate.protocol.source_states import SourceState

LONG = Scenario(
    pages=(20, 20),
    lanes=2,
    batch_limit=1,
    tracker="log",
    write_seconds=0.05,
    downtime_limit_ms=1,
    max_rounds=1000,
    timeout=3.0,
    timeout_action="pause",
)
"""Rounds for three seconds: the guest never writes little enough."""


@pytest.fixture(autouse=True)
def many_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Much happens in a simulated second: look as often as the clock ticks."""
    monkeypatch.setattr(source_reread, "PASS_SECONDS", 0.0)


def tracker_of(world: World) -> LogTracker:
    assert isinstance(world.tracker, LogTracker)
    return world.tracker


def test_an_honest_tracker_is_never_accused(shm_dir: Path, rng: random.Random) -> None:
    """Marks that come late, looks that take long, lanes that break, daemons that are killed."""
    looks = counted = 0
    for _ in range(60):
        scenario = replace(
            draw(rng),
            tracker="log",
            verify="ram",
            tampered=0,
            pages=rng.choice([(3, 2), (20, 20)]),
            write_seconds=rng.choice([0.004, 0.05, 0.2]),
            timeout=rng.choice([0.5, 2.0]),
            downtime_limit_ms=rng.choice([1, 20]),
            max_rounds=1000,
            look_seconds=rng.choice([0.0, 0.0, 0.01, 0.3]),
            late_seconds=rng.choice([0.0, 0.01, 0.9]),
        )
        world = run(shm_dir, scenario, rng.getrandbits(32))
        assert tracker_of(world).distrusted == [], world.story()
        looks += world.count(a.LookAgain)
        counted += world.source.machine.stats.reread_pages
    assert looks > 100 and counted > 100, (looks, counted)


def test_a_lying_tracker_is_found_out(shm_dir: Path, rng: random.Random) -> None:
    """During the rounds: before the pause it is said, and the RAM that arrives is equal (World.hand_over)."""
    before_the_pause = 0
    for _ in range(10):
        states: list[SourceState] = []

        def on_step(world: World, states: list[SourceState] = states) -> None:
            if tracker_of(world).distrusted and not states:
                states.append(world.source.machine.state)

        world = run(shm_dir, replace(LONG, unmarked=0.2), rng.getrandbits(32), on_step)
        assert world.source.machine.outcome == "completed", world.story()
        assert len(tracker_of(world).distrusted) == 1, "once: it is scan from then on"
        assert world.source.machine.stats.unreported_pages > 0
        before_the_pause += states == [SourceState.HARVESTING]
    assert before_the_pause > 5


def test_a_lie_just_before_the_pause_is_found_in_it(shm_dir: Path, rng: random.Random) -> None:
    """The last harvest judges every look, however young: nothing is late once the guest stands."""
    found = 0
    for _ in range(10):
        scenario = replace(LONG, unmarked=0.5, timeout=0.9)
        world = run(shm_dir, scenario, rng.getrandbits(32))
        assert world.source.machine.outcome == "completed", world.story()
        found += len(tracker_of(world).distrusted)
    assert found > 5


def test_nothing_is_read_again_where_only_the_stream_is_proved(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, replace(LONG, verify="stream", timeout=0.5), rng.getrandbits(32))
    assert world.count(a.LookAgain) == 0


def test_a_tracker_that_reads_is_not_checked(shm_dir: Path, rng: random.Random) -> None:
    world = run(shm_dir, replace(LONG, tracker="scan", timeout=0.5), rng.getrandbits(32))
    assert world.count(a.LookAgain) == 0
