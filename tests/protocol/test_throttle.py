"""The throttle: its rule by a table, and when the machine asks for it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from simulation import Scenario, World, run

from migrate.config import Address, RamSpec, SourceConfig, format_throttle, parse_throttle
from migrate.errors import UsageError
from migrate.protocol import actions as a
from migrate.protocol.parameters import parameter_values, with_parameters
from migrate.protocol.throttle import ThrottleRule, is_high, next_throttle

AUTO = ThrottleRule("auto")


@pytest.mark.parametrize(
    "percent, high_rounds, rule, expected",
    [
        # a fixed share, whatever the rounds do
        (0, 0, ThrottleRule(0), 0),
        (40, 9, ThrottleRule(0), 0),
        (0, 0, ThrottleRule(30), 30),
        (99, 5, ThrottleRule(30), 30),
        # auto begins with the second such round
        (0, 0, AUTO, 0),
        (0, 1, AUTO, 0),
        (0, 2, AUTO, 20),
        (0, 7, AUTO, 20),
        (0, 2, ThrottleRule("auto", initial=55), 55),
        # and goes on with each, never back
        (20, 1, AUTO, 30),
        (20, 0, AUTO, 20),
        (90, 3, AUTO, 99),
        (99, 3, AUTO, 99),
        (20, 1, ThrottleRule("auto", increment=33), 53),
        (20, 1, ThrottleRule("auto", maximum=25), 25),
        (60, 0, ThrottleRule("auto", maximum=40), 40),
    ],
)
def test_the_rule(percent: int, high_rounds: int, rule: ThrottleRule, expected: int) -> None:
    assert next_throttle(percent, high_rounds, rule) == expected


@pytest.mark.parametrize(
    "sent, dirty, high", [(100, 0, False), (100, 50, False), (100, 51, True), (0, 0, False), (0, 1, True)]
)
def test_a_round_that_gains_too_little(sent: int, dirty: int, high: bool) -> None:
    assert is_high(sent, dirty) is high


@pytest.mark.parametrize("text, value", [("auto", "auto"), ("off", 0), ("30%", 30), ("99%", 99), ("7", 7)])
def test_how_it_is_written(text: str, value: int | str) -> None:
    throttle = parse_throttle(text)
    assert throttle == value
    assert parse_throttle(format_throttle(throttle)) == throttle


@pytest.mark.parametrize("text", ["", "30 %", "-3%", "%", "1000%", "Auto", "0x3"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="auto, off or a percentage"):
        parse_throttle(text)


CONFIG = SourceConfig(Address("192.0.2.7", 4444), (RamSpec("pc.ram", Path("/dev/shm/vm")),), guest_pid=7)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"throttle": "100%"}, "at most 99%"),
        ({"throttle": "much"}, "auto, off or a percentage"),
        ({"cpu-throttle-initial": 0}, "cpu-throttle-initial 0"),
        ({"cpu-throttle-increment": 100}, "cpu-throttle-increment 100"),
        ({"cpu-throttle-initial": 50, "max-cpu-throttle": 40}, "not above the last"),
    ],
)
def test_parameters_that_cannot_work(values: Mapping[str, int | str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        with_parameters(CONFIG, values)
    with pytest.raises(UsageError, match="--guest-pid"):
        with_parameters(replace(CONFIG, guest_pid=None), {"throttle": "auto"})


def test_parameters_by_name() -> None:
    values = {"throttle": "45%", "cpu-throttle-initial": 5, "cpu-throttle-increment": 6}
    found = parameter_values(with_parameters(CONFIG, values))
    assert found.items() >= (values | {"max-cpu-throttle": 99}).items()


# --- in a migration -----------------------------------------------------------------------------------

BUSY = Scenario(
    pages=(30,),
    write_seconds=0.0008,
    batch_limit=1,
    downtime_limit_ms=70,
    max_rounds=200,
    cache_bytes=0,
)
"""A page of the guest's is dirty again before the next one is sent."""


def _throttles(world: World) -> list[int]:
    return [action.percent for _, action in world.actions if isinstance(action, a.Throttle)]


def _order(world: World) -> list[str]:
    """Throttles, pauses and resumes in their order."""
    found = []
    for _, action in world.actions:
        if isinstance(action, a.Throttle):
            found.append(f"throttle {action.percent}")
        elif isinstance(action, a.PauseGuest | a.ResumeGuest):
            found.append("pause" if isinstance(action, a.PauseGuest) else "resume")
    return found


def test_rounds_that_gain_nothing_get_there_by_it(shm_dir: Path, rng: random.Random) -> None:
    seed = rng.getrandbits(32)
    without = run(shm_dir, replace(BUSY, max_rounds=25), seed)
    assert without.source.machine.outcome == "failed" and _throttles(without) == []
    with_it = run(shm_dir, replace(BUSY, throttle="auto"), seed)
    assert with_it.source.machine.outcome == "completed"
    steps = _throttles(with_it)
    assert steps[0] == 20 and steps[-1] == 0
    assert steps[:-1] == [*range(20, 100, 10), 99][: len(steps) - 1]
    rows = with_it.source.machine.stats.rounds
    assert [row.throttle_percent for row in rows[:2]] == [0, 0], "the first two rounds only tell"
    assert rows[-1].throttle_percent == 0, "the last one is the pause's"
    assert max(row.throttle_percent for row in rows) == max(steps)


def test_a_fixed_share_from_the_first_round_to_the_pause(shm_dir: Path, rng: random.Random) -> None:
    scenario = Scenario(throttle=30, failing=(("pause", 1),))
    world = run(shm_dir, scenario, rng.getrandbits(32))
    assert _order(world) == [
        *("throttle 30", "throttle 0", "pause", "resume"),
        *("throttle 30", "throttle 0", "pause"),
    ]


@pytest.mark.parametrize("end", ["cancel", "guest dies", "link"])
def test_every_end_lifts_it(shm_dir: Path, rng: random.Random, end: str) -> None:
    done = False

    def interfere(world: World) -> None:
        nonlocal done
        machine = world.source.machine
        if machine.stats.throttle_percent and not done:
            done = True
            if end == "cancel":
                machine.cancel(world.now, "Ctrl-C")
            elif end == "guest dies":
                world.guest.dead, world.guest.runs_here = True, False
                machine.failed(world.now, UsageError("the guest died", guest="the guest runs nowhere"))
            else:
                world.network.down_until = 1e9
                for connection in world.network.connections:
                    connection.cut()
            world.source.perform()

    scenario = Scenario(throttle=60, reconnect_timeout=1.0)
    world = run(shm_dir, scenario, rng.getrandbits(32), interfere)
    assert world.source.machine.outcome in ("cancelled", "failed")
    assert _throttles(world) == [60, 0]


def test_a_throttle_that_cannot_be_had(shm_dir: Path, rng: random.Random) -> None:
    """Said once; the migration goes on without."""
    world = run(shm_dir, Scenario(throttle=30, failing=(("throttle", 1),)), rng.getrandbits(32))
    assert world.source.machine.outcome == "completed"
    warnings = [report.fields["message"] for _, report in world.reports if report.name == "warning"]
    assert warnings == ["the guest cannot be throttled"]
    assert _throttles(world) in ([30], [30, 0]), "the pause may have been asked for before it was known"


def test_a_change_on_the_way(shm_dir: Path, rng: random.Random) -> None:
    told: list[int] = []

    def change(world: World) -> None:
        machine = world.source.machine
        wanted = {3: "50%", 5: "off", 7: "10%"}.get(machine.rounds.number)
        if wanted is not None and machine.rounds.number not in told:
            told.append(machine.rounds.number)
            machine.set_parameters(world.now, {"throttle": wanted})
            world.source.perform()

    scenario = Scenario(throttle=30, downtime_limit_ms=0, max_rounds=9, timeout_action="pause")
    world = run(shm_dir, scenario, rng.getrandbits(32), change)
    assert _throttles(world) == [30, 50, 0, 10, 0]
