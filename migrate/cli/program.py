"""From the command line to the exit code: arguments, configuration, reporter, daemon."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from migrate.cli.arguments import ArgumentParser
from migrate.cli.choose_reporter import choose_reporter, report_usage_error
from migrate.config import DestinationConfig, SourceConfig
from migrate.daemon.reporter import Reporter
from migrate.errors import UsageError

Config = TypeVar("Config", SourceConfig, DestinationConfig)


@dataclass(frozen=True, slots=True)
class Program(Generic[Config]):
    """One of the two daemons, as its command line sees it."""

    name: str
    side: str
    build_parser: Callable[[], ArgumentParser]
    make_config: Callable[[argparse.Namespace], Config]
    warnings: Callable[[Config], list[str]]
    start: Callable[[Config, Reporter], Coroutine[object, object, None]]


def run_program(program: Program[Config], argv: Sequence[str] | None) -> int:
    """Parse, run, report; returns the exit code (`migrate.cli.exit_codes`)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        config = program.make_config(program.build_parser().parse_args(arguments))
        _check_writable("--report", config.report)
        _check_writable("--receipt", config.receipt)
    except UsageError as error:
        error.with_context(hint=f"{program.name} --help lists all options")
        report_usage_error(error, program.name, json="--json" in arguments)
        return error.exit_code
    from migrate.cli.receipt_writer import with_receipt
    from migrate.cli.report_writer import with_report  # the kernel, which --help can do without
    from migrate.cli.run_daemon import run_daemon  # asyncio and uvloop, likewise
    from migrate.cli.service_manager import NotifyingReporter, ServiceManager, with_watchdog

    with choose_reporter(program.name, program.side, json=config.json) as chosen:
        manager = ServiceManager()
        try:
            reporter = with_receipt(with_report(chosen, program.side, config), program.side, config)
        except UsageError as error:
            chosen.error(error.with_context(side=program.side))
            return error.exit_code
        if manager.listens:
            reporter = NotifyingReporter(reporter, manager, program.side)
        for message in program.warnings(config):
            reporter.event("warning", message=message)
        start = with_watchdog(lambda: program.start(config, reporter), manager)
        try:
            return run_daemon(start, reporter, program.side)
        finally:
            manager.close()


def _check_writable(option: str, path: Path | None) -> None:
    """Whether a file can be written there: said before anything moves. Raises UsageError."""
    if path is None:
        return
    directory = path if path.is_dir() else path.parent
    if not directory.is_dir():
        raise UsageError(f"{option} {path}: there is no directory {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: nothing can be written into {directory}")
