"""The guest of the simulation: writes its RAM while it runs, and must never run at both sides."""

from __future__ import annotations

import random
import threading

from protocol_support import STRIPE, RamFiles

from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import CollectStats, DirtyTracker, ScanTracker


class LogTracker(DirtyTracker):
    """A bitmap that the guest sets and a harvest fetches and clears: what a harvest loses is lost."""

    name = "log"
    exact = False

    def __init__(self) -> None:
        self._dirty: DirtyBitmap | None = None
        self._scan: ScanTracker | None = None
        self.unmarked: list[tuple[int, int]] = []
        """Stored, and not marked yet."""
        self.distrusted: list[tuple[int, int]] = []
        """What it was told of pages that it missed."""

    def describe(self) -> str:
        return "log: for the simulation"

    def mark(self, block: int, page: int) -> None:
        """The guest wrote to that page; before `start` nobody listens."""
        if self._dirty is not None:
            self._dirty.set_range(block * STRIPE + page, 1)

    def mark_late(self, block: int, page: int) -> None:
        """The mark of a write of some time ago, if it has not come yet."""
        if (block, page) in self.unmarked:
            self.unmarked.remove((block, page))
            self.mark(block, page)

    def start(self, image: RamImage, digests: DigestTable) -> None:
        self._dirty = DirtyBitmap(image.layout.total_pages)
        self._image, self._digests = image, digests

    def distrust(self, page: int, pages: int) -> None:
        self.distrusted.append((page, pages))
        self._scan = ScanTracker(threads=1)
        self._scan.start(self._image, self._digests)
        self.fault = "it lies"

    def close(self) -> None:
        if self._scan is not None:
            self._scan.close()

    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        assert self._dirty is not None
        found = self._dirty.take()
        bitmap.union(found)
        if self._scan is not None:
            return self._scan.collect(bitmap)
        return CollectStats(0.0, 0.001, 0, found.count(), unsettled=DirtyBitmap(found.pages))


class Guest:
    """One guest; where it runs is what the simulation is about."""

    def __init__(self, here: RamFiles, rng: random.Random, small_writes: bool) -> None:
        self._here = here
        self._small_writes = small_writes
        self._rng = rng
        self.runs_here = True
        self.runs_there = False
        self.dead = False
        self.ignores_pause = False
        """Somebody writes to the RAM files who cannot be stopped."""
        self.throttle_percent = 0
        self.pauses = 0
        self.writes = 0

    @property
    def writes_now(self) -> bool:
        """The source's RAM is being changed."""
        return (self.runs_here or self.ignores_pause) and not self.dead

    def write(self) -> None:
        """Change a page or two."""
        self._here.dirty_randomly(self._rng, self._rng.randrange(1, 3), only_small=self._small_writes)
        self.writes += 1

    def pause(self) -> None:
        """It stands."""
        assert self.throttle_percent == 0, "paused while a throttle may let it go on"
        self.pauses += 1
        self.runs_here = False

    def resume(self) -> None:
        """It runs at the source again."""
        assert not self.runs_there, "resumed at the source while it runs at the destination"
        self.runs_here = not self.dead

    def start_there(self) -> None:
        """It runs at the destination."""
        assert not self.runs_here, "started at the destination while it runs at the source"
        self.runs_there = True
