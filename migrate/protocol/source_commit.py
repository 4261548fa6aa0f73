"""What the source machine does on behalf of its handover (handover_source.py): journal, commit, questions.

From `committing` on the control connection serves nothing but the handover. When it breaks, a new one is
opened with a question instead of a hello, until the destination says how far it is: a commit that was lost
is sent again, one that arrived costs no success, and a pause that the destination has declined is taken back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.errors import MigrateError, NetworkError, ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handover_source import Order, SourceHandover
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message
from migrate.protocol.source_pause import LONGEST_ANSWER
from migrate.protocol.source_states import DECIDED, SourceState

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine


class CommitSequence:
    """The handover of one source machine."""

    def __init__(self, machine: SourceMachine) -> None:
        self._machine = machine
        self._handover = SourceHandover()
        self._root = bytes(16)
        self._began = 0.0
        self._command_us = 0
        self._problem: MigrateError | None = None
        """Why the journal could not be written, the last time."""

    @property
    def journal_step(self) -> Step:
        """What the journal says, as far as is known."""
        return self._handover.step

    # --- the guest --------------------------------------------------------------------------------

    def pause(self, now: float) -> None:
        """The guest is to be stopped, once the journal says so."""
        self._root = bytes(16)
        self._handover.pause()
        self._follow(now)

    def release(self, now: float) -> None:
        """The guest is to run on here."""
        self._handover.release()
        self._follow(now)

    def resumed(self, now: float) -> None:
        """It runs here."""
        self._handover.resumed()
        self._follow(now)

    def commit(self, now: float) -> None:
        """Everything is proved and prepared."""
        self._began = now
        self._root = self._machine.root.to_bytes(16, "big")
        self._handover.commit()
        self._follow(now)

    def journalled(self, now: float, step: Step, error: MigrateError | None) -> None:
        """That step is on disk, or could not be written."""
        if error is not None:
            self._problem = error
        self._handover.journalled(step, error is None)
        if self._machine.state is SourceState.ENDED:
            self._handover.take_orders()
            return
        if step is Step.TAKEN_BACK and error is None:
            self._began = now
            self._machine.ending.taking_back(self._handover.reason)
        self._follow(now)

    # --- the connection ---------------------------------------------------------------------------

    def lost(self, now: float, reason: str) -> None:
        """The control connection is gone."""
        machine = self._machine
        self._handover.unlink()
        if machine.state is not SourceState.COMMITTING:
            machine.ending.unsettled(now, reason)
            return
        try:
            machine.link.reopen(now, reason)
        except NetworkError as error:
            machine.ending.undecided(now, error.message)

    def connected(self, now: float) -> None:
        """There is a connection again: ask."""
        self._machine.link.reopened(now)
        self._handover.link()
        self._follow(now)

    def tick(self, now: float) -> None:
        """Every wait has an end."""
        machine = self._machine
        waited = now - self._began
        if machine.state is SourceState.COMMITTING:
            if waited > LONGEST_ANSWER:
                machine.ending.undecided(now, f"it is silent about it for {LONGEST_ANSWER:g} s")
        elif waited > machine.config.keepalive_timeout:
            machine.ending.unsettled(now, f"no answer for {waited:.0f} s")

    def message(self, now: float, message: Message) -> None:
        """An answer of the destination. Raises ProtocolError: none was asked for."""
        if self._machine.state not in DECIDED:
            return  # a verdict about a pause that was given up here as well
        match message:
            case m.Running():
                self._command_us = message.command_us
                expected = self._handover.running()
            case m.StartFailed():
                expected = self._handover.start_failed(f"it could not be started: {message.reason}")
            case m.Forgotten():
                expected = self._handover.forgotten()
            case m.Verdict():
                if message.step == "busy":
                    self.lost(now, f"at the destination {message.reason}")
                    return
                expected = self._handover.verdict(verdict_step(message), message.reason)
            case _:
                expected = False
        if not expected:
            raise ProtocolError(f"the destination sent {message.TYPE} before it was asked")
        self._follow(now)

    # --- orders -----------------------------------------------------------------------------------

    def _follow(self, now: float) -> None:
        for order in self._handover.take_orders():
            if isinstance(order, Step):
                machine = self._machine
                number, attempt = machine.pause.number, machine.link.hello.attempt
                machine.emit(a.WriteJournal(order, number, attempt, self._root))
            else:
                self._carry_out(now, order)

    def _carry_out(self, now: float, order: Order) -> None:
        machine = self._machine
        link, hello, number = machine.link, machine.link.hello, machine.pause.number
        match order:
            case Order.PAUSE:
                machine.emit(a.PauseGuest())
            case Order.PAUSE_FAILED:
                assert self._problem is not None
                machine.pause.pause_failed(now, self._problem)
            case Order.RESUME:
                machine.ending.resume_pending = True
                machine.emit(a.ResumeGuest())
            case Order.COMMIT:
                machine.emit(a.Report("committed"))
                link.send(m.Commit(hello.migration, hello.attempt, self._root))
            case Order.ASK:
                link.send(m.Question(hello.migration, number, self._root))
            case Order.HANDED_OVER:
                self._began = now
                machine.pause.running(now, self._command_us)
            case Order.LET_GO:
                machine.emit(a.Reread())
            case Order.SETTLE:
                link.send(m.Settled(hello.migration, self.journal_step is Step.RESUMED))
            case Order.UNDECIDED:
                problem = "" if self._problem is None else f" ({self._problem.message})"
                reason = self._handover.reason + problem
                if machine.state is SourceState.COMMITTING:
                    machine.ending.undecided(now, reason)
                else:
                    machine.ending.unsettled(now, reason)
            case Order.UNSETTLED:
                why = "the connection is gone" if self._problem is None else self._problem.message
                machine.ending.unsettled(now, why)
            case Order.FORGET:
                machine.emit(a.RemoveJournal())
                machine.ending.settled(now)


def verdict_step(verdict: m.Verdict) -> Step | None:
    """The step it names, None for `unknown`. Raises ProtocolError: a destination says no such thing."""
    for step in (Step.PREPARED, Step.DECLINED, Step.STARTING):
        if verdict.step == step.value:
            return step
    if verdict.step != "unknown":
        raise ProtocolError(f"the destination's journal is said to be {verdict.step!r}")
    return None
