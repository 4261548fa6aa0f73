"""The tracker of last resort: knows nothing while the guest runs, everything is sent in the pause."""

from __future__ import annotations

import threading
import time

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers.base import CollectStats, DirtyTracker
from migrate.ram.windows import Piece, for_each_piece


class StopTracker(DirtyTracker):
    """Reports nothing while the guest runs, and every page that is no hole once it is stopped.

    A page in a hole is reported too if something else than zeros was sent for it.
    """

    name = "stop"
    exact = False
    live = False

    def __init__(self) -> None:
        self._image: RamImage | None = None
        self._digests: DigestTable | None = None

    def describe(self) -> str:
        return "stop: no rounds while the guest runs; all of RAM is sent in the pause"

    def start(self, image: RamImage, digests: DigestTable) -> None:
        self._image = image
        self._digests = digests

    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        image, table = self._image, self._digests
        if image is None or table is None:
            raise RuntimeError("start() comes before collect()")
        if not stopped:
            return CollectStats(time.monotonic(), 0.0, 0, 0)
        began = time.monotonic()

        def mark(piece: Piece) -> int:
            if piece.is_data:
                bitmap.set_range(piece.first, piece.count)
                return piece.count
            return kernel.zero_range(table.keys, table.array, piece.first, piece.count, bitmap.array)

        dirty_pages = for_each_piece(image, mark, None, stop)
        return CollectStats(began, time.monotonic() - began, 0, dirty_pages)

    def close(self) -> None:
        self._image = None
        self._digests = None
