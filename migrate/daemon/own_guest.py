"""A guest in this very process: an emulator that embeds the library gives its own coroutines.

What they raise, return or forget to do costs the migration and never more: it becomes a GuestError.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar, TypeVarTuple

from migrate.daemon.arrival import Arrival
from migrate.daemon.asked_guest import AskedGuest
from migrate.daemon.device_state import STATE_SECONDS, DeviceState, checked_states
from migrate.errors import GuestError

RESUME_SECONDS = 30.0
T = TypeVar("T")
Given = TypeVarTuple("Given")


class Guest(Protocol):
    """A running guest, for `migrate.send`. Its coroutines are called in the loop of the migration."""

    async def pause(self) -> None:
        """Stop the guest; return when nothing of it can write RAM any more."""

    async def resume(self) -> None:
        """The migration failed: let the guest run again. Also called where `pause` did not return."""

    async def state(self) -> Mapping[str, bytes]:
        """The device state of the paused guest: at most 64 pieces of 64 MiB each, 256 MiB in all.

        Names have 1 to 64 of `A-Z a-z 0-9 . _ -`.
        """


class ArrivingGuest(Protocol):
    """A guest to be, for `migrate.Receiver`. Its coroutines are called in the loop of the receiver."""

    async def load(self, state: Mapping[str, bytes]) -> None:
        """RAM is whole and proved: take this device state, and do not run yet.

        Called again if the pause was given up: then only the last state counts. What it raises keeps the
        guest at the source.
        """

    async def run(self) -> None:
        """The guest is ours: let it go."""


class OwnGuest(AskedGuest):
    """A `Guest` under control of a migration."""

    resume_name = "its resume()"

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self.pid = os.getpid()
        self._guest = guest

    def describe(self) -> str:
        return "paused by its own code, in this process"

    async def probe(self) -> None:
        return

    async def state(self) -> list[DeviceState]:
        found = await _call(STATE_SECONDS, self._guest.state)
        if not isinstance(found, Mapping):
            raise GuestError(f"the guest's state() gave {type(found).__name__}, not a mapping", side="source")
        return checked_states("the guest's state()", found)

    async def kill(self) -> None:
        raise GuestError("a guest in this process is not killed: let it end by itself", side="source")

    async def _ask_to_pause(self, time_limit: float) -> None:
        await _call(time_limit, self._guest.pause)

    async def _ask_to_resume(self) -> None:
        await _call(RESUME_SECONDS, self._guest.resume)


class OwnArrival(Arrival):
    """An `ArrivingGuest` under control of a migration.

    Args:
        time_limit: seconds for each of its coroutines.
    """

    def __init__(self, guest: ArrivingGuest, time_limit: float) -> None:
        self._guest = guest
        self._time_limit = time_limit

    async def load(self, attempt: int, states: Sequence[DeviceState]) -> None:
        del attempt
        await _call(self._time_limit, self._guest.load, {state.name: state.data for state in states})

    async def run(self, attempt: int) -> None:
        del attempt
        await _call(self._time_limit, self._guest.run)


async def _call(time_limit: float, function: Callable[[*Given], Awaitable[T]], *given: *Given) -> T:
    """Await a guest's coroutine. Raises GuestError: it took too long, or raised something."""
    name = f"the guest's {function.__name__}()"
    try:
        async with asyncio.timeout(time_limit) as limit:
            return await function(*given)
    except Exception as problem:
        if limit.expired():
            raise GuestError(f"{name} took longer than {time_limit:g} s") from problem
        raise GuestError(f"{name} raised {type(problem).__name__}: {problem}") from problem
