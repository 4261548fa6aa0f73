"""A running QEMU as the guest: its own migration is the pause, and the way in which its devices travel.

    none ──migrate──→ active ──→ pre-switchover ──migrate-continue──→ device ──SHUT 0──→ completed
    the guest runs               it stands, RAM is final              it still could     it cannot run again
                                                                      go on by itself    by itself

QEMU's stream ends in a socket of ours; it travels as a piece of device state. Until the destination is ready
the source is not told that it arrived: whatever happens to us before that, a death by SIGKILL too, closes
the socket, and QEMU lets its guest run again (before `migrate-continue` it needs `migrate_cancel`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from migrate.config import RamSpec
from migrate.daemon.device_state import DeviceState
from migrate.daemon.guest import GuestControl
from migrate.daemon.qemu_checks import Capabilities, check_ram, machine_of
from migrate.daemon.qmp_monitor import Monitor
from migrate.errors import GuestError, MigrateError, RefusedError, as_error
from migrate.protocol.journal_record import PausedGuest
from migrate.protocol.messages import QemuMachine
from migrate.protocol.qemu_devices import STATE_NAME, DeviceStream
from migrate.protocol.qemu_wire import encode_shut

STATE_SECONDS = 30.0
END_SECONDS = 10.0
"""For QEMU's own migration to end one way or the other once it was told."""
_CHUNK = 1 << 18
_LOOK_SECONDS = 0.005
_OVER = frozenset({"none", "completed", "failed", "cancelled"})
_STANDS = frozenset({"finish-migrate", "postmigrate"})
_LOADED, _REFUSED = 0, 1


class QmpGuest(GuestControl):
    """Pauses and resumes a QEMU through its monitor.

    Args:
        path: unix socket of the monitor.
        ram: what was given as --ram.
    """

    def __init__(self, path: Path, ram: Sequence[RamSpec]) -> None:
        self.was_paused_before = False
        self.pid: int | None = None
        self._machine: QemuMachine | None = None
        self._ram = ram
        self._monitor = Monitor(path, "source")
        self._capabilities = Capabilities(self._monitor, ["pause-before-switchover"])
        self._stream: _OwnStream | None = None
        self._continued = False

    @property
    def machine(self) -> QemuMachine:
        """What the destination's QEMU must have in common with it; known after `probe`."""
        assert self._machine is not None
        return self._machine

    def describe(self) -> str:
        return f"paused by QEMU's own migration, over the monitor {self._monitor.path}"

    async def probe(self) -> None:
        if not self._monitor.connected:
            await self._monitor.connect()
            self.pid = self._monitor.pid
        state = await self._monitor.run_state()
        if state not in ("running", "paused"):
            raise RefusedError(
                f"the QEMU at {self._monitor.path} is in the state {state!r}",
                side="source",
                hint="a guest that was moved away must stay as it is; one that surely runs nowhere else goes"
                " on with `cont` in its monitor"
                if state == "postmigrate"
                else "its guest must run, or stand still after `stop`",
            )
        await check_ram(self._monitor, self._ram)
        await self._capabilities.check()
        migration = await self._monitor.execute("query-migrate")
        if migration.get("status", "none") not in _OVER:
            raise RefusedError(f"the QEMU at {self._monitor.path} migrates already", side="source")
        blocked = migration.get("blocked-reasons")
        if blocked:
            raise RefusedError(f"the guest cannot be migrated: {'; '.join(blocked)}", side="source")
        self._machine = await machine_of(self._monitor)

    async def how_paused(self) -> PausedGuest:
        stands = await self._monitor.run_state() != "running"
        return PausedGuest("qmp", stopped_before=stands, monitor=str(self._monitor.path.absolute()))

    async def pause(self, deadline_s: float) -> None:
        try:
            self.was_paused_before = await self._monitor.run_state() != "running"
            await self._capabilities.set()
            ours, theirs = socket.socketpair()
            with theirs:
                self._continued = False
                self._stream = _OwnStream(ours)
                await self._monitor.hand_over("migrate", theirs.fileno())
            await self._monitor.execute("migrate", uri="fd:migrate")
            found = await self._monitor.migration({"pre-switchover"} | (_OVER - {"none"}), deadline_s)
            if found["status"] != "pre-switchover":
                why = found.get("error-desc", "it says no more")
                raise GuestError(f"QEMU's own migration {found['status']}: {why}", side="source")
        except BaseException:
            with contextlib.suppress(MigrateError):  # died: the first error says so
                await self.resume()
            raise

    async def state(self) -> list[DeviceState]:
        assert self._stream is not None
        self._continued = True
        await self._monitor.execute("migrate-continue", state="pre-switchover")
        return [DeviceState(STATE_NAME, await self._stream.whole())]

    async def seal(self) -> None:
        assert self._stream is not None
        await self._stream.answer(_LOADED)
        found = await self._monitor.migration(_OVER, END_SECONDS)
        if found["status"] != "completed":
            why = found.get("error-desc", "it says no more")
            raise GuestError(f"QEMU's own migration {found['status']} at its end: {why}", side="source")

    async def still_paused(self) -> bool:
        with contextlib.suppress(GuestError):
            return await self._monitor.run_state() in _STANDS
        return False

    async def resume(self) -> None:
        """Before `migrate-continue` QEMU is told to cancel; after it, that the destination failed.

        Where its migration is completed, `cont`.
        """
        if self._stream is None:
            return
        if self._continued:
            await self._stream.answer(_REFUSED)
        else:
            with contextlib.suppress(GuestError):  # there may be none yet
                await self._monitor.execute("migrate_cancel")
        self._stream.close()
        await self._monitor.migration(_OVER, END_SECONDS)
        if await _settled(self._monitor) != "running" and not self.was_paused_before:
            await self._monitor.execute("cont")
            if await _settled(self._monitor) != "running":
                raise GuestError("QEMU did not let its guest run again", side="source")
        self._stream = None

    async def kill(self) -> None:
        with contextlib.suppress(GuestError):  # it may be gone before it answers
            await self._monitor.execute("quit")
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._monitor.lost()
        except TimeoutError:
            raise GuestError(f"QEMU is still there {END_SECONDS:g} s after `quit`", side="source") from None

    async def alive(self) -> bool:
        return self._monitor.connected

    def stopped_copy(self) -> str:
        return f"the QEMU at {self._monitor.path}, a copy now: never `cont` it, end it with `quit`"

    async def leave(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._monitor.connected:
            await self._capabilities.restore()
        await self._monitor.close()


async def _settled(monitor: Monitor) -> str:
    """The run state once the end of a migration has had its effect on it."""
    end = time.monotonic() + END_SECONDS
    while True:
        state = await monitor.run_state()
        if state != "finish-migrate" or time.monotonic() >= end:
            return state
        await asyncio.sleep(_LOOK_SECONDS)


async def resume_paused(path: Path, stopped_before: bool) -> None:
    """Let the guest of a QEMU run whose migrate-src was killed in the pause, as often as one likes.

    Its own migration fails when migrate-src dies; before `migrate-continue` it has to be cancelled.

    Raises GuestError: there is no QEMU, or it does not run again.
    """
    monitor = Monitor(path, "source")
    await monitor.connect()
    try:
        if (await monitor.execute("query-migrate")).get("status", "none") not in _OVER:
            await monitor.execute("migrate_cancel")
            await monitor.migration(_OVER, END_SECONDS)
        state = await _settled(monitor)
        if state != "running" and not stopped_before:
            await monitor.execute("cont")
    finally:
        await monitor.close()


class _OwnStream:
    """Our end of QEMU's migration; read from the beginning, so that QEMU never waits for us."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._task = asyncio.ensure_future(self._read())

    async def whole(self) -> bytes:
        """All of it, once it has ended. Raises MigrateError."""
        try:
            async with asyncio.timeout(STATE_SECONDS):
                return await asyncio.shield(self._task)
        except TimeoutError:
            raise GuestError(
                f"the end of QEMU's device state did not come within {STATE_SECONDS:g} s", side="source"
            ) from None
        except Exception as error:
            raise as_error(error) from error

    async def answer(self, status: int) -> None:
        """Tell QEMU what became of its stream."""
        with contextlib.suppress(OSError):  # it does not listen any more: its own end says what it knows
            await asyncio.get_running_loop().sock_sendall(self._socket, encode_shut(status))

    def close(self) -> None:
        """The second call does nothing."""
        self._task.cancel()
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._socket.close()

    async def _read(self) -> bytes:
        stream = DeviceStream()
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self._socket, _CHUNK)
            if not data:
                raise GuestError("QEMU broke off its own migration", side="source")
            if stream.feed(data):
                return bytes(stream.data)
