"""Page space: one row of page numbers over all RAM blocks, and the stripes that lanes own.

    block 0 ──────────────┐gap┌─ block 1 ───┐gap┌─ block 2 …
    stripe 0 │ 1 │ 2 │ 3  ┊   │ 4 │ 5 │ 6   ┊   │ 7 …

A stripe is 1 MiB of pages, at least 64 of them (so that no two stripes share a word of a bitmap); stripe k
belongs to lane k % lanes. Each block starts a stripe; the numbers left over before it are gaps, never used.
Both sides compute the layout from the block list of the hello (design 3).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

MAX_BLOCKS = 64
MAX_RAM_BYTES = 16 << 40
MAX_NAME_BYTES = 255  # the record's length byte, qemu-ram-stream.md
SMALLEST_PAGE = 1024
LARGEST_PAGE = 65536
_STRIPE_BYTES = 1 << 20
_STRIPE_PAGES = 64


class BlockPlace(NamedTuple):
    """A RAM block and its place in page space."""

    name: str
    length: int
    """Bytes."""
    first_page: int
    """A multiple of the stripe."""
    pages: int


class PageLayout:
    """Where each RAM block lies in page space.

    Args:
        page_size: wire page in bytes, a power of two in 1024…65536.
        blocks: (name, length in bytes) in the order of the hello.

    Raises:
        ValueError: a number or a name is wrong; the destination makes it from what the peer says.
    """

    def __init__(self, page_size: int, blocks: Sequence[tuple[str, int]]) -> None:
        if not SMALLEST_PAGE <= page_size <= LARGEST_PAGE or page_size.bit_count() != 1:
            raise ValueError(
                f"page size {page_size} is not a power of two from {SMALLEST_PAGE} to {LARGEST_PAGE}"
            )
        _check_blocks(page_size, blocks)
        self.page_size = page_size
        self.stripe_pages = max(_STRIPE_BYTES // page_size, _STRIPE_PAGES)
        places = []
        first_page = 0
        for name, length in blocks:
            pages = length // page_size
            places.append(BlockPlace(name, length, first_page, pages))
            first_page += -(-pages // self.stripe_pages) * self.stripe_pages
        self.blocks = tuple(places)
        self._starts = [place.first_page for place in places]

    @property
    def total_pages(self) -> int:
        """End of page space, gaps included: the length of bitmaps and digest arrays."""
        last = self.blocks[-1]
        return last.first_page + last.pages

    @property
    def ram_pages(self) -> int:
        """Pages of all blocks, without the gaps."""
        return sum(block.pages for block in self.blocks)

    @property
    def ram_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.length for block in self.blocks)

    @property
    def stripes(self) -> int:
        """How many stripes there are; none lies wholly in a gap."""
        return -(-self.total_pages // self.stripe_pages)

    def lane_of(self, page: int, lanes: int) -> int:
        """The lane that every copy of this page travels in."""
        return page // self.stripe_pages % lanes

    def block_of(self, page: int) -> BlockPlace:
        """The block that holds this page. Raises ValueError: a gap, or beyond page space."""
        if page >= 0:
            block = self.blocks[bisect_right(self._starts, page) - 1]
            if page < block.first_page + block.pages:
                return block
        raise ValueError(f"page {page} is in no RAM block")


def _check_blocks(page_size: int, blocks: Sequence[tuple[str, int]]) -> None:
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ValueError(f"{len(blocks)} RAM blocks: 1 to {MAX_BLOCKS} can be moved")
    seen: set[str] = set()
    for name, length in blocks:
        try:
            name_bytes = len(name.encode())
        except UnicodeEncodeError:
            raise ValueError(f"RAM block name {name!r} is not UTF-8") from None
        if not 1 <= name_bytes <= MAX_NAME_BYTES:
            raise ValueError(f"a RAM block name has {name_bytes} bytes: 1 to {MAX_NAME_BYTES} are allowed")
        if name in seen:
            raise ValueError(f"RAM block {name!r} is listed twice")
        seen.add(name)
        if length <= 0 or length % page_size:
            raise ValueError(
                f"RAM block {name!r} has {length} bytes, no positive multiple of the page size {page_size}"
            )
    total = sum(length for _, length in blocks)
    if total > MAX_RAM_BYTES:
        raise ValueError(f"{total} bytes of RAM: at most {MAX_RAM_BYTES >> 40} TiB can be moved")
