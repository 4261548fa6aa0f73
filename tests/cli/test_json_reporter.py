"""JSON lines: one valid object a line, names that stay."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from cli_support import source_stats, tell_migration

from migrate.cli.json_reporter import JsonReporter, dropped_notice
from migrate.daemon.reporter import CheckItem
from migrate.errors import NetworkError, RecordError


def told(tell: Any) -> list[dict[str, Any]]:
    out = io.StringIO()
    reporter = JsonReporter(out, wall_clock=lambda: 1_700_000_000.25)
    tell(reporter)
    reporter.close()
    lines = out.getvalue().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.loads(line, parse_constant=lambda name: f"not JSON: {name}") for line in lines]


def test_a_migration_in_json() -> None:
    events = told(tell_migration)
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "connected", "negotiated", "tracker", "status", "round", "reconnecting", "lane-reset", "reconnected",
        "round", "paused", "round", "prepared", "committed", "running", "summary",
    ]  # fmt: skip
    assert all(event["timestamp"] == {"seconds": 1_700_000_000, "microseconds": 250_000} for event in events)
    by_name = {event["event"]: event for event in events}
    assert by_name["negotiated"]["xbzrle-cache-size"] == 64 << 20
    assert by_name["tracker"]["name"] == "scan"
    assert by_name["lane-reset"]["owed-pages"] == 512
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2, 3]


def test_the_summary_has_qemus_names() -> None:
    summary = told(tell_migration)[-1]
    assert list(summary) == [
        "event", "timestamp", "outcome", "side", "guest", "status", "total-time", "setup-time", "downtime",
        "downtime-parts", "ram", "xbzrle-cache", "lane-resets", "reconnects", "dirty-tracker", "verify",
        "rounds",
    ]  # fmt: skip
    assert set(summary["ram"]) == {
        "transferred", "remaining", "total", "duplicate", "normal", "normal-bytes", "page-size", "unchanged",
        "dirty-sync-count", "dirty-pages-rate", "mbps", "pages-per-second", "precopy-bytes", "downtime-bytes",
        "reread-pages", "unreported-pages",
    }  # fmt: skip
    assert set(summary["xbzrle-cache"]) == {
        "cache-size", "bytes", "pages", "cache-miss", "cache-miss-rate", "encoding-rate", "overflow",
        "encoded-pages",
    }  # fmt: skip
    assert (summary["outcome"], summary["status"]) == ("completed", "completed")
    assert summary["guest"] == "runs at the destination (192.0.2.7)"
    assert len(summary["rounds"]) == 3


def test_progress_comes_once_a_second_without_the_rounds() -> None:
    def tell(reporter: JsonReporter) -> None:
        stats = source_stats()
        stats.round_started(1, 10, 0.0)
        for quarter in range(9):
            reporter.progress(stats, quarter / 4)

    events = told(tell)
    assert [event["event"] for event in events] == ["progress"] * 3
    assert all("rounds" not in event for event in events)
    assert events[0]["ram"]["remaining"] == 40960


def test_progress_of_the_next_migration_is_not_held_back() -> None:
    def tell(reporter: JsonReporter) -> None:
        stats = source_stats()
        reporter.progress(stats, 5.0)
        reporter.summary(stats, 5.1, "failed")
        reporter.progress(stats, 5.2)

    assert [event["event"] for event in told(tell)] == ["progress", "summary", "progress"]


def test_an_error_in_json() -> None:
    error = NetworkError("no answer", side="source", guest="runs at the source", hint="look at the link")
    rule = RecordError("bad-offset", 7, "beyond the block")
    first, second = told(lambda reporter: (reporter.error(error), reporter.error(rule)))
    assert list(first) == ["event", "timestamp", "class", "exit-code", "message", "side", "guest", "hint"]
    assert first["class"] == "NetworkError"
    assert first["exit-code"] == 4
    assert (first["side"], first["guest"], first["hint"]) == (
        "source",
        "runs at the source",
        "look at the link",
    )
    assert (second["class"], second["exit-code"], second["hint"]) == ("RecordError", 5, None)


def test_check_items_are_objects() -> None:
    item = CheckItem(what="RAM block pc.ram", value="1 GiB on both sides", verdict="ok")
    (event,) = told(lambda reporter: reporter.event("check", items=[item]))
    assert event["items"] == [{"what": "RAM block pc.ram", "value": "1 GiB on both sides", "verdict": "ok"}]


def test_whatever_a_field_holds_the_line_is_json() -> None:
    fields: dict[str, Any] = {
        "infinite": math.inf,
        "nan": [math.nan],
        "bytes": b"\x01\xff",
        "path": Path("/x"),
        "nested_names": {"pc_ram": (1, 2.5)},
        "text": "\x1b[2J\n\ud800",
        "object": ValueError("why"),
        "many": {3},
    }
    (event,) = told(lambda reporter: reporter.event("strange", **fields))
    assert event["infinite"] is None
    assert event["nan"] == [None]
    assert event["bytes"] == "01ff"
    assert event["path"] == "/x"
    assert event["nested-names"] == {"pc_ram": [1, 2.5]}  # only names of fields get dashes
    assert event["text"] == "\x1b[2J\n\ud800"
    assert event["object"] == "why"
    assert event["many"] == [3]


def test_a_gap_in_the_output_is_an_event() -> None:
    event = json.loads(dropped_notice(12))
    assert event["event"] == "warning"
    assert "12 bytes" in event["message"]
