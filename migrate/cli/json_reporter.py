"""One JSON object a line on standard output: for supervisors and scripts.

    {"event": NAME, "timestamp": {"seconds": …, "microseconds": …}, …}    as QEMU's monitor stamps its events
    {"event": "progress", …statistics without `rounds`}                   once a second while pages move
    {"event": "summary", "outcome": …, "side": …, …statistics}            once a migration
    {"event": "error", "class": …, "exit-code": …, "message": …, "side": …, "guest": …, "hint": …}

Names have dashes. What JSON cannot express, as an infinite time, is null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from migrate.cli.wording import dashed
from migrate.errors import MigrateError

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats

PROGRESS_SECONDS = 1.0


class Writable(Protocol):
    """Where lines go; `write` must not block or raise for long-lived programs (`migrate.cli.output`)."""

    def write(self, text: str, /) -> object: ...


def json_line(name: str, fields: Mapping[str, object], timestamp: float) -> str:
    """One event as a line of JSON.

    Args:
        name: value of `event`.
        fields: further members, in this order; none may be called `event` or `timestamp`.
        timestamp: seconds since the epoch.
    """
    seconds, microseconds = divmod(round(timestamp * 1_000_000), 1_000_000)
    record = {"event": name, "timestamp": {"seconds": seconds, "microseconds": microseconds}}
    return json.dumps(record | _plain_object(fields), allow_nan=False) + "\n"


def dropped_notice(dropped: int) -> str:
    """The line that stands in for output nobody read."""
    message = f"{dropped} bytes of output were dropped: nobody read them"
    return json_line("warning", {"message": message}, time.time())


class JsonReporter:
    """Reporter that writes JSON lines, errors included."""

    def __init__(self, out: Writable, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._out = out
        self._wall_clock = wall_clock
        self._next_progress = -math.inf

    def event(self, name: str, /, **fields: object) -> None:
        """Write one event."""
        self._write(name, dashed(fields))

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Write the statistics, at most once in PROGRESS_SECONDS."""
        if now < self._next_progress:
            return
        self._next_progress = now + PROGRESS_SECONDS
        report = stats.as_dict(now)
        del report["rounds"]  # every round had its event; the list would grow in every line
        self._write("progress", report)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Write the final statistics."""
        head: dict[str, object] = {"outcome": outcome, "side": stats.side}
        self._write("summary", head | dashed(fields) | stats.as_dict(now))
        self._next_progress = -math.inf

    def error(self, error: MigrateError) -> None:
        """Write why it ended."""
        self._write(
            "error",
            {
                "class": type(error).__name__,
                "exit-code": error.exit_code,
                "message": error.message,
                "side": error.side,
                "guest": error.guest,
                "hint": error.hint,
            },
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, name: str, fields: Mapping[str, object]) -> None:
        self._out.write(json_line(name, fields, self._wall_clock()))


def _plain_object(fields: Mapping[str, object]) -> dict[str, object]:
    return {str(name): _plain(value) for name, value in fields.items()}


def _plain(value: object) -> object:
    """The value in terms of JSON; what has none is its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _plain_object(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
