"""Log lines, and the words that all reporters share."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from cli_support import source_stats, tell_migration

from migrate.cli.log_reporter import QUIET_SECONDS, LogReporter
from migrate.cli.plain_text import percent
from migrate.cli.wording import event_text
from migrate.daemon.reporter import CheckItem
from migrate.errors import CancelledMigration, GuestError, MigrateError, UndecidedError


def told(tell: Callable[[LogReporter], object], side: str = "source") -> tuple[list[str], str]:
    """Lines of standard output, without their time stamps, and standard error."""
    out, errors = io.StringIO(), io.StringIO()
    reporter = LogReporter(out, errors, program="migrate-src", side=side, wall_clock=lambda: 86_400 * 365.25)
    tell(reporter)
    reporter.close()
    lines = out.getvalue().splitlines()
    stamp = len("1970-12-31 18:00:00.000 ")
    assert all(line[4] == "-" and line[stamp - 5] == "." for line in lines)
    return [line[stamp:] for line in lines], errors.getvalue()


def test_a_migration_in_lines() -> None:
    lines, errors = told(tell_migration)
    assert errors == ""
    assert lines == [
        "connected to 192.0.2.7:4444",
        "agreed: page-size 4 KiB, lanes 1, xbzrle-cache-size 64 MiB, verify ram",
        "dirty tracker: scan (wp: the guest gave no userfaultfd; always works)",
        "status setup -> active",
        "round 1: 262k pages to send, sent 800 MiB in 8.00 s (100 MiB/s), normal 205k, zero 57.3k, xbzrle 0, "
        "unchanged 0",
        "connection lost: connection reset by peer; attempt 1 in 500 ms",
        "lane 0 reset (epoch 2): connection reset by peer; 512 pages to send again",
        "connected again after 500 ms; 512 pages to send again",
        "round 2: 12k pages to send, sent 3 MiB in 1.00 s (3 MiB/s), normal 1000, zero 0, xbzrle 9000, "
        "unchanged 40, dirty rate 1500 pages/s, cache hits 90 %",
        "guest paused within 2.0 ms",
        "round 3: 900 pages to send, sent 1 MiB in 150 ms (6.67 MiB/s), normal 20, zero 0, xbzrle 880, "
        "unchanged 0, dirty rate 900 pages/s, cache hits 97 %",
        "destination prepared: it can run the guest",
        "committed: the guest belongs to the destination",
        "guest runs at the destination",
        "migration completed",
        "  guest: runs at the destination (192.0.2.7)",
        "  total time: 9.75 s, setup 500 ms of it",
        "  downtime: 150 ms: pause 2.0 ms, harvest 30 ms, copy 40 ms, verify 60 ms, other 18 ms",
        "  rounds: 3",
        "  sent: 804 MiB for 1 GiB of RAM, 86.9 MiB/s (729 Mbit/s)",
        "  pages: normal 206k, zero 57.3k, xbzrle 9880, unchanged 40",
        "  XBZRLE cache: 64 MiB, hits 9890 (90 %), misses 1010, overflows 10, encoding rate 38.6",
        "  dirty tracker: scan",
        "  verified: ram: the destination's RAM was read back and is equal",
        "  network: 1 lane reset, 1 reconnect",
    ]


def test_a_failed_migration_does_not_claim_to_be_verified() -> None:
    stats = source_stats()
    stats.status = "failed"
    stats.transferred = 4096
    lines, _ = told(
        lambda reporter: reporter.summary(stats, 1.0, "failed", guest="the guest runs at the source")
    )
    assert lines[:2] == ["migration failed", "  guest: runs at the source"]
    assert "  XBZRLE cache: 64 MiB, not used yet" in lines
    assert not any("verified" in line for line in lines)


def test_a_migration_that_moved_nothing_shows_no_zeros() -> None:
    stats = source_stats()
    stats.status = "failed"
    lines, _ = told(
        lambda reporter: reporter.summary(stats, 1.0, "failed", guest="the guest runs here", tries=2)
    )
    assert lines == ["migration failed", "  guest: runs here", "  total time: 0 ms", "  tries: 2"]


def test_what_a_hook_said_stays_on_one_line() -> None:
    lines, _ = told(lambda reporter: reporter.event("resumed", reason="it ended with 1\nit said: no"))
    assert lines == ["guest resumed at the source: it ended with 1; it said: no"]


def test_further_facts_of_a_summary_are_shown() -> None:
    lines, _ = told(
        lambda reporter: reporter.summary(source_stats(), 1.0, "failed", state_bytes=2048, tries=2)
    )
    assert lines[-2:] == ["  state-bytes: 2 KiB", "  tries: 2"]


def test_progress_speaks_only_after_a_long_silence() -> None:
    stats = source_stats()
    stats.round_started(1, 262144, 0.0)

    def tell(reporter: LogReporter) -> None:
        for second in range(70):
            reporter.progress(stats, float(second))
            if second == 40:
                reporter.event("status", old="a", new="b")

    lines, _ = told(tell)
    # At 30 s; the event at 40 s begins a new silence, seen from 41 s on.
    assert lines == [
        "round 1, 1 GiB remaining, 0 B/s",
        "status a -> b",
    ]
    assert QUIET_SECONDS == 30


def test_progress_in_words() -> None:
    stats = source_stats()
    stats.round_started(1, 262144, 0.0)
    stats.round_started(2, 25600, 10.0)
    stats.pages.cache_hit, stats.pages.cache_miss = 3, 1
    stats.expect_end(10.0 + QUIET_SECONDS, (4.0, 9.0))

    def tell(reporter: LogReporter) -> None:
        reporter.progress(stats, 10.0)
        reporter.progress(stats, 10.0 + QUIET_SECONDS)

    lines, _ = told(tell)
    assert lines == [
        "round 2, 100 MiB remaining, 0 B/s, dirty rate 10 MiB/s, cache hits 75 %, expected downtime 300 ms, "
        "time left 4 to 9 s"
    ]


def test_the_pre_flight_as_a_table() -> None:
    items = [
        CheckItem(what="RAM block pc.ram", value="1 GiB on both sides", verdict="ok"),
        CheckItem(what="space", value="700 MiB free, 1 GiB needed", verdict="failed"),
        CheckItem(what="clock", value="1970", verdict="note"),
    ]
    lines, _ = told(lambda reporter: reporter.event("check", items=items))
    assert lines == [
        "ok      RAM block pc.ram  1 GiB on both sides",
        "failed  space             700 MiB free, 1 GiB needed",
        "note    clock             1970",
        "the migration cannot be done: space",
    ]
    lines, _ = told(lambda reporter: reporter.event("check", items=[items[0], items[2]]))
    assert lines[2:] == ["nothing stands in the way of the migration; nothing was moved"]


@pytest.mark.parametrize(
    ("error", "block"),
    [
        (
            GuestError(
                "process 77 did not stop:\nthread 78 in state D",
                side="source",
                guest="the guest runs at the source",
                hint="see what thread 78 waits for, then repeat",
            ),
            "migrate-src: error: process 77 did not stop:\n    thread 78 in state D\n"
            "  failed at: the source\n"
            "  guest: runs at the source\n"
            "  next: see what thread 78 waits for, then repeat\n"
            "  exit code: 6 (guest)\n",
        ),
        (
            UndecidedError("no answer to commit", guest="is paused at the source"),
            "migrate-src: error: no answer to commit\n"
            "  guest: is paused at the source\n"
            "  exit code: 10 (undecided)\n",
        ),
        (
            CancelledMigration("SIGTERM", side="destination"),
            "migrate-src: cancelled: SIGTERM\n"
            "  cancelled at: the destination\n"
            "  exit code: 130 (cancelled)\n",
        ),
        (
            CancelledMigration("cancelled (SIGINT)"),
            "migrate-src: cancelled (SIGINT)\n  exit code: 130 (cancelled)\n",
        ),
        (MigrateError(""), "migrate-src: error: MigrateError\n  exit code: 1 (unexpected)\n"),
    ],
)
def test_the_error_block(error: MigrateError, block: str) -> None:
    lines, errors = told(lambda reporter: reporter.error(error))
    assert lines == []
    assert errors == block


def test_a_peer_cannot_steer_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\r\x9b2J\u202e"

    def tell(reporter: LogReporter) -> None:
        reporter.event("lane-reset", lane=evil, reason=evil)
        reporter.event("warning", message=evil)
        reporter.event(evil, **{evil: [evil, {evil: evil}]})
        reporter.event("connected", peer=evil)
        reporter.event("listening", host=evil, port=evil)
        reporter.event("tracker", name=evil, reasons={evil: evil})
        reporter.event("check", items=[CheckItem(what=evil, value=evil, verdict="ok")])
        reporter.summary(source_stats(), 0.0, evil, guest=evil, fact=evil)
        reporter.error(MigrateError(evil, side=evil, guest=evil, hint=evil))

    lines, errors = told(tell)
    text = "".join(lines) + errors.replace("\n", "")
    assert text.isprintable()
    assert "\\x1b]0;owned\\x07" in text


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("listening", {"host": "0.0.0.0", "port": 4444}, "listening on 0.0.0.0:4444"),
        ("listening", {"host": "::", "port": 4444}, "listening on [::]:4444"),
        ("tracker", {"name": "scan", "reasons": "asked for"}, "dirty tracker: scan (asked for)"),
        ("tracker", {"name": "scan", "reasons": {"wp": "old"}}, "dirty tracker: scan (wp: old)"),
        ("tracker", {"name": "scan"}, "dirty tracker: scan"),
        ("resumed", {"reason": "refused"}, "guest resumed at the source: refused"),
        ("pausing", {"reason": "it fits"}, "pausing the guest: it fits"),
        ("paused", {}, "guest paused"),
        ("lane-reset", {"lane": 1, "epoch": 3}, "lane 1 reset (epoch 3)"),
        (
            "lane-reset",
            {"lane": 1, "epoch": 3, "owed-pages": 1},
            "lane 1 reset (epoch 3); 1 page to send again",
        ),
        ("reconnected", {}, "connected again"),
        ("running", {"downtime": 0.171}, "guest runs at the destination (downtime 171 ms)"),
        ("cancelled", {"reason": "SIGINT"}, "cancelled: SIGINT"),
        ("unheard-of", {}, "unheard-of"),
        (
            "unheard-of",
            {"max-bandwidth": 0, "bandwidth": 1 << 20, "limit-ms": 5, "timeout": 2.0, "ok": True, "no": None,
             "list": [], "share": 0.5},
            "unheard-of: max-bandwidth unlimited, bandwidth 1 MiB/s, limit-ms 5.0 ms, timeout 2.00 s, "
            "ok yes, no none, list none, share 0.5",
        ),
    ],
)  # fmt: skip
def test_events_in_words(name: str, fields: dict[str, Any], text: str) -> None:
    assert event_text(name, fields, "source") == text


def test_the_destination_tells_its_side_of_it() -> None:
    assert event_text("connected", {"peer": "a:1"}, "destination") == "connection from a:1"
    stored = {"blocks": [{"file": "/x/mem.ram"}], "received-bytes": 1 << 20, "guest": "at the source"}
    text = "stored 1 MiB of a QEMU's stream: /x/mem.ram; the guest is at the source"
    assert event_text("stored", stored, "destination") == text
    assert (
        event_text("waiting", {"reason": "silent for 10 s", "seconds": 60.0}, "destination")
        == "connection lost: silent for 10 s; waiting for up to 1 min 00 s for the source to come back"
    )


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.042, "4.2 %"), (0.9999, "99 %"), (1.0, "100 %"), (0.0999, "9 %")]
)
def test_only_all_is_100_percent(share: float, text: str) -> None:
    assert percent(share) == text
