"""The scan: what differs from the copies that were sent is dirty, whatever happened in between."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.errors import CancelledMigration, RamError
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage, RamSpec
from migrate.ram.trackers import CollectStats, ScanTracker, mark_all_data
from migrate.ram.windows import WINDOW_BYTES


@pytest.fixture
def scan(image: RamImage, table: DigestTable) -> Iterator[ScanTracker]:
    """Started on `image`, of which nothing was sent."""
    tracker = ScanTracker()
    tracker.start(image, table)
    yield tracker
    tracker.close()


def collect(scan: ScanTracker, *, stopped: bool = False) -> tuple[list[int], CollectStats]:
    """Dirty pages of the 200-page RAM, and what the collect says of itself."""
    bitmap = DirtyBitmap(200)
    stats = scan.collect(bitmap, stopped=stopped)
    return [page for page in range(200) if bitmap.array[page >> 3] >> (page & 7) & 1], stats


def send(table: DigestTable, ram: Ram, page: int) -> None:
    """Record the digest of the page's copy of this moment, as `fill` does with the copy that it sends."""
    copy = os.pread(ram.fd, PAGE, page * PAGE)
    kernel.set_digests(table.array, page, 1, table.keys.page_digest(copy))


@pytest.mark.parametrize("stopped", [False, True])
def test_finds_what_was_not_sent_and_what_changed_since(
    stopped: bool, scan: ScanTracker, small_ram: Ram, table: DigestTable
) -> None:
    for page in (0, 64, 65, 199):
        small_ram.fill(page, 7)
    found, stats = collect(scan, stopped=stopped)
    assert found == [0, 64, 65, 199]
    assert stats.dirty_pages == 4
    assert 4 <= stats.pages_read < 200  # holes were not read, but for short ones
    for page in found:
        send(table, small_ram, page)
    assert collect(scan, stopped=stopped)[0] == []
    small_ram.fill(64, 8)
    small_ram.fill(100, 8)  # a hole until now
    assert collect(scan, stopped=stopped)[0] == [64, 100]


def test_reported_but_never_sent_is_reported_again(scan: ScanTracker, small_ram: Ram) -> None:
    """Invariant 5: nothing is forgotten by being harvested."""
    small_ram.fill(5, 1)
    assert collect(scan)[0] == [5]
    assert collect(scan)[0] == [5]


def test_a_page_that_flips_is_dirty_exactly_while_it_differs_from_the_copy_sent(
    scan: ScanTracker, small_ram: Ram, table: DigestTable
) -> None:
    """A-B-A (LMT section 3): what counts is the copy that went out, not what a scan saw before or after."""
    small_ram.fill(9, 0xA)
    assert collect(scan)[0] == [9]  # the scan saw A
    small_ram.fill(9, 0xB)
    send(table, small_ram, 9)  # the wire saw B
    small_ram.fill(9, 0xA)
    assert collect(scan)[0] == [9]  # A again: a digest taken at scan time would call it clean
    small_ram.fill(9, 0xB)
    assert collect(scan)[0] == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_punched_hole_is_a_change(
    stopped: bool, scan: ScanTracker, small_ram: Ram, table: DigestTable
) -> None:
    for page in range(20, 60):
        small_ram.fill(page, page)
        send(table, small_ram, page)
    small_ram.punch(30, 20)  # a hole that is walked
    small_ram.punch(22)  # one that is read over
    assert collect(scan, stopped=stopped)[0] == [22, *range(30, 50)]
    for page in (22, *range(30, 50)):
        send(table, small_ram, page)
    assert collect(scan, stopped=stopped)[0] == []


def test_bits_that_stand_are_left_standing(scan: ScanTracker, small_ram: Ram) -> None:
    bitmap = DirtyBitmap(200)
    bitmap.set_range(150, 1)
    small_ram.fill(3, 1)
    assert scan.collect(bitmap).dirty_pages == 1
    assert (bitmap.next(), bitmap.next(4), bitmap.count()) == (3, 150, 2)


def test_scanning_allocates_no_holes(scan: ScanTracker, small_ram: Ram) -> None:
    small_ram.fill(3, 1)
    small_ram.fill(5, 1)
    allocated = small_ram.blocks_allocated()
    collect(scan)
    collect(scan, stopped=True)
    assert small_ram.blocks_allocated() == allocated


def test_a_failed_collect_forgets_nothing(scan: ScanTracker, small_ram: Ram, table: DigestTable) -> None:
    """Invariant 8: uncertain is dirty."""
    for page in (1, 150):
        small_ram.fill(page, 1)
        send(table, small_ram, page)
    small_ram.fill(1, 2)
    os.ftruncate(small_ram.fd, 100 * PAGE)
    with pytest.raises(RamError, match="truncated"):
        scan.collect(DirtyBitmap(200))
    os.ftruncate(small_ram.fd, 200 * PAGE)
    assert collect(scan)[0] == [1, 150]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_set_stop_event_ends_the_scan(stopped: bool, scan: ScanTracker) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledMigration):
        scan.collect(DirtyBitmap(200), stopped=stopped, stop=stop)
    stop.clear()
    scan.collect(DirtyBitmap(200), stopped=stopped, stop=stop)


def test_collect_comes_after_start() -> None:
    with pytest.raises(RuntimeError, match="start"):
        ScanTracker().collect(DirtyBitmap(64))


def test_closing_twice_does_nothing(scan: ScanTracker) -> None:
    scan.close()
    scan.close()
    with pytest.raises(RuntimeError, match="start"):
        scan.collect(DirtyBitmap(200))


def test_many_threads_find_what_one_finds(shm_dir: Path, rng: random.Random) -> None:
    """Several windows, two blocks, dirty pages at all window edges: no bit of a shared word gets lost."""
    page_size = 65536
    window = WINDOW_BYTES // page_size
    sizes = {"a": 3 * window + 70, "b": window + 1}
    keys = kernel.Keys(bytes(32), page_size)
    rams = [Ram(shm_dir / name, pages, page_size) for name, pages in sizes.items()]
    scan = ScanTracker(threads=4)
    try:
        with RamImage.open_source([RamSpec(ram.path.name, ram.path) for ram in rams], page_size) as image:
            table = DigestTable(keys, image.layout)
            scan.start(image, table)
            expected = []
            for ram, block in zip(rams, image.layout.blocks, strict=True):
                edges = {edge + step for edge in range(0, ram.pages, window) for step in (-1, 0)}
                dirty = {*edges, *rng.sample(range(ram.pages), 20), ram.pages - 1} & set(range(ram.pages))
                for page in dirty:
                    ram.fill(page, 1 + page % 255)
                expected += [block.first_page + page for page in dirty]
            for stopped in (False, True):
                bitmap = DirtyBitmap(image.layout.total_pages)
                assert scan.collect(bitmap, stopped=stopped).dirty_pages == len(expected)
                wanted = DirtyBitmap(image.layout.total_pages)
                for page in expected:
                    wanted.set_range(page, 1)
                assert bitmap.array == wanted.array
    finally:
        scan.close()
        for ram in rams:
            os.close(ram.fd)


def test_round_one_sends_all_data_and_no_holes(small_ram: Ram, image: RamImage) -> None:
    for page in (0, 2, 3, 199):
        small_ram.fill(page, 0)  # data that happens to be zero is data
    bitmap = DirtyBitmap(200)
    assert mark_all_data(image, bitmap) == 4
    assert [page for page in range(200) if bitmap.next(page) == page] == [0, 2, 3, 199]


def test_it_says_what_it_promises(scan: ScanTracker) -> None:
    assert scan.live
    assert scan.exact
    assert scan.describe().startswith("scan: ")
