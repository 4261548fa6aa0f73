"""Guests that are no process to us: reached by two commands, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from migrate.daemon.guest import GuestControl
from migrate.daemon.hooks import HookError, run_hook
from migrate.errors import GuestError


class CommandGuest(GuestControl):
    """Pauses by `--pause-cmd` and resumes by `--resume-cmd`; believes their exit status.

    Args:
        environment: for both commands (`hook_environment`).
        time_limit: seconds for the resume command.
    """

    def __init__(
        self,
        pause_cmd: str,
        resume_cmd: str,
        environment: Mapping[str, str] | None = None,
        time_limit: float = 30.0,
    ) -> None:
        self._pause_cmd = pause_cmd
        self._resume_cmd = resume_cmd
        self._environment = environment or {}
        self._time_limit = time_limit
        self._may_be_paused = False

    def describe(self) -> str:
        return f"paused by the command {self._pause_cmd!r}, resumed by {self._resume_cmd!r}"

    async def probe(self) -> None:
        for option, command in (("--pause-cmd", self._pause_cmd), ("--resume-cmd", self._resume_cmd)):
            if not command.strip():
                raise GuestError(f"{option}: the command is empty", side="source")

    async def pause(self, deadline_s: float) -> None:
        self._may_be_paused = True
        try:
            await run_hook("--pause-cmd", self._pause_cmd, self._environment, deadline_s)
        except HookError as failure:
            await self._undo(failure)
            raise
        except asyncio.CancelledError:
            with contextlib.suppress(HookError):  # whoever cancels will ask for a resume again
                await self.resume()
            raise

    async def resume(self) -> None:
        if self._may_be_paused:
            await run_hook("--resume-cmd", self._resume_cmd, self._environment, self._time_limit)
            self._may_be_paused = False

    async def still_paused(self) -> bool:
        """What the commands were told: whether the guest obeys cannot be seen."""
        return self._may_be_paused

    async def kill(self) -> None:
        raise GuestError(
            "a guest that is reached by --pause-cmd cannot be killed: no process is known",
            side="source",
            hint="use --guest-pid with --source-after kill, or end the guest by hand",
        )

    async def alive(self) -> bool:
        """Always true: no process is known."""
        return True

    async def _undo(self, failure: HookError) -> None:
        """Resume the guest, which the failed pause command may have stopped; say in the error where it is."""
        try:
            await self.resume()
        except HookError as second:
            failure.with_context(
                side="source",
                guest="the guest may be paused at the source: --resume-cmd failed too",
                hint=f"let it run by hand; --resume-cmd said: {second.output or second.message}",
            )
        else:
            failure.with_context(side="source", guest="the guest runs at the source")


class NoGuest(GuestControl):
    """Nothing to pause: whoever writes the RAM has stopped, or stops by itself in time."""

    def describe(self) -> str:
        return (
            "not paused by us: no --guest-pid and no --pause-cmd, so whoever writes the RAM must have stopped"
            " before the last round"
        )

    async def probe(self) -> None:
        return

    async def pause(self, deadline_s: float) -> None:
        return

    async def resume(self) -> None:
        return

    async def still_paused(self) -> bool:
        return True

    async def kill(self) -> None:
        raise GuestError(
            "there is no guest to kill: no process is known",
            side="source",
            hint="name the guest's process with --guest-pid",
        )

    async def alive(self) -> bool:
        """Always true: no process is known."""
        return True
