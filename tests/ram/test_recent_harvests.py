"""Which pages a device may still be filling: each report counts until it has settled and was looked at."""

from __future__ import annotations

from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.trackers.recent import RecentHarvests


def bits(*pages: int) -> DirtyBitmap:
    bitmap = DirtyBitmap(64)
    for page in pages:
        bitmap.set_range(page, 1)
    return bitmap


def pages_of(bitmap: DirtyBitmap | None) -> list[int] | None:
    if bitmap is None:
        return None
    return [page for page in range(64) if bitmap.next(page) == page]


def test_a_page_is_given_out_once_when_it_has_settled() -> None:
    recent = RecentHarvests(64, 2.0)
    recent.add(10.0, bits(1, 2))
    recent.add(11.0, bits(2, 3))
    assert pages_of(recent.take_settled(11.9)) is None
    assert pages_of(recent.pages()) == [1, 2, 3]
    assert pages_of(recent.take_settled(12.0)) == [1, 2]
    assert pages_of(recent.pages()) == [2, 3]  # 2 was reported again
    assert pages_of(recent.take_settled(20.0)) == [2, 3]
    assert pages_of(recent.take_settled(20.0)) is None
    assert pages_of(recent.pages()) == []


def test_what_nobody_took_does_not_get_lost() -> None:
    recent = RecentHarvests(64, 2.0)
    recent.add(10.0, bits(1))
    assert pages_of(recent.pages()) == [1]  # however late the pause comes


def test_close_harvests_settle_together_with_their_youngest() -> None:
    recent = RecentHarvests(64, 2.0)
    for number in range(5):
        recent.add(10.0 + number / 20, bits(number))
    assert recent.take_settled(12.19) is None
    assert pages_of(recent.take_settled(12.2)) == [0, 1, 2, 3, 4]


def test_a_harvest_is_not_changed_by_its_finder_later() -> None:
    recent = RecentHarvests(64, 2.0)
    found = bits(1)
    recent.add(10.0, found)
    found.clear()
    assert pages_of(recent.pages()) == [1]


def test_many_harvests_are_few_bitmaps() -> None:
    recent = RecentHarvests(64, 2.0)
    for number in range(2000):
        recent.add(number / 1000, bits(number % 64))
    assert len(recent._harvests) <= 12


def test_when_the_last_large_harvest_settles() -> None:
    recent = RecentHarvests(64, 2.0)
    assert recent.largest_settles(1) is None
    recent.add(10.0, bits(1, 2))
    recent.add(11.0, bits(1, 2, 3))
    recent.add(12.0, bits(4))
    assert recent.largest_settles(0) == 14.0
    assert recent.largest_settles(1) == 13.0
    assert recent.largest_settles(3) is None


def test_where_nothing_is_in_flight_nothing_is_kept() -> None:
    recent = RecentHarvests(64, 0.0)
    recent.add(10.0, bits(1))
    assert pages_of(recent.pages()) == []
    assert recent.take_settled(99.0) is None
