"""Whether the pause grows with the RAM: sparse guests of several sizes, with as much of it in use.

What is in use, what is written and how fast are the same within a group; only the RAM around it grows. A
pause that walks all of RAM, or a table of all its pages, shows here. Groups are not compared with each other:
how much is dirty when the pause comes depends on how long the round before it took.
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

from bench.figures import Part, Verdict, middle, table
from bench.lab import Event
from bench.moves import move

TRACKERS = ("wp", "log")
GROUPS = {768: (1, 4, 16), 2048: (4, 16)}
"""MiB in use, and the sizes of RAM in GiB around it."""
QUICK_GROUPS = {64: (1, 4, 16)}
RATE = 10_000
ALLOWED_RATIO = 1.25
ALLOWED_MS = 10
Case = tuple[str, int, int]
"""Tracker, MiB in use, GiB of RAM."""
PARTS = ("pause", "harvest", "copy", "verify", "journals", "commands")


def run(runs: int, quick: bool, memory: Path) -> Part:
    """Measure and report."""
    part = Part("Downtime: guests of several sizes, with as much in use")
    groups = QUICK_GROUPS if quick else GROUPS
    found: dict[Case, list[Event]] = {
        (tracker, mib, size): [] for tracker in TRACKERS for mib, sizes in groups.items() for size in sizes
    }
    for _ in range(runs):
        for (tracker, mib, size), summaries in found.items():
            guest = ("--workload=kv", f"--rate={RATE}", f"--working-set={mib}M", "--fill=working-set")
            summaries.append(_summary(memory, f"{size}G", guest, tracker))
    part.text.append(
        f"RAM is a sparse file; `kv` writes {RATE} pages a second all over the MiB in use. Default options;"
        f" {runs} interleaved runs. Milliseconds: median (lowest to highest), of the parts medians."
    )
    rows = []
    for (tracker, mib, size), summaries in found.items():
        cells = [statistics.median(one["downtime-parts"][name] for one in summaries) for name in PARTS]
        name = f"{tracker}, {mib} MiB of {size} GiB"
        part.numbers[name] = {
            "downtime": [one["downtime"] for one in summaries],
            "parts": [one["downtime-parts"] for one in summaries],
        }
        rows.append(
            (name, middle(part.numbers[name]["downtime"], digits=0), *(f"{cell:.0f}" for cell in cells))
        )
    part.text.append(table(("", "downtime", *PARTS), rows))
    for tracker in TRACKERS:
        for mib, sizes in groups.items():
            smallest, *larger = (_median(found[tracker, mib, size]) for size in sizes)
            allowed = ALLOWED_RATIO * smallest + ALLOWED_MS
            part.verdicts.append(
                Verdict(
                    f"{tracker}, {mib} MiB in use: downtime does not depend on the size of RAM, at most"
                    f" {ALLOWED_RATIO:g} times that of {sizes[0]} GiB and {ALLOWED_MS} ms",
                    f"{max(larger):.0f} ms, allowed {allowed:.0f} ms",
                    None if quick else max(larger) <= allowed,
                )
            )
    return part


def _median(summaries: list[Event]) -> float:
    return statistics.median([float(summary["downtime"]) for summary in summaries])


def _summary(memory: Path, size: str, guest: tuple[str, ...], tracker: str) -> Event:
    moved = asyncio.run(move(memory, size, guest, (), tracker=tracker))
    if moved.status != 0:
        raise RuntimeError(f"the move failed: {moved.error}")
    return moved.source
