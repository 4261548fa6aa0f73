"""bin/bench: how fast, how large, and does it converge. See --help."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import (
    control,
    convergence,
    downtime,
    inspect_part,
    kernel_part,
    lane,
    memory,
    plan,
    product,
    qemu,
    tracking,
)
from bench.figures import Part, conditions, describe

PARTS = ("kernel", "lane", "memory", "convergence", "tracking", "downtime", "control", "qemu", "plan")
SHARED_MEMORY = Path("/dev/shm")
DESCRIPTION = """Measure the real thing on this machine; say what was demanded and whether it was met.

  kernel       XBZRLE as fractions of memcmp; fill, apply, scan, CRC
  lane         idle random RAM over loopback against a bare pump and iperf3; then the whole product
  memory       peak resident memory of both daemons
  convergence  `sparse` behind 50 MB/s without XBZRLE and with it; the cache rules side by side
  tracking     a harvest of 1 GiB with 1 % dirty; what each tracker costs the guest
  downtime     sparse guests of 1, 4 and 16 GiB with 2 GiB in use, trackers `wp` and `log`: the pause
  control      time until the control sockets answer while pages move as fast as they can
  qemu         our destination against a QEMU's, from the same QEMU; migrate-inspect on whole pages
  plan         what migrate-src plan says beside what moves do, on a grid of workloads and links

Speeds are ratios to something measured in the same run, medians with their range."""
EPILOG = """exit codes: 0 everything demanded was met; 1 something was missed, or broke"""


def main() -> int:
    """Run the parts that were asked for; 0 if nothing was missed."""
    parser = argparse.ArgumentParser(
        prog="bin/bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} or all (default: all)")
    parser.add_argument("--runs", type=int, default=9, metavar="N", help="interleaved runs (default: 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file, too")
    parser.add_argument(
        "--quick", action="store_true", help="one small run of each: does it work? Speed is not judged"
    )
    parser.add_argument(
        "--shared-memory",
        type=Path,
        default=SHARED_MEMORY,
        metavar="DIR",
        help="where RAM files go, 4.5 GiB at most (default: %(default)s)",
    )
    options = parser.parse_args()
    for name in options.parts:
        if name not in (*PARTS, "all"):
            parser.error(f"{name!r} is no part: choose from {', '.join(PARTS)}, all")
    if options.runs < 1:
        parser.error("--runs: at least 1")
    wanted = PARTS if not options.parts or "all" in options.parts else tuple(options.parts)

    where = conditions()
    print(f"# Benchmark\n\n{describe(where)}\n", flush=True)
    report: dict[str, object] = {"conditions": where, "runs": 1 if options.quick else options.runs}
    missed = False
    for name, make in _steps(options.runs, options.quick, options.shared_memory):
        if name not in wanted:
            continue
        part = make()
        print(f"{part}\n", flush=True)
        report[part.title] = part.as_dict()
        missed = missed or any(verdict.met is False for verdict in part.verdicts)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if missed else 0


def _steps(runs: int, quick: bool, shared: Path) -> Iterator[tuple[str, Callable[[], Part]]]:
    """What there is to do, in order, under the name of its part."""
    runs = 1 if quick else runs
    mib = 128 if quick else 1024
    yield "kernel", lambda: kernel_part.run(3 if quick else max(runs, 15), not quick)
    yield "lane", lambda: lane.run(runs, mib, shared, not quick)
    yield "lane", lambda: product.run(runs, mib, shared)
    yield "memory", lambda: memory.run(mib, shared, 200e6)
    yield "convergence", lambda: convergence.run(quick, shared)
    yield "convergence", lambda: convergence.rules(quick, shared)
    yield "tracking", lambda: tracking.run(runs, quick, shared)
    yield "downtime", lambda: downtime.run(runs, quick, shared)
    yield "control", lambda: control.run(quick, shared)
    yield "qemu", lambda: qemu.run(runs, min(mib, 512), shared, not quick)
    yield "qemu", lambda: inspect_part.run(runs, min(mib, 512), shared, not quick)
    yield "plan", lambda: plan.run(quick, shared)


if __name__ == "__main__":
    sys.exit(main())
