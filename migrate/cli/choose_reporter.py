"""Which reporter fits: JSON if asked for, the live display on a terminal, log lines otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from migrate.cli.json_reporter import JsonReporter, dropped_notice
from migrate.cli.log_reporter import LogReporter
from migrate.cli.output import Output
from migrate.daemon.reporter import Reporter
from migrate.errors import UsageError


class ClosableReporter(Reporter, Protocol):
    """A reporter that may hold something open, as the live display holds the cursor."""

    def close(self) -> None:
        """Give it back; may be called twice."""


class _Errors:
    """Standard error after standard output: what was queued there is shown first."""

    def __init__(self, out: Output, stream: TextIO | None) -> None:
        self._out = out
        self._stream = stream

    @property
    def encoding(self) -> str:
        return self._stream.encoding if self._stream else "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        self._out.drain()
        with contextlib.suppress(OSError, ValueError):  # nobody is left to tell
            if self._stream is not None:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Every write is flushed."""


@contextlib.contextmanager
def choose_reporter(program: str, side: str, *, json: bool) -> Iterator[ClosableReporter]:
    """The reporter for standard output as it is; closed, and its output drained, on leaving."""
    with contextlib.ExitStack() as stack:
        out = _standard_output(stack, json=json)
        errors = _Errors(out, sys.stderr)
        stack.callback(out.close)
        reporter: ClosableReporter
        if json:
            reporter = JsonReporter(out)
        elif out.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}:
            reporter = _console_reporter(out, errors, program, side)
        else:
            reporter = LogReporter(out, errors, program=program, side=side)
        stack.callback(reporter.close)
        yield reporter


def _standard_output(stack: contextlib.ExitStack, *, json: bool) -> Output:
    try:
        if sys.stdout is not None:
            return Output.of(sys.stdout, dropped_notice) if json else Output.of(sys.stdout)
    except OSError:
        pass  # closed or replaced by something without a descriptor
    return Output(stack.enter_context(open(os.devnull, "wb")).fileno())


def _console_reporter(out: Output, errors: _Errors, program: str, side: str) -> ClosableReporter:
    from rich.console import Console  # rich takes longer to import than --help may take

    from migrate.cli.console import ConsoleReporter

    def console(file: object) -> Console:
        return Console(file=file, markup=False, highlight=False, emoji=False)  # type: ignore[arg-type]

    return ConsoleReporter(
        console(out), console(errors), program=program, side=side, congested=lambda: out.backlog > 0
    )


def report_usage_error(error: UsageError, program: str, *, json: bool) -> None:
    """Report what was wrong with the command line itself."""
    with choose_reporter(program, "", json=json) as reporter:
        reporter.error(error)
