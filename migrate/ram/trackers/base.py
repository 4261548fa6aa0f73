"""What a dirty tracker is: the answer to "which pages must be sent again?"."""

from __future__ import annotations

import abc
import threading
from typing import ClassVar, NamedTuple

from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage


class CollectStats(NamedTuple):
    """What one collect cost and found."""

    began: float
    """When it was fetched what is dirty, monotonic: later writes are not in it."""
    seconds: float
    """From then on."""
    pages_read: int
    dirty_pages: int
    compare_seconds: float = 0.0
    """What a collect in the pause would cost on top of these seconds."""
    unsettled: DirtyBitmap | None = None
    """Pages that may still change without another report; None: content is compared, all is seen."""


class DirtyTracker(abc.ABC):
    """Reports pages that changed since they were last reported, or since their copy was sent.

    Order of use (design 2): `start` → round 1 (`mark_all_data`) → `collect` before each further round →
    pause → `collect(stopped=True)` → last round. A page is reported *before* it is copied (LMT 5,
    invariant 1). A tracker may report too much, never too little: what it cannot tell is dirty (invariant 8).
    """

    name: ClassVar[str]
    """As `--dirty-tracker` has it."""
    exact: ClassVar[bool]
    """True: exactly the pages that differ; False: these and perhaps others."""
    live: ClassVar[bool] = True
    """False: it knows nothing while the guest runs, so that there are no live rounds."""
    fault: str | None = None
    """Why it does its work in another way now, for a person; set once."""

    @abc.abstractmethod
    def describe(self) -> str:
        """What it promises and what it costs, for a person."""

    @abc.abstractmethod
    def start(self, image: RamImage, digests: DigestTable) -> None:
        """Begin; every change from here on will be reported.

        Args:
            image: the source's RAM.
            digests: the digests of the copies that were sent; the tracker only reads them.
        """

    @abc.abstractmethod
    def collect(
        self, bitmap: DirtyBitmap, *, stopped: bool = False, stop: threading.Event | None = None
    ) -> CollectStats:
        """Set the bits of the dirty pages and forget what was reported. Blocks: call it in a thread.

        After an error the bitmap may have some more bits set, and what was not reported will be later.

        Args:
            bitmap: bits are added, none is cleared. Nobody else changes it, or sends pages, meanwhile.
            stopped: the guest is paused and this is downtime: use every CPU.
            stop: set by who wants it to end early.

        Raises:
            RamError: RAM cannot be read.
            CancelledMigration: `stop` was set.
        """

    def differing(self) -> int | None:
        """After the last copy, the guest stopped: how many pages are not what was sent, for all it knows.

        What differs will be reported. None: any page may, all of RAM must be read. Raises RamError.
        """
        return None

    def distrust(self, page: int, pages: int) -> None:
        """So many pages, this one first, changed without a report: report what differs from here on.

        Only for a tracker that tells `unsettled`, between two collects.
        """
        raise RuntimeError(f"{self.name} reports no page that it has not read: {pages} from {page} on")

    def close(self) -> None:  # noqa: B027 - most trackers hold nothing
        """Let go of everything; the second call does nothing."""


def mark_all_data(image: RamImage, bitmap: DirtyBitmap) -> int:
    """Set the bit of every page that is no hole: what round 1 sends. Returns how many these are.

    Raises RamError.
    """
    marked = 0
    for block in image.layout.blocks:
        for first, count in image.data_extents(block):
            bitmap.set_range(first, count)
            marked += count
    return marked
