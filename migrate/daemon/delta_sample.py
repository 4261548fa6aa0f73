"""How large the deltas of written pages become: copies of some pages, compared with RAM again and again."""

from __future__ import annotations

import os
import time
from bisect import bisect_right

from migrate import kernel
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout

_GAP = 1  # as `fill` joins runs
_NO_GAIN = 4  # bytes that a delta must be shorter than the page: its header, and one


class NoDeltas:
    """Nothing was written, so that there was nothing to look at."""

    zero_share = 0.0
    curve: tuple[tuple[float, float], ...] = ()


class DeltaSample:
    """Copies of some pages, and how large their deltas against them become.

    Pages that were written in the first moments and others are taken from separately, and weighed by how many
    there are: a guest may write few pages all the time, or each page in turn.

    Args:
        groups: (pages taken, how many there are) of each kind.
    """

    def __init__(self, image: RamImage, groups: list[tuple[list[int], int]]) -> None:
        self._image = image
        self._size = image.layout.page_size
        self._copies = {
            page: (self._read(page), count / len(pages)) for pages, count in groups for page in pages
        }
        self._began = time.monotonic()
        self._looks: list[tuple[float, float]] = []
        self._zeros = self._changed = 0.0

    def look(self, now: float) -> None:
        """Compare with what RAM holds now."""
        if self._looks and now - self._began < 1.4 * self._looks[-1][0]:
            return  # as far apart as the curve bends
        total = filled = 0.0
        for page, (old, weight) in self._copies.items():
            new = self._read(page)
            if new == old:
                continue
            self._changed += weight
            if kernel.is_zero(new):
                self._zeros += weight
                continue
            delta = kernel.xbzrle_encode(old, new, self._size - _NO_GAIN, _GAP)
            filled += weight
            total += weight * (self._size if delta is None else len(delta))
        if filled:
            self._looks.append((now - self._began, total / filled))

    @property
    def zero_share(self) -> float:
        """Of the changed pages, those that are zeros now."""
        return self._zeros / self._changed if self._changed else 0.0

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(seconds, mean bytes of a changed page's delta)."""
        return ascending(self._looks)

    def _read(self, page: int) -> bytes:
        block, number = _place(self._image.layout, page)
        return os.pread(self._image.fds[block], self._size, number * self._size)


def _place(layout: PageLayout, page: int) -> tuple[str, int]:
    """The block of a page in page space and its number there."""
    firsts = [block.first_page for block in layout.blocks]
    block = layout.blocks[bisect_right(firsts, page) - 1]
    return block.name, page - block.first_page


def ascending(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """In order of time, the values never falling: what was measured less of over longer is noise."""
    found: list[tuple[float, float]] = []
    for at, value in sorted(points):
        if at > 0 and (not found or at > found[-1][0]):
            found.append((at, max(value, found[-1][1] if found else 0.0)))
    return tuple(found)
