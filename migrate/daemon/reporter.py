"""To whom the daemons tell what happens. The implementations live in `migrate.cli`.

A daemon calls these from its event loop, one after the other; they return at once and never raise, so that a
full disk or a closed terminal cannot end a migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

if TYPE_CHECKING:
    from migrate.errors import MigrateError
    from migrate.protocol.stats import MigrationStats


class CheckItem(TypedDict):
    """One thing the pre-flight looked at; the event `check` carries a list of them as `items`."""

    what: str
    value: str
    verdict: Literal["ok", "note", "failed"]
    """`note`: it works, but not quite as asked for."""


class SilentReporter:
    """Tells nobody: for commands that print their own result."""

    def event(self, name: str, /, **fields: object) -> None:
        pass

    def progress(self, stats: MigrationStats, now: float) -> None:
        pass

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        pass

    def error(self, error: MigrateError) -> None:
        pass


class Reporter(Protocol):
    """Receives events, progress, the result and the error of a migration."""

    def event(self, name: str, /, **fields: object) -> None:
        """Something happened.

        Args:
            name: lower case, with dashes: `listening`, `migration`, `connected`, `negotiated`, `tracker`,
                `status`, `outlook`, `round`, `pausing`, `paused`, `resumed`, `lane-reset`, `reconnecting`,
                `waiting`, `reconnected`, `prepared`, `committed`, `running`, `proved`, `stored`, `cancelled`,
                `warning`, `check`.
                An unknown name is printed as it is.
            **fields: what JSON can hold; sizes in bytes, rates in bytes a second, times in seconds.
                A `_` in a field's name reads as `-`. `round` comes when a round has ended, with its
                row (`RoundStats.as_dict`); `check` has `items`, a list of CheckItem; `migration` comes first
                (`id`, `blocks`); `outlook` says why what remains, or the time left, has become more.
        """

    def progress(self, stats: MigrationStats, now: float) -> None:
        """The numbers as they are now; call it, after `stats.tick(now)`, about four times a second.

        Args:
            stats: read, not kept beyond the call.
            now: monotonic seconds, the clock of `stats`.
        """

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """The migration is over; called once per migration, before the error if there is one.

        Args:
            stats: the final numbers.
            now: monotonic seconds, the clock of `stats`.
            outcome: `completed`, `failed`, `cancelled`, `undecided` or `checked`.
            **fields: further facts, such as `guest` (where it runs now).
        """

    def error(self, error: MigrateError) -> None:
        """Why it ended. Called by the command line's `main` once; daemons raise instead of calling it."""
