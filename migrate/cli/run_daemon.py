"""Run a daemon's coroutine on an event loop: signals become one orderly cancel, errors an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable, Coroutine

import uvloop

from migrate.daemon.reporter import Reporter
from migrate.errors import CancelledMigration, MigrateError, UndecidedError

CANCEL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP too: a lost ssh session must not leave a guest in the pause. Under nohup it stays ignored."""


def run_daemon(start: Callable[[], Coroutine[object, object, None]], reporter: Reporter, side: str) -> int:
    """Run a daemon's coroutine on uvloop until it ends; report its error; return the exit code.

    Meant for the end of a program: afterwards these signals are ignored.

    SIGINT, SIGTERM and SIGHUP cancel its task once; the daemon then ends the migration in an orderly way. It
    may still complete, if the guest was handed over already. A second signal is answered with a notice.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_with_signals(start, reporter))
    except (Exception, asyncio.CancelledError, KeyboardInterrupt) as problem:
        error = as_migrate_error(problem).with_context(side=side)
        reporter.error(error)
        return error.exit_code
    return 0


async def _with_signals(start: Callable[[], Coroutine[object, object, None]], reporter: Reporter) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(start())
    cancelled = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal cancelled
        if cancelled:
            reporter.event(
                "warning", message=f"{number.name}: cancelling already, the clean-up takes its time"
            )
            return
        cancelled = True
        reporter.event("cancelling", signal=number.name)
        task.cancel(number.name)

    def handler(number: int, _: object) -> None:
        if not task.done():
            loop.call_soon_threadsafe(on_signal, signal.Signals(number))

    # Not the loop's handlers: it would put the default action back when it closes, and a signal in the last
    # moment would make a handed-over guest look like a cancelled migration.
    for number in CANCEL_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        await task
    finally:  # ignored from here to the very end: Python itself puts other handlers back to the default
        for number in CANCEL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def as_migrate_error(problem: BaseException) -> MigrateError:
    """The error to report: the problem itself, the gravest inside a group, or an unexpected one in words."""
    found = _migrate_errors(problem)
    if found:
        # Undecided first: a person must act. A cancel last: it mostly follows from another error.
        return min(
            found, key=lambda e: (not isinstance(e, UndecidedError), isinstance(e, CancelledMigration))
        )
    if isinstance(problem, asyncio.CancelledError | KeyboardInterrupt):
        return CancelledMigration("cancelled by a signal")
    hint = "find out where the guest runs before starting again; MIGRATE_DEBUG=1 shows the traceback"
    if os.environ.get("MIGRATE_DEBUG") == "1":
        traceback.print_exception(problem)
        hint = "find out where the guest runs before starting again; the traceback is above"
    return MigrateError(f"unexpected {type(problem).__name__}: {problem}", hint=hint)


def _migrate_errors(problem: BaseException) -> list[MigrateError]:
    if isinstance(problem, MigrateError):
        return [problem]
    if isinstance(problem, BaseExceptionGroup):
        return [error for inner in problem.exceptions for error in _migrate_errors(inner)]
    return []
