"""The dirty bitmap as a class; the bit loops themselves are tested with the kernel."""

from __future__ import annotations

import random

from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.layout import PageLayout


def pages_of(bitmap: DirtyBitmap) -> list[int]:
    found = []
    page = bitmap.next()
    while page >= 0:
        found.append(page)
        page = bitmap.next(page + 1)
    return found


def test_starts_empty_and_counts_what_is_set() -> None:
    bitmap = DirtyBitmap(1000)
    assert (bitmap.count(), bitmap.next()) == (0, -1)
    bitmap.set_range(62, 4)
    bitmap.set_range(999, 1)
    assert pages_of(bitmap) == [62, 63, 64, 65, 999]
    assert bitmap.count() == 5
    assert bitmap.next(66) == 999


def test_set_all_leaves_gaps_clear() -> None:
    layout = PageLayout(4096, [("a", 3 * 4096), ("b", 2 * 4096)])
    bitmap = DirtyBitmap(layout.total_pages)
    bitmap.set_all(layout)
    assert pages_of(bitmap) == [0, 1, 2, 256, 257]


def test_lanes_share_every_page_and_none_twice(rng: random.Random) -> None:
    bitmap = DirtyBitmap(5000)
    dirty = sorted(rng.sample(range(5000), 700))
    for page in dirty:
        bitmap.set_range(page, 1)
    shares = [bitmap.select(lane, 3, 256) for lane in range(3)]
    assert sorted(page for share in shares for page in pages_of(share)) == dirty
    for lane, share in enumerate(shares):
        assert {page // 256 % 3 for page in pages_of(share)} == {lane}
    assert pages_of(bitmap) == dirty


def test_union_adds_and_changes_only_the_target() -> None:
    one, other = DirtyBitmap(128), DirtyBitmap(128)
    one.set_range(1, 2)
    other.set_range(2, 2)
    one.union(other)
    assert pages_of(one) == [1, 2, 3]
    assert pages_of(other) == [2, 3]


def test_a_copy_is_independent() -> None:
    bitmap = DirtyBitmap(128)
    bitmap.set_range(5, 1)
    copy = bitmap.copy()
    copy.set_range(6, 1)
    bitmap.clear()
    assert pages_of(copy) == [5, 6]
    assert bitmap.count() == 0


def test_what_was_taken_comes_back_when_sending_failed() -> None:
    """Invariant 5: a page counts as sent when its bytes went into the stream."""
    bitmap = DirtyBitmap(128)
    bitmap.set_range(10, 3)
    taken = bitmap.take()
    bitmap.set_range(50, 1)  # dirtied meanwhile
    assert pages_of(taken) == [10, 11, 12]
    assert pages_of(bitmap) == [50]
    bitmap.union(taken)
    assert pages_of(bitmap) == [10, 11, 12, 50]


def test_the_array_is_one_object_for_life() -> None:
    bitmap = DirtyBitmap(128)
    array = bitmap.array
    bitmap.set_range(1, 1)
    bitmap.take()
    bitmap.clear()
    assert bitmap.array is array
