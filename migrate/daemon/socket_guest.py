"""A guest on its own socket: at the source it pauses and gives its state, at the destination it takes it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from migrate.config import RamSpec
from migrate.daemon.arrival import Arrival
from migrate.daemon.asked_guest import AskedGuest
from migrate.daemon.device_state import STATE_SECONDS, DeviceState
from migrate.daemon.guest_descriptors import GuestOffer, read_states, write_states
from migrate.daemon.guest_socket import GuestSocket, close_all
from migrate.daemon.pidfd import has_exited, wait_exited
from migrate.errors import GuestError, UsageError
from migrate.protocol.guest_contract import PAUSE, RESUME, RUN, STATE, load_call, offer_call
from migrate.protocol.journal_record import PausedGuest

OFFER_SECONDS = 10.0
RESUME_SECONDS = 30.0
KILL_SECONDS = 10.0


async def _connect(path: Path, side: str) -> tuple[GuestSocket, GuestOffer]:
    link = GuestSocket(path, side)
    try:
        _, given = await link.call(offer_call(side), OFFER_SECONDS)
        return link, GuestOffer(given, side)
    except BaseException:
        link.close()
        raise


async def resume_paused(path: Path) -> None:
    """Let a guest run that a daemon which has ended had paused. Raises GuestError."""
    await _call_once(path, "source", RESUME, RESUME_SECONDS)


async def run_loaded(path: Path, time_limit: float) -> None:
    """Let a guest run that a daemon which has ended had made ready; as often as one likes.

    Raises GuestError.
    """
    await _call_once(path, "destination", RUN, time_limit)


async def _call_once(path: Path, side: str, call: bytes, time_limit: float) -> None:
    link = GuestSocket(path, side)
    try:
        _, given = await link.call(call, time_limit)
        close_all(fd for _, fd in given)
    finally:
        link.close()


class SocketGuest(AskedGuest):
    """The running guest. Made by `connect`.

    Attributes:
        offer: its RAM, and what it gives for tracking.
    """

    resume_name = "asking it on its socket"

    def __init__(self, link: GuestSocket, offer: GuestOffer) -> None:
        super().__init__()
        self.offer = offer
        self.pid = link.pid
        self.logs = offer.logs
        self.userfaultfd = offer.userfaultfd
        self._link = link

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Raises GuestError: nobody listens, or answers as the contract says."""
        return cls(*await _connect(path, "source"))

    def describe(self) -> str:
        return f"paused by itself, asked on {self._link.path}"

    async def probe(self) -> None:
        """It has answered already."""

    async def how_paused(self) -> PausedGuest:
        return PausedGuest("socket", monitor=str(self._link.path.absolute()))

    async def resume(self) -> None:
        if self.was_paused_before:
            self._may_be_paused = False
        await super().resume()

    async def still_paused(self) -> bool:
        """What the guest said last, and whether it could say anything else."""
        return self._may_be_paused and self._link.lost is None

    async def state(self) -> list[DeviceState]:
        _, given = await self._link.call(STATE, STATE_SECONDS)
        return await asyncio.to_thread(read_states, given)

    async def kill(self) -> None:
        if self._link.pidfd < 0:
            raise self._link.error("is a process that cannot be seen from here: end it by hand")
        try:
            signal.pidfd_send_signal(self._link.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return  # gone already
        except PermissionError as error:
            raise self._link.error(f"may not be killed from here: {error.strerror}") from error
        if not await wait_exited(self._link.pidfd, KILL_SECONDS):
            raise self._link.error(f"is still there {KILL_SECONDS:g} s after SIGKILL")

    def stopped_copy(self) -> str:
        return f"the guest at {self._link.path}, a copy now: never resume it, end it"

    async def alive(self) -> bool:
        if self._link.pidfd >= 0 and has_exited(self._link.pidfd):
            return False
        if self._link.lost is not None:
            raise self._link.error(self._link.lost)
        return True

    def close(self) -> None:
        self._link.close()
        self.offer.close()

    async def _ask_to_pause(self, time_limit: float) -> None:
        self.was_paused_before = False
        answer, given = await self._link.call(PAUSE, time_limit)
        close_all(fd for _, fd in given)
        self.was_paused_before = answer.was_paused

    async def _ask_to_resume(self) -> None:
        """Over a new connection if need be: the guest must not stay paused because this one broke."""
        if self._link.lost is not None:
            link = GuestSocket(self._link.path, "source")
            self._link.close()
            self._link = link
        _, given = await self._link.call(RESUME, RESUME_SECONDS)
        close_all(fd for _, fd in given)


class SocketArrival(Arrival):
    """The guest to be, which waits at its socket. Made by `connect`; for one migration.

    Args:
        ram: where its RAM goes.
        time_limit: seconds that it may take to load its state, and to run.
    """

    def __init__(
        self, link: GuestSocket, offer: GuestOffer, ram: tuple[RamSpec, ...], time_limit: float
    ) -> None:
        self.ram = ram
        self._offer = offer
        self._link = link
        self._calls = False
        self._time_limit = time_limit

    @classmethod
    async def connect(cls, path: Path, named: tuple[RamSpec, ...], time_limit: float) -> Self:
        """Ask the guest for its RAM; `named` is what --ram names.

        Raises:
            GuestError: nobody listens, or answers as the contract says.
            UsageError: RAM is named twice, or not at all.
        """
        link, offer = await _connect(path, "destination")
        try:
            return cls(link, offer, offer.ram_with(named, path), time_limit)
        except UsageError:
            link.close()
            offer.close()
            raise

    async def load(self, attempt: int, states: Sequence[DeviceState]) -> None:
        del attempt
        writing = asyncio.ensure_future(asyncio.to_thread(write_states, states))
        try:
            fds = await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(_close_written)
            raise
        try:
            await self._call(load_call([state.name for state in states]), fds)
        finally:
            close_all(fds)

    async def run(self, attempt: int) -> None:
        del attempt
        await self._call(RUN)

    async def lost(self) -> GuestError:
        await self._link.gone.wait()
        if self._calls:  # `load` or `run` says what became of it
            await asyncio.Event().wait()
        return self._link.error(str(self._link.lost))

    def close(self) -> None:
        self._link.close()
        self._offer.close()

    async def _call(self, call: bytes, fds: Sequence[int] = ()) -> None:
        self._calls = True
        _, given = await self._link.call(call, self._time_limit, fds)
        self._calls = False
        close_all(fd for _, fd in given)


def _close_written(writing: asyncio.Future[list[int]]) -> None:
    if not writing.cancelled() and writing.exception() is None:
        close_all(writing.result())
