"""What a source does to its guest, one thing after the other: journal, pause, resume, throttle.

They take turns in the order in which they were asked for: a guest is stopped once the journal says so, and a
pause finds no throttle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrate.daemon.guest import guest_died
from migrate.daemon.guest_control import GuestControl, ProcessGuest
from migrate.daemon.guest_throttle import GuestThrottle
from migrate.daemon.journal import Journal
from migrate.daemon.journal_writer import JournalWriter
from migrate.daemon.reporter import Reporter
from migrate.errors import GuestError, MigrateError, as_error
from migrate.protocol import actions as a
from migrate.protocol.journal_record import Step
from migrate.protocol.source import SourceMachine
from migrate.protocol.source_states import SourceState


class SourceTurns:
    """The guest of one source machine, and its journal.

    Args:
        tell: calls a method of the machine with the time and what follows, and carries out what comes of it.
        journal: None for a pre-flight, which writes nothing.
    """

    def __init__(
        self,
        machine: SourceMachine,
        tell: Callable[..., None],
        guest: GuestControl,
        journal: Journal | None,
        reporter: Reporter,
    ) -> None:
        self._machine = machine
        self._tell = tell
        self._guest = guest
        self._journal = None if journal is None else JournalWriter(journal)
        self._reporter = reporter
        self._throttle: GuestThrottle | None = None
        self._turn = asyncio.Lock()

    async def close_journal(self) -> None:
        """Once what waits to be written is written; it goes where the guest moves no more."""
        if self._journal is not None:
            async with self._turn:
                await self._journal.close(remove=self._machine.commit.journal_step is Step.MOVING)

    async def leave_guest(self) -> None:
        """Nothing slows the guest any more, and it is not looked at."""
        if self._throttle is not None:
            await self._throttle.close()
        await self._guest.leave()

    def remove_journal(self) -> None:
        """Both sides know how it ended."""
        assert self._journal is not None
        self._journal.remove()

    async def check(self) -> None:
        """Tell the machine if the guest has died."""
        try:
            if await self._guest.alive():
                return
            error = guest_died()
        except GuestError as lost:
            error = lost
        self._tell(self._machine.failed, error)

    async def set_throttle(self, percent: int) -> None:
        """Take that share of its time from the guest; 0: give it back."""
        async with self._turn:
            try:
                if self._throttle is None:
                    if not isinstance(self._guest, ProcessGuest):
                        raise GuestError("the guest cannot be throttled: its process is not known")
                    self._throttle = GuestThrottle(self._guest, self._throttle_lost)
                    self._reporter.event("throttling", means=self._throttle.describe())
                await self._throttle.set(percent)
            except GuestError as error:
                self._tell(self._machine.throttle_failed, error.message)

    def _throttle_lost(self, reason: str) -> None:
        self._tell(self._machine.throttle_failed, f"the guest is not throttled any more: {reason}")

    async def write_journal(self, action: a.WriteJournal) -> None:
        """Put a step on disk."""
        assert self._journal is not None
        error: MigrateError | None
        async with self._turn:
            try:
                guest = await self._guest.how_paused() if action.step is Step.PAUSING else None
                error = await self._journal.write(action, guest)
            except MigrateError as problem:
                error = problem
        self._tell(self._machine.journalled, action.step, error)

    async def pause(self, seconds: float) -> None:
        """Stop the guest, which may take that long."""
        async with self._turn:
            if self._machine.state is not SourceState.PAUSING:
                return  # given up before it began
            try:
                await self._guest.pause(seconds)
            except MigrateError as error:
                self._tell(self._machine.pause.pause_failed, error)
                return
        self._tell(self._machine.pause.paused)

    async def resume(self) -> None:
        """Let the guest run."""
        async with self._turn:
            try:
                await self._guest.resume()
            except Exception as problem:  # whatever it is: it must be told, or the end would wait for ever
                self._tell(self._machine.resume_failed, as_error(problem))
                return
        self._tell(self._machine.resumed)
