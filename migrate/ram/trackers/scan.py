"""The tracker that needs nothing: read RAM, compare each page with what was sent."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers.base import CollectStats, DirtyTracker
from migrate.ram.windows import Piece, cpu_count, for_each_piece


class ScanTracker(DirtyTracker):
    """Compares the digest of every page with that of the copy that was sent (LMT section 3).

    It has no state of its own: a page is dirty until its digest in the shared table, which the lanes write
    when they send, is that of its content. So no report can get lost, and a page that flips A-B-A is safe.
    Holes are not read: a page there is dirty if something else than zeros was sent for it.

    Args:
        threads: for a collect with the guest stopped; by default one a CPU. Otherwise one, beside the guest.
    """

    name = "scan"
    exact = True

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or cpu_count()
        self._image: RamImage | None = None
        self._digests: DigestTable | None = None
        self._pool: ThreadPoolExecutor | None = None

    def describe(self) -> str:
        return (
            "scan: compares the digest of every page with what was sent; exact, works with every guest;"
            " reads all of RAM once a round, and once more in the pause"
        )

    def start(self, image: RamImage, digests: DigestTable) -> None:
        self._image = image
        self._digests = digests
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="scan")

    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        image, table = self._image, self._digests
        if image is None or table is None:
            raise RuntimeError("start() comes before collect()")
        began = time.monotonic()
        pages_read = 0
        counting = threading.Lock()

        def compare(piece: Piece) -> int:
            nonlocal pages_read
            if not piece.is_data:
                return kernel.zero_range(table.keys, table.array, piece.first, piece.count, bitmap.array)
            with counting:
                pages_read += piece.count
            return kernel.scan(
                image.kernel_ram, table.keys, table.array, piece.first, piece.count, bitmap.array
            )

        dirty_pages = for_each_piece(image, compare, self._pool if stopped else None, stop)
        return CollectStats(began, time.monotonic() - began, pages_read, dirty_pages)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._image = None
        self._digests = None
