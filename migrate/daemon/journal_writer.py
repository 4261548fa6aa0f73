"""The journal on an event loop: writes in a thread, one after the other, never broken off."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from migrate.daemon.journal import Journal
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import JournalError
from migrate.protocol import actions as a
from migrate.protocol.journal_record import PausedGuest


class JournalWriter:
    """Carries out `WriteJournal` and `RemoveJournal` on one open journal, which it owns."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = asyncio.Lock()

    async def write(self, action: a.WriteJournal, guest: PausedGuest | None = None) -> JournalError | None:
        """Put the action's step on disk; returns what went wrong.

        Args:
            guest: how it is paused, from this record on.
        """
        error: JournalError | None = None

        async def put() -> None:
            nonlocal error
            record = replace(
                self._journal.record,
                step=action.step,
                number=action.number,
                attempt=action.attempt,
                root=action.root.hex(),
                guest=guest or self._journal.record.guest,
            )
            try:
                await asyncio.to_thread(self._journal.write, record)
            except JournalError as problem:
                error = problem

        async with self._turn:
            if await uninterrupted(put()):
                raise asyncio.CancelledError
        return error

    def remove(self) -> None:
        """The handover is settled, and nothing is being written."""
        self._journal.remove()

    async def close(self, *, remove: bool) -> None:
        """Wait for the writes that were begun; then leave the journal to `recover`, or remove it."""
        async with self._turn:
            if remove:
                self._journal.remove()
            else:
                self._journal.close()
