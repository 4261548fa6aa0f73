"""Worlds that stand in a given state, for tests of what may happen there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from simulation import Scenario, World

from migrate.protocol.destination_states import DestinationState
from migrate.protocol.source_states import SourceState

SLOW = Scenario(
    pages=(3, 2),
    lanes=2,
    small_writes=True,
    codec="zlib",
    pause_seconds=0.05,
    state_seconds=0.05,
    tracker_seconds=0.05,
    harvest_seconds=0.05,
    confirm_seconds=0.05,
    verify_seconds=0.02,
    prepare_seconds=0.02,
    commit_seconds=0.05,
    resume_seconds=0.05,
)
"""Every state lasts a while."""
RESUMES = Scenario(**{**vars(SLOW), "failing": (("pause", 1),)})
"""The first pause is given up."""


def source_is(state: SourceState) -> Callable[[World], bool]:
    """The source stands in that state."""
    return lambda world: world.source.machine.state is state


def destination_is(state: DestinationState) -> Callable[[World], bool]:
    """The destination stands in that state."""
    return lambda world: world.destination.machine is not None and world.destination.made.state is state


@contextmanager
def world_until(
    directory: Path, reached: Callable[[World], bool], seed: int, scenario: Scenario = SLOW
) -> Iterator[World]:
    """A world that was run until then; its files are gone afterwards."""
    where = directory / "run"
    world = World(where, scenario, seed)
    try:
        if not reached(world):
            world.begin()
            while not reached(world):
                assert not world.ended, f"it ended before: {world.story()}"
                world.step()
        yield world
    finally:
        world.close()
        rmtree(where)


@contextmanager
def source_in(directory: Path, state: SourceState, seed: int) -> Iterator[World]:
    """A world whose source stands in that state; if it is committing, the commit was sent."""
    if state in (SourceState.ENDING, SourceState.ENDED):
        with world_until(directory, source_is(SourceState.LAST_ROUND), seed) as world:
            world.source.machine.cancel(world.now, "for the test")
            world.source.perform()
            while world.source.machine.state is not state:
                world.step()
            yield world
    elif state is SourceState.COMMITTING:
        with world_until(directory, lambda world: world.commit_sent, seed) as world:
            yield world
    elif state is SourceState.TAKING_BACK:
        reached = source_is(SourceState.COMMITTING)
        with world_until(directory, reached, seed) as world:
            world.destination.made.cancel(world.now, "before the commit comes")
            world.destination.perform()
            while not source_is(state)(world):
                world.step()
            yield world
    else:
        scenario = RESUMES if state is SourceState.RESUMING else SLOW
        with world_until(directory, source_is(state), seed, scenario) as world:
            yield world


@contextmanager
def destination_in(directory: Path, state: DestinationState, seed: int) -> Iterator[World]:
    """A world whose destination stands in that state; if it is active, in the middle of the rounds."""
    if state is DestinationState.DECLINING:
        with destination_in(directory, DestinationState.PREPARED, seed) as world:
            world.destination.made.cancel(world.now, "for the test")
            yield world
        return
    if state is DestinationState.ACTIVE:
        with world_until(directory, source_is(SourceState.HARVESTING), seed) as world:
            yield world
    else:
        with world_until(directory, destination_is(state), seed) as world:
            yield world
