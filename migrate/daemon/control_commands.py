"""From the commands of the table to what a daemon does, and from what it reports to events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from migrate.daemon.reporter import Reporter
from migrate.errors import MigrateError
from migrate.protocol import qmp
from migrate.protocol.qmp import QmpError, Request
from migrate.protocol.qmp_commands import Side, check_arguments, commands_of
from migrate.protocol.stats import MigrationStats

Handler = Callable[[Mapping[str, object]], object]
"""Takes checked arguments; returns the value of the reply; raises QmpError or MigrateError."""

MOST_ROUNDS = 64
"""Rounds that `query-migrate` lists, the last ones."""
_NOT_YET = {"completed": "device", "failed": "cancelling", "cancelled": "cancelling"}
"""What a migration is while it still tidies up: whoever sees one of the three keys may begin the next."""


class CommandTable:
    """Looks commands up, checks their arguments, turns errors into replies.

    Args:
        handlers: one for each command of the side, without `query-version` and `query-commands`.
    """

    def __init__(self, side: Side, handlers: Mapping[str, Handler]) -> None:
        self._commands = commands_of(side)
        self._handlers: dict[str, Handler] = {
            "query-version": lambda _: qmp.version(),
            "query-commands": lambda _: [{"name": name} for name in self._commands],
            **handlers,
        }
        if self._handlers.keys() != self._commands.keys():
            raise AssertionError("the table and the handlers know different commands")

    def execute(self, request: Request) -> object:
        """Carry out one command. Raises QmpError."""
        command = self._commands.get(request.execute)
        if command is None:
            raise QmpError(f"the command {request.execute[:64]} has not been found", "CommandNotFound")
        check_arguments(command, request.arguments)
        try:
            return self._handlers[command.name](request.arguments)
        except MigrateError as error:
            raise QmpError(error.message) from None


class EventRelay:
    """A reporter that tells another one, and makes events of what clients want to know.

    The event of the end comes last, with the summary: by then the next migration may begin.
    """

    def __init__(self, reporter: Reporter, send: Callable[[str, Mapping[str, object]], None]) -> None:
        self._reporter = reporter
        self._send = send

    def event(self, name: str, /, **fields: object) -> None:
        """Pass it on (Reporter)."""
        self._reporter.event(name, **fields)
        if name == "status" and fields["new"] not in _NOT_YET:
            self._send("MIGRATION", {"status": fields["new"]})
        elif name == "round":
            self._send("MIGRATION_ROUND", fields)
        elif name == "throttle":
            self._send("MIGRATION_THROTTLE", fields)
        elif name in ("cache-resized", "cache-refused"):
            self._send("MIGRATION_CACHE", fields)

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Pass it on (Reporter)."""
        self._reporter.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Pass it on (Reporter)."""
        self._reporter.summary(stats, now, outcome, **fields)
        self._send("MIGRATION", {"status": stats.status})

    def error(self, error: MigrateError) -> None:
        """Pass it on (Reporter)."""
        self._reporter.error(error)


def migration_report(
    stats: MigrationStats | None, now: float, *, over: bool, error: MigrateError | None
) -> dict[str, object]:
    """The value of `query-migrate`.

    Args:
        stats: of the migration under way, or of the last one; None: it did not come to one.
        over: nothing of it is under way any more.
        error: why it ended.
    """
    report: dict[str, object] = {"status": "none" if error is None else "failed"}
    if stats is not None:
        report = stats.as_dict(now, most_rounds=MOST_ROUNDS)
        if not over:
            report["status"] = _NOT_YET.get(stats.status, stats.status)
    if error is not None:
        report["error-desc"] = error.message
        report |= {
            name: text for name, text in (("guest", error.guest), ("hint", error.hint)) if text is not None
        }
    return report
