"""`migrate-src` as it always shows itself, for bin/demo: the final statistics are kept in a file as well.

python bin/demo_source.py STATISTICS-FILE migrate-src-options...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from migrate.cli.choose_reporter import choose_reporter
from migrate.cli.run_daemon import run_daemon
from migrate.cli.src import PROGRAM
from migrate.daemon.reporter import Reporter
from migrate.errors import MigrateError
from migrate.protocol.stats import MigrationStats


class Keeping:
    """Passes everything on, and writes the last summary to a file."""

    def __init__(self, reporter: Reporter, path: Path) -> None:
        self._reporter = reporter
        self._path = path

    def event(self, name: str, /, **fields: object) -> None:
        self._reporter.event(name, **fields)

    def progress(self, stats: MigrationStats, now: float) -> None:
        self._reporter.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        self._path.write_text(json.dumps({"outcome": outcome} | stats.as_dict(now)))
        self._reporter.summary(stats, now, outcome, **fields)

    def error(self, error: MigrateError) -> None:
        self._reporter.error(error)


def main(path: Path, arguments: list[str]) -> int:
    config = PROGRAM.make_config(PROGRAM.build_parser().parse_args(arguments))
    with choose_reporter(PROGRAM.name, PROGRAM.side, json=False) as reporter:
        keeping = Keeping(reporter, path)
        return run_daemon(lambda: PROGRAM.start(config, keeping), keeping, PROGRAM.side)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
