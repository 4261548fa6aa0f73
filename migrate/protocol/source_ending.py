"""How a migration ends at the source, and where the guest is then.

failed, cancelled   before `committing`; a guest that was paused is resumed first, the peer is told why
undecided           from `committing` on without an answer: the guest stays paused
completed           the destination runs it; trouble found afterwards is told, and changes nothing
checked             a pre-flight
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.errors import CancelledMigration, MigrateError, UndecidedError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.source_states import PAUSED, SourceState

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine

_STATUS = {"completed": "completed", "cancelled": "cancelled", "checked": "none"}


class SourceEnding:
    """The ends of one source machine."""

    def __init__(self, machine: SourceMachine) -> None:
        self._machine = machine
        self.outcome = "failed"
        self.resume_pending = False
        """The guest was asked to run again, and has not answered yet."""
        self._error: MigrateError | None = None
        self._handed_over = False
        self._resume_problem: MigrateError | None = None

    @property
    def guest_place(self) -> str:
        """One clause: where the guest runs now."""
        if self._machine.state is SourceState.COMMITTING or self.outcome == "undecided":
            return "the guest is stopped at the source and may run at the destination"
        if self._handed_over:
            return "the guest runs at the destination"
        if self._error is not None and self._error.guest is not None:
            return self._error.guest
        if self._resume_problem is not None:
            return "the guest is still stopped at the source"
        return "the guest runs at the source as before"

    def fail(self, now: float, error: MigrateError) -> None:
        """End without a handover: the guest is resumed if it was paused. Later errors are dropped."""
        machine = self._machine
        if machine.state is SourceState.COMMITTING:
            self.undecided(now, error.message)
            return
        if machine.state in (SourceState.REREADING, SourceState.ENDING, SourceState.ENDED):
            return
        self._error = error
        cancelled = isinstance(error, CancelledMigration)
        self.outcome = "cancelled" if cancelled else "failed"
        if cancelled:
            machine.link.send_last(m.Cancel(error.message))
        else:
            machine.link.send_last(m.Failed(error.exit_code, error.message))
        paused = machine.state in PAUSED
        machine.enter(SourceState.ENDING)
        machine.set_status("cancelling" if cancelled else "failed")
        if paused:
            self.begin_resume()
        machine.emit(a.Disconnect())
        machine.link.stop()
        self.check(now)

    def begin_resume(self) -> None:
        """Ask for the guest to run again; `resumed` or `resume_failed` follows."""
        self.resume_pending = True
        self._machine.emit(a.ResumeGuest())

    def resumed(self) -> None:
        """The guest runs again."""
        self.resume_pending = False

    def resume_failed(self, now: float, error: MigrateError) -> None:
        """The guest could not be resumed: nothing is worth more than saying so."""
        self.resume_pending = False
        self._resume_problem = error
        self.fail(now, error)
        self.check(now)

    def handed_over(self) -> None:
        """The destination runs the guest."""
        self._handed_over = True
        self._machine.enter(SourceState.REREADING)

    def undecided(self, now: float, reason: str) -> None:
        """The commit may have arrived: nobody resumes the guest but a person."""
        self.outcome = "undecided"
        self._error = UndecidedError(
            f"the commit was sent, but whether the guest runs there is not known: {reason}",
            side="destination",
            guest=self.guest_place,
            hint=self._how_to_decide(),
        )
        self._finish(now)

    def completed(self, now: float, error: MigrateError | None) -> None:
        """The guest is the destination's; `error` tells of a trouble that does not change that."""
        self.outcome = "completed"
        self._error = error
        self._finish(now)

    def checked(self, now: float) -> None:
        """The pre-flight is over."""
        self.outcome = "checked"
        self._machine.enter(SourceState.ENDING)
        self._finish(now)

    def check(self, now: float) -> None:
        """Finish an end that waits for lanes and the guest, once they are at rest."""
        machine = self._machine
        if machine.state is SourceState.ENDING and machine.link.at_rest and not self.resume_pending:
            self._finish(now)

    def _finish(self, now: float) -> None:
        machine = self._machine
        if machine.state is not SourceState.ENDING or self.outcome == "checked":
            machine.emit(a.Disconnect())
            machine.link.stop()
        machine.set_status(_STATUS.get(self.outcome, "failed"))
        machine.enter(SourceState.ENDED)
        machine.stats.finish(now)
        if self._error is not None:
            if self._resume_problem is not None and machine.config.guest_pid:
                self._error.hint = f"resume it by hand: kill -CONT {machine.config.guest_pid}"
            elif self._resume_problem is not None and machine.config.guest_qmp:
                self._error.hint = "resume it by hand, in QEMU's monitor: migrate_cancel, then cont"
            self._error.with_context(guest=self.guest_place)
        machine.emit(a.Finish(self._error))

    def _how_to_decide(self) -> str:
        config = self._machine.config
        resume = f"kill -CONT {config.guest_pid}" if config.guest_pid else config.resume_cmd
        if config.guest_qmp:
            resume = "`cont` in the monitor of the QEMU here"
        there = "look at migrate-dst's last lines and at the guest there"
        if resume is None:
            return f"{there}; if it says that the guest was not started, the source's copy is the guest"
        return (
            f"{there}; if the guest runs there, end the stopped one here;"
            f" only if it surely does not run there, and never will: {resume}"
        )
