"""Reading clean pages once more, a piece at a time: is RAM still what was sent? (design 8)"""

from __future__ import annotations

import time
from typing import NamedTuple

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.windows import WINDOW_BYTES


class Look(NamedTuple):
    """What one look found."""

    next_page: int
    """Where the next look goes on; 0: this one came to the end of RAM."""
    pages_read: int
    seconds: float
    """CPU time."""
    differing: DirtyBitmap | None
    """Pages that were not what was sent; None: there is none."""


class Rereader:
    """Compares pages with the digests of what was sent, in one thread at a time.

    Holes are not read: that a page became one is seen by the trackers themselves (LMT 2.4).

    Args:
        image: the source's RAM.
        digests: what the lanes sent; only read here.
    """

    def __init__(self, image: RamImage, digests: DigestTable) -> None:
        self._image = image
        self._digests = digests
        self._data = DirtyBitmap(image.layout.total_pages)

    def look(self, candidates: DirtyBitmap, start: int, most_pages: int) -> Look:
        """Look at these pages from `start` on, until about `most_pages` are read. Raises RamError.

        Args:
            candidates: not changed by anybody meanwhile.
            most_pages: a multiple of 64; a hole costs nothing.
        """
        began = time.thread_time()
        differing = DirtyBitmap(candidates.pages)
        page, pages_read, pages_differing = start, 0, 0
        while pages_read < most_pages:
            page = candidates.next(page)
            if page < 0:
                break
            first = page & ~63  # whole words of the bitmaps; a block begins with one
            page = self._end_of_piece(first, most_pages - pages_read)
            pages_differing += self._compare(candidates, first, page - first, differing)
            pages_read += self._forget_data(first, page)
        return Look(
            max(page, 0),
            pages_read,
            time.thread_time() - began,
            differing if pages_differing else None,
        )

    def _end_of_piece(self, first: int, most_pages: int) -> int:
        layout = self._image.layout
        block = layout.block_of(first)
        pages = min(WINDOW_BYTES // layout.page_size, -(-most_pages // 64) * 64)
        return min(first + pages, block.first_page + block.pages)

    def _compare(self, candidates: DirtyBitmap, first: int, count: int, differing: DirtyBitmap) -> int:
        ram = self._image.kernel_ram
        kernel.data_pages(ram, first, count, candidates.array, self._data.array)
        return kernel.scan_pages(
            ram, self._digests.keys, self._digests.array, first, count, self._data.array, differing.array
        )

    def _forget_data(self, first: int, end: int) -> int:
        """How many pages were data; the bitmap is empty again."""
        words = slice(first // 8, -(-end // 64) * 8)
        count = kernel.bitmap_count(memoryview(self._data.array)[words])
        self._data.array[words] = bytes(words.stop - words.start)
        return count
