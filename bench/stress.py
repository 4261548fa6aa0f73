"""Move practice guests again and again, over everything that differs, and count what must be zero.

Each move draws workload, number of RAM blocks, sizes, tmpfs or disk at each side, cache, rule, lanes,
compression and proof level; the trackers take turns, in an order that is drawn anew each time round.
Before the guest goes on at the destination the two sides' RAM files are compared byte by byte; afterwards
its RAM and its witness log are checked.
Thrash, and whatever else does not converge, moves with --timeout-action pause.
"""

from __future__ import annotations

import argparse
import random
import secrets
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.lab import Event, Lab, program

WORKLOADS = ("idle", "sparse", "kv", "log", "zero", "mixed", "thrash")
TRACKERS = ("wp", "wp-inject", "log", "scan", "stop", "auto")
FAULTS = ("failed moves", "differing bytes", "guest check errors", "witness overlaps")
COMPARE = """
import sys, os
pairs = zip(sys.argv[2::2], sys.argv[3::2])
count = 0
for ours, theirs in pairs:
    with open(ours, "rb") as a, open(theirs, "rb") as b:
        while True:
            x, y = a.read(1 << 20), b.read(1 << 20)
            if not x and not y: break
            if x != y: count += sum(p != q for p, q in zip(x, y)) + abs(len(x) - len(y))
with open(sys.argv[1], "w") as result: result.write(str(count))
"""


def draw(
    rng: random.Random, number: int, tracker: str, memory: Path, disk: Path
) -> tuple[Lab, list[str], list[str], str]:
    """One move: its laboratory, the guest's and the source's options, and a line that says what it is."""
    workload = WORKLOADS[number % len(WORKLOADS)]
    blocks = [("pc.ram", f"{rng.choice((16, 32, 64))}M")]
    if rng.random() < 0.5:
        blocks += [("vga.vram", "8M"), ("pc.bios", "256K")]
    places = [rng.choice((memory, disk)) for _ in range(2)]
    guest = [f"--workload={workload}", f"--fill={rng.choice(('random', 'zero', 'none'))}"]
    if workload != "thrash":
        guest.append(f"--rate={rng.choice((2000, 10000, 50000))}")
    cache = rng.choice(("0", "1M", "8M", "64M"))
    source = [
        f"--xbzrle-cache-size={cache}",
        f"--xbzrle-cache-rule={rng.choice(('default', 'default', 'qemu'))}",
        f"--lanes={rng.choice((1, 1, 2, 3))}",
        f"--compression={rng.choice(('none', 'none', 'none', 'zlib'))}",
        f"--verify={rng.choice(('stream', 'ram', 'ram', 'full'))}",
        f"--dirty-tracker={tracker}",
        "--downtime-limit=1000",
        "--timeout-action=pause",
        f"--max-rounds={rng.choice((3, 5))}",
    ]
    if rng.random() < 0.3:
        source.append("--max-bandwidth=100M")
    kinds = "→".join("tmpfs" if place is memory else "disk" for place in places)
    story = f"{workload:7s} {len(blocks)} blocks {kinds:13s} {' '.join(source[:6])}"
    lab = Lab(places[0], places[1], blocks)
    if tracker == "log":
        kept, read = lab.dirty_logs()
        guest += kept
        source += read
    return lab, guest, source, story


def move(lab: Lab, guest_options: list[str], source_options: list[str]) -> tuple[Counter[str], Event]:
    """Move one guest; what was wrong, and the source's summary."""
    wrong: Counter[str] = Counter()
    guest = lab.start_guest(*guest_options)
    result = lab.witness.with_name("differing")
    script = lab.witness.with_name("compare.py")
    script.write_text(COMPARE)
    pairs = [
        str(path) for name in lab.source_ram for path in (lab.source_ram[name], lab.destination_ram[name])
    ]
    compare = shlex.join([sys.executable, str(script), str(result), *pairs])
    commit = f"{compare}; {lab.resume_command}"
    destination = lab.start_destination("--once", f"--on-commit={commit}", resume=False)
    source = lab.start_source(destination.wait_event("listening")["port"], guest, *source_options)
    if source.wait() != 0 or destination.wait() != 0:
        wrong["failed moves"] += 1
        print(source.story(), destination.story(), sep="\n", file=sys.stderr)
        return wrong, {}
    wrong["differing bytes"] += int(result.read_text())
    lab.end_arrived_guest(beat_seconds=0.1)
    for check, name in ((lab.check_arrived, "guest check errors"), (lab.check_witness, "witness overlaps")):
        try:
            check()
        except AssertionError as error:
            wrong[name] += 1
            print(error, file=sys.stderr)
    return wrong, source.summary


def main() -> int:
    """Run the moves, print a line each and the sums; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(
        prog="bin/stress", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=100, metavar="N", help="how many moves (default: 100)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="repeat a run (default: random)")
    parser.add_argument(
        "--disk",
        type=Path,
        default=None,
        metavar="DIR",
        help="directory on a disk file system (default: temporary)",
    )
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    rng = random.Random(seed)
    wrong: Counter[str] = Counter()
    used: Counter[str] = Counter()
    trackers: list[str] = []
    print(f"{options.moves} moves, --seed {seed}, {program('migrate-src')}", flush=True)
    for number in range(options.moves):
        trackers = trackers or rng.sample(TRACKERS, len(TRACKERS))
        tracker = trackers.pop()
        with (
            tempfile.TemporaryDirectory(prefix="migrate-test-stress-", dir="/dev/shm") as memory,
            tempfile.TemporaryDirectory(prefix="migrate-test-stress-", dir=options.disk) as disk,
        ):
            lab, guest_options, source_options, story = draw(rng, number, tracker, Path(memory), Path(disk))
            with lab:
                found, summary = move(lab, guest_options, source_options)
        wrong.update(found)
        numbers = ""
        if summary:
            sent = summary["ram"]["transferred"] / 2**20
            rounds = summary["ram"]["dirty-sync-count"]
            taken, downtime = summary["dirty-tracker"], summary["downtime"]
            used[taken] += 1
            numbers = f"{taken:9s} {rounds:2d} rounds {sent:6.1f} MiB downtime {downtime:4d} ms"
        bad = ", ".join(f"{count} {name}" for name, count in found.items() if count) or "ok"
        print(f"{number + 1:4d} {story}: {numbers} {bad}", flush=True)
    print("trackers: " + ", ".join(f"{name} {count}" for name, count in sorted(used.items())))
    print(", ".join(f"{wrong[name]} {name}" for name in FAULTS))
    bad_moves = sum(wrong.values())
    print(f"{options.moves} moves passed" if not bad_moves else "FAILED")
    return 1 if bad_moves else 0


if __name__ == "__main__":
    sys.exit(main())
