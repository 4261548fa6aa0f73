"""The tracker by write protection: the kernel notes each first write to a page of the guest's mappings.

A userfaultfd of the guest in asynchronous mode watches its mappings of RAM; a harvest asks its page tables
what was written and protects that again, in one step a page (PAGEMAP_SCAN, LMT section 2). Regions of RAM
that never held data are not protected; that a page came up there is seen in the file.
"""

from __future__ import annotations

from typing import Protocol

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.image import RamImage
from migrate.ram.mappings import Mapping, parts
from migrate.ram.regions import Stretch, TouchedRegions
from migrate.ram.trackers.holes import GuestPages
from migrate.ram.trackers.marking import MarkingTracker

SPLIT_BYTES = 1 << 20
"""The first scan goes by halves of huge pages, which splits them: later scans see 4 KiB (LMT 2.3)."""


class GuestMemory(GuestPages, Protocol):
    """The guest's addresses, as somebody who may look at /proc hands them down."""

    @property
    def userfaultfd(self) -> int:
        """Open descriptor of a userfaultfd of the guest."""

    def other_writer(self, image: RamImage) -> str | None:
        """Who else can write RAM, for a person; None: nobody. Raises OSError."""


class WpTracker(MarkingTracker):
    """Reports what was written through the guest's mappings, to the page of 4 KiB.

    Not reported, and looked for elsewhere: holes, DMA in flight (`MarkingTracker`); mappings that come, go or
    move, which make all they cover dirty; mappings of other processes, which end this tracker. A write by
    write(2) into the file, or through a mapping that comes and goes between two harvests, is not seen: the
    background re-read finds it during the rounds, which ends this tracker (`protocol/source_reread.py`); what
    it does not get to is noticed when RAM is read once more before the source lets go of it.

    Args:
        memory: descriptors of the guest; whoever made it closes it, after this tracker.
    """

    name = "wp"
    blind_to = "something writes the RAM file by write(2), or through a mapping that came and went"
    settle_seconds = 2.0

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self._memory = memory
        self._mappings: tuple[Mapping, ...] = ()

    def describe(self) -> str:
        return (
            "wp: write protection of the guest's own mappings; to the page of 4 KiB (2 MiB where huge pages"
            " come up after the start); a harvest does not read RAM; the first write to a page after it"
            " costs the guest about 1 us"
        )

    def _begin(self, image: RamImage) -> None:
        self._ram = image
        self._page_size = image.layout.page_size
        self._mappings = ()
        self._regions = TouchedRegions(image)
        self._fetch(DirtyBitmap(image.layout.total_pages))

    def _check(self) -> None:
        writer = self._memory.other_writer(self._ram)
        if writer is not None:
            raise OSError(f"{writer} can write the RAM file as well")

    def _fetch(self, found: DirtyBitmap) -> None:
        mappings = self._memory.mappings(self._ram)
        if not mappings:
            raise OSError("the guest has none of the RAM files mapped")
        known = self._regions.touched
        for mapping in set(mappings) ^ set(self._mappings):
            for part in parts(mapping, known):
                self._set(found, Stretch(part.origin, part.length))
        new = set(mappings) - set(self._mappings)
        for mapping in new:
            kernel.track_writes(self._memory.userfaultfd, mapping.start, mapping.length)
        self._mappings = mappings
        for mapping in mappings:
            self._scan(mapping, known, SPLIT_BYTES if mapping in new else 0, found)
        fresh = self._regions.look()
        if fresh:
            self._protect(fresh, found)

    def _protect(self, fresh: list[Stretch], found: DirtyBitmap) -> None:
        """Track regions from here on. What was stored there before is data; what comes later is reported."""
        anything = DirtyBitmap(found.pages)
        for mapping in self._mappings:
            self._scan(mapping, fresh, SPLIT_BYTES, anything)
        suspects = DirtyBitmap(found.pages)
        for stretch in fresh:
            self._set(suspects, stretch)
        for block in self._ram.layout.blocks:
            kernel.data_pages(
                self._ram.kernel_ram, block.first_page, block.pages, suspects.array, found.array
            )

    def _scan(self, mapping: Mapping, stretches: list[Stretch], window: int, found: DirtyBitmap) -> None:
        for part in parts(mapping, stretches):
            kernel.written_pages(
                self._memory.pagemap,
                part.start,
                part.length,
                window,
                part.origin,
                self._page_size,
                found.array,
            )

    def _set(self, bitmap: DirtyBitmap, stretch: Stretch) -> None:
        first = stretch.origin // self._page_size
        end = -(-(stretch.origin + stretch.length) // self._page_size)
        bitmap.set_range(first, end - first)


class InjectedWpTracker(WpTracker):
    """The same on a guest that knows nothing of it: somebody made it create the userfaultfd."""

    name = "wp-inject"

    def describe(self) -> str:
        return super().describe().replace("wp:", "wp-inject:", 1)
