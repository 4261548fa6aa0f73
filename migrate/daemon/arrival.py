"""The guest at the destination: made ready with its device state, and let go by the commit."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Sequence
from pathlib import Path

from migrate.config import DestinationConfig, RamSpec
from migrate.daemon.device_state import DeviceState, StateDirectory
from migrate.daemon.hooks import hook_environment, run_hook
from migrate.errors import MigrateError


class Arrival(abc.ABC):
    """A way to bring the guest up. One object a migration; its calls come one after the other.

    Attributes:
        ram: where RAM goes, if the guest says that by itself; empty: the configuration does.
    """

    ram: tuple[RamSpec, ...] = ()

    @abc.abstractmethod
    async def load(self, attempt: int, states: Sequence[DeviceState]) -> None:
        """RAM is whole and proved: get the guest ready with this state, paused.

        Comes again for a later pause, if the one before was given up. May be cancelled.

        Raises MigrateError: the source keeps the guest.
        """

    @abc.abstractmethod
    async def run(self, attempt: int) -> None:
        """The guest is this host's: let it go. Raises MigrateError: a person must look."""

    async def lost(self) -> MigrateError:
        """Why the guest cannot be brought up any more; returns when that is so, before `run`, or never."""
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def leave(self) -> None:  # noqa: B027 - most ways change nothing
        """The migration is over: put back what it changed. Comes before `close`."""

    def close(self) -> None:  # noqa: B027 - most ways hold nothing
        """The migration is over; the second call does nothing."""


class CommandArrival(Arrival):
    """Brought up by `--on-prepare` and let go by `--on-commit`, as far as these are given."""

    def __init__(self, config: DestinationConfig, migration: str, ram: dict[str, Path]) -> None:
        self._config = config
        self._migration = migration
        self._ram = ram
        self._directory: StateDirectory | None = None

    async def load(self, attempt: int, states: Sequence[DeviceState]) -> None:
        self.close()
        self._directory = StateDirectory()
        await asyncio.to_thread(self._directory.write, states)
        await self._run("--on-prepare", self._config.on_prepare, attempt)

    async def run(self, attempt: int) -> None:
        await self._run("--on-commit", self._config.on_commit, attempt)

    def close(self) -> None:
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    async def _run(self, name: str, command: str | None, attempt: int) -> None:
        if command is None:
            return
        environment = hook_environment(
            migration_id=self._migration,
            attempt=attempt,
            side="destination",
            ram=self._ram,
            state_dir=self._directory.path if self._directory is not None else None,
        )
        await run_hook(name, command, environment, self._config.hook_timeout)
