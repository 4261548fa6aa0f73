"""One bit a page: which pages are dirty, pending or owed."""

from __future__ import annotations

from typing import Self

from migrate import kernel
from migrate.ram.layout import PageLayout


class DirtyBitmap:
    """Bits over page space, in the kernel's layout (bit `p & 7` of byte `p >> 3`).

    It has no lock: one owner at a time, except that threads may set bits of different stripes at once.

    Args:
        pages: `PageLayout.total_pages`.
    """

    __slots__ = ("array", "pages")

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.array = bytearray(kernel.bitmap_bytes(pages))
        """The bits, for kernel calls. The same object for the life of the bitmap."""

    def count(self) -> int:
        """How many bits are set."""
        return kernel.bitmap_count(self.array)

    def next(self, start: int = 0) -> int:
        """First page at or after `start` whose bit is set, or -1."""
        return kernel.bitmap_next(self.array, start)

    def set_range(self, first: int, count: int) -> None:
        """Set `count` bits from page `first` on."""
        kernel.bitmap_set_range(self.array, first, count)

    def set_all(self, layout: PageLayout) -> None:
        """Set the bit of every page of every block, and of no gap."""
        for block in layout.blocks:
            self.set_range(block.first_page, block.pages)

    def union(self, other: DirtyBitmap) -> None:
        """Set what is set in `other` too."""
        kernel.bitmap_or(self.array, other.array)

    def remove(self, other: DirtyBitmap) -> None:
        """Clear what is set in `other`."""
        kernel.bitmap_remove(self.array, other.array)

    def select(self, lane: int, lanes: int, stripe_pages: int) -> DirtyBitmap:
        """A new bitmap with the bits of the stripes that belong to the lane."""
        share = DirtyBitmap(self.pages)
        kernel.bitmap_select(self.array, share.array, stripe_pages, lane, lanes)
        return share

    def clear(self) -> None:
        """Clear every bit."""
        self.array[:] = bytes(len(self.array))

    def copy(self) -> Self:
        """A bitmap of its own with the same bits."""
        twin = type(self)(self.pages)
        twin.array[:] = self.array
        return twin

    def take(self) -> Self:
        """Move the bits out: returns them and is empty afterwards."""
        taken = self.copy()
        self.clear()
        return taken
