"""What the source remembers of its rounds in order to ask `convergence.decide` after each harvest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from migrate.config import SourceConfig
from migrate.protocol.convergence import Decision, decide
from migrate.protocol.forecast import RECENT_ROUNDS, Limits, PauseCosts, RoundRow, Situation
from migrate.protocol.round_stats import RoundStats
from migrate.units import format_rate, format_size

if TYPE_CHECKING:
    from migrate.protocol.source_rounds import HarvestResult

STOPPED_SHARE = 0.75
"""A harvest with the guest stopped has all CPUs and no rival for memory; measured 0.6-0.8 (LMT section 3)."""
PAUSE_SECONDS = 0.005  # LMT section 7: p99 of SIGSTOP until every thread is stopped, two busy CPUs
ROUND_TRIPS = 4  # acknowledgement of the last batch, prepare, commit, and one for luck


class SwitchoverPolicy:
    """Rows of the last rounds and the measured costs of the pause."""

    def __init__(self, config: SourceConfig, page_size: int) -> None:
        self.forced = False
        """The next pause may take as long as it takes."""
        self._page_size = page_size
        self.limit(config)
        self._rows: deque[RoundRow] = deque(maxlen=RECENT_ROUNDS + 1)
        self._harvest_began = 0.0
        self._stopped_harvest: float | None = None

    def limit(self, config: SourceConfig) -> None:
        """Decide by the limits of this configuration from now on."""
        self._limits = Limits(
            downtime_limit=config.downtime_limit_ms / 1000,
            max_rounds=config.max_rounds,
            timeout=config.timeout,
            timeout_action=config.timeout_action,
            max_bandwidth=config.max_bandwidth,
            switchover_bandwidth=config.switchover_bandwidth,
            xbzrle_cache_size=config.xbzrle_cache_size,
        )

    def round_started(self, harvest_began: float) -> None:
        """The harvest that opened the round: pages dirtied later count from here."""
        self._harvest_began = harvest_began

    def round_ended(self, row: RoundStats, now: float, bandwidth: float | None) -> None:
        """A round's last page is on its way."""
        self._rows.append(
            RoundRow(row.round, row.dirty_pages, row.pages.sent, row.bytes, row.seconds(now), bandwidth)
        )

    def last_harvest(self, seconds: float) -> None:
        """A harvest with the guest stopped took this long."""
        self._stopped_harvest = seconds

    def pause_abandoned(self) -> None:
        """The guest runs again, under the ordinary limits."""
        self.forced = False

    def timed_out(self, elapsed: float) -> bool:
        """--timeout is over."""
        return 0 < self._limits.timeout <= elapsed

    def decide(
        self,
        elapsed: float,
        harvest: HarvestResult,
        pending_pages: int,
        in_flight: int,
        round_trip: float | None,
    ) -> Decision:
        """Go on, switch over or give up, now that this harvest is known.

        Args:
            elapsed: seconds since the migration began.
            harvest: the latest one.
            pending_pages: it and what is left from before, owed pages and those of an abandoned pause.
            in_flight: bytes sent and not acknowledged.
            round_trip: seconds, None if it is not known.
        """
        stopped = self._stopped_harvest
        if stopped is None:
            stopped = harvest.seconds * STOPPED_SHARE + harvest.compare_seconds
        situation = Situation(
            rows=tuple(self._rows),
            pending_pages=pending_pages,
            dirtied_pages=harvest.pages,
            dirtied_seconds=harvest.began - self._harvest_began,
            harvest_seconds=harvest.seconds,
            in_flight=in_flight,
            elapsed=elapsed,
            page_size=self._page_size,
            # The second look at RAM, while the destination verifies, costs what the harvest costs.
            costs=PauseCosts(
                pause=PAUSE_SECONDS,
                harvest=stopped,
                verify=stopped,
                round_trip=ROUND_TRIPS * (round_trip or 0.0),
            ),
        )
        decision = decide(situation, self._limits)
        if decision.kind == "switchover":
            expected = decision.expected_downtime
            self.forced = expected is None or expected > self._limits.downtime_limit
        return decision

    def timed_out_reason(self, elapsed: float, remaining_pages: int, bandwidth: float | None) -> str:
        """Why the timeout ends a migration in the middle of a round, in numbers."""
        rate = f" at {format_rate(bandwidth)}" if bandwidth else ""
        rounds = self._rows[-1].number if self._rows else 0
        return (
            f"--timeout {self._limits.timeout:g} s is over after {elapsed:.1f} s and {rounds} rounds:"
            f" {format_size(remaining_pages * self._page_size)} of pages were still to be sent{rate}"
        )
