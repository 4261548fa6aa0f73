"""`--report PATH`: a reporter that tells another one, and writes what it was told into a file at the end.

The file is replaced as a whole, after a failure and a cancel as well, and once more when the error is known:
whoever reads it sees the old report or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from migrate import __version__
from migrate.cli.json_reporter import plain_object
from migrate.config import DestinationConfig, SourceConfig
from migrate.daemon.event_reporter import dashed
from migrate.daemon.reporter import Reporter
from migrate.errors import MigrateError, UndecidedError
from migrate.protocol.run_report import RunReport, configuration

if TYPE_CHECKING:
    from migrate.protocol.stats import MigrationStats


class ReportWriter:
    """Collects a report for each migration.

    Args:
        reporter: hears everything first.
        config: has `report`, where the last migration's report goes; a directory gets one for each
            migration, ID-SIDE.json.
        clock: monotonic seconds, the clock of the statistics.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        reporter: Reporter,
        side: str,
        config: SourceConfig | DestinationConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        assert config.report is not None
        self._reporter = reporter
        self._path = config.report
        self._side = side
        self._settings = configuration(config)
        self._clock = clock
        self._wall_clock = wall_clock
        self._report = self._new_report()

    def event(self, name: str, /, **fields: object) -> None:
        """Pass it on and note it (Reporter)."""
        self._reporter.event(name, **fields)
        if name == "migration":
            if self._report.migration:
                self._report = self._new_report()
            self._report.begin(self._clock(), self._wall_clock())
        self._report.event(self._clock(), name, plain_object(dashed(fields)))

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Pass it on and take a sample (Reporter)."""
        self._reporter.progress(stats, now)
        self._report.sample(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Pass it on and write the report (Reporter)."""
        self._reporter.summary(stats, now, outcome, **fields)
        rest = plain_object(dashed(fields))
        self._report.end(stats, now, outcome, rest.pop("guest", None), rest)
        self._write()

    def error(self, error: MigrateError) -> None:
        """Pass it on and write the report with it (Reporter)."""
        self._reporter.error(error)
        undecided = isinstance(error, UndecidedError)
        outcome = "cancelled" if error.exit_code == 130 else "undecided" if undecided else "failed"
        self._report.failed(plain_object(error.as_dict()), outcome)
        self._write()

    def _new_report(self) -> RunReport:
        software = {
            "migrate": __version__,
            "python": platform.python_version(),
            "kernel": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
        }
        report = RunReport(self._side, software, self._settings)
        report.begin(self._clock(), self._wall_clock())
        return report

    def _write(self) -> None:
        report = self._report
        path = self._path
        if path.is_dir():
            path = path / f"{report.migration or 'no-migration'}-{report.side}.json"
        try:
            replace_file(path, json.dumps(report.as_dict(), indent=None, allow_nan=False).encode() + b"\n")
        except OSError as error:
            problem = error.strerror or str(error)
            self._reporter.event("warning", message=f"the report {path} cannot be written: {problem}")


def replace_file(path: Path, data: bytes) -> None:
    """Put new content in place of a file at one instant, for its owner only.

    Raises OSError: the old one stays.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def with_report(reporter: Reporter, side: str, config: SourceConfig | DestinationConfig) -> Reporter:
    """The reporter itself, or one that writes the report that the configuration asks for as well."""
    return reporter if config.report is None else ReportWriter(reporter, side, config)
