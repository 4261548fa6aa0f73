"""What the service manager is told, if it wants to be (sd_notify(3), Type=notify and WatchdogSec= of a unit).

READY=1      the program listens, or its migration begins
STATUS=      the last thing that happened, in words
WATCHDOG=1   twice in each interval, by the event loop: one that hangs falls silent
STOPPING=1   a signal came

A dozen lines of our own: a datagram to a socket needs no library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from migrate.cli.wording import event_text
from migrate.daemon.event_reporter import dashed
from migrate.daemon.reporter import Reporter

if TYPE_CHECKING:
    from migrate.errors import MigrateError
    from migrate.protocol.stats import MigrationStats

READY = frozenset({"listening", "control", "tracker"})
QUIET = frozenset({"warning", "metrics"})
"""Events that are no state of the program."""
Start = Callable[[], Coroutine[object, object, None]]


class ServiceManager:
    """The socket of NOTIFY_SOCKET. The variables are taken away: they are not for hooks."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        interval = os.environ.pop("WATCHDOG_USEC", "")
        for_us = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(interval) / 1e6 if interval.isdigit() and for_us else 0.0
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._address = address.replace("@", "\0", 1) if address[0] == "@" else address

    @property
    def listens(self) -> bool:
        """There is somebody to tell."""
        return self._socket is not None

    def tell(self, *lines: str) -> None:
        """Send; what cannot be sent is lost, since it must not end a migration."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()


class NotifyingReporter:
    """A reporter that tells the service manager too."""

    def __init__(self, inner: Reporter, manager: ServiceManager, side: str) -> None:
        self._inner = inner
        self._manager = manager
        self._side = side
        self._ready = False

    def event(self, name: str, /, **fields: object) -> None:
        self._inner.event(name, **fields)
        if name == "cancelling":
            self._manager.tell("STOPPING=1")
        elif name in READY and not self._ready:
            self._ready = True
            self._manager.tell("READY=1")
        if name not in QUIET:
            self._manager.tell(f"STATUS={event_text(name, dashed(fields), self._side)}")

    def progress(self, stats: MigrationStats, now: float) -> None:
        self._inner.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        self._inner.summary(stats, now, outcome, **fields)
        self._manager.tell(f"STATUS={outcome}: {fields.get('guest', '')}")

    def error(self, error: MigrateError) -> None:
        self._inner.error(error)
        self._manager.tell(f"STATUS={error.message.splitlines()[0] if error.message else 'failed'}")


def with_watchdog(start: Start, manager: ServiceManager) -> Start:
    """The coroutine, with a sign of life beside it as long as it runs."""

    async def beat() -> None:
        while True:
            manager.tell("WATCHDOG=1")
            await asyncio.sleep(manager.watchdog_seconds / 2)

    async def run() -> None:
        beating = asyncio.ensure_future(beat())
        try:
            await start()
        finally:
            beating.cancel()

    return run if manager.watchdog_seconds else start
