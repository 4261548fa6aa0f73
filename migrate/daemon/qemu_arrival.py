"""A waiting QEMU at the destination: it loads the devices in `prepare`, and `cont` lets it go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

from migrate.config import DestinationConfig
from migrate.daemon.arrival import CommandArrival
from migrate.daemon.device_state import DeviceState
from migrate.daemon.qemu_checks import Capabilities, check_ram, machine_of
from migrate.daemon.qmp_monitor import Monitor
from migrate.errors import GuestError, MigrateError, ProtocolError, RefusedError
from migrate.protocol.messages import QemuMachine
from migrate.protocol.qemu_devices import STATE_NAME
from migrate.protocol.qemu_return_path import ReturnPath

LOAD_SECONDS = 30.0
END_SECONDS = 10.0
EXIT_SECONDS = 1.0
_CHUNK = 1 << 18
_ANEW = "start QEMU anew there, with the same command, and the migration again"


class QemuArrival(CommandArrival):
    """Brings up a QEMU that was started with `-incoming defer`; the commands are run as well, after it.

    It can load devices once: after a pause that was given up behind that, a new QEMU is needed.

    Args:
        path: unix socket of its monitor.
    """

    def __init__(self, config: DestinationConfig, migration: str, ram: dict[str, Path], path: Path) -> None:
        super().__init__(config, migration, ram)
        self._monitor = Monitor(path, "destination")
        self._capabilities = Capabilities(self._monitor)
        self._loaded = False
        self._busy = False

    async def check(self) -> QemuMachine:
        """Connect and look whether it can take a guest. Raises MigrateError."""
        await self._monitor.connect()
        state = await self._monitor.run_state()
        if state != "inmigrate":
            raise RefusedError(
                f"the QEMU at {self._monitor.path} does not wait for a guest: its state is {state!r}",
                side="destination",
                hint="start it with -S -incoming defer",
            )
        if (await self._monitor.execute("query-migrate")).get("status", "none") != "none":
            raise RefusedError(
                f"the QEMU at {self._monitor.path} waits at an address of its own",
                side="destination",
                hint="start it with -incoming defer",
            )
        await check_ram(self._monitor, self._config.ram)
        await self._capabilities.check()
        return await machine_of(self._monitor)

    async def attach(self) -> None:
        """Connect to a QEMU that another program has made ready. Raises GuestError."""
        await self._monitor.connect()

    async def runs(self) -> bool:
        """Whether its guest was let go. Raises GuestError."""
        return await self._monitor.run_state() == "running"

    async def load(self, attempt: int, states: Sequence[DeviceState]) -> None:
        stream = next((state.data for state in states if state.name == STATE_NAME), None)
        if stream is None:
            raise ProtocolError("the source sent no devices for the QEMU here")
        if self._loaded:
            raise GuestError(
                "the QEMU here holds the devices of an earlier pause, which was given up",
                side="destination",
                hint=_ANEW,
            )
        self._loaded = self._busy = True
        try:
            await self._load(stream)
        except GuestError as error:
            if await self._has_ended():
                error.message += "; it has ended: what it printed says why"
            error.with_context(hint=_ANEW)
            raise
        self._busy = False
        await super().load(attempt, states)

    async def run(self, attempt: int) -> None:
        self._busy = True
        await self._monitor.execute("cont")
        state = await self._monitor.run_state()
        if state != "running":
            raise GuestError(f"QEMU's state after `cont` is {state!r}", side="destination")
        await super().run(attempt)

    async def lost(self) -> MigrateError:
        await self._monitor.lost()
        if self._busy:  # `load` or `run` says what became of it
            await asyncio.Event().wait()
        return GuestError("the waiting QEMU has ended", side="destination", hint=_ANEW)

    async def leave(self) -> None:
        if self._monitor.connected:
            await self._capabilities.restore()
        await self._monitor.close()

    async def _has_ended(self) -> bool:
        """Whether QEMU is on its way out, as it is when it cannot load."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                await self._monitor.lost()
        return not self._monitor.connected

    async def _load(self, stream: bytes) -> None:
        await self._capabilities.set()
        await self._monitor.execute("stop")  # as -S does: it must not start by itself
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                await self._monitor.hand_over("incoming", theirs.fileno())
            await self._monitor.execute("migrate-incoming", uri="fd:incoming")
            status = await self._feed(ours, stream)
        if status != 0:
            raise GuestError("QEMU could not load the devices", side="destination")
        found = await self._monitor.migration({"completed", "failed"}, END_SECONDS)
        state = await self._monitor.run_state()
        if (found["status"], state) != ("completed", "paused"):
            raise GuestError(
                f"QEMU loaded the devices, but is {state!r} after its migration {found['status']}",
                side="destination",
            )

    async def _feed(self, sock: socket.socket, stream: bytes) -> int:
        """Send it and wait for the last answer. Raises MigrateError."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        answers = ReturnPath()
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await loop.sock_sendall(sock, stream)
                while answers.shut is None:
                    data = await loop.sock_recv(sock, _CHUNK)
                    if not data:
                        raise GuestError("QEMU broke off while it loaded the devices", side="destination")
                    answers.feed(data)
        except TimeoutError:
            raise GuestError(
                f"QEMU did not load the devices within {LOAD_SECONDS:g} s", side="destination"
            ) from None
        except OSError as error:
            raise GuestError(f"QEMU took no devices: {error.strerror}", side="destination") from error
        return answers.shut
