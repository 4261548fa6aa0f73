"""The pause at the destination: from prepare to the guest that runs, with all that the journal says of it.

    prepare ──→ every lane thread has ended ──→ verify ──→ on-prepare ──journalled──→ prepared
    commit ──journalled──→ on-commit ──→ running ──settled──→ the journal is gone

Its handover is handover_destination.py: what may be said and done, and what is on disk before.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from migrate import kernel
from migrate.errors import GuestError, MigrateError, ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.destination_states import DestinationState
from migrate.protocol.handover_destination import DestinationHandover, Order
from migrate.protocol.journal_record import Step
from migrate.ram.image import RamImage

if TYPE_CHECKING:
    from migrate.protocol.destination import DestinationMachine

_SUM = 1 << 128
_STANDS = (DestinationState.PREPARING, DestinationState.PREPARED)


class DestinationPause:
    """The pauses of one destination machine, and the handover that the last of them leads to."""

    def __init__(self, machine: DestinationMachine, image: RamImage) -> None:
        self._machine = machine
        self._image = image
        self.number = 0
        """Of the last pause that was to be prepared."""
        self.blobs: dict[str, bytes] = {}
        """Device state of the pause that is being prepared."""
        self._handover = DestinationHandover(arbiter=machine.hello.arbiter)
        self._prepare: m.Prepare | None = None
        self._parts: dict[str, bytearray] = {}
        self._verifying = 0
        """Number of the pause whose verification is under way, 0 for none."""
        self._found: bytearray | None = None
        """Digests of RAM as it was read, where they are not what the source sent."""
        self._root = bytes(16)
        self._verify_began = 0.0
        self._verify_us = 0
        self._command_us = 0
        self._problem: MigrateError | None = None
        self._given_up = False
        """The source has said that it runs the guest of this pause, or never stopped it."""

    @property
    def promised(self) -> bool:
        """The source may have been told that this pause is prepared."""
        return self._handover.promised

    @property
    def journal_needed(self) -> bool:
        """The source may ask for it, once this machine has ended."""
        step = self._handover.step
        if self._given_up:
            return step in (Step.STARTING, Step.RUNNING)
        return step is not Step.RECEIVING

    @property
    def journal_step(self) -> Step:
        """What the journal says, as far as is known."""
        return self._handover.step

    # --- preparing --------------------------------------------------------------------------------

    def take_blob(self, message: m.StateBlob) -> None:
        """A chunk of device state. Raises ProtocolError: too much."""
        part = self._parts.setdefault(message.name, bytearray())
        part += message.data
        total = sum(map(len, self._parts.values()))
        if len(part) > m.MAX_BLOB_BYTES or total > m.MAX_STATE_BYTES or len(self._parts) > m.MAX_BLOBS:
            raise ProtocolError("the source sends more device state than is allowed")

    def take_prepare(self, now: float, message: m.Prepare) -> None:
        """The guest is stopped, this is all. Raises ProtocolError: it is not what came."""
        lanes = self._machine.lanes
        if message.number <= self.number:
            raise ProtocolError("the source prepared a pause that is over")
        if [(p.epoch, p.sequence) for p in message.positions] != lanes.positions:
            raise ProtocolError("the source prepared other lane positions than were applied")
        if not lanes.all_finished:
            raise ProtocolError("the source prepared before the final batch of every lane")
        self.blobs = {}
        for blob in message.blobs:
            data = bytes(self._parts.pop(blob.name, b""))
            if len(data) != blob.length or hashlib.sha256(data).digest() != blob.sha256:
                raise ProtocolError(f"device state {blob.name!r} was damaged on the way")
            self.blobs[blob.name] = data
        if self._parts:
            raise ProtocolError(f"device state {next(iter(self._parts))!r} was not announced")
        self.number = message.number
        self._prepare = message
        self._machine.enter(DestinationState.PREPARING)
        self.check_at_rest(now)

    def check_at_rest(self, now: float) -> None:
        """RAM is immutable from here on: every lane thread has ended."""
        machine = self._machine
        if machine.state is not DestinationState.PREPARING or not machine.lanes.at_rest:
            return
        if self._verifying or self._prepare is None:
            return
        self._verifying = self._prepare.number
        self._verify_began = now
        machine.emit(a.Verify(int.from_bytes(self._prepare.root, "big")))

    def verified(self, now: float, digests: bytearray | None) -> None:
        """RAM was read (level `full`: its digest array); otherwise the recorded digests count."""
        machine = self._machine
        number, self._verifying = self._verifying, 0
        if machine.state is not DestinationState.PREPARING or self._prepare is None:
            return
        if number != self._prepare.number:  # what was read was the RAM of a pause that was given up
            self.check_at_rest(now)
            return
        root = machine.root if digests is None else self._root_of(digests)
        self._verify_us = int((now - self._verify_began) * 1e6)
        if root.to_bytes(16, "big") == self._prepare.root:
            machine.emit(a.RunPrepare(number))
            return
        self._found = digests
        machine.send(m.Unequal(number, root.to_bytes(16, "big")))
        machine.emit(a.SendDigests(number, machine.digests.array if digests is None else digests))

    def prepare_ended(self, now: float, number: int, error: MigrateError | None, seconds: float) -> None:
        """The on-prepare command of that pause has ended."""
        if self._machine.state is not DestinationState.PREPARING or number != self.number:
            return
        if error is not None:
            self._refuse(now, error)
            return
        assert self._prepare is not None
        self._root = self._prepare.root
        self._command_us = int(seconds * 1e6)
        self._given_up = False
        self._handover.prepare()
        self._follow(now)

    # --- giving it up -----------------------------------------------------------------------------

    def take_resumed(self, now: float, message: m.Resumed) -> None:
        """The source runs the guest again.

        Only a source that sends the differing pages again may find the digests of RAM as it is here. To one
        that has not heard of them, the lanes' sums would seem wrong at the end of every round.
        """
        machine = self._machine
        if message.repair and message.number == self.number and self._found is not None:
            machine.digests.array[:] = self._found
            machine.lanes.rebase()
        self.back_to_active(now, message.reason)

    def back_to_active(self, now: float, reason: str) -> None:
        """The source has given the pause up: it is void, the rounds go on."""
        machine = self._machine
        self.void(now, reason, given_up=True)
        if machine.state in _STANDS:
            machine.enter(DestinationState.ACTIVE)

    def void(self, now: float, reason: str, *, given_up: bool) -> None:
        """Forget what was prepared, and take back what was promised.

        Args:
            given_up: the source does not need to be told.
        """
        self._given_up = self._given_up or given_up
        if self._machine.state in _STANDS:
            self._machine.emit(a.StopHook())
        self._prepare = None
        self._found = None
        self._parts = {}
        self.blobs = {}
        self._handover.void(reason)
        self._follow(now)

    def _refuse(self, now: float, error: MigrateError) -> None:
        self._machine.send(m.Refused(self.number, error.message))
        self._machine.fail(now, error)

    # --- the handover -----------------------------------------------------------------------------

    def commit(self, now: float, message: m.Commit) -> None:
        """The source has decided. Raises ProtocolError: on something else than was prepared."""
        hello = self._machine.hello
        if (message.migration, message.attempt) != (hello.migration, hello.attempt):
            raise ProtocolError("the commit is for another migration or attempt")
        if message.root != self._root:
            raise ProtocolError("the commit names another root than was prepared")
        if not self._handover.commit():
            raise ProtocolError("the source committed what was not prepared")
        self._follow(now)

    def claimed(self, now: float, won: bool | None, error: MigrateError | None) -> None:
        """What the arbiter says; None and an error: nothing."""
        self._problem = error
        self._handover.claimed(won, "" if error is None else error.message)
        self._follow(now)

    def asked(self, now: float, question: m.Question) -> None:
        """The source asks how far this side is."""
        if (question.number, question.root) != (self.number, self._root):
            self._machine.send(m.Verdict(question.number, "unknown", "another pause was prepared"))
            return
        self._handover.asked()
        self._follow(now)

    def start_ended(self, now: float, error: MigrateError | None, seconds: float) -> None:
        """The on-commit command has ended."""
        if self._machine.state is not DestinationState.STARTING:
            return
        self._problem = error
        self._command_us = int(seconds * 1e6)
        self._handover.started(None if error is None else error.message)
        self._follow(now)

    def settled(self, now: float, message: m.Settled) -> None:
        """The source knows, on disk. Raises ProtocolError: something else than is so here."""
        if message.migration != self._machine.hello.migration or not self._handover.settled(
            message.runs_there
        ):
            raise ProtocolError("the source settled what was not handed over")
        self._follow(now)

    def journalled(self, now: float, step: Step, error: MigrateError | None) -> None:
        """That step is on disk, or could not be written."""
        if error is not None:
            self._problem = error
        self._handover.journalled(step, error is None)
        self._follow(now)

    def _follow(self, now: float) -> None:
        for order in self._handover.take_orders():
            if isinstance(order, Step):
                if order is Step.STARTING:
                    self._machine.enter(DestinationState.STARTING)
                    self._machine.emit(a.Report("committed"))
                attempt = self._machine.hello.attempt
                self._machine.emit(a.WriteJournal(order, self.number, attempt, self._root))
            else:
                self._carry_out(now, order)

    def _carry_out(self, now: float, order: Order) -> None:
        machine = self._machine
        match order:
            case Order.PREPARED:
                machine.enter(DestinationState.PREPARED)
                machine.send(m.Prepared(self.number, self._root, self._verify_us, self._command_us))
                machine.emit(a.Report("prepared", {"root": self._root.hex()}))
            case Order.REFUSE:
                assert self._problem is not None
                self._refuse(now, self._problem)
            case Order.DECLINED | Order.DECLINE_FAILED:
                if machine.state is DestinationState.DECLINING:
                    if order is Order.DECLINED:
                        machine.send(m.Verdict(self.number, Step.DECLINED.value, self._handover.reason))
                    machine.declined(now)
            case Order.CLAIM:
                machine.emit(a.Claim())
            case Order.START:
                machine.emit(a.RunCommit())
            case Order.SAY_STEP:
                machine.send(m.Verdict(self.number, self._handover.step.value, self._handover.reason))
            case Order.SAY_RUNNING:
                if machine.state is DestinationState.STARTING:
                    machine.enter(DestinationState.RUNNING)
                    machine.running(now)
                machine.send(m.Running(self._command_us))
            case Order.SAY_START_FAILED:
                problem = self._problem or GuestError(self._handover.reason)
                machine.send(m.StartFailed(problem.message))
                machine.start_failed(now, problem)
            case Order.FORGET:
                machine.emit(a.RemoveJournal())
                machine.send(m.Forgotten(machine.hello.migration))
                machine.settled(now)

    def _root_of(self, digests: bytearray) -> int:
        blocks, keys = self._image.layout.blocks, self._machine.keys
        return sum(kernel.root(keys, digests, block.first_page, block.pages) for block in blocks) % _SUM
