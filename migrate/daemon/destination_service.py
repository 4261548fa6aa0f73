"""The destination under control: the daemon as ever, and a socket on which it can be watched and ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

from migrate.config import DestinationConfig
from migrate.daemon.control_commands import CommandTable, EventRelay, migration_report
from migrate.daemon.control_socket import ControlSocket
from migrate.daemon.destination import DestinationDaemon
from migrate.daemon.own_guest import ArrivingGuest
from migrate.daemon.qemu_incoming import QemuIncoming
from migrate.daemon.reporter import Reporter
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import MigrateError
from migrate.protocol.qmp import QmpError
from migrate.protocol.stats import MigrationStats


async def serve_destination(
    config: DestinationConfig, reporter: Reporter, own: ArrivingGuest | None = None
) -> None:
    """As `migrate.daemon.destination.serve`, with a control socket.

    Raises:
        MigrateError: also if the socket cannot be there.
    """
    await DestinationService(config, reporter, own).run()


class DestinationService:
    """Commands on one side, the daemon on the other."""

    def __init__(self, config: DestinationConfig, reporter: Reporter, own: ArrivingGuest | None) -> None:
        assert config.control is not None
        self._path = config.control
        self._starts = config.on_commit is not None or config.guest_qmp is not None
        """The guest is let go by us; without a command it waits for somebody who does."""
        table = CommandTable(
            "destination",
            {
                "query-status": self._query_status,
                "query-migrate": self._query_migrate,
                "migrate_cancel": self._cancel,
                "quit": self._quit,
            },
        )
        self._socket = ControlSocket(config.control, table.execute)
        self._reporter = EventRelay(reporter, self._socket.event)
        self._daemon = DestinationDaemon(config, self._reporter, own)

    async def run(self) -> None:
        """Serve. Raises MigrateError."""
        await self._socket.open()
        try:
            self._reporter.event("control", path=str(self._path))
            await self._daemon.run()
        finally:
            await uninterrupted(self._socket.close())

    def _query_status(self, _: Mapping[str, object]) -> object:
        if self._daemon.incoming is not None or self._daemon.last_outcome != "completed":
            return {"running": False, "status": "inmigrate"}
        return {"running": self._starts, "status": "running" if self._starts else "paused", "assumed": True}

    def _query_migrate(self, _: Mapping[str, object]) -> object:
        incoming = self._daemon.incoming
        if isinstance(incoming, QemuIncoming):
            return {"status": "active"}  # its statistics stand in migration.json, once it is stored
        stats: MigrationStats | None = self._daemon.last_stats if incoming is None else incoming.stats
        error: MigrateError | None = self._daemon.last_error if incoming is None else None
        return migration_report(stats, time.monotonic(), over=incoming is None, error=error)

    def _cancel(self, _: Mapping[str, object]) -> object:
        incoming = self._daemon.incoming
        if incoming is not None and not incoming.cancel("cancelled over the control socket"):
            raise QmpError("too late to cancel: the guest is this host's")
        return {}

    def _quit(self, _: Mapping[str, object]) -> object:
        self._daemon.quit("the program was ended over the control socket")
        return {}
