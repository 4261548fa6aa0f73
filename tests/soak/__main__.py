"""Long runs with faults drawn at random, counting what must be zero.

machines   two migration machines over a fake wire: cuts, flips, silence, killed destinations (10000)
processes  real daemons and a real guest: cuts, flips, kill -9 of either daemon at any step (500)
flips      one bit flipped in a batch or a control frame: it must be found (100000)
mutations  decoders fed with messages, batches and streams that were changed at random (10000000)
failures   migrations that fail, in one process: nothing may pile up (1000)
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "protocol"))

from tests.soak.failures import fail_migrations
from tests.soak.flips import flip_bits
from tests.soak.machines import migrate_machines
from tests.soak.mutations import mutate
from tests.soak.processes import migrate_processes
from tests.soak.tally import Tally, histogram, table

Part = Callable[[int, int], Tally]
PARTS: dict[str, tuple[Part, int, int, bool]] = {
    "machines": (migrate_machines, 10_000, 2000, True),
    "processes": (migrate_processes, 500, 30, False),
    "flips": (flip_bits, 100_000, 100_000, True),
    "mutations": (mutate, 10_000_000, 1_000_000, True),
    "failures": (fail_migrations, 1000, 200, False),
}
"""Function, count, count with --short, whether several may run side by side."""
CHUNKS = 8


def run_part(name: str, seed: int, count: int) -> Tally:
    """All of a part."""
    part, _, _, parallel = PARTS[name]
    began = time.monotonic()
    if parallel:
        tally = Tally()
        share = -(-count // CHUNKS)
        starts = [(seed + at, min(share, count - at)) for at in range(0, count, share)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for result in pool.map(part, *zip(*starts, strict=True)):
                tally.add(result)
    else:
        tally = part(seed, count)
    tally.seconds = time.monotonic() - began
    return tally


def main() -> int:
    """Run the parts, print the table; 0 if all that must be zero is."""
    parser = argparse.ArgumentParser(
        prog="bin/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: all)")
    parser.add_argument("--short", action="store_true", help="a few minutes instead of some hours")
    parser.add_argument("--count", type=int, metavar="N", help="how many of each part (default: as above)")
    parser.add_argument("--seed", type=int, metavar="N", help="repeat a run (default: random)")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"--seed {seed}", flush=True)
    tallies = []
    for name in options.parts or PARTS:
        count = options.count or PARTS[name][2 if options.short else 1]
        tally = run_part(name, seed, count)
        tallies.append((name, tally))
        for story in tally.stories[:5]:
            print(f"\n{name}: {story}", file=sys.stderr, flush=True)
        print(f"{name}: {tally.done} in {tally.seconds:.0f} s, {sum(tally.wrong.values())} wrong", flush=True)
    print(f"\n{table(tallies)}")
    for name, tally in tallies:
        if tally.sent_again:
            print(f"\n{name}: sent again after each reset of a lane\n{histogram(tally.sent_again)}")
    bad = any(tally.wrong for _, tally in tallies)
    print("\nFAILED" if bad else "\nall that must be zero is")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
