"""Digests of all pages, their root, and where two images differ.

The table of a source holds the digests of the copies that were sent (never of what RAM held at another
moment, LMT section 3), that of a destination the digests of what was written. Equal roots: equal RAM.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from migrate import kernel
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout
from migrate.ram.windows import Piece, for_each_piece

DIGEST_BYTES = 16
_SUM = 1 << 128
_COARSE_BYTES = 1 << 20
_FINE_BYTES = 4 << 10


class DigestTable:
    """16 bytes a page over all page space, and the root of all blocks.

    At first every page, gaps included, has the digest of zeros. The kernel writes the array and returns by
    how much the root changed; the owner hands that to `add`.
    """

    def __init__(self, keys: kernel.Keys, layout: PageLayout) -> None:
        self.keys = keys
        self.layout = layout
        self.array = zero_digests(keys, layout)
        """Layout: two u64 a page, little-endian, low half first."""
        self.root = 0
        """Sum of the terms of all pages of all blocks, modulo 2**128."""
        self.recompute_root()

    def add(self, root_delta: int) -> None:
        """Take over a change of the root (`FillResult.root_delta`, `ApplyResult.root_delta`)."""
        self.root = (self.root + root_delta) % _SUM

    def recompute_root(self) -> int:
        """Set the root from the array, for use after the array was changed as a whole; returns it."""
        self.root = sum(
            kernel.root(self.keys, self.array, block.first_page, block.pages) for block in self.layout.blocks
        )
        self.root %= _SUM
        return self.root

    def stripe_sums(self) -> list[int]:
        """The sum of the terms of each stripe, by its number; they add up to the root modulo 2**128."""
        return list(self._stripe_sums())

    def differing(self, other: bytes | bytearray | memoryview) -> bytearray:
        """Bitmap of the pages whose digest is another one in `other`, an array like this one.

        Raises ValueError: another length.
        """
        if len(other) != len(self.array):
            raise ValueError(f"digest arrays of {len(self.array)} and {len(other)} bytes")
        bitmap = bytearray(kernel.bitmap_bytes(self.layout.total_pages))
        for offset, size in _unequal(self.array, memoryview(other)):
            mine = memoryview(self.array)[offset : offset + size].cast("Q").tolist()
            theirs = memoryview(other)[offset : offset + size].cast("B").cast("Q").tolist()
            halves = enumerate(zip(mine, theirs, strict=True), start=offset // 8)
            pages = array("Q", (half // 2 for half, (a, b) in halves if a != b))
            kernel.bitmap_set_pages(bitmap, memoryview(pages).cast("B"), len(pages))
        return bitmap

    def _stripe_sums(self) -> Iterator[int]:
        for block in self.layout.blocks:
            end = block.first_page + block.pages
            for first in range(block.first_page, end, self.layout.stripe_pages):
                pages = min(self.layout.stripe_pages, end - first)
                yield kernel.root(self.keys, self.array, first, pages)


def zero_digests(keys: kernel.Keys, layout: PageLayout) -> bytearray:
    """A digest array that says: all pages are zero."""
    digests = bytearray(DIGEST_BYTES * layout.total_pages)
    kernel.set_digests(digests, 0, layout.total_pages, keys.zero_digest)
    return digests


def read_digests(
    image: RamImage, keys: kernel.Keys, threads: int, stop: threading.Event | None = None
) -> bytearray:
    """Read all RAM and return its digest array, gaps as zeros; holes are known to be zero without reading.

    Raises:
        RamError: a file was truncated or cannot be read.
        CancelledMigration: `stop` was set.
    """
    digests = zero_digests(keys, image.layout)

    def digest(piece: Piece) -> int:
        if piece.is_data:
            start = DIGEST_BYTES * piece.first
            out = memoryview(digests)[start : start + DIGEST_BYTES * piece.count]
            kernel.digest_range(image.kernel_ram, keys, piece.first, piece.count, out)
        return piece.count

    with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        for_each_piece(image, digest, pool, stop)
    return digests


def _unequal(mine: bytearray, other: memoryview) -> Iterator[tuple[int, int]]:
    """(offset, size) of stretches of at most 4 KiB that differ.

    A slice of a bytearray on the left makes Python compare with memcmp; two memoryviews would be compared
    element by element (LMT section 3).
    """
    for coarse in range(0, len(mine), _COARSE_BYTES):
        end = min(coarse + _COARSE_BYTES, len(mine))
        if mine[coarse:end] == other[coarse:end]:
            continue
        for fine in range(coarse, end, _FINE_BYTES):
            size = min(_FINE_BYTES, end - fine)
            if mine[fine : fine + size] != other[fine : fine + size]:
                yield fine, size
