"""The rounds at the source: harvest, decide, give the lanes their pages, and again.

tracking ──all that is no hole──→ sending ──every lane's round is out──→ harvesting ──→ sending …
                                                                             └ decided: the pause, or give up
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.errors import NotConvergedError
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND
from migrate.protocol import actions as a
from migrate.protocol.bandwidth import RateMeter
from migrate.protocol.source_states import SourceState
from migrate.protocol.switchover import SwitchoverPolicy
from migrate.ram.bitmap import DirtyBitmap
from migrate.units import format_rate, format_size

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine


@dataclass(frozen=True)
class HarvestResult:
    """What the shell found: pages that are dirty (fetched and cleared), and what it cost."""

    dirty: DirtyBitmap
    pages: int
    seconds: float
    began: float
    """When the fetching began, monotonic."""
    compare_seconds: float = 0.0
    """What a harvest in the pause would cost on top: pages that may change unreported are compared there."""
    unsettled: DirtyBitmap | None = None
    """These pages; None: the tracker compares content itself, or nothing is known yet."""


class SourceRounds:
    """Rounds of one source machine.

    Args:
        pages: size of page space.
        live: the dirty tracker works while the guest runs; otherwise there are no live rounds.
    """

    def __init__(self, machine: SourceMachine, pages: int, page_size: int, live: bool) -> None:
        self._machine = machine
        self._live = live
        self.number = 0
        """Of the round that is sent, or was sent last; 0: none yet."""
        self.policy = SwitchoverPolicy(machine.config, page_size)
        self.meter = RateMeter()
        self.pause_wanted = False
        """A person asked for the pause; it comes as soon as no lane is down."""
        self._dirty = DirtyBitmap(pages)
        self.unsent = DirtyBitmap(pages)
        """Reported, and perhaps not copied since."""
        self._first: HarvestResult | None = None
        self._waits_for_lanes = False
        self._started = 0.0

    @property
    def harvested_pages(self) -> int:
        """Harvested and not yet given to lanes."""
        return self._dirty.count()

    def start(self, now: float) -> None:
        """The migration begins: --timeout counts from here."""
        self._started = now

    def take(self, harvest: HarvestResult) -> None:
        """Whatever becomes of a harvest, nothing fetched is lost."""
        self.add(harvest.dirty)

    def add(self, dirty: DirtyBitmap) -> None:
        """Pages that the destination holds in another way than it was thought."""
        self._dirty.union(dirty)
        self.unsent.union(dirty)

    def begin_anew(self) -> None:
        """New lanes take over what those before them had to send, under the same round."""
        self._machine.stats.remaining_pages = self.harvested_pages
        self.start_lanes(STAGE_BULK if self.number == 1 else STAGE_ROUND)

    def tracking(self, now: float, first: HarvestResult) -> None:
        """The tracker is on; `first` holds every page that is not a hole."""
        self._first = first
        self.check_tracked(now)

    def check_tracked(self, now: float) -> None:
        """Begin to send; where all of it is sent in the pause, only once every lane works."""
        machine = self._machine
        if machine.state is not SourceState.TRACKING or self._first is None or not machine.knows_held_ram:
            return
        if self._live:
            machine.throttle.begin()
            self._start_round(now, self._first, STAGE_BULK)
        elif machine.link.settled(now):
            self.take(self._first)
            machine.begin_pause(now, "the tracker has no live rounds")

    def start_lanes(self, stage: int) -> None:
        """Give every lane its share of what was harvested."""
        dirty = self._dirty.take()
        for link in self._machine.link.lanes:
            self._machine.emit(a.StartRound(link.lane.number, self.number, stage, dirty))

    def check_out(self, now: float) -> None:
        """If all lanes have put the end of the round on its way: harvest."""
        machine = self._machine
        if machine.state is not SourceState.SENDING:
            return
        lanes = machine.link.lanes
        if not lanes or not all(link.round_out == self.number for link in lanes):
            return
        if machine.link.in_flight_bytes > self._bearable(now):
            return
        self.unsent = self._dirty.copy()
        self.end(now)
        machine.enter(SourceState.HARVESTING)
        self._waits_for_lanes = False
        self.harvest()

    def _bearable(self, now: float) -> float:
        """Bytes that may be in flight when a round ends: what is through within the downtime limit.

        With more there can be no pause: rounds of next to nothing would use --max-rounds up in no time.
        """
        return (self.meter.rate(now) or 0.0) * self._machine.config.downtime_limit_ms / 1000

    def check_settled(self, now: float) -> None:
        """If the pause only waited for the lanes: look again, the guest has gone on meanwhile."""
        machine = self._machine
        if machine.state is SourceState.HARVESTING and self._waits_for_lanes and machine.link.settled(now):
            self._waits_for_lanes = False
            self.harvest()

    def end(self, now: float) -> None:
        """The round is over, or broken off for the pause: remember and report its row."""
        stats = self._machine.stats
        stats.round_ended(now)
        row = stats.current_round
        if row is not None:
            self.policy.round_ended(row, now, self.meter.rate(now))
            self._machine.emit(a.Report("round", row.as_dict(now, stats.page_size)))

    def harvest(self) -> None:
        """Fetch what is dirty."""
        self._machine.emit(a.Harvest(stopped=False))

    def decide(self, now: float, result: HarvestResult) -> None:
        """A harvest is known: another round, the pause, or give up."""
        machine = self._machine
        pending = self.harvested_pages + machine.stats.remaining_pages
        decision = self.policy.decide(
            now - self._started,
            result,
            pending,
            machine.link.in_flight_bytes,
            machine.link.keepalive.round_trip,
        )
        if decision.expected_downtime is not None:
            machine.stats.expected_downtime_ms = decision.expected_downtime * 1000
        before = machine.stats.time_left(now)
        machine.stats.expect_end(now, decision.eta)
        if decision.kind == "round" or (decision.kind == "give-up" and self.pause_wanted):
            row = machine.stats.current_round
            assert row is not None
            machine.throttle.round_ended(row.dirty_pages, pending)
            self._start_round(now, result, STAGE_ROUND)
            self.tell_outlook(now, before, decision.reason)
        elif decision.kind == "give-up":
            error = NotConvergedError(decision.reason, side="source", hint=decision.hint or None)
            machine.ending.fail(now, error)
        elif machine.link.settled(now):
            machine.begin_pause(now, decision.reason)
        else:
            self._waits_for_lanes = True  # a guest that is stopped while a lane is down stands for nothing
            self.tell_outlook(now, before, "the pause waits until every lane has a connection that works")

    def tell_outlook(self, now: float, before: tuple[float, float] | None, reason: str) -> None:
        """What remains is more than it was, or the time left another: say why.

        Args:
            before: the time left as it was shown last.
        """
        machine = self._machine
        left = machine.stats.time_left(now)
        worse = before is not None and (left is None or left[0] > before[0] or left[1] > before[1])
        fields: dict[str, object] = {
            "round": self.number,
            "remaining_pages": machine.stats.remaining_pages,
            "time_left": _bounds(left),
            "time_left_before": _bounds(before),
            "worse": worse,
            "reason": reason,
        }
        machine.emit(a.Report("outlook", fields))

    def check_overdue(self, now: float) -> None:
        """Once even the worst forecast is over, the time left is unknown."""
        stats = self._machine.stats
        left = stats.time_left(now)
        if self._machine.state is SourceState.SENDING and left is not None and left[1] == 0:
            stats.expect_end(now, None)
            rate = self.meter.rate(now)
            reason = (
                "the round takes longer than foreseen:"
                f" {format_size(stats.remaining_pages * stats.page_size)} of pages are still to be sent"
                f"{f' at {format_rate(rate)}' if rate else ''}"
            )
            self.tell_outlook(now, left, reason)

    def check_timeout(self, now: float) -> None:
        """Carry out --timeout-action, also in the middle of a round, once --timeout is over."""
        machine = self._machine
        if machine.state not in (SourceState.SENDING, SourceState.HARVESTING):
            return
        if not self.policy.timed_out(now - self._started):
            return
        if machine.config.timeout_action == "cancel":
            reason = self.policy.timed_out_reason(
                now - self._started, machine.stats.remaining_pages, self.meter.rate(now)
            )
            hint = "raise --timeout, or use --timeout-action pause"
            machine.ending.fail(now, NotConvergedError(reason, side="source", hint=hint))
        else:
            self._break_off(now, f"the timeout of {machine.config.timeout:g} s is over")

    def check_wanted(self, now: float) -> None:
        """Carry out `pause_wanted`."""
        if self.pause_wanted:
            self._break_off(now, "it was asked for")

    def _break_off(self, now: float, reason: str) -> None:
        """Pause in the middle of a round, for as long as it takes; not while a lane is down."""
        machine = self._machine
        if machine.state is SourceState.SENDING and machine.link.working:
            self.policy.forced = True
            self.end(now)
            machine.begin_pause(now, reason)

    def resume(self, now: float) -> None:
        """The guest runs again after a pause that was given up: go on with the same round."""
        machine = self._machine
        machine.enter(SourceState.SENDING)
        machine.throttle.begin()
        machine.stats.round_started(self.number, machine.stats.remaining_pages, now)
        self.check_out(now)

    def _start_round(self, now: float, harvest: HarvestResult, stage: int) -> None:
        machine = self._machine
        self.take(harvest)
        self.number += 1
        machine.enter(SourceState.SENDING)
        remaining = self.harvested_pages + machine.stats.remaining_pages
        machine.stats.round_started(self.number, remaining, now)
        self.policy.round_started(harvest.began)
        machine.emit(a.SetRate(machine.config.max_bandwidth))
        self.start_lanes(stage)


def _bounds(left: tuple[float, float] | None) -> list[float] | None:
    return None if left is None else [round(bound, 3) for bound in left]
