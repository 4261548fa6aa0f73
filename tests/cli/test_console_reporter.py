"""The terminal: what stays on the screen, what the live display shows, at 80 and at 120 columns."""

from __future__ import annotations

import re

import pytest
from cli_support import MIB, Screen, applied, filled, source_stats, tell_migration
from rich.console import Console

from migrate.cli.console import ConsoleReporter, live_display
from migrate.daemon.reporter import CheckItem
from migrate.errors import MigrateError, NetworkError
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND
from migrate.protocol.stats import MigrationStats


def console_on(screen: Screen) -> Console:
    return Console(
        file=screen,  # type: ignore[arg-type]
        width=screen.columns,
        force_terminal=True,
        color_system="standard",
        markup=False,
        highlight=False,
        emoji=False,
    )


def reporter_on(screen: Screen, *, congested: bool = False) -> ConsoleReporter:
    console = console_on(screen)
    return ConsoleReporter(
        console,
        console,
        program="migrate-src",
        side="source",
        wall_clock=lambda: 0.0,
        congested=lambda: congested,
    )


def shown(stats: MigrationStats, now: float, width: int = 76) -> list[str]:
    """Lines of the live display."""
    console = Console(width=80, color_system=None, record=True, file=Screen(80))  # type: ignore[arg-type]
    console.print(live_display(stats, now, width))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("columns", [80, 120])
def test_after_a_migration_the_screen_tells_it_and_the_live_display_is_gone(columns: int) -> None:
    screen = Screen(columns)
    tell_migration(reporter_on(screen))
    text = re.sub(r"^\d\d:\d\d:\d\d ", "", screen.text, flags=re.MULTILINE)
    lines = text.splitlines()
    assert lines[0] == "connected to 192.0.2.7:4444"
    header = next(line for line in lines if "dirty pages/s" in line)
    rows = lines[lines.index(header) :]
    wide = columns == 120
    assert header.split() == (
        ["round", "dirty", "pages", "sent", "time", "rate", "dirty", "pages/s", "hits"]
        + (["normal", "zero", "xbzrle"] if wide else [])
    )
    assert rows[1].split() == (
        ["1", "262k", "800", "MiB", "8.00", "s", "100", "MiB/s", "-", "-"]
        + (["205k", "57.3k", "0"] if wide else [])
    )
    assert len(rows[0]) == len(rows[1])
    assert rows[2] == "connection lost: connection reset by peer; attempt 1 in 500 ms"
    assert any(row.split()[:5] == ["2", "12k", "3", "MiB", "1.00"] and "90 %" in row for row in rows)
    assert text.count("dirty pages/s") == 1  # one header for all rounds
    assert "remaining" not in text
    assert "━" not in text
    ending = text[text.index("migration completed") :]
    assert ending.splitlines()[1].split("  ")[1:] == [
        "guest", "", "", "", "", "runs at the destination (192.0.2.7)",
    ]  # fmt: skip
    flat = re.sub(r"\s+", " ", ending)
    for fact in (
        "total time 9.75 s, setup 500 ms of it",
        "downtime 150 ms: pause 2.0 ms, harvest 30 ms, copy 40 ms, verify 60 ms, other 18 ms",
        "sent 804 MiB for 1 GiB of RAM, 86.9 MiB/s (729 Mbit/s)",
        "pages normal 206k, zero 57.3k, xbzrle 9880, unchanged 40",
        "XBZRLE cache 64 MiB, hits 9890 (90 %), misses 1010, overflows 10, encoding rate 38.6",
        "network 1 lane reset, 1 reconnect",
    ):
        assert fact in flat
    assert screen.cursor_visible


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_the_live_display_stays_in_its_place_and_off_the_edge(columns: int) -> None:
    screen = Screen(columns)
    seen: list[str] = []

    def look() -> None:
        assert not screen.cursor_visible
        live = screen.text.splitlines()[-3:]
        assert "round" in live[0]
        assert screen.text.count("expected") == 1  # only one of it, however often it was drawn
        assert max(map(len, live)) <= columns - 4  # an echoed ^C must not wrap
        seen.append("\n".join(live))

    tell_migration(reporter_on(screen), after_progress=look)
    assert len(seen) == 10
    assert len(set(seen)) == 9  # one came too soon after the one before


def test_a_frame_is_one_write_and_they_come_at_most_five_a_second() -> None:
    screen = Screen(80)
    reporter = reporter_on(screen)
    stats = source_stats()
    stats.round_started(1, 1000, 0.0)
    reporter.progress(stats, 0.0)
    screen.writes.clear()
    for tick in range(1, 65):
        reporter.progress(stats, tick / 64)
    reporter.close()
    frames = [text for text in screen.writes if "remaining" in text]
    assert len(frames) == 4 + 1  # at 13, 26, 39 and 52 / 64, and the last one, which close() erases
    assert all("\x1b[2K" in text for text in frames)  # erased and redrawn in the same write: no flicker


def test_a_terminal_that_does_not_keep_up_gets_no_frames() -> None:
    screen = Screen(80)
    reporter = reporter_on(screen, congested=True)
    reporter.progress(source_stats(), 0.0)
    assert screen.writes == []


def test_the_live_display_of_a_round() -> None:
    stats = source_stats()
    stats.status = "active"
    stats.round_started(1, 262144, 0.0)
    stats.round_started(2, 25600, 10.0)
    stats.tick(10.0)
    batch = filled(20 * MIB, normal=5120, xbzrle=1280, cache_hit=1280, cache_miss=5120)
    stats.add_fill(batch, STAGE_ROUND)
    stats.tick(11.0)
    stats.expected_downtime_ms = 1234
    stats.expect_end(10.0, (5, 10))
    head, amounts, outlook = shown(stats, 11.0)
    assert head.startswith("active, round 2 ━")
    assert head.endswith("25 %")
    assert amounts.split() == [
        "remaining",
        "75",
        "MiB",
        "rate",
        "20",
        "MiB/s",
        "dirty",
        "rate",
        "10",
        "MiB/s",
    ]
    assert re.sub(r"\s+", " ", outlook) == "cache hits 20 % expected downtime 1.23 s time left 4 to 9 s"


def test_the_longest_values_fit_80_columns() -> None:
    stats = source_stats()
    stats.status = "pre-switchover"
    stats.round_started(99, 1, 0.0)
    stats.round_started(100, 10**9, 1.0)
    stats.tick(1.0)
    stats.transferred = 10**12
    stats.tick(2.0)
    stats.expected_downtime_ms = 99_999
    stats.expect_end(1.0, (float("inf"), float("inf")))
    stats.pause_started(1.0)
    lines = shown(stats, 2.0)
    assert len(lines) == 3
    assert "guest paused for 1.00 s" in lines[0]
    assert not any("…" in line for line in lines)


def test_before_anything_is_known_there_are_dashes_not_zeros() -> None:
    head, amounts, outlook = shown(MigrationStats(status="setup"), 0.0)
    assert head == "setup"
    assert re.sub(r"\s+", " ", amounts) == "remaining 0 B rate 0 B/s dirty rate -"
    assert re.sub(r"\s+", " ", outlook) == "cache hits no XBZRLE expected downtime - time left -"


def test_the_live_display_of_the_destination() -> None:
    stats = MigrationStats(side="destination", status="active", total=1 << 30)
    stats.round_started(1, 0, 0.0)
    stats.add_apply(applied(zero=100, normal=2560, written=2600), STAGE_BULK, 10 * MIB)
    head, amounts, counts = shown(stats, 2.0)
    assert head == "active, round 1"
    assert re.sub(r"\s+", " ", amounts) == "received 10 MiB rate 5 MiB/s of RAM 1 GiB"
    assert re.sub(r"\s+", " ", counts) == "pages 2660 written 2600 lane resets 0"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_pre_flight_as_a_table(columns: int) -> None:
    items = [
        CheckItem(what="RAM block pc.ram", value="1 GiB on both sides", verdict="ok"),
        CheckItem(
            what="space at the destination",
            value="700 MiB free in /dev/shm, 1 GiB needed, " * 3,
            verdict="failed",
        ),
        CheckItem(what="dirty tracker", value="scan: 0.2 s a round", verdict="note"),
    ]
    screen = Screen(columns)
    reporter_on(screen).event("check", items=items)
    lines = screen.text.splitlines()
    assert lines[0].split() == ["pre-flight", "value", "verdict"]
    assert lines[1].startswith("RAM block pc.ram          1 GiB on both sides")
    assert lines[1].endswith("ok")
    assert lines[2].endswith("failed")
    assert lines[-2].endswith("note")
    assert lines[-1].endswith("the migration cannot be done: space at the destination")
    assert re.sub(r"\s+", "", screen.text).count("1GiBneeded") == 3  # wrapped, not cut
    assert max(map(len, lines)) <= columns


def test_the_error_block_ends_the_live_display() -> None:
    screen = Screen(80)
    reporter = reporter_on(screen)
    stats = source_stats()
    stats.round_started(1, 1000, 0.0)
    reporter.progress(stats, 0.0)
    assert "remaining" in screen.text
    error = NetworkError(
        "192.0.2.7:4444 did not come back within 60 s: connection refused",
        side="source",
        guest="runs at the source, never paused",
        hint="see whether migrate-dst still runs there, then start this command again; that is all",
    )
    reporter.error(error)
    assert screen.cursor_visible
    assert screen.text.splitlines() == [
        "migrate-src: error: 192.0.2.7:4444 did not come back within 60 s: connection",
        "refused",
        "  failed at  the source",
        "  guest      runs at the source, never paused",
        "  next       see whether migrate-dst still runs there, then start this command",
        "             again; that is all",
        "  exit code  4 (network)",
    ]
    reporter.close()
    reporter.close()


def test_a_peer_cannot_steer_the_terminal() -> None:
    """Screen fails on any control that rich does not write itself."""
    evil = "\x1b]0;owned\x07\x1b[5B[bold]"
    screen = Screen(120)
    reporter = reporter_on(screen)
    reporter.event("warning", message=evil)
    reporter.event(evil, **{evil: evil})
    reporter.event("round", round=evil)
    reporter.event("check", items=[CheckItem(what=evil, value=evil, verdict="ok")])
    stats = source_stats()
    stats.dirty_tracker = evil
    reporter.summary(stats, 0.0, evil, guest=evil)
    reporter.error(MigrateError(evil, guest=evil))
    assert "\\x1b]0;owned\\x07\\x1b[5B[bold]" in screen.text


def test_the_next_migration_gets_a_header_of_its_own() -> None:
    screen = Screen(80)
    reporter = reporter_on(screen)
    tell_migration(reporter)
    tell_migration(reporter)
    assert screen.text.count("dirty pages/s") == 2
