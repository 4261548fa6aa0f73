"""Two runs of bin/demo side by side, as a table on standard output.

    python bin/demo_table.py LABEL FOLDER LABEL FOLDER

A folder holds `statistics.json`, the source's summary, and `witness.json`, the report of
`migrate-guest --check-witness --json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from migrate.units import format_count, format_duration, format_size

Json = dict[str, Any]


def rows(statistics: Json, witness: Json) -> list[tuple[str, str]]:
    """What differs between the runs, as (name, value)."""
    ram, cache = statistics["ram"], statistics.get("xbzrle-cache")
    return [
        ("sent", format_size(ram["transferred"])),
        ("rounds", str(ram["dirty-sync-count"])),
        ("total time", format_duration(statistics["total-time"] / 1000)),
        ("downtime, measured by the source", format_duration(statistics["downtime"] / 1000)),
        ("downtime, as the guest felt it", format_duration(witness["longest-hand-over-ms"] / 1000)),
        ("pages sent whole", format_count(ram["normal"])),
        ("pages sent as deltas", format_count(cache["encoded-pages"]) if cache else "none"),
        ("cache misses", format_count(cache["cache-miss"]) if cache else "no cache"),
    ]


def table(labels: list[str], columns: list[list[tuple[str, str]]]) -> str:
    """Names at the left, a column for each run."""
    lines = [["", *labels]]
    for entries in zip(*columns, strict=True):
        lines.append([entries[0][0], *(value for _, value in entries)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def main(arguments: list[str]) -> None:
    labels, folders = arguments[::2], [Path(folder) for folder in arguments[1::2]]
    columns = [
        rows(
            json.loads((folder / "statistics.json").read_text()),
            json.loads((folder / "witness.json").read_text()),
        )
        for folder in folders
    ]
    print(table(labels, columns))


if __name__ == "__main__":
    main(sys.argv[1:])
