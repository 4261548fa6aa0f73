"""Pausing and resuming the guest, and knowing whether it lives.

A pause returns only when no write of the guest can happen any more: that is the moment the last harvest
needs (LMT section 5, invariant 7).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType

from migrate.daemon.device_state import DeviceState
from migrate.errors import GuestError
from migrate.protocol.journal_record import PausedGuest


def guest_died(how: str = "") -> GuestError:
    """The error for it; the same wherever it is noticed."""
    return GuestError(
        "the guest died" + (f": {how}" if how else ""),
        side="source",
        guest="the guest runs nowhere",
        hint="start the guest anew here; what has arrived at the destination is no whole guest",
    )


class GuestControl(abc.ABC):
    """A way to reach the guest. One object a migration; its calls come one after the other.

    Attributes:
        was_paused_before: the guest was stopped already when `pause` came; then `resume` leaves it so.
        pid: the process that writes RAM, where it is known.
        logs: descriptors of the dirty logs that it gave, by block.
        userfaultfd: that it gave, or -1.
    """

    was_paused_before = False
    pid: int | None = None
    logs: Mapping[str, int] = MappingProxyType({})
    userfaultfd = -1

    @abc.abstractmethod
    def describe(self) -> str:
        """How the guest is paused, for a person."""

    @abc.abstractmethod
    async def probe(self) -> None:
        """Raise GuestError if the guest cannot be paused in this way; changes nothing."""

    async def how_paused(self) -> PausedGuest:
        """For the journal, before a pause: how another program resumes the guest, should this one be killed.

        Raises GuestError: it died.
        """
        return PausedGuest("none")

    @abc.abstractmethod
    async def pause(self, deadline_s: float) -> None:
        """Stop the guest; returns when it cannot write any more.

        Args:
            deadline_s: seconds it may take.

        Raises:
            GuestError: it did not stop in time (it was resumed), or it died.
        """

    @abc.abstractmethod
    async def resume(self) -> None:
        """Let the guest run again, unless it was paused before. Raises GuestError."""

    @abc.abstractmethod
    async def still_paused(self) -> bool:
        """Whether the pause still holds: nobody else let the guest run, and it has not died."""

    async def state(self) -> list[DeviceState]:
        """The paused guest's device state, where it gives it by itself. Raises GuestError."""
        return []

    async def seal(self) -> None:  # noqa: B027 - most ways can do nothing of the kind
        """The destination is ready, the commit is next: from here on the guest must not run by itself.

        Raises GuestError: that cannot be had; the guest is resumed.
        """

    @abc.abstractmethod
    async def kill(self) -> None:
        """End the guest; returns when it is gone. Raises GuestError."""

    @abc.abstractmethod
    async def alive(self) -> bool:
        """Whether the guest exists, as far as can be known. Raises GuestError: it cannot be asked."""

    def stopped_copy(self) -> str | None:
        """After a handover: what stands here that must never run again, and how to end it, for a person."""
        return None

    async def leave(self) -> None:  # noqa: B027 - most ways change nothing
        """The migration is over: put back what it changed beside the pause.

        Comes before `close`; the second call does nothing, at once.
        """

    def close(self) -> None:  # noqa: B027 - most ways hold nothing
        """Let go of the guest without changing it; the second call does nothing."""
