"""The pause at the source: from the request to stop the guest to the destination's `running`.

    pausing ──journalled, paused──→ last-harvest ──→ last-round
       every final batch acknowledged, state collected ──→ preparing
       prepare, and at once a second look at our own RAM ──prepared, nothing changed──→ a last look at the
       guest's threads ──they stand──→ committing
       (source_commit.py) ──running──→ rereading ──→ ended

Every failure up to and including `preparing` abandons the pause: the guest runs again, all lanes are reset,
precopy goes on. What the destination did for this pause is void; its answers carry the pause's number.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from migrate.errors import GuestError, MigrateError, NetworkError, ProtocolError, VerifyError
from migrate.kernel.results import STAGE_LAST
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.schema import Message
from migrate.protocol.source_states import NUMBERED, PAUSED, SourceState
from migrate.ram.bitmap import DirtyBitmap

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine
    from migrate.protocol.source_rounds import HarvestResult

MAX_ABANDONED = 3
MAX_REPAIRS = 2
DEADLINE_FACTOR = 10
SHORTEST_DEADLINE = 10.0
"""A pause lasts at most DEADLINE_FACTOR × downtime-limit, but at least this long: hooks take their time."""
LONGEST_ANSWER = 300.0
"""Seconds for the answers to prepare and to commit, also in a pause without deadline, hooks included."""


class PauseSequence:
    """The states between the pause request and the end; see the module's text."""

    def __init__(self, machine: SourceMachine) -> None:
        self._machine = machine
        self.number = 0
        self._phase_began = 0.0
        self._deadline: float | None = None
        self._blobs: list[tuple[str, bytes]] | None = None
        self._confirmed = False
        self._last_look = False
        self._prepared: m.Prepared | None = None
        self._abandoned = 0
        self._repairs = 0
        self._unequal: bytearray | None = None
        self._under_way: set[str] = set()

    def begin(self, now: float, reason: str) -> None:
        """Ask for the guest to be stopped. The deadline runs from here, unless the pause is forced."""
        machine = self._machine
        self.number += 1
        self._blobs = None
        self._confirmed = False
        self._last_look = False
        self._prepared = None
        self._unequal = None
        limit = machine.config.downtime_limit_ms / 1000
        forced = machine.rounds.policy.forced or machine.rounds.number == 0
        self._deadline = None if forced else now + max(DEADLINE_FACTOR * limit, SHORTEST_DEADLINE)
        machine.stats.pause_started(now)
        self._phase_began = now
        machine.emit(a.Report("pausing", {"reason": reason}))
        machine.commit.pause(now)

    def tick(self, now: float) -> None:
        """Give up a pause that lasts too long."""
        if self._machine.state is SourceState.PREPARING and now - self._phase_began > LONGEST_ANSWER:
            text = f"the destination did not answer to prepare for {LONGEST_ANSWER:g} s"
            hint = "what takes so long there: --on-prepare, or reading RAM for --verify full?"
            self._machine.ending.fail(now, NetworkError(text, side="destination", hint=hint))
        elif self._deadline is not None and now > self._deadline:
            seconds = now - (self._machine.stats.pause_requested or now)
            text = f"the pause took {seconds:.1f} s, which is too long"
            hint = f"it may last {DEADLINE_FACTOR} × --downtime-limit, with the hooks: mend them, or raise it"
            self.abandon(now, NetworkError(text, hint=hint))

    def is_late(self, number: int) -> bool:
        """Whether an answer to the pause of that number comes after the pause was given up."""
        return number < self.number or (number == self.number and self._machine.state not in PAUSED)

    @property
    def at_rest(self) -> bool:
        """Nothing that a pause asked for is under way: no answer can be taken for that of the next pause."""
        return not self._under_way

    def work_ended(self, name: str) -> None:
        """The shell answered."""
        self._under_way.discard(name)

    # --- the steps --------------------------------------------------------------------------------

    def paused(self, now: float) -> None:
        """No write can happen any more."""
        machine = self._machine
        if machine.state is not SourceState.PAUSING:
            return
        self._phase(now, "pause")
        machine.emit(a.Report("paused", {"seconds": round(now - (machine.stats.pause_requested or now), 6)}))
        machine.enter(SourceState.LAST_HARVEST)
        self._under_way.add("state")
        self.harvest()
        machine.emit(a.CollectState())

    def harvest(self) -> None:
        """Fetch what is dirty, for the last time, or once more with another tracker."""
        self._under_way.add("harvest")
        self._machine.emit(a.Harvest(stopped=True))

    def pause_failed(self, now: float, error: MigrateError) -> None:
        """The guest did not stop."""
        if self._machine.state is SourceState.PAUSING:
            self.abandon(now, error)

    def harvested(self, now: float, result: HarvestResult) -> None:
        """The last dirty pages are known: send them, as fast as allowed for the pause."""
        machine = self._machine
        self._phase(now, "harvest")
        machine.rounds.policy.last_harvest(result.seconds)
        machine.rounds.number += 1
        machine.enter(SourceState.LAST_ROUND)
        machine.stats.round_started(machine.rounds.number, machine.rounds.harvested_pages, now)
        left = machine.stats.time_left(now)
        machine.rounds.tell_outlook(now, left, "the last round: what was written until the guest stood")
        machine.emit(a.SetRate(machine.config.switchover_bandwidth))
        machine.rounds.start_lanes(STAGE_LAST)

    def state_collected(self, now: float, blobs: list[tuple[str, bytes]]) -> None:
        """The state command has ended."""
        self.work_ended("state")
        if self._machine.state in (SourceState.LAST_HARVEST, SourceState.LAST_ROUND):
            self._blobs = blobs
            self.check_copied(now)
        self._machine.check_resumed(now)

    def state_failed(self, now: float, error: MigrateError) -> None:
        """The state command failed: without device state there is no guest to hand over."""
        self.work_ended("state")
        if self._machine.state in (SourceState.LAST_HARVEST, SourceState.LAST_ROUND):
            self._machine.ending.fail(now, error)
        self._machine.check_resumed(now)

    def check_copied(self, now: float) -> None:
        """Everything applied and the state at hand: ask the destination to prepare."""
        machine = self._machine
        if machine.state is not SourceState.LAST_ROUND or self._blobs is None:
            return
        if not all(link.final_acknowledged for link in machine.link.lanes):
            return
        self._phase(now, "copy")
        machine.stats.round_ended(now)
        row = machine.stats.current_round
        if row is not None:
            machine.emit(a.Report("round", row.as_dict(now, machine.stats.page_size)))
        machine.enter(SourceState.PREPARING)
        described = []
        for name, data in self._blobs:
            for at in range(0, len(data), m.CHUNK_BYTES):
                machine.link.send(m.StateBlob(name, data[at : at + m.CHUNK_BYTES]))
            described.append(m.Blob(name, len(data), hashlib.sha256(data).digest()))
        positions = [m.LanePosition(link.lane.epoch, link.lane.sequence) for link in machine.link.lanes]
        machine.link.send(m.Prepare(self.number, machine.root.to_bytes(16, "big"), positions, described))
        self._under_way.add("confirm")
        machine.emit(a.Confirm(ram=True))

    def confirmed(self, now: float, problem: MigrateError | None) -> None:
        """The guest was looked at again: still stopped, and, right after the last copy, RAM as sent?"""
        self.work_ended("confirm")
        self._machine.check_resumed(now)
        if self._machine.state is not SourceState.PREPARING:
            return
        if problem is not None:
            self.abandon(now, problem)
            return
        if self._last_look:
            self._commit(now)
        else:
            self._confirmed = True
            self._check_prepared(now)

    def message(self, now: float, message: Message) -> None:
        """The destination's answers to prepare. Raises ProtocolError."""
        if isinstance(message, NUMBERED) and message.number != self.number:
            raise ProtocolError("the destination answers a pause that never was")
        match message:
            case m.Prepared():
                if message.root != self._machine.root.to_bytes(16, "big"):
                    raise ProtocolError("the destination prepared another root")
                self._prepared = message
                self._check_prepared(now)
            case m.Refused():
                self._machine.ending.fail(
                    now,
                    GuestError(
                        f"the destination did not take the guest: {message.reason}",
                        side="destination",
                        hint="mend what the destination says, then start the migration again",
                    ),
                )
            case m.Unequal():
                self._unequal = bytearray()
            case m.Digests():
                self._take_digests(now, message)
            case _:
                raise ProtocolError(f"the source has no use for {message.TYPE}")

    def _check_prepared(self, now: float) -> None:
        """Both sides are content: look once more whether the guest stands; preparing may have taken long."""
        if self._prepared is not None and self._confirmed and not self._last_look:
            self._last_look = True
            self._under_way.add("confirm")
            self._machine.emit(a.Confirm(ram=False))

    def _commit(self, now: float) -> None:
        machine = self._machine
        assert self._prepared is not None
        command = self._prepared.command_us / 1e6
        machine.stats.downtime_part("commands", command)
        self._phase(now, "verify", less=command)
        machine.emit(a.Report("prepared", {"root": machine.root.to_bytes(16, "big").hex()}))
        machine.enter(SourceState.COMMITTING)
        machine.commit.commit(now)

    def running(self, now: float, command_us: int) -> None:
        """The guest runs at the destination, whose command took that long."""
        machine = self._machine
        command = command_us / 1e6
        machine.stats.downtime_part("commands", command)
        self._phase(now, "journals", less=command)
        machine.stats.guest_running(now)
        machine.ending.handed_over()
        downtime = machine.stats.downtime_seconds(now) or 0.0
        machine.emit(a.Report("running", {"downtime": round(downtime, 6)}))

    def reread(self, now: float, problem: MigrateError | None) -> None:
        """RAM was read once more before letting go of it."""
        if self._machine.state is SourceState.REREADING:
            self._machine.ending.completed(now, problem)

    # --- giving the pause up ----------------------------------------------------------------------

    def abandon(self, now: float, error: MigrateError, *, repair: bool = False) -> None:
        """Let the guest run again and go on with precopy; after too many pauses, fail with this error."""
        machine = self._machine
        self._abandoned += 1
        if self._abandoned > MAX_ABANDONED:
            machine.ending.fail(now, error)
            return
        machine.enter(SourceState.RESUMING)
        machine.rounds.policy.pause_abandoned()
        machine.stats.expect_end(now, None)
        machine.emit(a.Report("resumed", {"reason": error.message}))
        machine.link.send(m.Resumed(self.number, repair, error.message))
        machine.commit.release(now)
        for link in machine.link.lanes:
            machine.link.break_lane(link, "the pause was given up")

    def _take_digests(self, now: float, message: m.Digests) -> None:
        """Collect the destination's digests; with the last chunk the differing pages become owed."""
        machine = self._machine
        expected = len(machine.digests.array)
        if self._unequal is None or message.first * 16 != len(self._unequal):
            raise ProtocolError("the destination's digests came out of order")
        self._unequal += message.data
        if len(self._unequal) > expected or message.last != (len(self._unequal) == expected):
            raise ProtocolError("the destination's digests are not as many as the pages")
        if not message.last:
            return
        differing = DirtyBitmap(len(self._unequal) // 16)
        differing.array[:] = machine.digests.differing(self._unequal)
        pages = differing.count()
        self._repairs += 1
        error = VerifyError(
            f"{pages} pages differ at the destination after everything was sent",
            side="destination",
            hint="does another program write to the destination's RAM files?",
        )
        if self._repairs > MAX_REPAIRS:
            machine.ending.fail(now, error)
            return
        machine.link.repair = differing
        self.abandon(now, error, repair=True)

    def _phase(self, now: float, name: str, less: float = 0.0) -> None:
        self._machine.stats.downtime_part(name, max(now - self._phase_began - less, 0.0))
        self._phase_began = now
