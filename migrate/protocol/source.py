"""The migration machine of the source: rounds, the decision to switch over, and every way to end.

States and their order: source_states.py. Connections and lane resets: source_link.py. The pause, from the
request to the wish to commit: source_pause.py. The journal, and the handover from there on:
source_commit.py. Sans I/O: inputs are the public methods (each with the time), outputs are the actions that
`take_actions` returns; the shell carries them out in order.
"""

from __future__ import annotations

from collections.abc import Mapping

from migrate import kernel
from migrate.config import SourceConfig
from migrate.errors import CancelledMigration, MigrateError, NetworkError, ProtocolError, RamError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.journal_record import Step
from migrate.protocol.lane_link import LaneLink
from migrate.protocol.lane_source import SentBatch
from migrate.protocol.parameters import CACHE_SIZE, with_parameters
from migrate.protocol.peer_errors import peer_error
from migrate.protocol.schema import Message
from migrate.protocol.source_cache import Caches, SourceCache
from migrate.protocol.source_commit import CommitSequence
from migrate.protocol.source_ending import SourceEnding
from migrate.protocol.source_link import ControlState, SourceLink, rejected
from migrate.protocol.source_pause import PauseSequence
from migrate.protocol.source_reread import SourceReread
from migrate.protocol.source_rounds import HarvestResult, SourceRounds
from migrate.protocol.source_setup import SourceSetup
from migrate.protocol.source_states import (
    DECIDED,
    EXPECTED,
    LIVE,
    NUMBERED,
    PAUSED,
    STATUS,
    TRANSITIONS,
    SourceState,
)
from migrate.protocol.source_throttle import SourceThrottle
from migrate.protocol.stats import MigrationStats
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage


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
        self.stats.expected_downtime_ms = config.downtime_limit_ms  # as QEMU, until something is known
        self.keys = kernel.Keys(hello.digest_seed, hello.page_size)
        self.digests = DigestTable(self.keys, image.layout)
        self._image = image
        self._actions: list[a.Action] = []
        self.link = SourceLink(
            hello, config.keepalive_timeout, config.reconnect_timeout, self.emit, self.stats
        )
        self.rounds = SourceRounds(self, image.layout.total_pages, hello.page_size, live)
        self.reread = SourceReread(self, image.layout, wanted=hello.verify != "stream")
        self.pause = PauseSequence(self)
        self.commit = CommitSequence(self)
        self.ending = SourceEnding(self)
        self.throttle = SourceThrottle(self)
        self.cache = SourceCache(self)
        self._setup = SourceSetup(self, image)

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
    def knows_held_ram(self) -> bool:
        """What the destination holds is known: pages may be sent."""
        return not self._setup.waiting

    @property
    def outcome(self) -> str:
        """`completed`, `failed`, `cancelled`, `undecided` or `checked`, once it has ended."""
        return self.ending.outcome

    @property
    def guest_place(self) -> str:
        """One clause: where the guest runs now."""
        return self.ending.guest_place

    # --- inputs: connections ----------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin."""
        self.rounds.start(now)
        self.stats.start(now)
        self.enter(SourceState.SETUP)
        self.link.connect()

    def connected(self, now: float) -> None:
        """The control connection is open."""
        if self.state is SourceState.COMMITTING:
            self.commit.connected(now)
        elif self.state not in (*DECIDED, SourceState.ENDING, SourceState.ENDED):
            self.link.greet(now)

    def connection_lost(self, now: float, reason: str) -> None:
        """The control connection broke, or could not be opened."""
        if self.state is SourceState.SETUP:
            self.link.control = ControlState.DOWN
            to = self.config.to
            assert to is not None
            message = f"cannot talk to the destination at {to}: {reason}"
            hint = f"is --to right? does migrate-dst run there, with --listen HOST:{to.port}?"
            self.ending.fail(now, NetworkError(message, side="destination", hint=hint))
        elif self.state in DECIDED:
            self.commit.lost(now, reason)
        elif self.state in LIVE:
            self.rounds.meter.idle(now)
            try:
                self.link.lost(now, reason)
            except NetworkError as error:
                self.ending.fail(now, error)
                return
            if self.state in PAUSED:
                self.pause.abandon(now, NetworkError(f"the connection broke during the pause: {reason}"))

    def connection_refused(self, now: float, error: MigrateError) -> None:
        """The connection could be opened, but one side does not want to talk to the other (TLS)."""
        if self.state is SourceState.SETUP:
            self.link.control = ControlState.DOWN
            self.ending.fail(now, error)
        else:
            self.connection_lost(now, error.message)

    def message(self, now: float, message: Message) -> None:
        """A message came from the destination. A forbidden one fails the migration."""
        if self.state is SourceState.ENDED:
            return
        self.link.keepalive.heard(now)
        try:
            self._message(now, message)
        except ProtocolError as error:
            error.with_context(side="destination", hint="use the same version of migrate on both hosts")
            self.ending.fail(now, error)

    def _message(self, now: float, message: Message) -> None:
        match message:
            case m.Ping():
                self.link.send(m.Pong(message.number))
            case m.Pong():
                self.link.keepalive.ponged(now, message.number)
            case m.Accept():
                self._setup.accepted(now, message)
                self._advance(now)
            case m.Reject():
                if self.link.control is not ControlState.GREETING:
                    raise ProtocolError("a reject came that answers no hello")
                if message.anew and self.link.hello.resume and self.state in LIVE:
                    self._setup.begin_anew()
                    return
                self.ending.fail(now, rejected(message))
            case m.Failed() | m.Cancel() if self.state in DECIDED:
                self.commit.lost(now, f"the destination ended: {message.reason}")
            case m.Failed():
                text = f"the destination failed: {message.reason}"
                error = peer_error(message.exit_code, text, "destination")
                self.ending.fail(now, error.with_context(hint="look at what migrate-dst says there"))
            case m.Cancel():
                text = f"the destination cancelled: {message.reason}"
                self.ending.fail(now, CancelledMigration(text, side="destination"))
            case _:
                self._expected_message(now, message)

    def _expected_message(self, now: float, message: Message) -> None:
        if self.state is SourceState.ENDING:
            return
        if isinstance(message, m.Digests) and self._setup.waiting:
            self._setup.digests(message)
            self._advance(now)
            self.rounds.check_tracked(now)
            return
        if isinstance(message, NUMBERED) and self.pause.is_late(message.number):
            return
        if self.state not in EXPECTED.get(type(message), frozenset()):
            raise ProtocolError(f"the destination sent {message.TYPE} while the source is {self.state.value}")
        match message:
            case m.Ack():
                self._acknowledged(now, message)
            case m.CacheAgreed() | m.CacheRefused():
                self.cache.message(message)
            case m.LaneReset():
                self.link.lane_reset(message)
                if self.state in PAUSED:
                    text = f"a lane broke during the pause: {message.reason}"
                    self.pause.abandon(now, NetworkError(text))
                self._advance(now)
            case m.Running() | m.StartFailed() | m.Verdict() | m.Forgotten():
                self.commit.message(now, message)
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
        self.rounds.meter.busy(now)
        self.rounds.check_out(now)

    def lane_broken(self, now: float, lane: int, reason: str) -> None:
        """A lane thread has ended because its connection failed."""
        self.link.lane_failed(lane, reason)
        if self.state in PAUSED:
            self.pause.abandon(now, NetworkError(f"a lane broke during the pause: {reason}"))
        self._advance(now)
        self.ending.check(now)

    def lane_stopped(self, now: float, lane: int) -> None:
        """A lane thread was stopped as asked."""
        self.link.lanes[lane].has_thread = False
        self._advance(now)
        self.ending.check(now)

    def failed(self, now: float, error: MigrateError) -> None:
        """The shell met an error of this side (RAM cannot be read, the guest died, …)."""
        if isinstance(error, RamError):
            error.with_context(
                side="source",
                hint="is the RAM file whole, and its disk? `ls -l` shows its length; nobody may truncate it",
            )
        if self.state is SourceState.REREADING:
            self.ending.completed(now, error)
        else:
            self.ending.fail(now, error)

    def journalled(self, now: float, step: Step, error: MigrateError | None) -> None:
        """That step is in the journal, or could not be written."""
        self.commit.journalled(now, step, error)

    # --- inputs: tracking and time ----------------------------------------------------------------

    def tracking(self, now: float, first: HarvestResult) -> None:
        """The tracker is on; `first` holds every page that is not a hole."""
        if self.state is not SourceState.TRACKING:
            return
        self.stats.setup_done(now)
        self.rounds.tracking(now, first)

    def caches_allocated(self, now: float, caches: Caches | None) -> None:
        """There is memory for page caches of another size, one a lane; None: there is not."""
        del now
        if self.state in LIVE:
            self.cache.allocated(caches)

    def throttle_failed(self, now: float, reason: str) -> None:
        """The guest cannot be throttled, or not any more; it has all of its time."""
        del now
        if self.state is not SourceState.ENDED:
            self.throttle.failed(reason)

    def harvested(self, now: float, result: HarvestResult) -> None:
        """A harvest is done."""
        self.rounds.take(result)
        self.pause.work_ended("harvest")
        lied = self.reread.judge(result)
        if self.state is SourceState.LAST_HARVEST:
            self.pause.harvest() if lied else self.pause.harvested(now, result)
        elif self.state is SourceState.HARVESTING:
            self.rounds.harvest() if lied else self.rounds.decide(now, result)
        else:
            self.check_resumed(now)

    def cancel(self, now: float, reason: str) -> bool:
        """A person wants to stop. False once the commit may have left: then it cannot be stopped."""
        if self.state in (*DECIDED, SourceState.ENDED):
            return False
        self.ending.fail(now, CancelledMigration(reason))
        return True

    def set_parameters(self, now: float, values: Mapping[str, int | str]) -> None:
        """Change some of PARAMETERS, in effect from now on; a pause that has begun keeps its deadline.

        Raises UsageError: no such parameter, or a value that cannot work; nothing is changed then.
        """
        self.config = with_parameters(self.config, values)
        self.rounds.policy.limit(self.config)
        self.throttle.configured()
        if CACHE_SIZE in values:
            self.cache.want(self.config.xbzrle_cache_size)
        if self.state in (SourceState.LAST_ROUND, SourceState.PREPARING):
            self.emit(a.SetRate(self.config.switchover_bandwidth))
        elif self.state in LIVE:
            self.emit(a.SetRate(self.config.max_bandwidth))
        self.rounds.check_out(now)

    def switch_over(self, now: float) -> bool:
        """A person wants the pause now, however long it takes. False where there are no rounds to end."""
        if self.state not in (SourceState.SENDING, SourceState.HARVESTING, SourceState.RESUMING):
            return False
        self.rounds.pause_wanted = True
        self.rounds.check_wanted(now)
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
        self.rounds.check_tracked(now)
        self.rounds.check_overdue(now)
        self.rounds.check_timeout(now)
        self.rounds.check_wanted(now)
        self.reread.tick(now)
        if self.state in PAUSED:
            self.pause.tick(now)
        elif self.state in DECIDED:
            self.commit.tick(now)

    # --- setting up, lanes ----------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        """Reset and open lanes where it is time; a lane that never gets anywhere ends the migration."""
        if self.state in DECIDED:
            return
        if not self.link.in_flight_bytes:
            self.rounds.meter.idle(now)
        try:
            self._setup.check(now)
            self.link.advance(now)
        except NetworkError as error:
            self.ending.fail(now, error)
        self.cache.check()

    def _acknowledged(self, now: float, message: m.Ack) -> None:
        if message.lane >= len(self.link.lanes):
            raise ProtocolError(f"the destination acknowledged lane {message.lane}, which does not exist")
        link = self.link.lanes[message.lane]
        done = link.acknowledged(message.epoch, message.sequence, now)
        if done:
            self.rounds.meter.add(now, done)
            self.emit(a.PassAck(message.lane, message.epoch, message.sequence))
        if not self.link.in_flight_bytes:
            self.rounds.meter.idle(now)
        self.cache.check()
        self.rounds.check_settled(now)
        self.rounds.check_out(now)
        if self.state is SourceState.LAST_ROUND:
            self.pause.check_copied(now)

    def _lane_stalls(self, now: float, lane: LaneLink) -> None:
        reason = f"nothing was acknowledged for {now - lane.last_progress:.0f} s"
        if self.state in PAUSED:
            self.pause.abandon(now, NetworkError(f"a lane stalled during the pause: {reason}"))
        self.link.break_lane(lane, reason)

    def begin_pause(self, now: float, reason: str) -> None:
        """Pause the guest and move what is left."""
        self.enter(SourceState.PAUSING)
        self.rounds.pause_wanted = False
        self.throttle.lift()
        self.pause.begin(now, reason)

    def resumed(self, now: float) -> None:
        """The guest runs at the source again."""
        if self.state is SourceState.ENDED:
            return
        self.ending.resumed()
        self.commit.resumed(now)
        self.stats.pause_given_up(now)
        if self.state is SourceState.RESUMING:
            self.emit(a.SetRate(self.config.max_bandwidth))
            self.check_resumed(now)
        self.ending.check(now)

    def check_resumed(self, now: float) -> None:
        """Go on with precopy once the guest runs and nothing that the pause asked for is under way."""
        waiting = self.ending.resume_pending or not self.pause.at_rest
        if self.state is SourceState.RESUMING and not waiting:
            self.rounds.resume(now)

    def resume_failed(self, now: float, error: MigrateError) -> None:
        """The guest could not be resumed."""
        self.ending.resume_failed(now, error)

    # --- states ------------------------------------------------------------------------------------

    def enter(self, state: SourceState) -> None:
        """Change the state; only along the table."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state.value} to {state.value}")
        self.state = state
        if state in STATUS:
            self.set_status(STATUS[state])

    def set_status(self, status: str) -> None:
        """Show another of QEMU's status names."""
        if status != self.stats.status:
            self.emit(a.Report("status", {"old": self.stats.status, "new": status}))
            self.stats.status = status
