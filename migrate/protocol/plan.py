"""What a migration would be like: its rounds played through, decided by the very rules of the real one.

A round sends pages into a link with a queue (socket buffers, the window of a lane) and ends when what is not
acknowledged yet is through within the downtime limit (`SourceRounds.check_out`). The harvest after it finds
what was written since the one before, by the measured curve; then `convergence.decide` says how it goes on.

Which of the found pages become a delta: the ones that the cache holds. After round 1 these are its first
data pages, later the ones that were written before, as far as they fit. A page that was written before its
copy was taken, and not after it, is found once more and not sent: `unchanged`.

Pure: no clock, nothing is measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from migrate.protocol.convergence import Decision, decide
from migrate.protocol.convergence_text import INDEX_ENTRY
from migrate.protocol.forecast import RECENT_ROUNDS, Limits, PauseCosts, RoundRow, Situation
from migrate.protocol.plan_workload import Workload
from migrate.protocol.switchover import PAUSE_SECONDS, ROUND_TRIPS, STOPPED_SHARE
from migrate.ram.trackers.marking import COMPARE_RATE, LARGE_COMPARE

RECORD_HEAD = 8
ZERO_RECORD = RECORD_HEAD + 1
DELTA_HEAD = RECORD_HEAD + 3
QUEUE_BYTES = 13 << 18
"""What socket buffers of a lane and the way through them hold: measured over a token bucket."""
ALONE = 3.0
"""Times what a page costs at the source: in the pause nothing hides what it costs at the destination."""
METER_SECONDS = 0.1
"""Of a busy link, before its bandwidth counts as measured (RateMeter)."""
SETUP_SECONDS = 0.03
"""Connections, hello and accept, less the round trips."""
STOP_SECONDS = 0.002
"""What SIGSTOP takes, mostly; the decision counts on PAUSE_SECONDS."""
STAGE_SECONDS = 0.004
"""Of the event loops and threads of both sides, for each of copy, verify and commit."""
PARTS_OF_A_ROUND = 16
WAITS = 8
"""In so many pieces a harvest waits for a report to settle."""
ITERATIONS = 3
"""What a round sends depends on how long it takes, which depends on what it sends."""


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """What lies between the hosts."""

    bandwidth: float
    """Bytes a second."""
    round_trip: float = 0.0005
    """Seconds."""


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """One round as it would be."""

    pages: float
    wire_bytes: float
    seconds: float
    hits: float
    """Pages that become a delta."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """How it ends."""

    converges: bool
    """The pause keeps the downtime limit."""
    moves: bool
    """It ends with a handover; else it gives up."""
    total_seconds: float
    wire_bytes: float
    downtime_seconds: float | None
    """None: it is never paused."""
    rounds: tuple[PlannedRound, ...]
    """The last one is sent in the pause."""
    reason: str
    hint: str


def predict(workload: Workload, link: PlannedLink, limits: Limits) -> Prediction:
    """Play one migration."""
    run = _Run(workload, link, limits)
    while True:
        decision = run.round()
        if decision.kind == "switchover":
            return run.pause(decision)
        if decision.kind == "give-up":
            return Prediction(
                *(False, False, run.now, run.wire_bytes, None, tuple(run.rounds)),
                *(decision.reason, decision.hint),
            )


@dataclass(slots=True)
class _Run:
    """The state of a played migration; instants count from its begin."""

    workload: Workload
    link: PlannedLink
    limits: Limits
    rounds: list[PlannedRound] = field(default_factory=list)
    wire_bytes: float = 0.0
    now: float = 0.0
    _started: float = 0.0
    _busy: float = 0.0
    _queue: float = 0.0
    _rows: list[RoundRow] = field(default_factory=list)
    _harvest: float = 0.0
    """When the last harvest began."""
    _interval: float = 0.0
    """Over which it looks back."""
    _interval_before: float = 0.0
    _reports: list[tuple[float, float, float]] = field(default_factory=list)
    """(instant of a harvest, begin of the time it looks back on, pages), the start with all of RAM first."""
    _stored: float = 0.0
    """Pages that came into the cache after round 1."""

    def __post_init__(self) -> None:
        self._started = self._harvest = SETUP_SECONDS + 3 * self.link.round_trip
        self.now = self._started + self.workload.start_seconds
        self._reports.append((self.now, self.now, self.workload.data_pages))

    # --- rounds -----------------------------------------------------------------------------------------

    def round(self) -> Decision:
        """Send what the last harvest found, harvest again, and decide."""
        began = self.now
        bandwidth = self._bandwidth(self.limits.max_bandwidth)
        cost = self._cost(bandwidth)
        self._send(cost.wire_bytes, cost.pages * self.workload.page_seconds, bandwidth)
        seconds = self.now - began
        self.rounds.append(replace(cost, seconds=seconds))
        known = bandwidth if self._busy >= METER_SECONDS else None
        self._rows.append(
            RoundRow(
                len(self.rounds), math.ceil(cost.pages), int(cost.pages), int(cost.wire_bytes), seconds, known
            )
        )
        self._settle(bandwidth)
        harvest = self.now
        self._pass_time(self.workload.harvest_seconds, bandwidth)
        self._interval_before, self._interval = self._interval, harvest - self._harvest
        pending = round(self.workload.written(self._interval))
        self._reports.append((harvest, self._harvest, pending))
        self._harvest = harvest
        stopped = self._compare_seconds(COMPARE_RATE) + self.workload.harvest_seconds * STOPPED_SHARE
        situation = Situation(
            rows=tuple(self._rows[-RECENT_ROUNDS - 1 :]),
            pending_pages=pending,
            dirtied_pages=pending,
            dirtied_seconds=self._interval,
            harvest_seconds=self.workload.harvest_seconds,
            in_flight=int(self._queue),
            elapsed=self.now,
            page_size=self.workload.page_size,
            costs=PauseCosts(
                pause=PAUSE_SECONDS,
                harvest=stopped,
                verify=stopped,
                round_trip=ROUND_TRIPS * self.link.round_trip,
            ),
        )
        return decide(situation, self.limits)

    def pause(self, decision: Decision) -> Prediction:
        """The guest is stopped and the rest sent: how long that takes, and what follows it."""
        workload, began = self.workload, self.now
        bandwidth = self._bandwidth(self.limits.switchover_bandwidth)
        reading = self._compare_seconds(workload.read_bytes_per_second)
        if workload.compares_all:
            reading = workload.harvest_seconds * STOPPED_SHARE
        self._pass_time(STOP_SECONDS, bandwidth)
        self._interval += self.now - self._harvest
        self._pass_time(
            reading + workload.harvest_seconds * STOPPED_SHARE * (not workload.compares_all), bandwidth
        )
        cost = self._cost(bandwidth, stopped=True)
        copying = max(ALONE * cost.pages * workload.page_seconds, (self._queue + cost.wire_bytes) / bandwidth)
        self.now += copying + self.link.round_trip + STAGE_SECONDS
        self.wire_bytes += cost.wire_bytes
        self.now += reading + 2 * self.link.round_trip + 2 * STAGE_SECONDS
        downtime = self.now - began
        self.rounds.append(replace(cost, seconds=copying))
        self.now += workload.data_bytes / workload.read_bytes_per_second  # RAM is read before it is let go
        return Prediction(
            converges=downtime <= self.limits.downtime_limit or decision.reason.startswith("it fits"),
            moves=True,
            total_seconds=self.now,
            wire_bytes=self.wire_bytes,
            downtime_seconds=downtime,
            rounds=tuple(self.rounds),
            reason=decision.reason,
            hint=decision.hint,
        )

    # --- the link ---------------------------------------------------------------------------------------

    def _bandwidth(self, limit: float) -> float:
        return min(limit, self.link.bandwidth) if limit else self.link.bandwidth

    def _send(self, wire: float, computing: float, bandwidth: float) -> None:
        """Until all is on its way and little enough of it is not acknowledged."""
        bearable = min(bandwidth * self.limits.downtime_limit, QUEUE_BYTES)
        self._queue += wire
        self.wire_bytes += wire
        draining = max(self._queue - bearable, 0.0) / bandwidth
        self._pass_time(max(computing, draining), bandwidth)

    def _pass_time(self, seconds: float, bandwidth: float) -> None:
        through = min(self._queue, bandwidth * seconds)
        self._queue -= through
        self._busy += through / bandwidth
        self.now += seconds

    def _settle(self, bandwidth: float) -> None:
        """A harvest compares what has settled, and waits for a report of very much (MarkingTracker)."""
        workload, settle = self.workload, self.workload.settle_seconds
        if not settle:
            return
        large = LARGE_COMPARE * COMPARE_RATE / workload.page_size
        while True:
            ready = [report for report in self._reports if report[0] <= self.now - settle]
            self._reports = self._reports[len(ready) :]
            pages = sum(report[2] for report in ready)
            self._pass_time(pages * workload.page_size / COMPARE_RATE, bandwidth)
            until = max((at + settle for at, _, pages in self._reports if pages > large), default=0.0)
            if until <= self.now or workload.written(self.now - self._harvest) > large:
                return
            self._pass_time(min(until - self.now, settle / WAITS) + 1e-6, bandwidth)

    def _compare_seconds(self, rate: float) -> float:
        """To compare, in the pause, what was reported and has not settled, but for what is sent anyway."""
        workload = self.workload
        if not workload.settle_seconds or not self._reports:
            return 0.0
        _, oldest, most = self._reports[0]
        if most < workload.data_pages:
            most = workload.written(self._harvest - oldest)
        return max(most - workload.written(self._interval), 0.0) * workload.page_size / rate

    # --- pages ------------------------------------------------------------------------------------------

    def _cost(self, bandwidth: float, *, stopped: bool = False) -> PlannedRound:
        """Pages and bytes of what the last harvest found."""
        workload = self.workload
        whole_record = workload.page_size + RECORD_HEAD
        if not self.rounds:
            zeros = workload.data_pages - workload.whole_pages
            wire = zeros * ZERO_RECORD + workload.whole_pages * whole_record
            return PlannedRound(workload.data_pages, wire, 0.0, 0.0)
        found = workload.written(self._interval)
        if found <= 0:
            return PlannedRound(0.0, 0.0, 0.0, 0.0)
        delta = min(workload.delta_bytes(self._interval) + DELTA_HEAD, whole_record)
        hit_share = self._hit_share(found)
        wire = hits = misses = 0.0
        for _ in range(ITERATIONS):
            sending = 0.0 if stopped else max(wire / bandwidth, found * workload.page_seconds)
            changed = found * (1 - self._unchanged_share(found, sending))
            zeros = changed * workload.written_zero_share
            hits = (changed - zeros) * hit_share
            misses = changed - zeros - hits
            wire = zeros * ZERO_RECORD + hits * delta + misses * whole_record
        self._stored += misses
        return PlannedRound(found, wire, 0.0, hits)

    def _unchanged_share(self, found: float, sending: float) -> float:
        """Of the found pages: those that were written only before the copy that was sent in the last round.

        A page of that round whose copy was taken after the share x of it is the same, when it is looked at
        again after the share x of this one, if nothing was written to it in between. What was written since
        the last round's harvest, less what was written in between, is the same.

        Args:
            sending: seconds of this round; 0: the guest is stopped.
        """
        written, interval = self.workload.written, self._interval
        together, first = 1.0, len(self.rounds) == 1
        if not first:
            new = written(self._interval_before + interval) - written(self._interval_before)
            together = max(0.0, 1 - new / found)
        before = min(self.rounds[-1].seconds, interval)
        same = 0.0
        for part in range(PARTS_OF_A_ROUND):  # a round goes through RAM from its beginning to its end
            begin, end = part / PARTS_OF_A_ROUND, (part + 1) / PARTS_OF_A_ROUND
            middle = (begin + end) / 2
            share = self.workload.early(end) - self.workload.early(begin) if first else end - begin
            until = interval + middle * sending
            same += share * (written(until) - written(until - middle * before))
        return min(together * same / found, 1.0)

    def _hit_share(self, found: float) -> float:
        """Of the pages to send: those that the cache holds."""
        workload = self.workload
        slots = self.limits.xbzrle_cache_size // (workload.page_size + INDEX_ENTRY)
        if not slots:
            return 0.0
        if slots >= workload.whole_pages:
            return 1.0
        first = workload.early(slots / max(workload.whole_pages, 1.0))
        seen = self._harvest - self._interval - self._started
        if len(self.rounds) == 1 or seen <= 0:
            return first
        left = max(0.0, 1 - self._stored / slots)
        before = workload.written(seen)
        new = min(max(workload.written(seen + self._interval) - before, 0.0), found)
        held = min(1.0, slots / max(before, 1.0))
        return (new * first * left + (found - new) * held) / found
