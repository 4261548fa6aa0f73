"""QEMU's capability mapped-ram: a file where each page has its place (qemu-ram-stream.md 9).

    block     be32 version 1, be64 page size, be64 bitmap_offset, be64 pages_offset
              bitmap, one bit a page, to a multiple of 8 bytes: set if the page is there
              nothing, up to pages_offset
              the block, page by page; what a cleared bit stands for is zero, whatever lies there

Offsets are those of the file that QEMU wrote. Sections later on hold no pages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from migrate import kernel
from migrate.errors import StreamError

HEADER_BYTES = 28
MOST_BITMAP_BYTES = 256 << 20
"""Of one block; 8 TiB of RAM in pages of 4096."""
_HEADER = struct.Struct(">IQQQ")
_INVERTED = bytes(255 - byte for byte in range(256))


class MappedPages(NamedTuple):
    """Where a block's pages are."""

    bitmap: bytearray
    offset: int
    """Of the block's first page in the file."""

    @property
    def present(self) -> int:
        """How many pages are there."""
        return kernel.bitmap_count(self.bitmap)

    def runs(self, most: int) -> Iterator[tuple[int, int]]:
        """(first page, count) of every stretch of pages that are there, in pieces of at most `most`."""
        absent = self.bitmap.translate(_INVERTED)
        first = kernel.bitmap_next(self.bitmap, 0)
        while first >= 0:
            end = kernel.bitmap_next(absent, first)
            end = 8 * len(self.bitmap) if end < 0 else end
            for at in range(first, end, most):
                yield at, min(most, end - at)
            first = kernel.bitmap_next(self.bitmap, end) if end < 8 * len(self.bitmap) else -1


class MappedHeader(NamedTuple):
    """What stands behind a block's entry in the list."""

    bitmap_bytes: int
    padding: int
    """Bytes between bitmap and pages."""
    pages_offset: int


def decode_header(data: bytes, start: int, page_size: int, pages: int) -> MappedHeader:
    """Read it.

    Args:
        start: its place in the file.
        pages: of the block.

    Raises:
        StreamError: rule "mapped-ram".
    """
    version, size, bitmap_offset, pages_offset = _HEADER.unpack(data)
    bitmap_bytes = (pages + 63) // 64 * 8
    end = start + HEADER_BYTES + bitmap_bytes
    if version != 1 or size != page_size:
        raise StreamError("mapped-ram", start, f"version {version} with pages of {size} bytes")
    if bitmap_offset != start + HEADER_BYTES:
        message = f"the bitmap is said to be at {bitmap_offset:#x}: the file does not begin with its stream"
        raise StreamError("mapped-ram", start, message)
    if pages_offset < end or pages_offset % page_size or bitmap_bytes > MOST_BITMAP_BYTES:
        raise StreamError("mapped-ram", start, f"{pages} pages at {pages_offset:#x}")
    return MappedHeader(bitmap_bytes, pages_offset - end, pages_offset)


def check_bitmap(bitmap: bytearray, start: int, pages: int) -> None:
    """Raise StreamError (rule "mapped-ram") if a bit behind the last page is set."""
    if kernel.bitmap_next(bitmap, pages) >= 0:
        raise StreamError("mapped-ram", start, "the bitmap has pages behind the end of its block")
