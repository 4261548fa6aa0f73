"""Pages reported a short while ago: a device may still be filling them (LMT 2.4, DMA in flight).

A read with O_DIRECT, aio or io_uring pins its page, which is reported, and fills it later without another
report. So a page that was reported within the time that such a read may take is not settled yet.
"""

from __future__ import annotations

from collections import deque

from migrate.ram.bitmap import DirtyBitmap


class RecentHarvests:
    """What the harvests of the last `seconds` found.

    Harvests that follow each other closely share a bitmap, which counts as its youngest one: that keeps some
    pages longer than needed, and never more than a dozen bitmaps.

    Args:
        pages: size of page space.
        seconds: how long a read may be in flight; 0: nothing is kept.
    """

    def __init__(self, pages: int, seconds: float) -> None:
        self._pages = pages
        self._seconds = seconds
        self._harvests: deque[tuple[float, float, DirtyBitmap]] = deque()  # oldest, youngest, found

    def add(self, now: float, found: DirtyBitmap) -> None:
        """A harvest of this moment found these pages."""
        if not self._seconds:
            return
        if self._harvests and now - self._harvests[-1][0] < self._seconds / 8:
            oldest, _, shared = self._harvests.pop()
            shared.union(found)
            self._harvests.append((oldest, now, shared))
        else:
            self._harvests.append((now, now, found.copy()))

    def pages(self, now: float) -> DirtyBitmap:
        """All that was found within the time; older harvests are forgotten."""
        while self._harvests and self._harvests[0][1] <= now - self._seconds:
            self._harvests.popleft()
        together = DirtyBitmap(self._pages)
        for _, _, found in self._harvests:
            together.union(found)
        return together
