"""The tables of states against whole migrations: nothing in them is dead, and nothing is missing."""

from __future__ import annotations

import random
from pathlib import Path

import sim_destination
import sim_source
from sim_states import destination_in, source_in
from simulation import Scenario, run

from migrate.protocol.destination_states import BEFORE_COMMIT, DestinationState
from migrate.protocol.destination_states import TRANSITIONS as DESTINATION_TRANSITIONS
from migrate.protocol.journal_record import Step
from migrate.protocol.source_states import PAUSED, SourceState
from migrate.protocol.source_states import TRANSITIONS as SOURCE_TRANSITIONS


def test_the_table_is_the_diagram_and_nothing_in_it_is_dead(shm_dir: Path, rng: random.Random) -> None:
    """Every transition of both tables is taken by some migration, and no other."""
    sim_source.SEEN.clear()
    sim_destination.SEEN.clear()
    _take_all_ways(shm_dir, rng)
    for seen, table in (
        (sim_source.SEEN, SOURCE_TRANSITIONS),
        (sim_destination.SEEN, DESTINATION_TRANSITIONS),
    ):
        ways = {(before, after) for before, afters in table.items() for after in afters}
        print(f"{len(seen)} of {len(ways)} transitions taken")
        assert seen == ways


def _take_all_ways(directory: Path, rng: random.Random) -> None:
    for state in SourceState:
        if state not in (SourceState.ENDED, SourceState.ENDING):
            with source_in(directory, state, rng.getrandbits(32)) as world:
                world.source.machine.cancel(world.now, "everywhere")
        if state in PAUSED:
            with source_in(directory, state, rng.getrandbits(32)) as world:
                for connection in world.network.connections:
                    connection.cut()
                world.finish()
    with destination_in(directory, DestinationState.PREPARED, rng.getrandbits(32)) as world:
        world.source.machine.cancel(world.now, "the other side")
        world.source.perform()
        world.finish()
    with source_in(directory, SourceState.TAKING_BACK, rng.getrandbits(32)) as world:
        world.finish()
    with destination_in(directory, DestinationState.PREPARING, rng.getrandbits(32)) as world:
        while ("destination", Step.PREPARED) not in world.journals:
            world.step()
        world.destination.made.cancel(world.now, "while it is journalled")
    for state in BEFORE_COMMIT:
        with destination_in(directory, state, rng.getrandbits(32)) as world:
            world.destination.made.cancel(world.now, "everywhere")
        with destination_in(directory, state, rng.getrandbits(32)) as world:
            for connection in world.network.connections:
                connection.cut()
            world.finish()
    scenarios = [
        Scenario(tracker="stop"),
        Scenario(downtime_limit_ms=0, max_rounds=3),
        Scenario(pages=(60,), timeout=0.1, timeout_action="pause", batch_limit=1),
        Scenario(failing=(("commit", 1),)),
        Scenario(failing=(("starting", 1),)),
        Scenario(failing=(("committed", 1),)),
        Scenario(failing=(("prepared", 1),)),
        Scenario(verify="full", tampered=1),
    ]
    for scenario in scenarios:
        run(directory, scenario, rng.getrandbits(32))
