"""Every reachable world of the handover: never two owners, no lost success, and always a way to one owner."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator

import pytest
from handover_model import Model, World, first_world

from migrate.protocol.journal_record import Step


def explore(
    model: Model, first: World
) -> tuple[dict[World, tuple[World, str] | None], dict[World, list[World]]]:
    """All worlds, each with how it was reached first; and which lead to each without a fault."""
    came: dict[World, tuple[World, str] | None] = {first: None}
    back: dict[World, list[World]] = defaultdict(list)
    waiting = deque([first])
    while waiting:
        world = waiting.popleft()
        for name, fault, after in model.moves(world):
            if not fault:
                back[after].append(world)
            if after not in came:
                came[after] = (world, name)
                check(came, after)
                waiting.append(after)
    return came, back


def story(came: dict[World, tuple[World, str] | None], world: World) -> str:
    """How it came so far."""
    steps = []
    at = world
    while (before := came[at]) is not None:
        at, name = before
        steps.append(name)
    return "; ".join(reversed(steps)) + f"\nnow: {world}"


def check(came: dict[World, tuple[World, str] | None], world: World) -> None:
    """What must hold in every world."""
    assert not (world.runs_here and world.runs_there), f"two owners\n{story(came, world)}"
    back = world.disk_here in (Step.TAKEN_BACK, Step.RESUMED)
    assert not (world.started and back), f"a success is lost\n{story(came, world)}"
    if world.disk_here is Step.DONE:
        assert world.started, f"a success that never was\n{story(came, world)}"
    if world.runs_here:
        committed = world.disk_here in (Step.COMMITTED, Step.DONE)
        assert not committed, f"runs here after the commit\n{story(came, world)}"


def settled(world: World) -> bool:
    """One owner, or a guest that died where it was; nothing is left to do."""
    if world.disk_here not in (None, Step.MOVING):
        return False
    return world.runs_here != world.runs_there or not world.alive or world.lost


@pytest.mark.parametrize("arbiter", [False, True], ids=["alone", "arbiter"])
def test_every_world(arbiter: bool) -> None:
    model = Model(pauses=2, arbiter=arbiter)
    came, back = explore(model, first_world(arbiter=arbiter))
    good = {world for world in came if settled(world)}
    print(f"{len(came)} worlds, {sum(map(len, back.values()))} moves without a fault, {len(good)} settled")
    gone = [world for world in good if world.disk_here is world.disk_there is None]
    assert any(world.runs_there for world in gone) and any(world.runs_here for world in gone)
    for step in Step:
        assert any(step in (world.disk_here, world.disk_there) for world in came), f"{step} never comes"
    stuck = came.keys() - leading_to(good, back)
    assert not stuck, (
        f"{len(stuck)} worlds from which nothing leads to one owner\n{story(came, next(iter(stuck)))}"
    )


def leading_to(good: set[World], back: dict[World, list[World]]) -> set[World]:
    """All worlds from which these can be reached without a fault."""
    reached = set(good)
    waiting = list(good)
    while waiting:
        for world in back[waiting.pop()]:
            if world not in reached:
                reached.add(world)
                waiting.append(world)
    return reached


def test_an_arbiter_decides_although_the_destination_is_gone() -> None:
    """From every world the source comes to know whose the guest is, whatever the destination did before."""
    model = Model(pauses=1, arbiter=True)
    came, _ = explore(model, first_world(arbiter=True))
    doubtful = [world for world in came if world.disk_here is Step.COMMITTED and world.here is None]
    assert {world.decided for world in doubtful} == {"", "source", "destination"}
    for world in doubtful:
        [(name, _, asking)] = [move for move in model.moves(world) if move[0] == "recover here"]
        assert name and asking.here is not None
        ends = list(alone(model, asking))
        assert ends, story(came, world)
        for end in ends:
            if end.decided == "destination":
                assert end.disk_here is Step.COMMITTED and not end.runs_here, story(came, world)
            else:
                assert end.disk_here is Step.RESUMED and end.runs_here == end.alive, story(came, world)


def alone(model: Model, world: World) -> Iterator[World]:
    """How the source's program ends, if nothing fails and nobody answers."""
    names = ("recover claims", "source: ", "the guest runs here")
    moves = [after for name, fault, after in model.moves(world) if not fault and name.startswith(names)]
    for after in moves:
        yield from [after] if after.here is None else alone(model, after)
