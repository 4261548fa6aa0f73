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

from migrate.daemon.event_reporter import EventReporter

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
    return json.dumps(record | plain_object(fields), allow_nan=False) + "\n"


def dropped_notice(dropped: int) -> str:
    """The line that stands in for output nobody read."""
    message = f"{dropped} bytes of output were dropped: nobody read them"
    return json_line("warning", {"message": message}, time.time())


class JsonReporter(EventReporter):
    """Reporter that writes JSON lines, errors included."""

    def __init__(self, out: Writable, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._out = out
        self._wall_clock = wall_clock
        self._next_progress = -math.inf

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Write the statistics, at most once in PROGRESS_SECONDS."""
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_SECONDS
            super().progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Write the final statistics."""
        super().summary(stats, now, outcome, **fields)
        self._next_progress = -math.inf

    def record(self, name: str, fields: Mapping[str, object]) -> None:
        """Write an event (EventReporter)."""
        self._out.write(json_line(name, fields, self._wall_clock()))

    def close(self) -> None:
        """Nothing is held open."""


def plain_object(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields in terms of JSON."""
    return {str(name): _plain(value) for name, value in fields.items()}


def _plain(value: object) -> object:
    """The value in terms of JSON; what has none is its text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return plain_object(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)
