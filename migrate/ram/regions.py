"""Regions of RAM that were touched, and those that never held data.

Of a large guest's RAM much may never have been touched. To write-protect a hole would cost 8 bytes of the
guest's page tables a page, and 0.5 ms a GiB at each harvest to read them again. Whether a region still is a
hole is one search, however large it is.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from migrate.ram.image import RamImage

REGION_BYTES = 16 << 20
"""Bytes of a block that become touched together: a multiple of every page and huge page."""


class Stretch(NamedTuple):
    """A part of page space."""

    origin: int
    """Place of its first byte in page space, in bytes."""
    length: int
    """Bytes."""


class _Hole(NamedTuple):
    fd: int
    base: int
    """Place of the block's first byte in page space, in bytes."""
    start: int
    """In the file; the begin of a region."""
    end: int


class TouchedRegions:
    """Which regions hold data, or did when somebody looked; at first nobody has looked.

    A region stays touched: that a page of it was punched out is for others to find.

    Args:
        image: an open source.
    """

    def __init__(self, image: RamImage) -> None:
        page = image.layout.page_size
        self._holes = [
            _Hole(image.fds[block.name], block.first_page * page, 0, block.length)
            for block in image.layout.blocks
        ]
        self.touched: list[Stretch] = []
        """Ascending; neighbours of one block are one stretch."""

    def look(self) -> list[Stretch]:
        """The regions in which data has come up since the last look; they are touched now. Raises OSError."""
        fresh: list[Stretch] = []
        left: list[_Hole] = []
        for hole in self._holes:
            start = hole.start
            while start < hole.end:
                data = _next_data(hole.fd, start, hole.end)
                region = data // REGION_BYTES * REGION_BYTES if data < hole.end else hole.end
                if region > start:
                    left.append(hole._replace(start=start, end=region))
                if region < hole.end:
                    length = min(REGION_BYTES, hole.end - region)
                    _append(fresh, Stretch(hole.base + region, length))
                start = region + REGION_BYTES
        if fresh:
            self._holes = left
            merged: list[Stretch] = []
            for stretch in sorted([*self.touched, *fresh]):
                _append(merged, stretch)
            self.touched = merged
        return fresh


def _next_data(fd: int, start: int, end: int) -> int:
    """Offset of the first data from `start` on; `end` if there is none before it."""
    try:
        return min(os.lseek(fd, start, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


def _append(stretches: list[Stretch], stretch: Stretch) -> None:
    before = stretches[-1] if stretches else Stretch(-1, 0)
    if before.origin + before.length == stretch.origin:
        stretches[-1] = Stretch(before.origin, before.length + stretch.length)
    else:
        stretches.append(stretch)
