"""Statistics: QEMU's definitions (qemu-ram-stream.md 3.9 and 10.5) on numbers worked out by hand."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from cli_support import MIB, applied, filled, source_stats, tell_migration

from migrate.cli.json_reporter import JsonReporter
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND
from migrate.protocol.stats import DOWNTIME_PARTS, MigrationStats


def report(stats: MigrationStats, now: float) -> dict[str, Any]:
    result = stats.as_dict(now)
    json.dumps(result, allow_nan=False)  # whatever state: it must be JSON
    return result


def test_before_anything_happened_there_is_a_report() -> None:
    result = report(MigrationStats(), 5.0)
    assert result["status"] == "none"
    assert result["total-time"] == result["setup-time"] == 0
    assert result["ram"]["dirty-sync-count"] == 0
    assert result["rounds"] == []
    assert "downtime" not in result
    assert "xbzrle-cache" not in result


def test_times_are_milliseconds_and_stop_at_the_end() -> None:
    stats = source_stats()
    stats.start(10.0)
    assert report(stats, 10.25)["setup-time"] == 250  # still in setup
    stats.setup_done(10.5)
    assert report(stats, 12.0)["total-time"] == 2000
    assert report(stats, 12.0)["setup-time"] == 500
    stats.finish(13.0)
    stats.finish(14.0)
    assert report(stats, 99.0)["total-time"] == 3000


def test_pages_and_bytes_are_counted_as_qemu_counts_them() -> None:
    stats = source_stats()
    stats.add_wire(100)
    stats.add_fill(filled(40960, zero=5, normal=10), STAGE_BULK, wire_bytes=41024)
    stats.add_fill(filled(900, xbzrle=20, normal=2, unchanged=3, cache_hit=21, overflow=1), STAGE_ROUND)
    stats.add_fill(filled(700, xbzrle=4), STAGE_LAST)
    ram = report(stats, 0.0)["ram"]
    assert ram["transferred"] == 100 + 41024 + 900 + 700
    assert (ram["duplicate"], ram["normal"]) == (5, 12)  # deltas are not in `normal`, overflows are
    assert ram["normal-bytes"] == 12 * 4096
    assert ram["total"] == 1 << 30
    assert ram["page-size"] == 4096
    assert (ram["precopy-bytes"], ram["downtime-bytes"]) == (40960 + 900, 700)
    assert ram["unchanged"] == 3


def test_the_cache_numbers_of_a_real_qemu_run() -> None:
    """736 pages that became 11 bytes each: bytes 8096, encoding rate 372.36."""
    stats = source_stats()
    stats.round_started(2, 800, 0.0)
    stats.add_fill(filled(736 * 19, xbzrle=736, cache_hit=736, xbzrle_bytes=8096), STAGE_ROUND)
    stats.round_ended(1.0)
    cache = report(stats, 1.0)["xbzrle-cache"]
    assert cache == {
        "cache-size": 64 * MIB,
        "encoded-pages": 736,
        "bytes": 8096,
        "pages": 736,
        "cache-miss": 0,
        "cache-miss-rate": 0.0,
        "encoding-rate": 372.36,
        "overflow": 0,
    }


def test_cache_rates_are_those_of_the_last_ended_round_that_sent_pages() -> None:
    stats = source_stats()
    stats.round_started(2, 100, 0.0)
    stats.add_fill(
        filled(1, zero=2, normal=66, xbzrle=32, cache_hit=32, cache_miss=66, xbzrle_bytes=4096), STAGE_ROUND
    )
    assert report(stats, 0.5)["xbzrle-cache"]["cache-miss-rate"] == 0.0  # none has ended
    stats.round_started(3, 10, 1.0)
    stats.add_fill(filled(1, xbzrle=10, cache_hit=10, xbzrle_bytes=40960), STAGE_ROUND)
    cache = report(stats, 1.5)["xbzrle-cache"]
    assert cache["cache-miss-rate"] == 0.66  # of the 100 pages sent, zero pages included
    assert cache["encoding-rate"] == 32.0
    stats.round_ended(2.0)
    assert report(stats, 2.0)["xbzrle-cache"]["encoding-rate"] == 1.0
    stats.round_started(4, 0, 2.0)
    stats.round_ended(2.1)
    assert report(stats, 2.1)["xbzrle-cache"]["encoding-rate"] == 1.0
    assert report(stats, 2.1)["xbzrle-cache"]["pages"] == 42  # the counts go on


def test_an_overflow_counts_as_hit_and_as_a_whole_page() -> None:
    stats = source_stats()
    stats.round_started(2, 1, 0.0)
    stats.add_fill(filled(1, normal=1, cache_hit=1, overflow=1, xbzrle_bytes=4096), STAGE_ROUND)
    stats.round_ended(1.0)
    cache = report(stats, 1.0)["xbzrle-cache"]
    assert (cache["pages"], cache["overflow"], cache["bytes"], cache["encoding-rate"]) == (1, 1, 4096, 1.0)
    assert stats.pages.hit_rate == 1.0


def test_without_a_cache_there_are_no_cache_numbers() -> None:
    stats = source_stats()
    stats.cache_size = 0
    assert "xbzrle-cache" not in report(stats, 0.0)


def test_dirty_pages_rate_is_what_a_harvest_found_over_the_time_since_the_one_before() -> None:
    stats = source_stats()
    stats.round_started(1, 262144, 10.0)
    assert (
        report(stats, 11.0)["ram"]["dirty-pages-rate"] == 0
    )  # round 1 sends everything: nothing is dirty yet
    stats.round_started(2, 5000, 14.0)
    assert report(stats, 14.0)["ram"]["dirty-pages-rate"] == 1250
    assert report(stats, 14.0)["ram"]["dirty-sync-count"] == 2
    stats.status = "completed"
    assert report(stats, 14.0)["ram"]["dirty-pages-rate"] == 0


def test_remaining_goes_down_with_every_page_looked_at_and_is_0_when_completed() -> None:
    stats = source_stats()
    stats.round_started(1, 100, 0.0)
    stats.add_fill(filled(1, zero=1, normal=2, xbzrle=3, unchanged=4), STAGE_BULK)
    assert report(stats, 0.0)["ram"]["remaining"] == 90 * 4096
    stats.remaining_pages += 5  # owed after a lane reset
    assert report(stats, 0.0)["ram"]["remaining"] == 95 * 4096
    stats.add_fill(filled(1, normal=200), STAGE_ROUND)
    assert stats.remaining_pages == 0
    stats.remaining_pages = 7
    stats.status = "completed"
    assert report(stats, 0.0)["ram"]["remaining"] == 0


def test_bandwidth_is_that_of_about_the_last_second() -> None:
    stats = source_stats()
    stats.round_started(1, 1000, 0.0)
    now = 0.0
    for batch in (1, 1, 1, 1, 3, 3, 3, 3):  # 4 MiB/s, then 12 MiB/s
        stats.tick(now)
        stats.add_fill(filled(batch * MIB, normal=256), STAGE_BULK)
        now += 0.25
    stats.tick(now)
    assert stats.bandwidth(now) == 12 * MIB
    assert report(stats, now)["ram"]["mbps"] == round(12 * MIB * 8 / 1e6, 3)
    assert report(stats, now)["ram"]["pages-per-second"] == 1024


def test_without_ticks_bandwidth_is_that_of_the_round() -> None:
    stats = source_stats()
    assert stats.bandwidth(1.0) == 0
    stats.round_started(1, 1000, 0.0)
    stats.add_fill(filled(8 * MIB, normal=10, cache_hit=2, unchanged=5), STAGE_ROUND)
    assert stats.bandwidth(2.0) == 4 * MIB
    assert stats.pages_per_second(2.0) == 6  # whole pages and hits


def test_a_tick_that_does_not_advance_changes_nothing() -> None:
    stats = source_stats()
    stats.tick(1.0)
    stats.add_fill(filled(MIB), STAGE_BULK)
    stats.tick(1.0)
    stats.tick(2.0)
    assert stats.bandwidth(2.0) == MIB


def test_mbps_of_a_finished_migration_is_over_the_time_after_setup() -> None:
    stats = source_stats()
    stats.start(0.0)
    stats.setup_done(1.0)
    stats.add_wire(50_000_000)
    stats.tick(2.0)
    stats.finish(5.0)
    assert report(stats, 9.0)["ram"]["mbps"] == 100.0  # 50 MB * 8 / 4 s


def test_expected_downtime_until_there_is_a_real_one() -> None:
    stats = source_stats()
    stats.start(0.0)
    assert report(stats, 1.0)["expected-downtime"] == 300
    stats.pause_started(5.0)
    assert "expected-downtime" not in report(stats, 5.1)
    assert report(stats, 5.1)["downtime"] == 100
    stats.guest_running(5.25)
    assert report(stats, 9.0)["downtime"] == 250


def test_the_parts_of_the_downtime_add_up() -> None:
    stats = source_stats()
    stats.pause_started(1.0)
    for name in DOWNTIME_PARTS:
        stats.downtime_part(name, 0.010)
    stats.downtime_part("copy", 0.030)
    stats.guest_running(1.1)
    result = report(stats, 2.0)
    assert result["downtime"] == 100
    assert result["downtime-parts"] == {
        "pause": 10,
        "harvest": 10,
        "copy": 40,
        "verify": 10,
        "journals": 10,
        "commands": 10,
        "other": 10,
    }
    with pytest.raises(KeyError):
        stats.downtime_part("coffee", 1.0)


def test_a_pause_that_was_given_up_is_told_but_not_the_downtime() -> None:
    stats = source_stats()
    stats.pause_started(1.0)
    stats.downtime_part("copy", 0.5)
    stats.pause_given_up(2.0)
    assert "downtime" not in report(stats, 3.0)
    stats.pause_started(4.0)
    stats.guest_running(4.2)
    result = report(stats, 5.0)
    assert result["downtime"] == 200
    assert result["downtime-parts"]["copy"] == 0
    assert result["aborted-pauses"] == {"count": 1, "time": 1000}


def test_the_downtime_of_an_undecided_migration_ends_with_it() -> None:
    stats = source_stats()
    stats.start(0.0)
    stats.pause_started(1.0)
    stats.finish(3.0)
    assert report(stats, 60.0)["downtime"] == 2000


def test_rows_of_rounds() -> None:
    stats = source_stats()
    stats.round_started(1, 1000, 0.0)
    stats.add_fill(filled(2 * MIB, zero=500, normal=500), STAGE_BULK)
    stats.round_started(2, 100, 2.0)
    batch = filled(
        MIB, normal=30, xbzrle=60, unchanged=10, cache_hit=61, cache_miss=29, overflow=1, xbzrle_bytes=5000
    )
    stats.add_fill(batch, STAGE_ROUND)
    first, second = report(stats, 2.5)["rounds"]
    assert first["time"] == 2000
    assert first["bandwidth"] == MIB
    assert first["cache-hit-rate"] is None
    assert second == {
        "round": 2,
        "dirty-pages": 100,
        "bytes": MIB,
        "time": 500,
        "bandwidth": 2 * MIB,
        "dirty-pages-rate": 50,
        "normal": 30,
        "duplicate": 0,
        "xbzrle": 60,
        "unchanged": 10,
        "cache-hit-rate": 0.6778,
        "cache-miss": 29,
        "overflow": 1,
        "encoding-rate": 49.97,
    }


def test_time_left_without_end_is_null() -> None:
    stats = source_stats()
    stats.expect_end(0.0, (2.5, math.inf))
    assert report(stats, 0.0)["time-left"] == [2500, None]
    stats.finish(1.0)
    assert "time-left" not in report(stats, 1.0)


def test_time_left_goes_by_and_never_below_zero() -> None:
    stats = source_stats()
    stats.expect_end(10.0, (2.0, 5.0))
    assert [stats.time_left(now) for now in (10.0, 11.5, 14.0, 20.0)] == [
        (2.0, 5.0),
        (0.5, 3.5),
        (0.0, 1.0),
        (0.0, 0.0),
    ]


def test_the_destination_counts_what_it_applied_and_claims_no_more() -> None:
    stats = MigrationStats(side="destination", total=MIB, cache_size=MIB)
    stats.round_started(1, 0, 0.0)
    stats.add_apply(applied(zero=100, normal=50, written=60), STAGE_BULK, 205_000, wire_bytes=205_100)
    stats.add_apply(applied(xbzrle=7, written=7), STAGE_LAST, 140)
    result = report(stats, 1.0)
    ram = result["ram"]
    assert ram["transferred"] == 205_240
    assert (ram["duplicate"], ram["normal"], ram["pages-written"]) == (100, 50, 67)
    assert (ram["precopy-bytes"], ram["downtime-bytes"]) == (205_000, 140)
    assert ram["pages-per-second"] == 157
    assert result["xbzrle-cache"] == {"cache-size": MIB, "encoded-pages": 7}
    assert not {"remaining", "dirty-pages-rate", "unchanged"} & set(ram)
    assert "expected-downtime" not in result


def test_a_whole_migration() -> None:
    stats, now = tell_migration(JsonReporter(io.StringIO()))
    result = report(stats, now)
    assert (result["total-time"], result["setup-time"], result["downtime"]) == (9750, 500, 150)
    assert result["downtime-parts"]["other"] == 18
    assert result["ram"]["dirty-sync-count"] == 3
    assert result["ram"]["transferred"] == 804 * MIB
    assert sum(row["bytes"] for row in result["rounds"]) == 804 * MIB
    assert (result["lane-resets"], result["reconnects"]) == (1, 1)
    assert (result["dirty-tracker"], result["verify"]) == ("scan", "ram")


def test_only_the_last_rounds_are_listed_where_that_is_enough() -> None:
    stats = source_stats()
    stats.start(0.0)
    for number in range(1, 6):
        stats.round_started(number, 10, float(number))
        stats.round_ended(number + 0.5)
    for most, listed in ((None, [1, 2, 3, 4, 5]), (2, [4, 5]), (0, []), (9, [1, 2, 3, 4, 5])):
        rounds = stats.as_dict(9.0, most_rounds=most)["rounds"]
        assert isinstance(rounds, list)
        assert [row["round"] for row in rounds] == listed
