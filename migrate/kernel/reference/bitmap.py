"""Bitmaps: bit `p & 7` of byte `p >> 3` is page p, so a bitmap is one little-endian number."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from migrate.kernel.reference.arguments import check_bitmap, check_lane


def bitmap_bytes(pages: int) -> int:
    """Length in bytes of a bitmap of that many pages (a multiple of 8)."""
    if pages < 0:
        raise ValueError(f"{pages} pages")
    return (pages + 63) // 64 * 8


def bitmap_count(bitmap: bytearray | memoryview) -> int:
    """How many bits are set."""
    check_bitmap(bitmap)
    return int.from_bytes(bitmap, "little").bit_count()


def bitmap_set_range(bitmap: bytearray, first: int, count: int) -> None:
    """Set `count` bits from `first` on. Raises ValueError: a bit beyond the bitmap."""
    check_bitmap(bitmap)
    if first < 0 or count < 0 or first + count > 8 * len(bitmap):
        raise ValueError(f"bits {first}+{count} of a bitmap of {8 * len(bitmap)} bits")
    _or(bitmap, ((1 << count) - 1) << first)


def bitmap_set_pages(bitmap: bytearray, pages: bytes | bytearray | memoryview, count: int) -> None:
    """Set the bits of the first `count` page numbers of `pages` (u64 little-endian).

    Raises:
        ValueError: a number beyond the bitmap (no bit is set then), or fewer than `count` numbers.
    """
    check_bitmap(bitmap)
    numbers = struct.unpack_from(f"<{count}Q", pages) if 8 * count <= len(pages) else None
    if numbers is None:
        raise ValueError(f"{len(pages)} bytes do not hold {count} page numbers")
    if numbers and max(numbers) >= 8 * len(bitmap):
        raise ValueError(f"page {max(numbers)} is beyond a bitmap of {8 * len(bitmap)} bits")
    for page in numbers:
        bitmap[page >> 3] |= 1 << (page & 7)


def bitmap_next(bitmap: bytearray, start: int) -> int:
    """First set bit at or after `start`, or -1."""
    check_bitmap(bitmap)
    if start < 0:
        raise ValueError(f"bit {start}")
    rest = int.from_bytes(bitmap, "little") >> start
    return start + (rest & -rest).bit_length() - 1 if rest else -1


def bitmap_or(target: bytearray, source: bytearray) -> None:
    """Set in `target` every bit that is set in `source`. Raises ValueError: different lengths."""
    _check_pair(target, source)
    _or(target, int.from_bytes(source, "little"))


def bitmap_remove(target: bytearray, source: bytearray) -> None:
    """Clear in `target` every bit that is set in `source`. Raises ValueError: different lengths."""
    _check_pair(target, source)
    kept = int.from_bytes(target, "little") & ~int.from_bytes(source, "little")
    target[:] = kept.to_bytes(len(target), "little")


def bitmap_select(source: bytearray, target: bytearray, stripe_pages: int, lane: int, lanes: int) -> None:
    """Set in `target` the bits of `source` whose stripe belongs to the lane (stripe % lanes == lane).

    Raises ValueError: different lengths, or no such lane.
    """
    _check_pair(target, source)
    check_lane(lane, lanes)
    if stripe_pages < 1:
        raise ValueError(f"stripes of {stripe_pages} pages")
    mask = 0
    for first in range(lane * stripe_pages, 8 * len(source), lanes * stripe_pages):
        mask |= ((1 << stripe_pages) - 1) << first
    _or(target, int.from_bytes(source, "little") & mask)


def bitmap_clear(bitmap: bytearray, page: int) -> None:
    """Clear one bit."""
    bitmap[page >> 3] &= ~(1 << (page & 7))


def bitmap_pages(bitmap: bytes | bytearray, start: int = 0) -> Iterator[int]:
    """The numbers of the bits set at or after `start`, ascending, as the bitmap is at the first step."""
    rest = int.from_bytes(bitmap, "little") >> start
    page = start - 1
    while rest:
        step = (rest & -rest).bit_length()
        page += step
        rest >>= step
        yield page


def _check_pair(target: bytearray, source: bytearray) -> None:
    check_bitmap(target)
    if len(target) != len(source):
        raise ValueError(f"bitmaps of {len(target)} and {len(source)} bytes")


def _or(bitmap: bytearray, bits: int) -> None:
    size = len(bitmap)
    both = int.from_bytes(bitmap, "little") | bits
    bitmap[:] = (both & (1 << 8 * size) - 1).to_bytes(size, "little")
