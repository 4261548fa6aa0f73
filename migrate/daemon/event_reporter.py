"""Everything that a reporter is told, as events: a name and fields with dashes in their names.

    progress    the statistics without `rounds`: each round had its event, and the list would grow
    summary     `outcome`, `side`, further facts, and the statistics
    error       `class`, `exit-code`, `message`, `side`, `guest`, `hint`
    any other   as it was told (`migrate.daemon.reporter`)

Sizes are bytes, rates bytes a second, times seconds; the statistics have QEMU's names and units.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING

from migrate.errors import MigrateError

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats


class EventReporter(abc.ABC):
    """A Reporter that makes one event of each call."""

    @abc.abstractmethod
    def record(self, name: str, fields: Mapping[str, object]) -> None:
        """Take an event. Returns at once and never raises."""

    def event(self, name: str, /, **fields: object) -> None:
        """Record it (Reporter)."""
        self.record(name, dashed(fields))

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Record the statistics (Reporter)."""
        report = stats.as_dict(now, most_rounds=0)
        del report["rounds"]
        self.record("progress", report)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Record the final statistics (Reporter)."""
        head: dict[str, object] = {"outcome": outcome, "side": stats.side}
        self.record("summary", head | dashed(fields) | stats.as_dict(now))

    def error(self, error: MigrateError) -> None:
        """Record why it ended (Reporter)."""
        self.record("error", error.as_dict())


def dashed(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields with `_` in their names read as `-`."""
    return {name.replace("_", "-"): value for name, value in fields.items()}
