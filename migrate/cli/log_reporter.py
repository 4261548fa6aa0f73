"""Plain lines with a time stamp, for logs, pipes and service managers: events, rounds, the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from migrate.cli.error_text import error_block
from migrate.cli.json_reporter import Writable
from migrate.cli.plain_text import Fields
from migrate.cli.summary import summary_rows, summary_title
from migrate.cli.wording import check_items, check_verdict, event_text, is_bad_news, progress_text
from migrate.daemon.event_reporter import dashed
from migrate.errors import MigrateError

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats

QUIET_SECONDS = 30.0
"""After so long without a line, progress makes one: the first round of a large guest takes a while."""


class LogReporter:
    """Reporter that writes lines: what happens to `out`, the error to `errors`."""

    def __init__(
        self,
        out: Writable,
        errors: Writable,
        *,
        program: str,
        side: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._out = out
        self._errors = errors
        self._program = program
        self._side = side
        self._wall_clock = wall_clock
        self._quiet_since = math.inf  # of the clock of `progress`; inf: something was said since

    def event(self, name: str, /, **fields: object) -> None:
        """Write one line; a table for `check`."""
        if name == "check":
            for line in check_lines(fields):
                self._line(line)
        elif is_bad_news(name, fields):
            self._line(event_text(name, dashed(fields), self._side))

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Write a line if nothing was said for QUIET_SECONDS."""
        if now >= self._quiet_since + QUIET_SECONDS:
            self._line(progress_text(stats, now))
        self._quiet_since = min(self._quiet_since, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Write the result, a line for each number."""
        self._line(summary_title(outcome))
        for label, text in summary_rows(stats, now, dashed(fields)):
            self._line(f"  {label}: {text}")

    def error(self, error: MigrateError) -> None:
        """Write the block that says what failed, where, and what to do next."""
        self._errors.write(error_block(self._program, error))

    def close(self) -> None:
        """Nothing is held open."""

    def _line(self, text: str) -> None:
        self._quiet_since = math.inf
        stamp = datetime.fromtimestamp(self._wall_clock()).isoformat(" ", "milliseconds")
        self._out.write(f"{stamp} {text}\n")


def check_lines(fields: Fields) -> list[str]:
    """The pre-flight's items in aligned columns (verdict, what, value), and what they come to."""
    items = check_items(fields)
    width = max((len(what) for what, _, _ in items), default=0)
    return [f"{verdict:<6}  {what:<{width}}  {value}" for what, value, verdict in items] + [
        check_verdict(items)
    ]
