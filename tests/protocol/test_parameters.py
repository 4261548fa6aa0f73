"""Parameters that change while a migration runs, and a pause that somebody asks for."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sim_states import SLOW, source_in, source_is, world_until

from migrate.config import Address, RamSpec, SourceConfig
from migrate.errors import UsageError
from migrate.protocol import actions as a
from migrate.protocol.parameters import CACHE_SIZE, PARAMETERS, parameter_values, with_parameters
from migrate.protocol.source_states import SourceState

S = SourceState
CONFIG = SourceConfig(Address("192.0.2.7", 4444), (RamSpec("pc.ram", Path("/dev/shm/vm")),), guest_pid=7)


def test_every_parameter_is_read_as_it_was_set() -> None:
    values: dict[str, int | str] = {
        "downtime-limit": 5000,
        "max-bandwidth": 5001,
        "avail-switchover-bandwidth": 5002,
        CACHE_SIZE: 50030,
        "max-rounds": 5004,
        "throttle": "auto",
        "cpu-throttle-initial": 5,
        "cpu-throttle-increment": 6,
        "max-cpu-throttle": 7,
    }
    assert values.keys() == {parameter.name for parameter in PARAMETERS}
    assert parameter_values(with_parameters(CONFIG, values)) == values
    assert with_parameters(CONFIG, values) == replace(
        CONFIG,
        downtime_limit_ms=5000,
        max_bandwidth=5001,
        switchover_bandwidth=5002,
        xbzrle_cache_size=50030,
        max_rounds=5004,
        throttle="auto",
        cpu_throttle_initial=5,
        cpu_throttle_increment=6,
        max_cpu_throttle=7,
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"downtime-limit": -1}, "--downtime-limit -1"),
        ({"max-bandwidth": 100}, "--max-bandwidth"),
        ({"max-rounds": 0}, "--max-rounds"),
        ({"xbzrle-cache-size": 64}, "--xbzrle-cache-size"),
        ({"multifd-channels": 2}, "no parameter 'multifd-channels'"),
    ],
)
def test_what_cannot_work_changes_nothing(
    shm_dir: Path, rng: random.Random, values: dict[str, int | str], words: str
) -> None:
    with source_in(shm_dir, S.SENDING, rng.getrandbits(32)) as world:
        machine = world.source.machine
        before = machine.config
        with pytest.raises(UsageError, match=words):
            machine.set_parameters(world.now, {"max-rounds": 7} | values)
        assert machine.config is before
        assert machine.take_actions() == []


@pytest.mark.parametrize("state", [S.TRACKING, S.SENDING, S.HARVESTING, S.PAUSING, S.LAST_ROUND, S.PREPARING])
def test_the_rate_of_the_state_is_in_effect_at_once(shm_dir: Path, rng: random.Random, state: S) -> None:
    rates = {"max-bandwidth": 5000, "avail-switchover-bandwidth": 6000}
    with source_in(shm_dir, state, rng.getrandbits(32)) as world:
        world.source.machine.set_parameters(world.now, rates)
        taken = world.source.machine.take_actions()
        set_rates = [action.rate for action in taken if isinstance(action, a.SetRate)]
        assert set_rates == [6000 if state in (S.LAST_ROUND, S.PREPARING) else 5000]


def test_a_higher_downtime_limit_lets_a_hopeless_migration_switch_over(
    shm_dir: Path, rng: random.Random
) -> None:
    hopeless = replace(SLOW, downtime_limit_ms=0, max_rounds=1000)
    seed = rng.getrandbits(32)
    with world_until(shm_dir, lambda world: world.source.machine.rounds.number == 5, seed, hopeless) as world:
        world.source.machine.set_parameters(world.now, {"downtime-limit": 5000})
        world.source.perform()
        world.finish()
        assert world.source.machine.outcome == "completed", world.story()
        assert world.source.machine.rounds.number < 20


def test_fewer_rounds_end_a_hopeless_migration(shm_dir: Path, rng: random.Random) -> None:
    hopeless = replace(SLOW, downtime_limit_ms=0, max_rounds=1000)
    seed = rng.getrandbits(32)
    with world_until(shm_dir, lambda world: world.source.machine.rounds.number == 5, seed, hopeless) as world:
        world.source.machine.set_parameters(world.now, {"max-rounds": 6})
        world.source.perform()
        world.finish()
        assert world.source.machine.outcome == "failed"
        assert world.source.machine.rounds.number == 6


@pytest.mark.parametrize("state", [S.SENDING, S.HARVESTING, S.RESUMING])
def test_a_pause_that_is_asked_for_comes(shm_dir: Path, rng: random.Random, state: S) -> None:
    with source_in(shm_dir, state, rng.getrandbits(32)) as world:
        machine = world.source.machine
        machine.config = replace(machine.config, downtime_limit_ms=0, max_rounds=1000)
        machine.rounds.policy.limit(machine.config)
        rounds = machine.rounds.number
        assert machine.switch_over(world.now)
        world.source.perform()
        world.finish()
        assert machine.outcome == "completed", world.story()
        assert machine.rounds.number < rounds + 20  # of 1000; small ones go by while lanes are opened


@pytest.mark.parametrize("state", [S.SETUP, S.TRACKING, S.PAUSING, S.COMMITTING, S.ENDED])
def test_where_there_are_no_rounds_no_pause_can_be_asked_for(
    shm_dir: Path, rng: random.Random, state: S
) -> None:
    with source_in(shm_dir, state, rng.getrandbits(32)) as world:
        assert not world.source.machine.switch_over(world.now)
        assert world.source.machine.take_actions() == []


def test_no_pause_while_the_link_is_down(shm_dir: Path, rng: random.Random) -> None:
    with world_until(shm_dir, source_is(S.SENDING), rng.getrandbits(32)) as world:
        machine = world.source.machine
        machine.connection_lost(world.now, "cut")
        machine.take_actions()
        assert machine.switch_over(world.now)
        assert machine.state is S.SENDING
        assert not any(isinstance(action, a.PauseGuest) for action in machine.take_actions())
