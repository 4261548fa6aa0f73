"""What XBZRLE is for: a guest that writes faster than the link carries pages, moved without it and with it.

Both go through a proxy that lets 50 MB/s through. Then the two cache rules, at nearly the same number of
slots (the default rule gets the fewer).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.figures import MIB, Part, Verdict, table
from bench.lab import Event
from bench.moves import Moved, move

LINK_RATE = 50e6
NOT_CONVERGED = 7
SLOT_BYTES = 4096 + 32
RULE_SLOTS = 8192
RULE_WORKLOADS = ("sparse", "kv")
RULE_ROUNDS = 8


def run(quick: bool, memory: Path) -> Part:
    """Measure and report."""
    part = Part(f"Convergence: `sparse` behind a link of {LINK_RATE / 1e6:g} MB/s")
    size, working_set, rate = (64, 32, 24000) if quick else (256, 64, 24000)
    guest = ("--workload=sparse", f"--working-set={working_set}M", f"--rate={rate}", "--seed=1")
    rounds = 12 if quick else 20
    limits = ("--downtime-limit=300", f"--max-rounds={rounds}")
    runs = {
        "without": _move(memory, size, guest, (*limits, "--xbzrle-cache-size=0")),
        "with XBZRLE": _move(memory, size, guest, (*limits, f"--xbzrle-cache-size={2 * working_set}M")),
    }
    part.text.append(
        f"Guest of {size} MiB that writes {rate} pages a second all over {working_set} MiB: up to"
        f" {rate * 4096 / 1e6:.0f} MB/s of pages. Downtime limit 300 ms, at most {rounds} rounds;"
        f" with: a cache of {2 * working_set} MiB. One run each."
    )
    names = list(runs)
    part.text.append(
        table(("", *names), ([key, *(row[key] for row in map(_row, runs.values()))] for key in _ROWS))
    )
    without, with_it = runs["without"], runs["with XBZRLE"]
    part.text.append(f"The run without said: {without.error}")
    part.verdicts = [
        Verdict(
            f"without XBZRLE it does not converge (exit code {NOT_CONVERGED})",
            f"exit code {without.status}",
            without.status == NOT_CONVERGED,
        ),
        Verdict("with XBZRLE it converges", f"exit code {with_it.status}", with_it.status == 0),
    ]
    part.numbers = {name: _numbers(moved) for name, moved in runs.items()}
    return part


def rules(quick: bool, memory: Path) -> Part:
    """The default cache rule beside QEMU's."""
    part = Part("Cache rules: the default one beside QEMU's")
    size, working_set = (64, 48) if quick else (256, 64)
    rounds = 4 if quick else RULE_ROUNDS
    cache = RULE_SLOTS * SLOT_BYTES
    rows = []
    for workload in RULE_WORKLOADS:
        for rule in ("default", "qemu"):
            moved = _move(
                memory,
                size,
                (f"--workload={workload}", f"--working-set={working_set}M", "--rate=16000", "--seed=1"),
                (
                    *("--downtime-limit=1", f"--max-rounds={rounds}", "--timeout-action=pause"),
                    *(f"--xbzrle-cache-size={cache}", f"--xbzrle-cache-rule={rule}"),
                ),
            )
            if moved.status != 0:
                raise RuntimeError(f"the move failed: {moved.error}")
            name = f"{workload}, {rule}"
            part.numbers[name] = _numbers(moved)
            cells = part.numbers[name]
            after_first = cells["transferred"] - cells["round 1 bytes"]
            hit_rate = cells["hits"] / max(1, cells["hits"] + cells["misses"])
            rows.append(
                (
                    *(name, cells["rounds"], f"{after_first / MIB:.1f}", cells["hits"], cells["misses"]),
                    *(f"{hit_rate:.0%}", cells["overflow"], cells["total-time"], cells["downtime"]),
                )
            )
    part.text.append(
        f"Guest of {size} MiB, {working_set} MiB of it written at 16000 pages a second, the same link, a"
        f" cache of {RULE_SLOTS} slots (QEMU's rule) or as many whole sets as stay below that (default);"
        f" {rounds} rounds, then the pause. One run each, of a guest that is never the same twice."
    )
    part.text.append(
        table(
            (
                *("workload, rule", "rounds", "MiB after round 1", "hits", "misses", "hit rate"),
                *("overflow", "total ms", "downtime ms"),
            ),
            rows,
        )
    )
    return part


def _move(memory: Path, mib: int, guest: tuple[str, ...], options: tuple[str, ...]) -> Moved:
    return asyncio.run(move(memory, f"{mib}M", guest, options, link_rate=LINK_RATE))


_ROWS = (
    *("exit code", "outcome", "transferred, MiB", "rounds", "total-time, ms", "downtime, ms"),
    *("pages sent whole", "deltas", "cache hit rate", "bytes a delta"),
)


def _row(moved: Moved) -> dict[str, object]:
    """The cells of one column."""
    numbers = _numbers(moved)
    lookups = numbers["hits"] + numbers["misses"]
    return {
        "exit code": moved.status,
        "outcome": "moved" if moved.status == 0 else "gave up; the guest runs at the source",
        "transferred, MiB": f"{numbers['transferred'] / MIB:.1f}",
        "rounds": numbers["rounds"],
        "total-time, ms": numbers["total-time"],
        "downtime, ms": "never paused" if numbers["downtime"] is None else numbers["downtime"],
        "pages sent whole": numbers["whole pages"],
        "deltas": numbers["deltas"],
        "cache hit rate": f"{numbers['hits'] / lookups:.0%}" if lookups else "no cache",
        "bytes a delta": f"{numbers['delta bytes'] / numbers['deltas']:.0f}" if numbers["deltas"] else "-",
    }


def _numbers(moved: Moved) -> Event:
    summary = moved.source
    cache = summary.get("xbzrle-cache", {})
    return {
        "status": moved.status,
        "transferred": summary["ram"]["transferred"],
        "round 1 bytes": summary["rounds"][0]["bytes"],
        "rounds": summary["ram"]["dirty-sync-count"],
        "total-time": summary["total-time"],
        "downtime": summary.get("downtime"),
        "whole pages": summary["ram"]["normal"],
        "deltas": cache.get("encoded-pages", 0),
        "delta bytes": cache.get("bytes", 0),
        "hits": cache.get("pages", 0),
        "misses": cache.get("cache-miss", 0),
        "overflow": cache.get("overflow", 0),
    }
