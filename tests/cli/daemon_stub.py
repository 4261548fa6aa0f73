"""A small asyncio job under the real runner, reporter and signal handling; started by test_run_daemon.py.

daemon_stub.py JOB [--json]
"""

from __future__ import annotations

import asyncio
import sys

from migrate.cli.choose_reporter import choose_reporter
from migrate.cli.run_daemon import run_daemon
from migrate.daemon.reporter import Reporter
from migrate.errors import CancelledMigration, NetworkError
from migrate.protocol.stats import MigrationStats


async def _forever(reporter: Reporter) -> None:
    reporter.event("ready")
    await asyncio.Event().wait()


async def _orderly(reporter: Reporter) -> None:
    """Cleans up when cancelled, until a line comes on standard input."""
    try:
        await _forever(reporter)
    except asyncio.CancelledError as cancel:
        reporter.event("cleaning-up")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, sys.stdin.readline)
        raise CancelledMigration(str(cancel), guest="runs at the source") from None


async def _completes(reporter: Reporter) -> None:
    """Is cancelled too late: the guest was handed over."""
    try:
        await _forever(reporter)
    except asyncio.CancelledError:
        reporter.event("running")


async def _live(reporter: Reporter) -> None:
    """Shows progress until it is cancelled."""
    stats = MigrationStats(status="active")
    loop = asyncio.get_running_loop()
    while True:
        reporter.progress(stats, loop.time())
        await asyncio.sleep(0.01)


async def _talks(reporter: Reporter) -> None:
    """Waits for a line on standard input, tells of it, and completes."""
    reporter.event("ready")
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    for _ in range(100):
        reporter.event("talking", text="x" * 1000)
    print("finished", file=sys.stderr)


async def _fails(reporter: Reporter) -> None:
    """Says a lot before it fails."""
    for _ in range(1000):
        reporter.event("talking", text="x" * 1000)
    raise NetworkError("the link is cut")


async def _shows(reporter: Reporter) -> None:
    """Shows progress and is done, without a summary."""
    reporter.progress(MigrationStats(status="active"), 0.0)


JOBS = {
    "forever": _forever,
    "orderly": _orderly,
    "completes": _completes,
    "live": _live,
    "shows": _shows,
    "talks": _talks,
    "fails": _fails,
}

if __name__ == "__main__":
    with choose_reporter("stub", "source", json="--json" in sys.argv) as chosen:
        code = run_daemon(lambda: JOBS[sys.argv[1]](chosen), chosen, "source")
    sys.exit(code)
