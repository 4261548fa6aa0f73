"""`migrate-inspect report`: the reports of one migration, of one side or both, as a page to read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from migrate.cli.arguments import ArgumentParser
from migrate.cli.inspect_files import CLEAN
from migrate.cli.report_page import make_page
from migrate.cli.report_writer import replace_file
from migrate.errors import UsageError
from migrate.protocol.report_reading import MOST_BYTES, SideReport, check_pair, read_report


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("reports", type=Path, nargs="+", metavar="FILE", help="what --report wrote")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the page goes (default: standard output)"
    )


def run(options: argparse.Namespace) -> int:
    """Make the page. Raises MigrateError."""
    write_page(options.reports, options.output)
    return CLEAN


def write_page(paths: list[Path], output: Path | None) -> None:
    """Read the reports and write the page.

    Args:
        output: None: to standard output.

    Raises:
        UsageError: a file cannot be read or written.
        ReportError: a report is malformed, or the two do not belong together.
    """
    if len(paths) > 2:
        raise UsageError(
            f"{len(paths)} reports: a migration has two at most, the source's and the destination's"
        )
    reports: list[SideReport] = [read_report(_read(path), str(path)) for path in paths]
    if len(reports) == 2:
        reports = list(check_pair(reports[0], reports[1]))
    page = make_page(reports)
    if output is None:
        sys.stdout.write(page)
        return
    try:
        replace_file(output, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
