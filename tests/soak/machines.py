"""Two machines over a wire that is not there, with random faults: the promises of `simulation.World`."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from protocol_support import PAGE
from sim_random import draw
from simulation import World, run

from tests.soak.tally import Tally


def migrate_machines(seed: int, count: int) -> Tally:
    """So many migrations, from that seed on."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="migrate-test-soak-", dir="/dev/shm") as directory:
        for number in range(seed, seed + count):
            rng = random.Random(number)
            scenario = draw(rng)
            try:
                world = run(Path(directory), scenario, rng.getrandbits(32))
            except Exception as error:
                what = "broken promises" if isinstance(error, AssertionError) else "unexpected errors"
                notes = "\n".join(getattr(error, "__notes__", []))
                tally.went_wrong(what, f"--seed {number} machines\n{type(error).__name__}: {error}\n{notes}")
            else:
                _count(world, tally)
            tally.done += 1
    return tally


def _count(world: World, tally: Tally) -> None:
    tally.facts[world.source.machine.outcome] += 1
    for side, report in world.reports:
        if side == "source" and report.name == "lane-reset":
            tally.facts["lane resets"] += 1
            tally.reset_cost(int(str(report.fields["owed_pages"])) * PAGE)
        elif side == "source" and report.name == "begun-anew":
            tally.facts["killed destinations survived"] += 1
