"""The report of one run: what a side saw of a migration, collected while it happens, as one JSON object.

    {"schema": "migrate-report", "version": 1, "side": …, "migration": hex, "attempt": …,
     "software": {…}, "started-at": seconds since the epoch, "configuration": {…}, "agreed": {…},
     "blocks": [{"name", "length"}], "tracker": {"name", "reasons", "promise"} | null,
     "timeline": {"columns": [names], "rows": [[numbers or null]]}, "events": [{"at", "event", …}],
     "statistics": `MigrationStats.as_dict` | null, "outcome": …, "guest": …, "error": {…} | null}

Instants are seconds of one monotonic clock since the migration began, at `started-at` of the wall clock.
Counters of the timeline are running totals, so that a row less loses detail and no number. Sizes are bytes.
The size is bounded however long a run takes: MOST_SAMPLES, MOST_EVENTS, MOST_ROUNDS.

`migrate.protocol.report_reading` reads it. Sans I/O: every instant is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from migrate.config import DestinationConfig, SourceConfig
from migrate.protocol.stats import MigrationStats

SCHEMA = "migrate-report"
VERSION = 1

MOST_SAMPLES = 1000
MOST_EVENTS = 400
"""Half of them the first, half the last."""
MOST_ROUNDS = 400
"""As MOST_EVENTS."""

TIMELINE_COLUMNS = (
    "time",
    "round",
    "transferred",
    "remaining",
    "dirty-pages-rate",
    "duplicate",
    "normal",
    "xbzrle",
    "cache-hits",
    "cache-misses",
    "xbzrle-bytes",
    "expected-downtime",
    "time-left-best",
    "time-left-worst",
)
"""`time-left-*` in seconds, null: unknown or never; `expected-downtime` in ms; others as in `statistics`."""

_NOT_KEPT = frozenset({"round", "migration", "tracker", "check"})
"""Events that have their own place in the report."""

_SETTINGS = (
    *("to", "listen", "ram", "once", "output_dir"),
    *("xbzrle_cache_size", "xbzrle_cache_rule", "xbzrle_cache_limit"),
    *("guest_pid", "guest_qmp", "guest_socket", "source_after", "dirty_tracker", "dirty_log", "warm"),
    *("state_dir", "arbiter"),
    *(
        "downtime_limit_ms",
        "max_bandwidth",
        "switchover_bandwidth",
        "max_rounds",
        "timeout",
        "timeout_action",
    ),
    *("verify", "compression", "lanes", "page_size", "keepalive_timeout", "reconnect_timeout", "check"),
)
"""Fields of a configuration that a report shows."""
_COMMANDS = ("pause_cmd", "resume_cmd", "state_cmd", "on_prepare", "on_commit", "is_running")
"""Fields that may hold secrets: the report only says whether they are set."""


def configuration(config: SourceConfig | DestinationConfig) -> dict[str, object]:
    """What a report shows of a configuration, by the names of the options."""
    shown: dict[str, object] = {}
    for name in _SETTINGS:
        value = getattr(config, name, None)
        if value is None:
            continue
        if name in ("ram", "dirty_log"):
            value = [f"{spec.name}={spec.path}" for spec in value]
        elif not isinstance(value, bool | int | float):
            value = str(value)
        shown[name.replace("_", "-")] = value
    for name in _COMMANDS:
        if hasattr(config, name):
            shown[name.replace("_", "-")] = "set" if getattr(config, name) is not None else "not set"
    return shown


class RunReport:
    """What is known so far of one migration at one side.

    Args:
        software: versions, by what they are of.
        settings: see `configuration`.
    """

    def __init__(self, side: str, software: Mapping[str, str], settings: Mapping[str, object]) -> None:
        self.side = side
        self.migration = ""
        """Hexadecimal; empty before there is one."""
        self._software = dict(software)
        self._settings = settings
        self._began = 0.0
        self._started_at = 0.0
        self._attempt = 1
        self._blocks: object = []
        self._agreed: Mapping[str, object] = {}
        self._tracker: Mapping[str, object] | None = None
        self._rows: list[list[float | None]] = []
        self._interval = 0.0
        self._first_events: list[dict[str, object]] = []
        self._last_events: deque[dict[str, object]] = deque(maxlen=MOST_EVENTS // 2)
        self._events = 0
        self._statistics: dict[str, object] | None = None
        self._outcome = ""
        self._guest: object = None
        self._error: Mapping[str, object] | None = None

    def begin(self, now: float, wall: float) -> None:
        """The clocks count from here; what was noted before counts as of this moment.

        Args:
            wall: the same instant, in seconds since the epoch.
        """
        self._began = now
        self._started_at = wall
        for event in (*self._first_events, *self._last_events):
            event["at"] = 0.0

    def event(self, now: float, name: str, fields: Mapping[str, object]) -> None:
        """Something happened; fields as JSON has them, with dashes in their names."""
        attempt = fields.get("attempt")
        if isinstance(attempt, int):
            self._attempt = max(self._attempt, attempt)
        match name:
            case "migration":
                self.migration = str(fields["id"])
                self._blocks = fields["blocks"]
            case "negotiated":
                self._agreed = fields
                if "peer" in fields:
                    self._software["peer"] = str(fields["peer"])
            case "tracker":
                self._tracker = fields
        if name in _NOT_KEPT:
            return
        kept = {"at": self._at(now), "event": name, **fields}
        self._events += 1
        if len(self._first_events) < MOST_EVENTS - MOST_EVENTS // 2:
            self._first_events.append(kept)
        else:
            self._last_events.append(kept)

    def sample(self, stats: MigrationStats, now: float) -> None:
        """Take a row of the timeline, unless the last one is too young for so long a run."""
        if self._rows and self._at(now) < (self._rows[-1][0] or 0.0) + self._interval:
            return
        self._rows.append(self._row(stats, now))
        if len(self._rows) > MOST_SAMPLES:
            self._interval = max(2 * self._interval, 2 * self._span() / len(self._rows))
            self._rows = self._rows[::2]

    def end(
        self, stats: MigrationStats, now: float, outcome: str, guest: object, extra: Mapping[str, object]
    ) -> None:
        """The migration is over: its numbers.

        Args:
            guest: where it runs now.
            extra: further facts; they become an event.
        """
        self._rows.append(self._row(stats, now))
        report = stats.as_dict(now)
        rows = [
            row.as_dict(now, stats.page_size) | {"start": round(row.started - self._began, 6)}
            for row in stats.rounds
        ]
        half = MOST_ROUNDS // 2
        if len(rows) > MOST_ROUNDS:
            report["rounds-left-out"] = len(rows) - MOST_ROUNDS
            rows = rows[:half] + rows[-half:]
        report["rounds"] = rows
        if stats.pause_requested is not None:
            report["pause-requested"] = self._at(stats.pause_requested)
        self._statistics = report
        self._outcome = outcome
        self._guest = guest
        self.event(now, "ended", {"outcome": outcome, **extra})

    def failed(self, error: Mapping[str, object], outcome: str) -> None:
        """Why it ended; the outcome counts where there were no numbers of a migration."""
        self._error = error
        self._outcome = self._outcome or outcome
        self._guest = self._guest or error.get("guest")

    def as_dict(self) -> dict[str, object]:
        """The report."""
        events = self._first_events + list(self._last_events)
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "side": self.side,
            "migration": self.migration,
            "attempt": self._attempt,
            "software": self._software,
            "started-at": round(self._started_at, 6),
            "configuration": self._settings,
            "blocks": self._blocks,
            "agreed": self._agreed,
            "tracker": self._tracker,
            "outcome": self._outcome,
            "guest": self._guest,
            "error": self._error,
            "statistics": self._statistics,
            "timeline": {"columns": TIMELINE_COLUMNS, "rows": self._rows},
            "events": events,
            "events-left-out": self._events - len(events),
        }

    def _at(self, now: float) -> float:
        return round(now - self._began, 6)

    def _span(self) -> float:
        return (self._rows[-1][0] or 0.0) - (self._rows[0][0] or 0.0)

    def _row(self, stats: MigrationStats, now: float) -> list[float | None]:
        pages = stats.pages
        source = stats.side == "source"
        best, worst = stats.time_left(now) or (None, None)
        return [
            self._at(now),
            stats.rounds[-1].round if stats.rounds else 0,
            stats.transferred,
            stats.remaining_pages * stats.page_size if source else None,
            round(stats.dirty_rate, 1) if source else None,
            pages.zero,
            pages.normal,
            pages.xbzrle,
            pages.cache_hit if source else None,
            pages.cache_miss if source else None,
            pages.xbzrle_bytes if source else None,
            round(stats.expected_downtime_ms, 1) if source and len(stats.rounds) > 1 else None,
            _finite(best),
            _finite(worst),
        ]


def _finite(value: float | None) -> float | None:
    return round(value, 3) if value is not None and math.isfinite(value) else None


def blocks_of(names_and_lengths: Sequence[tuple[str, int]]) -> list[dict[str, object]]:
    """RAM blocks as the event `migration` and the report have them."""
    return [{"name": name, "length": length} for name, length in names_and_lengths]
