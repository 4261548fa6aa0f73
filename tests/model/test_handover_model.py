"""Every reachable world of the handover: never two owners, no lost success, and always a way to one owner."""

from __future__ import annotations

from collections import defaultdict, deque

from handover_model import Model, World, first_world

from migrate.protocol.journal_record import Step


def explore(model: Model) -> tuple[dict[World, tuple[World, str] | None], dict[World, list[World]]]:
    """All worlds, each with how it was reached first; and which lead to each without a fault."""
    first = first_world()
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


def test_every_world() -> None:
    model = Model(pauses=2)
    came, back = explore(model)
    good = {world for world in came if settled(world)}
    reached = set(good)
    waiting = list(good)
    while waiting:
        for world in back[waiting.pop()]:
            if world not in reached:
                reached.add(world)
                waiting.append(world)
    print(f"{len(came)} worlds, {sum(map(len, back.values()))} moves without a fault, {len(good)} settled")
    gone = [world for world in good if world.disk_here is world.disk_there is None]
    assert any(world.runs_there for world in gone) and any(world.runs_here for world in gone)
    for step in Step:
        assert any(step in (world.disk_here, world.disk_there) for world in came), f"{step} never comes"
    stuck = [world for world in came if world not in reached]
    assert not stuck, f"{len(stuck)} worlds from which nothing leads to one owner\n{story(came, stuck[0])}"
