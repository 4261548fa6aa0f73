"""Holes that were punched into RAM: content becomes zero, and nothing reports it (LMT 2.4).

A page that a process has in its page tables is no hole: punching takes it out of there. So only what is not
there is looked for in the file, which is dear: up to 1 us for each stretch of data.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from migrate import kernel
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.image import RamImage
from migrate.ram.mappings import Mapping


class GuestPages(Protocol):
    """The guest's page tables, as somebody who may look at /proc hands them down."""

    @property
    def pagemap(self) -> int:
        """Open descriptor of /proc/PID/pagemap."""

    def mappings(self, image: RamImage) -> tuple[Mapping, ...]:
        """Through which addresses the guest can write RAM now. Raises OSError: it cannot be seen."""


class HoleWatch:
    """Finds the pages that were data and are holes now.

    A page that was punched out and read again before anybody looked is no hole, and is not found: whoever
    punches it holds its content void.

    Args:
        image: an open source.
        pages: the guest's page tables; None: all data is looked for in the files.
    """

    def __init__(self, image: RamImage, pages: GuestPages | None) -> None:
        self._image = image
        self._pages = pages
        everything = DirtyBitmap(image.layout.total_pages)
        everything.set_all(image.layout)
        self.data = self._data_among(everything)
        """Pages that may be data: they were when last looked at."""

    def look(self, found: DirtyBitmap) -> None:
        """Add the new holes to `found`, which has what was reported since the last look. Raises RamError."""
        self.data.union(found)
        holes = self.data.copy()
        holes.remove(self._present())
        holes.remove(self._data_among(holes))
        self.data.remove(holes)
        found.union(holes)

    def _present(self) -> DirtyBitmap:
        """Pages that the guest has in its page tables."""
        present = DirtyBitmap(self._image.layout.total_pages)
        if self._pages is not None:
            with contextlib.suppress(OSError):  # ended, or no longer to be seen: the rest is looked for
                for mapping in self._pages.mappings(self._image):
                    kernel.present_pages(
                        self._pages.pagemap,
                        mapping.start,
                        mapping.length,
                        mapping.origin,
                        self._image.layout.page_size,
                        present.array,
                    )
        return present

    def _data_among(self, suspects: DirtyBitmap) -> DirtyBitmap:
        data = DirtyBitmap(suspects.pages)
        for block in self._image.layout.blocks:
            kernel.data_pages(
                self._image.kernel_ram, block.first_page, block.pages, suspects.array, data.array
            )
        return data
