"""A migration as the reporters are told of it, and a terminal that shows what is left on its screen."""

from __future__ import annotations

import re
from collections.abc import Callable

from migrate.daemon.reporter import Reporter
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND, ApplyResult, FillResult
from migrate.protocol.stats import MigrationStats

MIB = 1 << 20


def filled(length: int = 0, **counts: int) -> FillResult:
    """A FillResult with these counts and no others."""
    names = ("zero", "normal", "xbzrle", "unchanged", "cache_hit", "cache_miss", "overflow", "xbzrle_bytes")
    assert set(counts) <= set(names)
    records = sum(counts.get(name, 0) for name in ("zero", "normal", "xbzrle"))
    values = {name: counts.get(name, 0) for name in names}
    return FillResult(
        length, records, next_page=0, finished=True, crc=0, digest_sum=0, root_delta=0, **values
    )


def applied(zero: int = 0, normal: int = 0, xbzrle: int = 0, written: int = 0) -> ApplyResult:
    """An ApplyResult with these counts."""
    return ApplyResult(zero + normal + xbzrle, 0, zero, normal, xbzrle, written)


def source_stats() -> MigrationStats:
    """A source before its first second: 1 GiB, a cache of 64 MiB."""
    return MigrationStats(
        total=1 << 30,
        cache_size=64 * MIB,
        dirty_tracker="scan",
        verify="ram",
        expected_downtime_ms=300,
    )


def tell_migration(
    reporter: Reporter, *, after_progress: Callable[[], None] = lambda: None
) -> tuple[MigrationStats, float]:
    """A migration with two rounds, a cut and a pause; returns its final numbers and the last instant.

    `after_progress` is called whenever the progress was told.
    """
    stats = source_stats()

    def progress(now: float) -> None:
        stats.tick(now)
        reporter.progress(stats, now)
        after_progress()

    reporter.event("connected", peer="192.0.2.7:4444")
    stats.start(100.0)
    reporter.event("negotiated", page_size=4096, lanes=1, xbzrle_cache_size=64 * MIB, verify="ram")
    reporter.event(
        "tracker", name="scan", reasons=["wp: the guest gave no userfaultfd", "scan: always works"]
    )
    reporter.event("status", old="setup", new="active")
    stats.status = "active"
    stats.setup_done(100.5)
    stats.round_started(1, 262144, 100.5)
    for second in range(8):
        stats.add_fill(filled(100 * MIB, zero=7168, normal=25600), STAGE_BULK)
        progress(101.5 + second)
    stats.round_ended(108.5)
    reporter.event("round", **stats.rounds[-1].as_dict(108.5, 4096))
    stats.round_started(2, 12000, 108.5)
    stats.expected_downtime_ms = 412
    stats.expect_end(108.5, (4.0, 9.0))
    reporter.event("reconnecting", attempt=1, delay=0.5, reason="connection reset by peer")
    reporter.event("lane-reset", lane=0, epoch=2, reason="connection reset by peer", owed_pages=512)
    reporter.event("reconnected", seconds=0.5, owed_pages=512)
    batch = filled(
        3 * MIB, normal=1000, xbzrle=9000, unchanged=40, cache_hit=9010, cache_miss=990, overflow=10,
        xbzrle_bytes=MIB,
    )  # fmt: skip
    stats.add_fill(batch, STAGE_ROUND)
    progress(109.5)
    reporter.event("round", **stats.rounds[-1].as_dict(109.5, 4096))
    stats.expect_end(109.5, None)
    stats.status = "device"
    stats.pause_started(109.5)
    reporter.event("paused", seconds=0.002)
    stats.round_started(3, 900, 109.5)
    progress(109.6)
    for name, seconds in (("pause", 0.002), ("harvest", 0.03), ("copy", 0.04), ("verify", 0.06)):
        stats.downtime_part(name, seconds)
    stats.add_fill(filled(MIB, normal=20, xbzrle=880, cache_hit=880, cache_miss=20), STAGE_LAST)
    reporter.event("round", **stats.rounds[-1].as_dict(109.65, 4096))
    for name in ("prepared", "committed", "running"):
        reporter.event(name)
    stats.guest_running(109.65)
    stats.status = "completed"
    stats.lane_resets = stats.reconnects = 1
    stats.finish(109.75)
    reporter.summary(stats, 109.75, "completed", guest="runs at the destination (192.0.2.7)")
    return stats, 109.75


class Screen:
    """What a terminal of so many columns shows after the text written to it; it scrolls without end.

    Knows what rich uses: CR, LF (with the CR that a terminal line adds), cursor up, erase line, cursor on and
    off, colours (dropped), and the wrap at the right edge.
    """

    _TOKENS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.cursor_visible = True
        self.writes: list[str] = []
        self._lines: list[list[str]] = [[]]
        self._row = 0
        self._column = 0

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing is kept back."""

    def write(self, text: str) -> int:
        self.writes.append(text)
        position = 0
        for match in self._TOKENS.finditer(text):
            assert match.start() == position, f"a control this screen does not know: {text[position:]!r}"
            position = match.end()
            parameter, final, newline, plain = match.groups()
            if final is not None:
                self._control(parameter, final)
            elif newline == "\r":
                self._column = 0
            elif newline == "\n":
                self._down()
            else:
                for character in plain:
                    self._put(character)
        assert position == len(text), f"a control this screen does not know: {text[position:]!r}"
        return len(text)

    def _control(self, parameter: str, final: str) -> None:
        if final == "A":
            self._row = max(self._row - int(parameter or 1), 0)
        elif final == "K":
            assert parameter == "2"
            self._lines[self._row] = []
        elif parameter == "?25":
            self.cursor_visible = final == "h"
        else:
            assert final == "m", f"unknown control {parameter}{final}"

    def _down(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self._lines):
            self._lines.append([])

    def _put(self, character: str) -> None:
        if self._column == self.columns:
            self._down()
        line = self._lines[self._row]
        line.extend(" " * (self._column + 1 - len(line)))
        line[self._column] = character
        self._column += 1

    @property
    def text(self) -> str:
        """All lines, without the blanks at their ends."""
        return "\n".join("".join(line).rstrip() for line in self._lines)
