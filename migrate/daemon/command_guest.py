"""Guests that are no process to us: reached by two commands, or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from migrate.daemon.asked_guest import AskedGuest
from migrate.daemon.guest import GuestControl
from migrate.daemon.hooks import run_hook
from migrate.errors import GuestError
from migrate.protocol.journal_record import PausedGuest


class CommandGuest(AskedGuest):
    """Pauses by `--pause-cmd` and resumes by `--resume-cmd`; believes their exit status.

    Args:
        environment: for both commands (`hook_environment`).
        time_limit: seconds for the resume command.
    """

    resume_name = "--resume-cmd"

    def __init__(
        self,
        pause_cmd: str,
        resume_cmd: str,
        environment: Mapping[str, str] | None = None,
        time_limit: float = 30.0,
    ) -> None:
        super().__init__()
        self._pause_cmd = pause_cmd
        self._resume_cmd = resume_cmd
        self._environment = environment or {}
        self._time_limit = time_limit

    def describe(self) -> str:
        return f"paused by the command {self._pause_cmd!r}, resumed by {self._resume_cmd!r}"

    async def probe(self) -> None:
        for option, command in (("--pause-cmd", self._pause_cmd), ("--resume-cmd", self._resume_cmd)):
            if not command.strip():
                raise GuestError(f"{option}: the command is empty", side="source")

    async def how_paused(self) -> PausedGuest:
        return PausedGuest("command", resume_cmd=self._resume_cmd, environment=dict(self._environment))

    async def kill(self) -> None:
        raise GuestError(
            "a guest that is reached by --pause-cmd cannot be killed: no process is known",
            side="source",
            hint="use --guest-pid with --source-after kill, or end the guest by hand",
        )

    async def _ask_to_pause(self, time_limit: float) -> None:
        await run_hook("--pause-cmd", self._pause_cmd, self._environment, time_limit)

    async def _ask_to_resume(self) -> None:
        await run_hook("--resume-cmd", self._resume_cmd, self._environment, self._time_limit)


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
