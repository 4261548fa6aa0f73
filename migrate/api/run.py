"""A daemon under way in a task of the caller's loop: events to read, a result to await, a cancel."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from migrate.config import Address
from migrate.daemon.event_reporter import EventReporter
from migrate.daemon.reporter import Reporter
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import CancelledMigration, MigrateError
from migrate.protocol.stats import MigrationStats

MOST_EVENTS = 1000
"""Events that wait for a reader; then the oldest are dropped."""

Start = Callable[[Reporter], Coroutine[object, object, None]]


class Event(NamedTuple):
    """Something happened; the same that `--json` prints as a line (`migrate.daemon.event_reporter`)."""

    name: str
    """`progress` about four times a second, `summary` at the end, `status`, `round`, `paused` …"""
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Result:
    """How a migration ended."""

    outcome: str = "none"
    """`completed`; or `checked`, with `check`; `none` where there was no migration (`quit`)."""
    guest: str | None = None
    """One clause: where the guest runs now."""
    statistics: Mapping[str, object] = field(default_factory=dict)
    """With QEMU's names and units; all that the event `summary` has."""


class Run:
    """Base of `Migration` and `Receiver`. Made in a running event loop, in which it runs at once.

    Await it for the result, iterate over it for the events, use it as an async context manager to have it
    ended, in an orderly way, at the end of the block. Each event goes to one reader; progress that nobody
    has read is replaced by newer progress.
    """

    def __init__(self, side: str, start: Start, reporter: Reporter | None) -> None:
        self._side = side
        self._events = _Events(reporter, self._note)
        self._cancel_reason: str | None = None
        self._task = asyncio.ensure_future(self._run(start))
        self._task.add_done_callback(lambda _: self._events.close())

    def cancel(self, reason: str = "cancelled") -> None:
        """End it in an orderly way; returns at once, await it for the end. The second call does nothing.

        The guest runs on where it was. Once the commit may have left, it is too late: it completes then.
        Cancelling a task that awaits it does the same.
        """
        if self._cancel_reason is None and not self._task.done():
            self._cancel_reason = reason
            self._task.cancel(reason)

    @property
    def done(self) -> bool:
        """Whether it is over: awaiting it then returns, or raises, at once."""
        return self._task.done()

    def __await__(self) -> Generator[object, None, Result]:
        """Wait for the end.

        Returns the result. Raises MigrateError: CancelledMigration also where the awaiting task was
        cancelled.
        """
        return self._finish().__await__()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self._events.next()) is not None:
            yield event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel("the block that it belonged to was left")
        await uninterrupted(self._end())

    async def _end(self) -> None:
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # whoever wanted to know has awaited it

    async def _finish(self) -> Result:
        try:
            return await self._task
        except asyncio.CancelledError:  # before its first step
            raise CancelledMigration(
                self._cancel_reason or "cancelled", side=self._side, guest="the guest is where it was"
            ) from None

    async def _run(self, start: Start) -> Result:
        try:
            await start(self._events)
        except MigrateError as error:
            error.with_context(side=self._side)
            raise
        return self._events.result

    def _note(self, event: Event) -> None:
        """Look at an event as it comes."""


def with_metrics(address: Address | None, start: Start) -> Start:
    """The same daemon, scraped at that address meanwhile if there is one."""
    if address is None:
        return start
    from migrate.daemon import metrics  # slow to import, and seldom asked for

    return lambda reporter: metrics.with_metrics(address, reporter, start)


class _Events(EventReporter):
    """Tells another reporter, and keeps what it was told for a reader of its own."""

    def __init__(self, reporter: Reporter | None, note: Callable[[Event], None]) -> None:
        self.result = Result()
        self._reporter = reporter
        self._note = note
        self._waiting: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._news = asyncio.Event()
        self._closed = False

    async def next(self) -> Event | None:
        """The oldest event that was not read; None: there will be no more."""
        while not self._waiting and not self._closed:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._news.set()

    def record(self, name: str, fields: Mapping[str, object]) -> None:
        event = Event(name, fields)
        if name == "progress" and self._waiting and self._waiting[-1].name == name:
            self._waiting.pop()
        self._waiting.append(event)
        self._news.set()
        self._note(event)

    def event(self, name: str, /, **fields: object) -> None:
        super().event(name, **fields)
        if self._reporter is not None:
            self._reporter.event(name, **fields)

    def progress(self, stats: MigrationStats, now: float) -> None:
        super().progress(stats, now)
        if self._reporter is not None:
            self._reporter.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        super().summary(stats, now, outcome, **fields)
        guest = fields.get("guest")
        self.result = Result(outcome, str(guest) if guest else None, self._waiting[-1].fields)
        if self._reporter is not None:
            self._reporter.summary(stats, now, outcome, **fields)

    def error(self, error: MigrateError) -> None:
        super().error(error)
        if self._reporter is not None:
            self._reporter.error(error)
