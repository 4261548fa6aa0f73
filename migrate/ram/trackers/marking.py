"""What trackers have in common to which each write is reported as it happens: holes, DMA, and the way out.

Such a tracker does not read RAM. What its source of reports cannot see is looked for here (LMT 2.4): holes
that were punched, by comparing where the file has data; reads of devices in flight, by comparing with what
was sent. When the source of reports fails, every page is suspect, and from then on `scan` does the work: in
that very harvest it compares all of RAM with what was sent.
"""

from __future__ import annotations

import abc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout
from migrate.ram.trackers.base import CollectStats, DirtyTracker
from migrate.ram.trackers.recent import RecentHarvests
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.windows import cpu_count

COMPARE_RATE = 4e9
"""Bytes a second that one CPU surely compares with digests; measured 6 to 8 (LMT section 3)."""
LARGE_COMPARE = 0.05
"""Seconds of comparing in the pause that are worth waiting for at the first harvest."""
_PIECES_A_THREAD = 4


class MarkingTracker(DirtyTracker):
    """Base of the trackers that are told of writes."""

    exact = False
    settle_seconds: ClassVar[float] = 0.0
    """Seconds after its report for which a page may still change without another one."""

    def __init__(self) -> None:
        self._image: RamImage | None = None
        self._digests: DigestTable | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._fallback: ScanTracker | None = None
        self._started = 0.0

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
        self._data = self._data_pages()
        self._started = time.monotonic()
        self._recent.add(self._started, self._data)

    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        image, table = self._image, self._digests
        if image is None or table is None:
            raise RuntimeError("start() comes before collect()")
        if not stopped:
            self._wait_until_settled(stop)
        began = time.monotonic()
        self._fetch_or_degrade(check=not stopped)
        if self._fallback is not None:
            return self._collect_all(bitmap, stopped, stop)
        data = self._data_pages()
        self._found.union(_difference(data, self._data))
        self._data = data
        now = time.monotonic()
        recent = self._recent.pages(now)
        pages_read = 0
        if stopped:
            pages_read = recent.count()
            self._compare(recent)
        found = self._found.take()
        self._recent.add(now, found)
        bitmap.union(found)
        to_compare = recent.count() * image.layout.page_size
        return CollectStats(
            time.monotonic() - began, pages_read, found.count(), 0.0 if stopped else to_compare / COMPARE_RATE
        )

    def differing(self) -> int | None:
        if self._image is None or self._digests is None:
            raise RuntimeError("start() comes before differing()")
        self._fetch_or_degrade()
        if self._fallback is not None:
            return None
        suspects = self._recent.pages(time.monotonic())
        suspects.union(self._found)
        return self._compare(suspects)

    def close(self) -> None:
        if self._fallback is not None:
            self._fallback.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._image = None
        self._digests = None

    def _wait_until_settled(self, stop: threading.Event | None) -> None:
        """Let the time pass for which all RAM counts as reported just now, if comparing it would be dear."""
        assert self._image is not None
        left = self._started + self.settle_seconds - time.monotonic()
        cost = self._data.count() * self._image.layout.page_size / COMPARE_RATE
        if left > 0 and cost > LARGE_COMPARE:
            (stop or threading.Event()).wait(left)

    def _fetch_or_degrade(self, *, check: bool = False) -> None:
        if self._fallback is not None:
            return
        try:
            if check:
                self._check()
            self._fetch(self._found)
        except OSError as error:
            self._degrade(error)

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
        image, table, pool = self._image, self._digests, self._pool
        assert image is not None and table is not None and pool is not None

        def compare(piece: tuple[int, int]) -> int:
            first, count = piece
            return kernel.scan_pages(
                image.kernel_ram, table.keys, table.array, first, count, suspects.array, self._found.array
            )

        return sum(pool.map(compare, _pieces(image.layout)))

    def _data_pages(self) -> DirtyBitmap:
        assert self._image is not None
        data = DirtyBitmap(self._image.layout.total_pages)
        for block in self._image.layout.blocks:
            kernel.data_pages(self._image.kernel_ram, block.first_page, block.pages, data.array)
        return data


def _pieces(layout: PageLayout) -> list[tuple[int, int]]:
    """Every block in a few pieces of whole stripes, so that threads set bits of different words."""
    share = -(-layout.total_pages // (cpu_count() * _PIECES_A_THREAD * layout.stripe_pages))
    size = share * layout.stripe_pages
    return [
        (first, min(size, block.first_page + block.pages - first))
        for block in layout.blocks
        for first in range(block.first_page, block.first_page + block.pages, size)
    ]


def _difference(a: DirtyBitmap, b: DirtyBitmap) -> DirtyBitmap:
    """Bits that are set in one of them only."""
    result = DirtyBitmap(a.pages)
    bits = int.from_bytes(a.array, "little") ^ int.from_bytes(b.array, "little")
    result.array[:] = bits.to_bytes(len(a.array), "little")
    return result
