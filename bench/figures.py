"""What all parts of the benchmark share: medians with their spread, tables, verdicts, where it ran."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Verdict:
    """One demand and whether it was met; None: it was measured too little to say."""

    demand: str
    measured: str
    met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        return f"{word}: {self.demand} (measured: {self.measured})"


@dataclass
class Part:
    """The result of one part: a title, paragraphs and tables in Markdown, verdicts, the numbers behind."""

    title: str
    text: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"numbers": self.numbers, "verdicts": [asdict(verdict) for verdict in self.verdicts]}

    def __str__(self) -> str:
        lines = [f"## {self.title}", *self.text]
        if self.verdicts:
            lines.append("\n".join(f"* {verdict}" for verdict in self.verdicts))
        return "\n\n".join(lines)


def middle(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """Median and range of some runs."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table that can also be read as it is: first column to the left, others to the right."""
    texts = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [texts[0], rule, *texts[1:]]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def conditions() -> dict[str, Any]:
    """Date, kind of machine and how busy it is; nothing that names it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "virtual machine": _is_virtual(),
        "memory GiB": round(memory),
        "machine": platform.machine(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "load at start": [round(load, 2) for load in os.getloadavg()],
    }


def describe(where: dict[str, Any]) -> str:
    """The conditions in a sentence."""
    kind = "virtual machine" if where["virtual machine"] else "machine"
    load = where["load at start"][0]
    busy = (
        "; it was not idle, so rates, and ratios of what needs both CPUs, are too low"
        if load > 0.25 * where["cpus"]
        else ""
    )
    return (
        f"{where['date']}, {where['cpus']} vCPU {where['machine']} {kind}, {where['memory GiB']} GiB,"
        f" Linux {where['kernel']}, Python {where['python']}, load average {load:g} at the start{busy}."
    )


def _is_virtual() -> bool:
    try:
        return "hypervisor" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
