"""A guest that is asked to stand still and to go on, and believed: it cannot be seen from here."""

from __future__ import annotations

import abc
import asyncio
import contextlib

from migrate.daemon.guest import GuestControl
from migrate.errors import GuestError


class AskedGuest(GuestControl):
    """Base of the ways to pause that rest on somebody's word.

    A pause that fails is taken back at once: the guest may have stopped all the same.
    """

    resume_name = ""
    """What a person knows the way to resume by."""

    def __init__(self) -> None:
        self._may_be_paused = False

    @abc.abstractmethod
    async def _ask_to_pause(self, time_limit: float) -> None:
        """Returns when the guest says that it does not write any more. Raises GuestError."""

    @abc.abstractmethod
    async def _ask_to_resume(self) -> None:
        """Returns when the guest says that it runs. Raises GuestError."""

    async def pause(self, deadline_s: float) -> None:
        self._may_be_paused = True
        try:
            await self._ask_to_pause(deadline_s)
        except GuestError as failure:
            await self._undo(failure)
            raise
        except asyncio.CancelledError:
            with contextlib.suppress(GuestError):  # whoever cancels will ask for a resume again
                await self.resume()
            raise

    async def resume(self) -> None:
        if self._may_be_paused:
            await self._ask_to_resume()
            self._may_be_paused = False

    async def still_paused(self) -> bool:
        """What the guest said last: whether it obeys cannot be seen."""
        return self._may_be_paused

    async def alive(self) -> bool:
        """Always true: no process is known."""
        return True

    async def _undo(self, failure: GuestError) -> None:
        """Resume the guest, which the failed pause may have stopped; say in the error where it is."""
        try:
            await self.resume()
        except GuestError as second:
            failure.with_context(
                side="source",
                guest=f"the guest may be paused at the source: {self.resume_name} failed too",
                hint=f"let it run by hand; {second.message}",
            )
        else:
            failure.with_context(side="source", guest="the guest runs at the source")
