"""What the numbers of the last rounds say about a pause now, and about the rounds to come.

    expected downtime = pause + harvest + in-flight + copy + verify + journals + commands + round-trip

    copy       (pending + late pages) * max(bytes a page / bandwidth, seconds a page)
    late       pages that get dirty from the harvest that found `pending` until the guest stands:
               dirty rate * (seconds of that harvest + seconds of the pause)
    in-flight  what is not acknowledged yet, as far as it is not through while the guest is being stopped
               and the last harvest runs

Bytes and seconds a page come from the newest rounds; before there is a round of changed pages, a page
counts as sent whole. The dirty rate is what the latest harvest found over the time since the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from migrate.config import TimeoutAction

RECENT_ROUNDS = 3
ENOUGH_PAGES = 256
"""Newest rounds that together dirtied this many pages say what a page costs; fewer would be noise."""
THROTTLED = 0.8
"""A measured bandwidth above this share of --max-bandwidth shows the limit, not the link."""
CLOCK_STEP = 1e-6
MOST_ROUNDS = 200
"""What has not come to an end after so many more rounds never does, for the time left."""


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One finished round while the guest ran."""

    number: int
    pages_dirty: int
    """Pages to look at: found by its harvest, and owed ones."""
    pages_sent: int
    """Pages that became a record."""
    wire_bytes: int
    send_seconds: float
    bandwidth: float | None
    """Bytes/s by acknowledgements, measured when the round ended; None: not enough yet."""


@dataclass(frozen=True, slots=True)
class PauseCosts:
    """Seconds of the parts of a pause that do not depend on the pages left; measured or estimated."""

    pause: float = 0.0
    """From the request until no write can happen any more."""
    harvest: float = 0.0
    """The last one, with the guest stopped."""
    verify: float = 0.0
    journals: float = 0.0
    commands: float = 0.0
    """--state-cmd, --on-prepare, --on-commit."""
    round_trip: float = 0.0
    """All waits for an answer together."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the options allow."""

    downtime_limit: float
    max_rounds: int
    """0: no bound."""
    timeout: float
    """0: none."""
    timeout_action: TimeoutAction
    max_bandwidth: float
    """0: unlimited."""
    switchover_bandwidth: float
    """The limit during the pause; 0: unlimited."""
    xbzrle_cache_size: int
    """0: no XBZRLE."""

    def rounds_left(self, rounds: int) -> float:
        """Rounds that may follow; infinite without a limit."""
        return max(self.max_rounds - rounds, 0) if self.max_rounds else math.inf

    def seconds_left(self, elapsed: float) -> float:
        """Time before the timeout; infinite without one."""
        return max(self.timeout - elapsed, 0.0) if self.timeout else math.inf


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the migration stands after a harvest."""

    rows: tuple[RoundRow, ...]
    """Finished rounds, oldest first; the last few are enough."""
    pending_pages: int
    """Found by the latest harvest, and owed ones."""
    dirtied_pages: int
    """Found by the latest harvest."""
    dirtied_seconds: float
    """From the harvest before the latest one to the latest."""
    harvest_seconds: float
    """How long the latest harvest took."""
    in_flight: int
    """Bytes sent and not acknowledged."""
    elapsed: float
    """Since the migration began."""
    page_size: int
    costs: PauseCosts

    @property
    def rounds(self) -> int:
        """Number of the last finished round; 0 before there is one."""
        return self.rows[-1].number if self.rows else 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Rates derived from a situation, and what follows from them."""

    situation: Situation
    limits: Limits
    dirty_rate: float
    """Pages/s."""
    bytes_per_page: float
    """On the wire, for each page that a round looks at."""
    seconds_per_page: float
    """What a page took, however fast the link; 0: hidden behind --max-bandwidth."""
    bandwidth: float | None
    """Bytes/s in the rounds; None: unknown, or nothing comes through."""
    throttled: bool
    """The bandwidth is what --max-bandwidth allows, not what the link carries."""

    @property
    def pause_bandwidth(self) -> float | None:
        """Bytes/s to count on in the pause.

        --switchover-bandwidth is believed where --max-bandwidth hides what the link carries; where the
        link was seen to be slower, it is not.
        """
        chosen = self.limits.switchover_bandwidth
        if not chosen or self.bandwidth is None:
            return self.bandwidth
        return chosen if self.throttled else min(chosen, self.bandwidth)

    def parts(self, pending_pages: float) -> dict[str, float]:
        """Parts of the pause in seconds, if it came with that many pages pending.

        Without `in-flight` and `copy` if something is to be sent and no bandwidth is known.
        """
        costs, in_flight = self.situation.costs, self.situation.in_flight
        parts = {"pause": costs.pause, "harvest": costs.harvest}
        pages = pending_pages + self.dirty_rate * (self.situation.harvest_seconds + costs.pause)
        if pages == 0 and in_flight == 0:
            parts |= {"in-flight": 0.0, "copy": 0.0}
        elif self.pause_bandwidth is not None:
            drain = in_flight / self.pause_bandwidth - costs.pause - costs.harvest
            a_page = max(self.bytes_per_page / self.pause_bandwidth, self.seconds_per_page)
            parts |= {"in-flight": max(0.0, drain), "copy": pages * a_page}
        return parts | {
            "verify": costs.verify,
            "journals": costs.journals,
            "commands": costs.commands,
            "round-trip": costs.round_trip,
        }

    def downtime(self, pending_pages: float) -> float | None:
        """Expected downtime in seconds; None: no bandwidth is known."""
        parts = self.parts(pending_pages)
        return math.fsum(parts.values()) if "copy" in parts else None

    def fits(self, pending_pages: float) -> bool:
        """Would a pause with that many pages pending keep the limit?"""
        downtime = self.downtime(pending_pages)
        return downtime is not None and downtime <= self.limits.downtime_limit

    def shrink_ratios(self) -> list[float]:
        """Each of the last rounds' pages over those of the round before, and what the rates predict."""
        pending = self.situation.pending_pages
        pages = [row.pages_dirty for row in self.situation.rows[-RECENT_ROUNDS:]] + [pending]
        ratios = [after / before for before, after in pairwise(pages) if before]
        if self.bandwidth is not None and pending:
            ratios.append(self.dirty_rate * self._round_seconds(pending, self.bandwidth) / pending)
        return ratios

    def time_left(self) -> tuple[float, float] | None:
        """Seconds to the end at best and at worst; None: unknown.

        The best takes the smallest of the ratios by which rounds shrink and the highest bandwidth of the
        last rounds. The worst takes the lowest bandwidth and twice as many rounds as the largest ratio asks
        for: a long round hides how often the same pages are written, so the next ones shrink less. After
        the first round, the longest of all, nobody can tell, and the worst is infinite.
        """
        ratios = self.shrink_ratios()
        if self.bandwidth is None or not ratios:
            return None
        seen = [row.bandwidth for row in self.situation.rows[-RECENT_ROUNDS:] if row.bandwidth]
        best = self._play(min(ratios), max([*seen, self.bandwidth]))
        if self.situation.rounds < 2:
            return best, math.inf
        return best, max(best, self._play(math.sqrt(max(ratios)), min([*seen, self.bandwidth])))

    def _play(self, shrink: float, bandwidth: float) -> float:
        """Seconds to the end if each round is `shrink` times the one before; infinite if there is none."""
        situation, limits = self.situation, self.limits
        rounds_left, seconds_left = (
            limits.rounds_left(situation.rounds),
            limits.seconds_left(situation.elapsed),
        )
        pauses_anyway = limits.timeout_action == "pause"
        pages, seconds = float(situation.pending_pages), 0.0
        for rounds in range(MOST_ROUNDS):
            pause = self.downtime(pages) or 0.0
            if self.fits(pages):
                return seconds + pause
            if rounds >= rounds_left or seconds >= seconds_left:
                return min(seconds, seconds_left) + pause if pauses_anyway else math.inf
            seconds += self._round_seconds(pages, bandwidth)
            pages *= min(shrink, 1.0)  # where it grows, it grows to all of RAM at most: not followed here
        return seconds_left + pause if pauses_anyway else math.inf

    def _round_seconds(self, pages: float, bandwidth: float) -> float:
        sending = pages * max(self.bytes_per_page / bandwidth, self.seconds_per_page)
        return sending + self.situation.harvest_seconds


def forecast(situation: Situation, limits: Limits) -> Forecast:
    """Derive the rates from the rounds."""
    bandwidth = situation.rows[-1].bandwidth if situation.rows else None
    if bandwidth is None:
        # Too little was acknowledged to measure it, as with a tiny guest: what came through, over all the
        # time there was, is certainly not too high.
        came_through = sum(row.wire_bytes for row in situation.rows) - situation.in_flight
        bandwidth = _rate(max(came_through, 0), situation.elapsed)
    throttled = 0 < limits.max_bandwidth * THROTTLED <= bandwidth

    rows = _telling_rows(situation.rows)
    pages = sum(row.pages_dirty for row in rows)
    bytes_per_page = sum(row.wire_bytes for row in rows) / max(pages, 1)
    if pages == 0 or rows[0].number == 1:
        bytes_per_page = max(bytes_per_page, float(situation.page_size))
    return Forecast(
        situation=situation,
        limits=limits,
        dirty_rate=_rate(situation.dirtied_pages, situation.dirtied_seconds),
        bytes_per_page=bytes_per_page,
        seconds_per_page=0.0 if throttled else sum(row.send_seconds for row in rows) / max(pages, 1),
        bandwidth=bandwidth or None,
        throttled=throttled,
    )


def _telling_rows(rows: tuple[RoundRow, ...]) -> list[RoundRow]:
    """The newest rounds that say what a changed page costs: not the first one, if there is another."""
    found: list[RoundRow] = []
    for row in reversed(rows[-RECENT_ROUNDS:]):
        if found and (row.number == 1 or sum(seen.pages_dirty for seen in found) >= ENOUGH_PAGES):
            break
        found.append(row)
    return found


def _rate(amount: float, per: float) -> float:
    """Amount per second; a time too short for any clock counts as the shortest one can tell."""
    return amount / max(per, CLOCK_STEP) if amount else 0.0
