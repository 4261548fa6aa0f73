"""Digest arrays: made from RAM, compared with RAM, summed up. 16 bytes a page, low half first."""

from __future__ import annotations

import errno
import os

from migrate.errors import RamError
from migrate.kernel.reference.arguments import check_bitmap, check_digests, check_same_page_size
from migrate.kernel.reference.bitmap import bitmap_pages, bitmap_set_range
from migrate.kernel.reference.digest import MASK128, Keys, get_digest, put_digest
from migrate.kernel.reference.ram import Ram


def scan(ram: Ram, keys: Keys, digests: bytearray, first: int, count: int, dirty: bytearray) -> int:
    """Read pages first…first+count-1 (of one block) and set the dirty bit where the digest differs.

    Returns:
        How many differ. `digests` stays as it is.

    Raises:
        RamError: the file ended before the block did, or reading failed.
        ValueError: the pages are not pages of one block.
    """
    ram.require_range(first, count)
    check_digests(digests, first, count)
    check_bitmap(dirty, first + count)
    found = bytearray(16 * count)
    digest_range(ram, keys, first, count, found)
    different = [n for n in range(count) if get_digest(found, n) != get_digest(digests, first + n)]
    for n in different:
        bitmap_set_range(dirty, first + n, 1)
    return len(different)


def digest_range(ram: Ram, keys: Keys, first: int, count: int, out: bytearray | memoryview) -> None:
    """Digests of pages first…first+count-1 (of one block) as they are in RAM now, 16 bytes each.

    Raises:
        RamError: the file ended before the block did, or reading failed.
        ValueError: the pages are not pages of one block, or `out` is too small.
    """
    ram.require_range(first, count)
    check_same_page_size(ram.page_size, keys.page_size)
    check_digests(out, 0, count)
    for n in range(count):
        put_digest(out, n, keys.page_digest(ram.read(ram.require_block(first + n), first + n)))


def zero_range(keys: Keys, digests: bytearray, first: int, count: int, dirty: bytearray) -> int:
    """Set the dirty bit of each page whose digest is not that of zeros (the range is a hole now).

    Returns how many. Raises ValueError: the range leaves the array or the bitmap.
    """
    check_digests(digests, first, count)
    check_bitmap(dirty, first + count)
    different = [p for p in range(first, first + count) if get_digest(digests, p) != keys.zero_digest]
    for page in different:
        bitmap_set_range(dirty, page, 1)
    return len(different)


def root(keys: Keys, digests: bytearray, first: int, count: int) -> int:
    """sum(term(p, digests[p])) over the pages of the range. Raises ValueError: it leaves the array."""
    check_digests(digests, first, count)
    return sum(keys.term(p, get_digest(digests, p)) for p in range(first, first + count)) & MASK128


def set_digests(digests: bytearray, first: int, count: int, digest: int) -> None:
    """Write one digest to a range of the array. Raises ValueError: it leaves the array."""
    check_digests(digests, first, count)
    digests[16 * first : 16 * (first + count)] = digest.to_bytes(16, "little") * count


def scan_pages(
    ram: Ram, keys: Keys, digests: bytearray, first: int, count: int, suspects: bytearray, dirty: bytearray
) -> int:
    """`scan` of those pages of the range whose bit is set in `suspects`. Returns how many differ."""
    ram.require_range(first, count)
    check_bitmap(suspects, first + count)
    chosen = [page for page in bitmap_pages(suspects, first) if page < first + count]
    return sum(scan(ram, keys, digests, page, 1, dirty) for page in chosen)


def data_pages(ram: Ram, first: int, count: int, suspects: bytearray, bitmap: bytearray) -> None:
    """Of the pages of the range (of one block) that are set in `suspects`: set those that are no holes.

    Raises RamError.
    """
    ram.require_range(first, count)
    check_bitmap(suspects, first + count)
    check_bitmap(bitmap, first + count)
    if not count:
        return
    block = ram.require_block(first)
    for page in bitmap_pages(suspects, first):
        if page >= first + count:
            break
        offset = (page - block.first_page) * ram.page_size
        try:
            data = os.lseek(block.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise RamError(f"searching for holes failed: {error.strerror}") from error
        if data < offset + ram.page_size:
            bitmap_set_range(bitmap, page, 1)
