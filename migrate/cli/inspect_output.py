"""What `migrate-inspect` prints."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping

from migrate.cli.plain_text import printable
from migrate.errors import StreamError
from migrate.protocol.record_listing import PageRecord
from migrate.units import format_size

_COLUMNS = ("zero", "zero_again", "normal", "xbzrle", "xbzrle_runs", "xbzrle_bytes")
_PLAIN = ("format", "machine", "page_size", "bytes", "lane", "multifd_flushes", "device_state_bytes", "final")

SHOWN_ROWS = 20
"""Of a long table a person sees so many at its beginning, and as many at its end."""


def print_record(*, json: bool) -> Callable[[PageRecord], None]:
    """A function that prints one page record a line."""
    return _print_record_json if json else _print_record_text


def _print_record_json(record: PageRecord) -> None:
    print(json_module.dumps({"record": record._asdict()}))


def _print_record_text(record: PageRecord) -> None:
    runs = " ".join(f"{start:#x}+{length}" for start, length in record.runs)
    print(f"{record.at:#x} {record.type} {printable(record.block)} {record.offset:#x} {runs}".rstrip())


def print_summary(summary: Mapping[str, object], error: StreamError | None, *, json: bool) -> None:
    """Statistics by block and round; with `json` one object, which holds the error too."""
    if json:
        fault = error and {"rule": error.rule, "offset": error.offset, "message": error.message}
        print(json_module.dumps({"summary": {**summary, "error": fault}}))
        return
    for name in _PLAIN:
        if summary.get(name) is not None:
            print(f"{name.replace('_', '-'):<20}{printable(summary[name])}")
    for name in ("capabilities", "commands", "devices"):
        values = summary.get(name)
        if isinstance(values, list) and values:
            print(f"{name:<20}{printable(' '.join(values))}")
    for name in ("sections", "batches"):
        values = summary.get(name)
        if isinstance(values, dict):
            print(f"{name:<20}" + ", ".join(f"{count} {kind}" for kind, count in values.items()))
    for block in _rows(summary, "blocks"):
        if block.get("never_sent"):
            print(f"{'never sent':<20}{block['never_sent']} pages of {printable(block['name'])}")
    for what, key in (("blocks", "name"), ("rounds", "round")):
        rows = _rows(summary, what)
        if rows:
            _print_table(key, rows)


def _rows(summary: Mapping[str, object], name: str) -> list[dict[str, object]]:
    rows = summary.get(name)
    return rows if isinstance(rows, list) else []


def _print_table(key: str, rows: list[dict[str, object]]) -> None:
    extra = "length" if key == "name" else "wire_bytes"
    head = ("block" if key == "name" else key, extra.replace("_", "-"), *_COLUMNS)
    print(f"\n{head[0]:<24}{head[1]:>12}" + "".join(f"{name.replace('_', '-'):>13}" for name in _COLUMNS))
    left_out = len(rows) - 2 * SHOWN_ROWS
    for number, row in enumerate(rows):
        if left_out > 0 and SHOWN_ROWS <= number < SHOWN_ROWS + left_out:
            if number == SHOWN_ROWS:
                print(f"… {left_out} more; --json has them all")
            continue
        size = row.get(extra)
        counts = "".join(f"{row.get(name, 0)!s:>13}" for name in _COLUMNS)
        print(f"{printable(row[key]):<24}{format_size(size) if isinstance(size, int) else '-':>12}{counts}")
