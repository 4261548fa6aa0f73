"""What a person gets: an idle guest through migrate-src and migrate-dst, as a fraction of the pump."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.figures import GIB, MIB, Part, middle, table
from bench.moves import move
from bench.pump import pump_rate

GUEST = ("--workload=idle", "--fill=random")


def run(runs: int, mib: int, memory: Path) -> Part:
    """Measure and report."""
    pump: list[float] = []
    columns: dict[str, list[float]] = {
        name: [] for name in ("round 1, GB/s", "total-time, ms", "setup-time, ms", "downtime, ms", "rounds")
    }
    for _ in range(runs):
        pump.append(pump_rate(mib * MIB / GIB))
        moved = asyncio.run(move(memory, f"{mib}M", GUEST, ()))
        if moved.status != 0:
            raise RuntimeError(f"the move failed: {moved.error}")
        summary = moved.source
        columns["round 1, GB/s"].append(summary["rounds"][0]["bandwidth"] / 1e9)
        for name in ("total-time", "setup-time", "downtime"):
            columns[f"{name}, ms"].append(summary[name])
        columns["rounds"].append(summary["ram"]["dirty-sync-count"])
    ratios = [rate / of for rate, of in zip(columns["round 1, GB/s"], pump, strict=True)]
    part = Part("The whole product: an idle guest over loopback")
    part.text.append(
        f"Guest of {mib} MiB of random RAM that only beats, default options (tracker `wp` where possible,"
        " whose second round begins two seconds after the first at the earliest; cache of 64 MiB,"
        f" proof level `ram`), destination file all holes; {runs} runs, a bare pump before each."
        " Median (lowest to highest)."
    )
    digits = {"round 1, GB/s": 2}
    rows = [("bare pump, GB/s", middle(pump)), ("round 1 of the pump", middle(ratios))]
    rows += [(name, middle(values, digits=digits.get(name, 0))) for name, values in columns.items()]
    part.text.append(table(("", "median (range)"), rows))
    part.numbers = {"bare pump, GB/s": pump, "round 1 of the pump": ratios, **columns}
    return part
