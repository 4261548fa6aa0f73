"""What trackers have in common to which each write is reported as it happens: holes, DMA, and the way out.

Such a tracker does not read RAM. What its source of reports cannot see is looked for here (LMT 2.4): holes
that were punched, in the guest's page tables and the file; reads of devices in flight, by comparing with what
was sent. When the source of reports fails, every page is suspect, and from then on `scan` does the work: in
that very harvest it compares all of RAM with what was sent.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import ClassVar

from migrate import kernel
from migrate.errors import CancelledMigration
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout
from migrate.ram.trackers.base import CollectStats, DirtyTracker
from migrate.ram.trackers.holes import GuestPages, HoleWatch
from migrate.ram.trackers.recent import RecentHarvests
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.windows import WINDOW_BYTES, cpu_count

COMPARE_RATE = 4e9
"""Bytes a second that one CPU surely compares with digests; measured 6 to 8 (LMT section 3)."""
LARGE_COMPARE = 0.02
"""Seconds of comparing in the pause that are worth waiting for while the guest runs."""
_PIECES_A_THREAD = 4


class MarkingTracker(DirtyTracker):
    """Base of the trackers that are told of writes.

    Args:
        pages: the guest's page tables, if they can be seen: holes are found faster there.
    """

    exact = False
    blind_to: ClassVar[str]
    """What probably goes on when a page changes that is not reported, for a person."""
    settle_seconds: ClassVar[float] = 0.0
    """Seconds after its report for which a page may still change without another one."""

    def __init__(self, pages: GuestPages | None) -> None:
        self._pages = pages
        self._image: RamImage | None = None
        self._digests: DigestTable | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._fallback: ScanTracker | None = None

    @abc.abstractmethod
    def _begin(self, image: RamImage) -> None:
        """Have every write from here on reported. Raises OSError."""

    @abc.abstractmethod
    def _fetch(self, found: DirtyBitmap) -> None:
        """Add what was written since the last call. Raises OSError: that is not known."""

    def _check(self) -> None:
        """Look, while the guest runs, for what makes the reports worthless. Raises OSError."""

    def start(self, image: RamImage, digests: DigestTable) -> None:
        self._image = image
        self._digests = digests
        self._pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix=self.name)
        self._found = DirtyBitmap(image.layout.total_pages)  # fetched and not reported yet
        self._recent = RecentHarvests(image.layout.total_pages, self.settle_seconds)
        try:
            self._begin(image)
        except OSError as error:
            self._degrade(error)
        self._holes = HoleWatch(image, self._pages)
        self._recent.add(monotonic(), self._holes.data)  # what was pinned before is reported by nobody

    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        image = self._image
        if image is None:
            raise RuntimeError("start() comes before collect()")
        if not stopped:
            self._wait_until_settled(stop)
        began = monotonic()
        self._fetch_all(check=not stopped)
        if self._fallback is not None:
            return self._collect_all(bitmap, stopped, stop)
        recent = self._recent.pages()
        recent_pages = recent.count()
        if stopped:
            recent.remove(self._found)  # these are sent in any case
            self._compare(recent)
        found = self._found.take()
        bitmap.union(found)
        seconds = monotonic() - began
        if stopped:
            unsettled = self._recent.pages()
            return CollectStats(began, seconds, recent_pages, found.count(), unsettled=unsettled)
        compare_seconds = recent_pages * image.layout.page_size / COMPARE_RATE
        return CollectStats(began, seconds, 0, found.count(), compare_seconds, recent)

    def reported(self) -> DirtyBitmap | None:
        """Fetch and clear what was written since the last call, for who sends nothing and only looks.

        Nothing is compared with what was sent. None: that is not known (`fault` says why).
        """
        return self._fetch_or_degrade(check=True)

    def differing(self) -> int | None:
        if self._image is None:
            raise RuntimeError("start() comes before differing()")
        found = self._fetch_or_degrade()
        if found is None:
            return None
        self._found.union(found)
        self._recent.add(monotonic(), found)
        suspects = self._recent.pages()
        suspects.union(self._found)
        return self._compare(suspects)

    def distrust(self, page: int, pages: int) -> None:
        if self._image is None:
            raise RuntimeError("start() comes before distrust()")
        if self._fallback is not None:
            return
        block = self._image.layout.block_of(page)
        offset = (page - block.first_page) * self._image.layout.page_size
        others = f" and {pages - 1} more" if pages > 1 else ""
        text = f"the page at {offset:#x} of block {block.name!r}{others} changed and was not reported"
        self._degrade(OSError(f"{text} ({self.blind_to})"))

    def close(self) -> None:
        if self._fallback is not None:
            self._fallback.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._image = None
        self._digests = None

    def _wait_until_settled(self, stop: threading.Event | None) -> None:
        """Compare what has settled. Wait for it where a pause would be long for nothing else.

        That is so while one harvest found very much not long ago (at the start, all of RAM) and now there is
        little to send. What is written meanwhile is fetched often, so that it settles bit by bit.
        """
        assert self._image is not None
        large = int(LARGE_COMPARE * COMPARE_RATE / self._image.layout.page_size)
        while True:
            self._compare_settled(stop)
            until = self._recent.largest_settles(large)
            if until is None or self._fallback is not None:
                return
            self._fetch_all(check=True)
            if self._found.count() > large:
                return
            (stop or threading.Event()).wait(min(max(until - monotonic(), 0), self.settle_seconds / 8))

    def _compare_settled(self, stop: threading.Event | None) -> None:
        """Look once more at pages in which no read is in flight any longer, as long as it may take."""
        settled = self._recent.take_settled(monotonic())
        if settled is None or self._fallback is not None:
            return
        assert self._image is not None
        window = WINDOW_BYTES // self._image.layout.page_size
        for first, count in _pieces(self._image.layout, settled, window):
            if stop is not None and stop.is_set():
                raise CancelledMigration("cancelled while RAM was being read")
            self._compare_piece(settled, first, count)

    def _fetch_all(self, *, check: bool) -> None:
        """Fetch what was reported, and the new holes."""
        found = self._fetch_or_degrade(check=check)
        if found is not None:
            self._holes.look(found)
            self._recent.add(monotonic(), found)
            self._found.union(found)

    def _fetch_or_degrade(self, *, check: bool = False) -> DirtyBitmap | None:
        """What was reported since the last call. None: that is not known, scan does the work."""
        assert self._image is not None
        if self._fallback is not None:
            return None
        found = DirtyBitmap(self._image.layout.total_pages)
        try:
            if check:
                self._check()
            self._fetch(found)
        except OSError as error:
            self._degrade(error)
            return None
        return found

    def _degrade(self, error: OSError) -> None:
        """Nothing is known any more: every page is suspect, and `scan` finds which of them are dirty."""
        assert self._image is not None and self._digests is not None
        self.fault = (
            f"dirty tracker {self.name} failed: {error.strerror or error}; scan compares all of RAM with what"
            " was sent, now and in every round"
        )
        self._fallback = ScanTracker()
        self._fallback.start(self._image, self._digests)

    def _collect_all(self, bitmap: DirtyBitmap, stopped: bool, stop: threading.Event | None) -> CollectStats:
        assert self._fallback is not None
        scanned = self._fallback.collect(self._found, stopped=stopped, stop=stop)
        found = self._found.take()
        bitmap.union(found)
        return scanned._replace(dirty_pages=found.count())

    def _compare(self, suspects: DirtyBitmap) -> int:
        """Of these pages, those that are not what was sent become dirty. Returns how many they are."""
        image, pool = self._image, self._pool
        assert image is not None and pool is not None
        share = suspects.count() // (cpu_count() * _PIECES_A_THREAD) + 1
        pieces = _pieces(image.layout, suspects, share)
        return sum(pool.map(lambda piece: self._compare_piece(suspects, *piece), pieces))

    def _compare_piece(self, suspects: DirtyBitmap, first: int, count: int) -> int:
        assert self._image is not None and self._digests is not None
        return kernel.scan_pages(
            self._image.kernel_ram,
            self._digests.keys,
            self._digests.array,
            first,
            count,
            suspects.array,
            self._found.array,
        )


def _pieces(layout: PageLayout, suspects: DirtyBitmap, most: int) -> Iterator[tuple[int, int]]:
    """All suspects, in stretches of whole windows within a block, about `most` of them in each."""
    bits = memoryview(suspects.array)
    size = WINDOW_BYTES // layout.page_size
    for block in layout.blocks:
        end = block.first_page + block.pages
        begin, held = block.first_page, 0
        for first in range(block.first_page, end, size):
            stop = min(first + size, end)
            held += kernel.bitmap_count(bits[first // 8 : -(-stop // 64) * 8])
            if held >= most or stop == end:
                if held:
                    yield begin, stop - begin
                begin, held = stop, 0
