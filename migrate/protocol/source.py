"""The migration machine of the source: rounds, the decision to switch over, and every way to end.

States and their order: source_states.py. Connections and lane resets: source_link.py. The pause, from the
request to the destination's `running`: source_pause.py. Sans I/O: inputs are the public methods (each with
the time), outputs are the actions that `take_actions` returns; the shell carries them out in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from migrate import kernel
from migrate.config import SourceConfig
from migrate.errors import (
    CancelledMigration,
    GuestError,
    MigrateError,
    NetworkError,
    NotConvergedError,
    ProtocolError,
    RamError,
    RefusedError,
    UndecidedError,
    VerifyError,
)
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.bandwidth import RateMeter
from migrate.protocol.batch import CODECS
from migrate.protocol.handshake import lane_cache_bytes
from migrate.protocol.lane_link import LaneLink
from migrate.protocol.lane_source import SentBatch, SourceLane
from migrate.protocol.schema import Message
from migrate.protocol.source_link import ControlState, SourceLink, rejected
from migrate.protocol.source_pause import PauseSequence
from migrate.protocol.source_states import EXPECTED, LIVE, NUMBERED, PAUSED, STATUS, TRANSITIONS, SourceState
from migrate.protocol.stats import MigrationStats
from migrate.protocol.switchover import SwitchoverPolicy
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage

_PEER_ERRORS: dict[int, type[MigrateError]] = {
    cls.exit_code: cls
    for cls in (
        RefusedError,
        NetworkError,
        ProtocolError,
        GuestError,
        VerifyError,
        RamError,
        CancelledMigration,
    )
}


@dataclass(frozen=True)
class HarvestResult:
    """What the shell found: pages that are dirty (fetched and cleared), and what it cost."""

    dirty: DirtyBitmap
    pages: int
    seconds: float
    began: float
    """When the fetching began, monotonic."""


class SourceMachine:
    """One migration at the source.

    Args:
        hello: what to ask for, attempt 1.
        config: limits and switches.
        image: the RAM, open for reading.
        live: the dirty tracker works while the guest runs; otherwise there are no live rounds.
    """

    def __init__(self, hello: m.Hello, config: SourceConfig, image: RamImage, live: bool) -> None:
        self.config = config
        self.state = SourceState.NEW
        self.stats = MigrationStats(page_size=hello.page_size, total=image.layout.ram_bytes)
        self.stats.verify = hello.verify
        self.keys = kernel.Keys(hello.digest_seed, hello.page_size)
        self.digests = DigestTable(self.keys, image.layout)
        self.outcome = "failed"
        self.policy = SwitchoverPolicy(config, hello.page_size)
        self.meter = RateMeter()
        self.round = 0
        self._image = image
        self._live = live
        self._actions: list[a.Action] = []
        self.link = SourceLink(
            hello, config.keepalive_timeout, config.reconnect_timeout, self.emit, self.stats
        )
        self.pause = PauseSequence(self)
        self._dirty = DirtyBitmap(image.layout.total_pages)
        self._started = 0.0
        self._error: MigrateError | None = None
        self._first: HarvestResult | None = None
        self._handed_over = False
        self._resume_pending = False
        self._resume_problem: MigrateError | None = None

    # --- for the shell ----------------------------------------------------------------------------

    def take_actions(self) -> list[a.Action]:
        """What is to be done now, in order."""
        taken, self._actions = self._actions, []
        return taken

    def emit(self, action: a.Action) -> None:
        """Ask the shell for something."""
        self._actions.append(action)

    @property
    def root(self) -> int:
        """The root over what was sent: that of empty RAM and what each lane changed it by."""
        changed = sum(link.lane.lane_sum for link in self.link.lanes)
        return (self.digests.root + changed) % (1 << 128)

    @property
    def guest_place(self) -> str:
        """One clause: where the guest runs now."""
        if self.state is SourceState.COMMITTING or self.outcome == "undecided":
            return "the guest is stopped at the source and may run at the destination"
        if self._handed_over:
            return "the guest runs at the destination"
        if self._error is not None and self._error.guest is not None:
            return self._error.guest
        if self._resume_problem is not None:
            return "the guest is still stopped at the source"
        return "the guest runs at the source as before"

    # --- inputs: connections ----------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin."""
        self._started = now
        self.stats.start(now)
        self.enter(SourceState.SETUP)
        self.link.connect()

    def connected(self, now: float) -> None:
        """The control connection is open."""
        if self.state not in (SourceState.ENDING, SourceState.ENDED):
            self.link.greet(now)

    def connection_lost(self, now: float, reason: str) -> None:
        """The control connection broke, or could not be opened."""
        if self.state is SourceState.SETUP:
            self.link.control = ControlState.DOWN
            message = f"cannot talk to the destination at {self.config.to}: {reason}"
            hint = f"is migrate-dst running there? start it with --listen {self.config.to}"
            self.fail(now, NetworkError(message, side="destination", hint=hint))
        elif self.state is SourceState.COMMITTING:
            self.undecided(now, reason)
        elif self.state in LIVE:
            self.meter.idle(now)
            try:
                self.link.lost(now, reason)
            except NetworkError as error:
                self.fail(now, error)
                return
            if self.state in PAUSED:
                self.pause.abandon(now, NetworkError(f"the connection broke during the pause: {reason}"))

    def message(self, now: float, message: Message) -> None:
        """A message came from the destination. A forbidden one fails the migration."""
        if self.state is SourceState.ENDED:
            return
        self.link.keepalive.heard(now)
        try:
            self._message(now, message)
        except ProtocolError as error:
            error.with_context(side="destination", hint="use the same version of migrate on both hosts")
            self.fail(now, error)

    def _message(self, now: float, message: Message) -> None:
        match message:
            case m.Ping():
                self.link.send(m.Pong(message.number))
            case m.Pong():
                self.link.keepalive.ponged(now, message.number)
            case m.Accept():
                self._accepted(now, message)
            case m.Reject():
                if self.link.control is not ControlState.GREETING:
                    raise ProtocolError("a reject came that answers no hello")
                self.fail(now, rejected(message))
            case m.Failed():
                kind = _PEER_ERRORS.get(message.exit_code, MigrateError)
                self.fail(now, kind(f"the destination failed: {message.reason}", side="destination"))
            case m.Cancel():
                self.fail(now, CancelledMigration(f"the destination cancelled: {message.reason}"))
            case _:
                self._expected_message(now, message)

    def _expected_message(self, now: float, message: Message) -> None:
        if self.state is SourceState.ENDING:
            return
        if isinstance(message, NUMBERED) and self.pause.is_late(message.number):
            return
        if self.state not in EXPECTED.get(type(message), frozenset()):
            raise ProtocolError(f"the destination sent {message.TYPE} while the source is {self.state.value}")
        match message:
            case m.Ack():
                self._acknowledged(now, message)
            case m.LaneReset():
                self.link.lane_reset(message)
                if self.state in PAUSED:
                    text = f"a lane broke during the pause: {message.reason}"
                    self.pause.abandon(now, NetworkError(text))
                self._advance(now)
            case _:
                self.pause.message(now, message)

    # --- inputs: lanes ----------------------------------------------------------------------------

    def batch_sent(self, now: float, lane: int, batch: SentBatch) -> None:
        """A lane thread puts this batch on its way. Called before its first byte leaves."""
        if batch.fill is not None:
            self.stats.add_fill(batch.fill, batch.stage, batch.wire_bytes)
        else:
            self.stats.add_wire(batch.wire_bytes)
        link = self.link.lanes[lane]
        link.sent(batch, now)
        self.meter.busy(now)
        self._check_round(now)

    def lane_broken(self, now: float, lane: int, reason: str) -> None:
        """A lane thread has ended because its connection failed."""
        self.link.lane_failed(lane, reason)
        if self.state in PAUSED:
            self.pause.abandon(now, NetworkError(f"a lane broke during the pause: {reason}"))
        self._advance(now)
        self._check_end(now)

    def lane_stopped(self, now: float, lane: int) -> None:
        """A lane thread was stopped as asked."""
        self.link.lanes[lane].has_thread = False
        self._advance(now)
        self._check_end(now)

    def failed(self, now: float, error: MigrateError) -> None:
        """The shell met an error of this side (RAM cannot be read, the guest died, …)."""
        if self.state is SourceState.REREADING:
            self.completed(now, error)
        else:
            self.fail(now, error)

    # --- inputs: tracking and time ----------------------------------------------------------------

    def tracking(self, now: float, first: HarvestResult) -> None:
        """The tracker is on; `first` holds every page that is not a hole."""
        if self.state is not SourceState.TRACKING:
            return
        self.stats.setup_done(now)
        self._first = first
        self._check_tracked(now)

    def _check_tracked(self, now: float) -> None:
        """Begin to send; where all of it is sent in the pause, only once every lane has its connection."""
        if self.state is not SourceState.TRACKING or self._first is None:
            return
        if self._live:
            self._start_round(now, self._first, STAGE_BULK)
        elif self.link.all_lanes_up:
            self._dirty.union(self._first.dirty)
            self.begin_pause(now, "the tracker has no live rounds")

    def harvested(self, now: float, result: HarvestResult) -> None:
        """A harvest is done."""
        self._dirty.union(result.dirty)
        self.pause.work_ended("harvest")
        if self.state is SourceState.LAST_HARVEST:
            self.pause.harvested(now, result)
        elif self.state is SourceState.HARVESTING:
            self._decide(now, result)
        else:
            self.check_resumed(now)

    def cancel(self, now: float, reason: str) -> bool:
        """A person wants to stop. False once the commit may have left: then it cannot be stopped."""
        if self.state in (SourceState.COMMITTING, SourceState.REREADING, SourceState.ENDED):
            return False
        self.fail(now, CancelledMigration(reason))
        return True

    def tick(self, now: float) -> None:
        """Time passes; call it at least ten times a second."""
        if self.state in (SourceState.ENDING, SourceState.ENDED, SourceState.NEW):
            return
        self.stats.tick(now)
        reason = self.link.tick(now)
        if reason is not None:
            self.connection_lost(now, reason)
            return
        lane = self.link.stalled_lane(now)
        if lane is not None:
            self._lane_stalls(now, lane)
        self._advance(now)
        self._check_tracked(now)
        if self.state in (SourceState.SENDING, SourceState.HARVESTING) and self.policy.timed_out(
            now - self._started
        ):
            self._timeout(now)
        elif self.state in PAUSED:
            self.pause.tick(now)

    # --- rounds -----------------------------------------------------------------------------------

    def _accepted(self, now: float, accept: m.Accept) -> None:
        resumed = self.link.agreed is not None
        self.link.accepted(now, accept)
        if resumed:
            self._advance(now)
            return
        self.stats.cache_size = accept.cache_bytes
        fields = {
            "cache_size": accept.cache_bytes,
            "cache_rule": accept.cache_rule,
            "lanes": accept.lanes,
            "compression": accept.codec,
            "verify": accept.verify,
            "peer": accept.software,
            "free_bytes": accept.free_bytes,
        }
        self.emit(a.Report("negotiated", fields))
        if self.config.check:
            self.outcome = "checked"
            self._finish(now)
            return
        for number in range(accept.lanes):
            lane = SourceLane(
                number,
                accept.lanes,
                self._image,
                self.keys,
                self.digests.array,
                lane_cache_bytes(accept.cache_bytes, accept.lanes),
                accept.cache_rule,
                CODECS[accept.codec],
            )
            self.link.lanes.append(LaneLink(lane))
        self.enter(SourceState.TRACKING)
        self.emit(a.StartTracker())
        self._advance(now)

    def _advance(self, now: float) -> None:
        """Reset and open lanes where it is time; a lane that never gets anywhere ends the migration."""
        if not self.link.in_flight_bytes:
            self.meter.idle(now)
        try:
            self.link.advance(now)
        except NetworkError as error:
            self.fail(now, error)

    def _acknowledged(self, now: float, message: m.Ack) -> None:
        if message.lane >= len(self.link.lanes):
            raise ProtocolError(f"the destination acknowledged lane {message.lane}, which does not exist")
        link = self.link.lanes[message.lane]
        done = link.acknowledged(message.epoch, message.sequence, now)
        if done:
            self.meter.add(now, done)
            self.emit(a.PassAck(message.lane, message.epoch, message.sequence))
        if not self.link.in_flight_bytes:
            self.meter.idle(now)
        if self.state is SourceState.LAST_ROUND:
            self.pause.check_copied(now)

    @property
    def harvested_pages(self) -> int:
        """Harvested and not yet given to lanes."""
        return self._dirty.count()

    def start_lanes(self, stage: int) -> None:
        """Give every lane its share of what was harvested."""
        dirty = self._dirty.take()
        for link in self.link.lanes:
            self.emit(a.StartRound(link.lane.number, self.round, stage, dirty))

    def _start_round(self, now: float, harvest: HarvestResult, stage: int) -> None:
        self._dirty.union(harvest.dirty)
        self.round += 1
        self.enter(SourceState.SENDING)
        self.stats.round_started(self.round, self.harvested_pages + self.stats.remaining_pages, now)
        self.policy.round_started(harvest.began)
        self.emit(a.SetRate(self.config.max_bandwidth))
        self.start_lanes(stage)

    def _check_round(self, now: float) -> None:
        """All lanes have put the end of the round on its way: harvest."""
        if self.state is not SourceState.SENDING:
            return
        if not all(link.round_out == self.round for link in self.link.lanes):
            return
        self.stats.round_ended(now)
        row = self.stats.current_round
        assert row is not None
        self.policy.round_ended(row, now, self.meter.rate(now))
        self.emit(a.Report("round", row.as_dict(now, self.stats.page_size)))
        self.enter(SourceState.HARVESTING)
        self.emit(a.Harvest(stopped=False))

    def _decide(self, now: float, result: HarvestResult) -> None:
        decision = self.policy.decide(
            now - self._started,
            result,
            self.harvested_pages + self.stats.remaining_pages,
            self.link.in_flight_bytes,
            self.link.keepalive.round_trip,
        )
        if decision.expected_downtime is not None:
            self.stats.expected_downtime_ms = decision.expected_downtime * 1000
        self.stats.eta = decision.eta
        if decision.kind == "give-up":
            self.fail(now, NotConvergedError(decision.reason, side="source", hint=decision.hint or None))
        elif decision.kind == "switchover" and self.link.all_lanes_up:
            self.begin_pause(now, decision.reason)
        else:
            self._start_round(now, result, STAGE_ROUND)

    def _timeout(self, now: float) -> None:
        if self.config.timeout_action == "cancel":
            reason = self.policy.timed_out_reason(
                now - self._started, self.stats.remaining_pages, self.meter.rate(now)
            )
            hint = "raise --timeout, or use --timeout-action pause"
            self.fail(now, NotConvergedError(reason, side="source", hint=hint))
        elif self.state is SourceState.SENDING and self.link.all_lanes_up:
            self.policy.forced = True
            self.begin_pause(now, f"the timeout of {self.config.timeout:g} s is over")

    def _lane_stalls(self, now: float, lane: LaneLink) -> None:
        reason = f"nothing was acknowledged for {now - lane.last_progress:.0f} s"
        if self.state in PAUSED:
            self.pause.abandon(now, NetworkError(f"a lane stalled during the pause: {reason}"))
        self.link.break_lane(lane, reason)

    def begin_pause(self, now: float, reason: str) -> None:
        """Pause the guest and move what is left."""
        self.enter(SourceState.PAUSING)
        self.pause.begin(now, reason)

    def resumed(self, now: float) -> None:
        """The guest runs at the source again."""
        self._resume_pending = False
        if self.state is SourceState.RESUMING:
            self.stats.pause_given_up(now)
            self.emit(a.SetRate(self.config.max_bandwidth))
            self.check_resumed(now)
        self._check_end(now)

    def check_resumed(self, now: float) -> None:
        """Go on with precopy once the guest runs and nothing that the pause asked for is under way."""
        if self.state is not SourceState.RESUMING or self._resume_pending or not self.pause.at_rest:
            return
        self.enter(SourceState.SENDING)
        self.stats.round_started(self.round, self.stats.remaining_pages, now)
        self._check_round(now)

    def resume_failed(self, now: float, error: MigrateError) -> None:
        """The guest could not be resumed: nothing is worth more than saying so."""
        self._resume_pending = False
        self._resume_problem = error
        if self.state is not SourceState.ENDING:
            self.fail(now, error)
        self._check_end(now)

    # --- ends -------------------------------------------------------------------------------------

    def enter(self, state: SourceState) -> None:
        """Change the state; only along the table."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state.value} to {state.value}")
        self.state = state
        if state in STATUS:
            self._set_status(STATUS[state])

    def _set_status(self, status: str) -> None:
        if status != self.stats.status:
            self.emit(a.Report("status", {"old": self.stats.status, "new": status}))
            self.stats.status = status

    def fail(self, now: float, error: MigrateError) -> None:
        """End without a handover: the guest is resumed if it was paused. Later errors are dropped."""
        if self.state is SourceState.COMMITTING:
            self.undecided(now, error.message)
            return
        if self.state in (SourceState.REREADING, SourceState.ENDING, SourceState.ENDED):
            return
        self._error = error
        cancelled = isinstance(error, CancelledMigration)
        self.outcome = "cancelled" if cancelled else "failed"
        if cancelled:
            self.link.send_last(m.Cancel(error.message))
        else:
            self.link.send_last(m.Failed(error.exit_code, error.message))
        paused = self.state in PAUSED
        self._resume_pending = self._resume_pending or paused
        self.enter(SourceState.ENDING)
        self._set_status("cancelling" if cancelled else "failed")
        if paused:
            self.emit(a.ResumeGuest())
        self.emit(a.Disconnect())
        self.link.stop()
        self._check_end(now)

    def begin_resume(self) -> None:
        """Ask for the guest to run again; `resumed` or `resume_failed` follows."""
        self._resume_pending = True
        self.emit(a.ResumeGuest())

    def handed_over(self) -> None:
        """The destination runs the guest."""
        self._handed_over = True
        self.enter(SourceState.REREADING)

    def undecided(self, now: float, reason: str) -> None:
        """The commit may have arrived: nobody resumes the guest but a person."""
        self.outcome = "undecided"
        self._error = UndecidedError(
            f"the commit was sent, but the destination's answer did not come: {reason}",
            side="destination",
            guest="the guest is stopped at the source and may run at the destination",
            hint=self._how_to_decide(),
        )
        self._finish(now)

    def _how_to_decide(self) -> str:
        resume = f"kill -CONT {self.config.guest_pid}" if self.config.guest_pid else self.config.resume_cmd
        there = "look at migrate-dst's last lines and at the guest there"
        if resume is None:
            return f"{there}; if it says that the guest was not started, the source's copy is the guest"
        return (
            f"{there}; if the guest runs there, end the stopped one here;"
            f" only if it surely does not run there, and never will: {resume}"
        )

    def completed(self, now: float, error: MigrateError | None) -> None:
        """The guest is the destination's; `error` tells of a trouble that does not change that."""
        self.outcome = "completed"
        self._error = error
        self._finish(now)

    def _check_end(self, now: float) -> None:
        if self.state is SourceState.ENDING and self.link.at_rest and not self._resume_pending:
            self._finish(now)

    def _finish(self, now: float) -> None:
        if self.state in (SourceState.SETUP, SourceState.COMMITTING, SourceState.REREADING):
            if self.state is SourceState.SETUP:
                self.enter(SourceState.ENDING)
            self.emit(a.Disconnect())
            self.link.stop()
        status = {"completed": "completed", "cancelled": "cancelled", "checked": "none"}.get(
            self.outcome, "failed"
        )
        self._set_status(status)
        self.enter(SourceState.ENDED)
        self.stats.finish(now)
        if self._error is not None:
            hint = None
            if self._resume_problem is not None and self.config.guest_pid:
                hint = f"resume it by hand: kill -CONT {self.config.guest_pid}"
                if self._resume_problem is not self._error:
                    self._error.hint = hint
            self._error.with_context(guest=self.guest_place, hint=hint)
        self.emit(a.Finish(self._error))
