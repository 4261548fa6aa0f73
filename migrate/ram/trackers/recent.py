"""Pages that a device may still be filling after they were reported (LMT 2.4, DMA in flight).

A read with O_DIRECT, aio or io_uring pins its page, which is reported, and fills it later without another
report. What was copied in between is old. So every page that is reported must be looked at once more when
such a read cannot be in flight any longer, or in the pause, whichever comes first.
"""

from __future__ import annotations

from collections import deque

from migrate.ram.bitmap import DirtyBitmap


class RecentHarvests:
    """What harvests found and nobody has looked at again.

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

    def take_settled(self, now: float) -> DirtyBitmap | None:
        """What was found so long ago that nothing is in flight any more; to be looked at now, and forgotten.

        None: there is nothing of that kind.
        """
        settled = DirtyBitmap(self._pages)
        taken = False
        while self._harvests and self._harvests[0][1] <= now - self._seconds:
            settled.union(self._harvests.popleft()[2])
            taken = True
        return settled if taken else None

    def largest_settles(self, pages: int) -> float | None:
        """When the last harvest settles that found more than so many pages; None: there is none of them."""
        large = (youngest for _, youngest, found in self._harvests if found.count() > pages)
        return max((youngest + self._seconds for youngest in large), default=None)

    def pages(self) -> DirtyBitmap:
        """All that is still to be looked at."""
        together = DirtyBitmap(self._pages)
        for _, _, found in self._harvests:
            together.union(found)
        return together
