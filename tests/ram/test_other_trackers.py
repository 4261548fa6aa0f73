"""The tracker without live rounds, and the choice among the trackers."""

from __future__ import annotations

import threading

import pytest
from ram_support import Ram

from migrate.errors import CancelledMigration, RefusedError, UsageError
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import Offer, StopTracker, choose


def test_stop_says_nothing_while_the_guest_runs_and_everything_after(
    small_ram: Ram, image: RamImage, table: DigestTable
) -> None:
    tracker = StopTracker()
    tracker.start(image, table)
    for page in range(100, 116):
        small_ram.fill(page, 1)
    bitmap = DirtyBitmap(200)
    assert tracker.collect(bitmap).dirty_pages == 0
    assert bitmap.count() == 0
    stats = tracker.collect(bitmap, stopped=True)
    assert stats.dirty_pages == bitmap.count() == 16
    assert bitmap.next() == 100
    tracker.close()


def test_stop_reports_a_hole_where_something_else_was_sent(
    small_ram: Ram, image: RamImage, table: DigestTable
) -> None:
    """A retry after a pause that was given up: the page was sent, then the guest ran and punched it."""
    tracker = StopTracker()
    tracker.start(image, table)
    table.array[16 * 50] ^= 1
    small_ram.fill(199, 1)
    bitmap = DirtyBitmap(200)
    tracker.collect(bitmap, stopped=True)
    assert [page for page in range(200) if bitmap.next(page) == page] == [50, 199]


def test_stop_can_be_stopped(image: RamImage, table: DigestTable) -> None:
    tracker = StopTracker()
    tracker.start(image, table)
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledMigration):
        tracker.collect(DirtyBitmap(200), stopped=True, stop=stop)


def test_stop_needs_a_start() -> None:
    tracker = StopTracker()
    assert not tracker.live
    assert not tracker.exact
    with pytest.raises(RuntimeError, match="start"):
        tracker.collect(DirtyBitmap(64), stopped=True)


@pytest.mark.parametrize(("requested", "name"), [("auto", "scan"), ("scan", "scan"), ("stop", "stop")])
def test_the_choice_and_its_reasons(requested: str, name: str) -> None:
    tracker, reasons = choose(requested)
    assert tracker.name == name
    assert reasons[0].startswith(f"{name}: ")
    assert tracker.describe().startswith(f"{name}: ")
    tracker.close()


def test_auto_takes_the_first_offer_that_there_is() -> None:
    one, two = StopTracker(), StopTracker()
    offers = [Offer("log", None, "no log"), Offer("wp", one, "a descriptor"), Offer("more", two, "never")]
    assert choose("auto", offers) == (one, ["log: no log", "wp: a descriptor"])
    assert choose("wp", offers) == (one, ["wp: asked for by --dirty-tracker", "wp: a descriptor"])


def test_what_was_asked_for_and_is_not_there_is_refused() -> None:
    with pytest.raises(RefusedError, match="--dirty-tracker log is not possible: no log"):
        choose("log", [Offer("log", None, "no log")])


def test_no_other_tracker_can_be_asked_for() -> None:
    instead, reasons = choose("wp-inject", [Offer("wp-inject", None, "no right to trace")])
    assert instead.name == "scan" and reasons[0] == "wp-inject: no right to trace"
    with pytest.raises(UsageError, match="auto, log, wp, wp-inject, scan, stop"):
        choose("magic")
