"""Counters of one migration, with the names and definitions of QEMU's `query-migrate`.

Definitions: qemu-ram-stream.md 3.9 (`xbzrle-cache`) and 10.5 (the rest). Where ours differ:

* QEMU refreshes rates at the first bitmap sync after a second has passed; here `dirty-pages-rate`,
  `cache-miss-rate` and `encoding-rate` are those of the last round that ended (`dirty-pages-rate`: found
  by the last harvest, over the time since the one before), and a round may be shorter than a second.
* `mbps` and `pages-per-second` cover about a second before `now` if `tick` is called, else the round.
* `downtime` runs from the pause request to the receipt of `running`, and `downtime-parts` says where it went.
* Nothing is left out in `failed` and `cancelled`: the numbers are then needed most.

Sans I/O: every instant is an argument `now`, monotonic seconds. Not thread-safe: the machine that owns the
migration updates it, from one thread.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from migrate.kernel.results import STAGE_LAST, STAGE_ROUND, ApplyResult, FillResult
from migrate.protocol.round_stats import PageCounters, RoundStats, milliseconds, ratio

DOWNTIME_PARTS = ("pause", "harvest", "copy", "verify", "journals", "commands")

_WINDOW_SECONDS = 1.0


@dataclass(slots=True)
class MigrationStats:
    """Counters and instants of one migration at one side.

    The owner calls the methods as things happen and sets the plain fields; `as_dict` makes the report.
    """

    side: str = "source"
    status: str = "none"
    """One of QEMU's MigrationStatus names."""
    total: int = 0
    """Bytes of all RAM blocks."""
    page_size: int = 4096
    cache_size: int = 0
    """Agreed bytes of the page cache; 0: no XBZRLE, and no `xbzrle-cache` in the report."""
    expected_downtime_ms: float = 0.0
    remaining_pages: int = 0
    """Pages that wait to be sent; `add_fill` counts it down, the owner raises it (harvest, lane reset)."""
    transferred: int = 0
    """Bytes on all connections in the direction of the pages, headers included."""
    dirty_tracker: str | None = None
    verify: str | None = None
    throttle_percent: int = 0
    """What share of its time the guest loses to the throttle now."""
    reread_pages: int = 0
    """Clean pages that the source read again in the background."""
    unreported_pages: int = 0
    """Of these, pages that differed and that the tracker did not report."""
    lane_resets: int = 0
    reconnects: int = 0

    pages: PageCounters = field(default_factory=PageCounters)
    precopy_bytes: int = 0
    """Record bytes sent or applied while the guest ran."""
    downtime_bytes: int = 0
    """Record bytes sent or applied while the guest was stopped (stage LAST)."""

    rounds: list[RoundStats] = field(default_factory=list)
    started: float | None = None
    setup_ended: float | None = None
    pause_requested: float | None = None
    pause_ended: float | None = None
    ended: float | None = None
    aborted_pauses: int = 0
    aborted_pause_seconds: float = 0.0
    """Time the guest stood in pauses that were given up and resumed; not part of `downtime`."""
    _eta: tuple[float, float, float] | None = None
    _parts: dict[str, float] = field(default_factory=dict)
    _samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    # --- what happens -----------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The migration begins (QEMU's `setup`): `total-time` and `setup-time` count from here."""
        self.started = now

    def setup_done(self, now: float) -> None:
        """Handshake, files and tracker are ready: the first page can go."""
        self.setup_ended = now

    def finish(self, now: float) -> None:
        """The migration is over, one way or the other: the clocks stop. Only the first call counts."""
        if self.ended is None:
            self.ended = now
            self.round_ended(now)
            self._eta = None

    def round_started(self, round: int, dirty_pages: int, now: float) -> None:
        """A round begins with its harvest; one that has not ended yet ends here.

        Args:
            round: number, from 1; the numbers are those of QEMU's `dirty-sync-count`.
            dirty_pages: pages to send, owed ones included; becomes `remaining_pages`.
        """
        self.round_ended(now)
        row = RoundStats(round, dirty_pages, now, throttle_percent=self.throttle_percent)
        if self.rounds:
            row.dirty_rate = ratio(dirty_pages, now - self.rounds[-1].started)
        self.rounds.append(row)
        self.remaining_pages = dirty_pages

    def round_ended(self, now: float) -> None:
        """The round's last page is on its way. Without a running round nothing happens."""
        if self.rounds and self.rounds[-1].ended is None:
            self.rounds[-1].ended = now

    def add_fill(self, result: FillResult, stage: int, wire_bytes: int | None = None) -> None:
        """Source: count one batch.

        Args:
            stage: STAGE_LAST puts its records into `downtime-bytes`, any other into `precopy-bytes`.
            wire_bytes: what went out for it, header included; without it, the length of the records.
        """
        sent = result.length if wire_bytes is None else wire_bytes
        self.pages.add_fill(result)
        if self.rounds:
            self.rounds[-1].bytes += sent
            self.rounds[-1].pages.add_fill(result)
        self._add_records(result.length, stage)
        self.transferred += sent
        pages = result.zero + result.normal + result.xbzrle + result.unchanged
        self.remaining_pages = max(self.remaining_pages - pages, 0)

    def add_apply(
        self,
        result: ApplyResult,
        stage: int = STAGE_ROUND,
        record_bytes: int = 0,
        wire_bytes: int | None = None,
    ) -> None:
        """Destination: count one batch that was applied.

        Args:
            stage: as in `add_fill`.
            record_bytes: plain length of the body.
            wire_bytes: what came in for it, header included; without it, `record_bytes`.
        """
        received = record_bytes if wire_bytes is None else wire_bytes
        self.pages.add_apply(result)
        if self.rounds:
            self.rounds[-1].bytes += received
            self.rounds[-1].pages.add_apply(result)
        self._add_records(record_bytes, stage)
        self.transferred += received

    def add_wire(self, wire_bytes: int) -> None:
        """Count bytes that are no RAM records: control messages, round ends, device state."""
        self.transferred += wire_bytes

    def _add_records(self, length: int, stage: int) -> None:
        if stage == STAGE_LAST:
            self.downtime_bytes += length
        else:
            self.precopy_bytes += length

    def pause_started(self, now: float) -> None:
        """The pause of the guest is requested: `downtime` counts from here."""
        self.pause_requested = now
        self.pause_ended = None
        self._parts.clear()

    def pause_given_up(self, now: float) -> None:
        """The guest was resumed here without a handover; its stop was not the downtime of the migration."""
        if self.pause_requested is not None:
            self.aborted_pauses += 1
            self.aborted_pause_seconds += max(now - self.pause_requested, 0.0)
        self.pause_requested = None
        self._parts.clear()

    def guest_running(self, now: float) -> None:
        """`running` arrived from the destination: `downtime` ends."""
        self.pause_ended = now

    def downtime_part(self, name: str, seconds: float) -> None:
        """Add to one of DOWNTIME_PARTS. Raises KeyError for any other name."""
        if name not in DOWNTIME_PARTS:
            raise KeyError(name)
        self._parts[name] = self._parts.get(name, 0.0) + seconds

    def expect_end(self, now: float, eta: tuple[float, float] | None) -> None:
        """A new forecast: seconds from now, at best and at worst (`math.inf`: never); None: unknown."""
        self._eta = None if eta is None else (now, *eta)

    def tick(self, now: float) -> None:
        """Take a sample for `bandwidth` and `pages_per_second`; call it a few times a second."""
        if self._samples and now <= self._samples[-1][0]:
            return
        self._samples.append((now, self.transferred, self.pages.moved))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_SECONDS:
            self._samples.popleft()

    # --- what follows from it ---------------------------------------------------------------------

    @property
    def current_round(self) -> RoundStats | None:
        """The last round that began."""
        return self.rounds[-1] if self.rounds else None

    def _window(self, now: float) -> tuple[float, int, int]:
        """Seconds, bytes and pages (QEMU's count) of the window that ends at `now`."""
        if self._samples and now > self._samples[0][0]:
            then, transferred, pages = self._samples[0]
            return now - then, self.transferred - transferred, self.pages.moved - pages
        if row := self.current_round:
            return row.seconds(now), row.bytes, row.pages.moved
        return 0.0, 0, 0

    def bandwidth(self, now: float) -> float:
        """Bytes a second: of the last second or so; after the end, over the whole time after setup."""
        if self.ended is not None:
            return ratio(self.transferred, self.total_seconds(now) - self.setup_seconds(now))
        seconds, transferred, _ = self._window(now)
        return ratio(transferred, seconds)

    def pages_per_second(self, now: float) -> float:
        """Zero pages, whole pages and cache hits a second, over the same time as `bandwidth`."""
        if self.ended is not None:
            return ratio(self.pages.moved, self.total_seconds(now) - self.setup_seconds(now))
        seconds, _, pages = self._window(now)
        return ratio(pages, seconds)

    def time_left(self, now: float) -> tuple[float, float] | None:
        """Seconds to the end at best and at worst: the last forecast, less the time since; None: unknown."""
        if self._eta is None:
            return None
        then, best, worst = self._eta
        return max(best - (now - then), 0.0), max(worst - (now - then), 0.0)

    @property
    def dirty_rate(self) -> float:
        """Pages a second that the last harvest found; 0 before the second one and when completed."""
        row = self.current_round
        return 0.0 if row is None or self.status == "completed" else row.dirty_rate

    def total_seconds(self, now: float) -> float:
        """Since `start`, up to `finish`."""
        if self.started is None:
            return 0.0
        return max((self.ended if self.ended is not None else now) - self.started, 0.0)

    def setup_seconds(self, now: float) -> float:
        """From `start` to `setup_done`."""
        if self.started is None:
            return 0.0
        if self.setup_ended is None:
            return self.total_seconds(now)
        return max(self.setup_ended - self.started, 0.0)

    def downtime_seconds(self, now: float) -> float | None:
        """From the pause request to `running`, or up to now; None: never paused, or resumed here."""
        if self.pause_requested is None:
            return None
        until = self.pause_ended if self.pause_ended is not None else self.ended
        return max((now if until is None else until) - self.pause_requested, 0.0)

    def downtime_parts(self, now: float) -> dict[str, float]:
        """Seconds of each of DOWNTIME_PARTS, and `other`: what none of them accounts for."""
        parts = {name: self._parts.get(name, 0.0) for name in DOWNTIME_PARTS}
        parts["other"] = max((self.downtime_seconds(now) or 0.0) - sum(parts.values()), 0.0)
        return parts

    def _rated_round(self) -> RoundStats | None:
        """The last ended round in which pages were sent: where QEMU's rates come from."""
        return next((row for row in reversed(self.rounds) if row.ended is not None and row.pages.sent), None)

    def as_dict(self, now: float, most_rounds: int | None = None) -> dict[str, object]:
        """The report in the shape of `query-migrate`: times in ms, sizes in bytes. Ready for JSON.

        `rounds` lists all of them, or the last `most_rounds`: a small guest makes thousands a minute, and who
        asks while it moves must not wait for them all. The destination has no `expected-downtime`, no cache
        lookups and no `remaining`: it cannot know them.
        """
        report: dict[str, object] = {
            "status": self.status,
            "total-time": milliseconds(self.total_seconds(now)),
            "setup-time": milliseconds(self.setup_seconds(now)),
        }
        if (downtime := self.downtime_seconds(now)) is not None:
            report["downtime"] = milliseconds(downtime)
            report["downtime-parts"] = {
                name: milliseconds(seconds) for name, seconds in self.downtime_parts(now).items()
            }
        elif self.side == "source" and self.ended is None:
            report["expected-downtime"] = round(self.expected_downtime_ms)
        if self.aborted_pauses:
            report["aborted-pauses"] = {
                "count": self.aborted_pauses,
                "time": milliseconds(self.aborted_pause_seconds),
            }
        report["ram"] = self._ram(now)
        if self.cache_size:
            report["xbzrle-cache"] = self._xbzrle_cache()
        if self.throttle_percent:
            report["cpu-throttle-percentage"] = self.throttle_percent
        report["lane-resets"] = self.lane_resets
        report["reconnects"] = self.reconnects
        if self.dirty_tracker is not None:
            report["dirty-tracker"] = self.dirty_tracker
        if self.verify is not None:
            report["verify"] = self.verify
        if (left := self.time_left(now)) is not None:
            report["time-left"] = [milliseconds(bound) if math.isfinite(bound) else None for bound in left]
        listed = len(self.rounds) if most_rounds is None else most_rounds
        rows = self.rounds[max(0, len(self.rounds) - listed) :]
        report["rounds"] = [row.as_dict(now, self.page_size) for row in rows]
        return report

    def _ram(self, now: float) -> dict[str, object]:
        ram: dict[str, object] = {
            "transferred": self.transferred,
            "total": self.total,
            "duplicate": self.pages.zero,
            "normal": self.pages.normal,
            "normal-bytes": self.pages.normal * self.page_size,
            "page-size": self.page_size,
            "dirty-sync-count": self.rounds[-1].round if self.rounds else 0,
            "mbps": round(self.bandwidth(now) * 8 / 1e6, 3),
            "pages-per-second": round(self.pages_per_second(now)),
            "precopy-bytes": self.precopy_bytes,
            "downtime-bytes": self.downtime_bytes,
        }
        if self.side == "source":
            completed = self.status == "completed"
            ram["remaining"] = 0 if completed else self.remaining_pages * self.page_size
            ram["dirty-pages-rate"] = round(self.dirty_rate)
            ram["unchanged"] = self.pages.unchanged
            ram["reread-pages"] = self.reread_pages
            ram["unreported-pages"] = self.unreported_pages
        else:
            ram["pages-written"] = self.pages.written
        return ram

    def _xbzrle_cache(self) -> dict[str, object]:
        cache: dict[str, object] = {"cache-size": self.cache_size, "encoded-pages": self.pages.xbzrle}
        if self.side == "source":
            row = self._rated_round()
            cache |= {
                "bytes": self.pages.xbzrle_bytes,
                "pages": self.pages.cache_hit,
                "cache-miss": self.pages.cache_miss,
                "cache-miss-rate": 0.0 if row is None else round(row.pages.miss_rate, 4),
                "encoding-rate": 0.0 if row is None else round(row.pages.encoding_rate(self.page_size), 2),
                "overflow": self.pages.overflow,
            }
        return cache
