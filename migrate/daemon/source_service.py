"""The source under control: a daemon that waits for `migrate`, or one migration that can be steered.

Without --to it lives until `quit` or a signal: a migration that failed may be begun again, after a handover
nothing can. With --to it lives as long as that migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace

from migrate.config import Address, SourceConfig
from migrate.daemon.control_commands import CommandTable, EventRelay, migration_report
from migrate.daemon.control_socket import ControlSocket
from migrate.daemon.own_guest import Guest
from migrate.daemon.process_guest import ProcessGuest
from migrate.daemon.reporter import Reporter
from migrate.daemon.source import SourceDaemon
from migrate.daemon.source_start import migrate
from migrate.daemon.tls_client import TlsClient
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import CancelledMigration, MigrateError, UndecidedError
from migrate.protocol.parameters import parameter_values, with_parameters
from migrate.protocol.qmp import QmpError
from migrate.protocol.source_states import PAUSED, SourceState

HANDED_OVER = "the guest was handed over: what is here is a copy of it, which must not move"
UNDECIDED = "nobody knows whether the guest runs at the destination; decide that first, then start anew"

BEFORE_START = "cancelled before it began"


async def serve_source(config: SourceConfig, reporter: Reporter, own: Guest | None = None) -> None:
    """Serve the control socket, and move the guest as told; `own` is one in this process.

    Raises:
        MigrateError: the socket cannot be there; with --to, or at a `quit` or signal: why the migration
            ended.
    """
    await SourceService(config, reporter, own).run()


class SourceService:
    """Commands on one side, one migration at a time on the other."""

    def __init__(self, config: SourceConfig, reporter: Reporter, own: Guest | None) -> None:
        assert config.control is not None
        self._own = own
        if config.tls:
            TlsClient(config)  # each migration reads the files anew; what is wrong with them shows now
        self._config = config
        """With the parameters as they are now."""
        table = CommandTable(
            "source",
            {
                "query-status": self._query_status,
                "query-migrate": self._query_migrate,
                "migrate": self._migrate,
                "migrate_cancel": self._cancel,
                "migrate-pause": self._pause,
                "migrate-set-parameters": self._set_parameters,
                "query-migrate-parameters": lambda _: parameter_values(self._config),
                "quit": self._quit,
            },
        )
        self._socket = ControlSocket(config.control, table.execute)
        self._reporter = EventRelay(reporter, self._socket.event)
        self._guest: ProcessGuest | None = None
        """To look at; held from the beginning: by the time of `migrate` its number may mean another one."""
        self._daemon: SourceDaemon | None = None
        """Of the migration under way, or of the last one."""
        self._busy = config.to is not None
        self._error: MigrateError | None = None
        self._over: str | None = None
        """Why there can be no further migration."""
        self._cancelled = False
        """Before the migration that was begun had a daemon."""
        self._quits = False
        self._wakes = asyncio.Event()

    async def run(self) -> None:
        """Serve. Raises MigrateError."""
        if self._config.guest_pid is not None:
            self._guest = ProcessGuest(self._config.guest_pid)
        try:
            await self._socket.open()
            self._reporter.event("control", path=str(self._config.control))
            if self._config.to is not None:
                await self._move()
            else:
                await self._serve()
        finally:
            await uninterrupted(self._socket.close())
            if self._guest is not None:
                self._guest.close()

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not self._quits:
            try:
                await self._wakes.wait()
            except asyncio.CancelledError:
                if self._over is not None:
                    return
                raise CancelledMigration(
                    "cancelled while no migration was under way", guest="the guest is where it was"
                ) from None
            self._wakes.clear()
            if self._busy:
                try:
                    await self._move()
                except MigrateError as error:
                    if self._quits or task.cancelling():
                        raise
                    self._reporter.error(error)
                if task.cancelling():
                    return

    async def _move(self) -> None:
        """One migration. Raises MigrateError."""
        try:
            if self._cancelled:
                raise CancelledMigration(BEFORE_START, guest="the guest is where it was")
            await migrate(self._config, self._reporter, self, self._own)
        except MigrateError as error:
            self._error = error
            if isinstance(error, UndecidedError):
                self._over = UNDECIDED
            if self._daemon is None:  # without a summary there was no event of the end
                self._socket.event("MIGRATION", {"status": "failed"})
            raise
        finally:
            self._busy = False
            if self._daemon is not None and self._daemon.machine.outcome == "completed":
                self._over = HANDED_OVER

    def begun(self, daemon: SourceDaemon) -> None:
        """A migration has its daemon (SourceWatcher)."""
        self._daemon = daemon
        daemon.set_parameters(parameter_values(self._config))  # changed while it was made
        if self._cancelled:
            asyncio.get_running_loop().call_soon(self._cancel_because, BEFORE_START)

    def pass_started(self, number: int) -> None:
        """A round begins (SourceWatcher)."""
        self._socket.event("MIGRATION_PASS", {"pass": number})

    # --- commands ----------------------------------------------------------------------------------------

    def _query_status(self, _: Mapping[str, object]) -> object:
        machine = self._daemon.machine if self._daemon is not None else None
        if machine is None:
            return self._guest_here()
        if machine.state in PAUSED:
            return {"running": False, "status": "finish-migrate"}
        if machine.state in (SourceState.COMMITTING, SourceState.REREADING) or self._over is not None:
            return {"running": False, "status": "postmigrate"}
        if machine.stats.throttle_percent:  # where it stands, it does so for a moment
            return {"running": True, "status": "running"}
        left_stopped = machine.ending.resume_pending or "stopped at the source" in machine.guest_place
        return self._guest_here(left_stopped)

    def _guest_here(self, left_stopped: bool = False) -> dict[str, object]:
        """How the guest is while it is the source's: as it is seen, else as we left it."""
        if self._guest is not None:
            seen = self._guest.look()
            return {"running": seen == "running", "status": seen}
        return {
            "running": not left_stopped,
            "status": "paused" if left_stopped else "running",
            "assumed": True,
        }

    def _query_migrate(self, _: Mapping[str, object]) -> object:
        stats = self._daemon.machine.stats if self._daemon is not None else None
        report = migration_report(stats, time.monotonic(), over=not self._busy, error=self._error)
        if self._busy and stats is None:
            report["status"] = "setup"
        return report

    def _migrate(self, arguments: Mapping[str, object]) -> object:
        if self._over is not None:
            raise QmpError(self._over)
        if self._busy or self._quits:
            raise QmpError("there is a migration under way already")
        if self._guest is not None and self._guest.look() == "shutdown":
            raise QmpError(f"the guest died: process {self._guest.pid} has ended")
        try:
            to = Address.parse(str(arguments["uri"]).removeprefix("tcp:"))
        except ValueError as error:
            raise QmpError(str(error)) from None
        self._config = replace(self._config, to=to)
        self._busy = True
        self._cancelled = False
        self._daemon = self._error = None
        self._wakes.set()
        return {}

    def _cancel(self, _: Mapping[str, object]) -> object:
        self._cancel_because("cancelled over the control socket")
        return {}

    def _cancel_because(self, reason: str) -> None:
        if not self._busy:
            return
        if self._daemon is None:
            self._cancelled = True
        elif not self._daemon.cancel(reason):
            raise QmpError("too late to cancel: the guest is being handed over")

    def _pause(self, _: Mapping[str, object]) -> object:
        if not self._busy or self._daemon is None or not self._daemon.switch_over():
            raise QmpError("there are no rounds under way that a pause could end")
        return {}

    def _set_parameters(self, arguments: Mapping[str, object]) -> object:
        values = {name: value for name, value in arguments.items() if isinstance(value, int | str)}
        self._config = with_parameters(self._config, values)
        if self._busy and self._daemon is not None:
            self._daemon.set_parameters(values)
        return {}

    def _quit(self, _: Mapping[str, object]) -> object:
        self._quits = True
        self._wakes.set()
        with contextlib.suppress(QmpError):  # too late: it ends when the handover is over
            self._cancel_because("the program was ended over the control socket")
        return {}
