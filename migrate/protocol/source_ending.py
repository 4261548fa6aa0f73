"""How a migration ends at the source, and where the guest is then.

failed, cancelled   before `committing`; a guest that was paused is resumed first, the peer is told why
failed              also after `committing`, if the destination has declined: the guest was taken back
undecided           from `committing` on without an answer: the guest stays paused
completed           the destination runs it; trouble found afterwards is told, and changes nothing
checked             a pre-flight
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.config import SourceConfig
from migrate.errors import CancelledMigration, MigrateError, NetworkError, UndecidedError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.guest_contract import RESUME_BY_HAND
from migrate.protocol.source_states import DECIDED, PAUSED, SourceState

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
        self._settled = False
        """Both journals are gone, or ours stays for `recover`."""
        self._let_go = False
        """RAM was read once more, and the guest here ended or kept."""
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
        if machine.state in (*DECIDED, SourceState.ENDING, SourceState.ENDED):
            return
        self._error = error
        cancelled = isinstance(error, CancelledMigration)
        self.outcome = "cancelled" if cancelled else "failed"
        if cancelled:
            machine.link.send_last(m.Cancel(error.message))
        else:
            machine.link.send_last(m.Failed(error.exit_code, error.message))
        machine.throttle.lift()
        paused = machine.state in PAUSED
        machine.enter(SourceState.ENDING)
        machine.set_status("cancelling" if cancelled else "failed")
        if paused:
            machine.commit.release(now)
        machine.emit(a.Disconnect())
        machine.link.stop()
        self.check(now)

    def resumed(self) -> None:
        """The guest runs again."""
        self.resume_pending = False

    def resume_failed(self, now: float, error: MigrateError) -> None:
        """The guest could not be resumed: nothing is worth more than saying so."""
        self.resume_pending = False
        self._resume_problem = error
        if self._machine.state is SourceState.TAKING_BACK:
            self._error = error
            self._finish(now)
        self.fail(now, error)
        self.check(now)

    def handed_over(self) -> None:
        """The destination runs the guest."""
        self._handed_over = True
        self._machine.enter(SourceState.REREADING)

    def taking_back(self, reason: str) -> None:
        """The destination has declined, and the journal here says that the guest is ours again."""
        self._machine.enter(SourceState.TAKING_BACK)
        self._error = NetworkError(
            "the guest was taken back: the destination had declined it before the commit came"
            + (f" ({reason})" if reason else ""),
            side="destination",
            hint="look at what migrate-dst says there, then start the migration again",
        )

    def settled(self, now: float) -> None:
        """Both sides know the outcome, and that the other one knows."""
        self._settled = True
        self._check_over(now)

    def unsettled(self, now: float, reason: str) -> None:
        """The outcome is decided, but the destination may not know that this side knows."""
        if not self._settled and self._machine.state in DECIDED:
            text = f"the journal stays, since the destination did not confirm the outcome: {reason};"
            self._machine.emit(a.Report("warning", {"message": f"{text} `migrate-src recover` mends that"}))
            self.settled(now)

    def undecided(self, now: float, reason: str) -> None:
        """The commit may have arrived: nobody resumes the guest but `recover`, or a person."""
        self.outcome = "undecided"
        self._error = UndecidedError(
            f"the guest was handed over, but whether it runs there is not known: {reason}",
            side="destination",
            guest=self.guest_place,
            hint=self._how_to_decide(),
        )
        self._finish(now)

    def completed(self, now: float, error: MigrateError | None) -> None:
        """The guest is the destination's; `error` tells of a trouble that does not change that."""
        self.outcome = "completed"
        self._error = error
        self._let_go = True
        self._check_over(now)

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
        self._check_over(now)

    def _check_over(self, now: float) -> None:
        """After the decision: finish once nothing is under way any more."""
        machine = self._machine
        reread = machine.state is SourceState.REREADING and self._let_go
        back = machine.state is SourceState.TAKING_BACK and not self.resume_pending
        if self._settled and (reread or back):
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
            resume = _resume_by_hand(machine.config)
            if self._resume_problem is not None:
                known = resume not in (None, machine.config.resume_cmd)
                self._error.hint = f"resume it by hand{f': {resume}' if known else ''}"
            self._error.with_context(guest=self.guest_place)
        machine.emit(a.Finish(self._error))

    def _how_to_decide(self) -> str:
        config = self._machine.config
        where = f" --state-dir {config.state_dir}" if config.state_dir is not None else ""
        resume = _resume_by_hand(config)
        by_hand = "" if resume is None else f" (what resumes it: {resume})"
        if config.arbiter is not None:
            return (
                f"migrate-src recover{where}: it asks the destination, and the arbiter where that cannot be"
                f" reached; then it finishes, or takes the guest back; never resume it here by hand{by_hand}"
            )
        return (
            f"with a migrate-dst there that listens and has the same --state-dir: migrate-src recover{where};"
            f" it asks, and finishes or takes back; never resume the guest here by hand unless it surely does"
            f" not run there and never will{by_hand}"
        )


def _resume_by_hand(config: SourceConfig) -> str | None:
    """What a person types to let the guest run, None: that is not known."""
    if config.guest_pid is not None:
        return f"kill -CONT {config.guest_pid}"
    if config.guest_qmp is not None:
        return "in QEMU's monitor: migrate_cancel, then cont"
    if config.guest_socket is not None:
        return RESUME_BY_HAND.format(path=str(config.guest_socket))
    return config.resume_cmd
