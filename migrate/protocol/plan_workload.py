"""What a guest does to its RAM, as `migrate-src plan` measures it: curves over time and a few shares."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

_MOST_TAIL = 1e6
_LEAST_GROWTH = 0.01


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity that grows with time, from 0 at 0, ever more slowly; points of it were measured.

    Between the points it is linear. Beyond the last one it goes on as `w * (1 - exp(-r * t / w))` does, which
    w places that are met at random r times a second give: w and r from the last point and the value at half
    its time. A quantity that is linear up to the end goes on so.

    Args:
        points: (seconds, value), ascending, the first one after 0.
        most: the value is never above that.
    """

    points: tuple[tuple[float, float], ...]
    most: float

    def __call__(self, seconds: float) -> float:
        """The value after so many seconds."""
        if seconds <= 0 or not self.points:
            return 0.0
        end, last = self.points[-1]
        if seconds > end:
            return min(self._beyond(seconds, end, last), self.most)
        return min(self._between(seconds), self.most)

    def scaled(self, factor: float) -> Curve:
        """The curve of a guest that does everything `factor` times as fast."""
        return replace(self, points=tuple((at / factor, value) for at, value in self.points))

    def _between(self, seconds: float) -> float:
        place = bisect_right(self.points, seconds, key=lambda point: point[0])
        before = self.points[place - 1] if place else (0.0, 0.0)
        if place == len(self.points):
            return before[1]
        after = self.points[place]
        return before[1] + (after[1] - before[1]) * (seconds - before[0]) / (after[0] - before[0])

    def _beyond(self, seconds: float, end: float, last: float) -> float:
        half = self._between(end / 2)
        if last <= 0 or half <= 0:
            return last
        growth = last / half - 1  # exp(-x), x = r * end / 2 / w
        if growth >= 1:
            return last * seconds / end
        x = -math.log(max(growth, _LEAST_GROWTH))
        whole = last / -math.expm1(-2 * x)
        return whole * -math.expm1(-2 * x * min(seconds / end, _MOST_TAIL))


@dataclass(frozen=True, slots=True)
class Workload:
    """A guest and its host, measured. Pages unless the name says otherwise; seconds."""

    page_size: int
    data_pages: int
    """That are no holes."""
    zero_share: float
    """Of the data pages: those that are all zeros."""
    written: Curve
    """Different pages written within a time."""
    written_zero_share: float
    """Of the pages written: those that are zeros afterwards."""
    delta_bytes: Curve
    """What a written page takes as a delta after a time; a page whose delta is no gain takes the whole."""
    early_share: tuple[float, ...]
    """Of the pages written, how many lie among the first 1/n, 2/n … n/n of the data pages: those are the ones
    that a page cache keeps of round 1."""
    harvest_seconds: float
    """To fetch the dirty pages while the guest runs."""
    page_seconds: float
    """To make the record of a page, on this host."""
    read_bytes_per_second: float
    """Reading and digesting RAM, with all CPUs."""
    compares_all: bool
    """Each harvest reads all of RAM (tracker scan)."""
    settle_seconds: float
    """For so long after its report a page is compared again in the pause (tracker wp)."""
    start_seconds: float
    """To start the tracker."""

    def slower(self, share: float) -> Workload:
        """The same guest held at a share of its speed."""
        return replace(self, written=self.written.scaled(share), delta_bytes=self.delta_bytes.scaled(share))

    def early(self, share: float) -> float:
        """Share of the written pages that are among the first `share` of the data pages."""
        place = min(max(share, 0.0), 1.0) * len(self.early_share)
        whole = int(place)
        below = self.early_share[whole - 1] if whole else 0.0
        if whole >= len(self.early_share):
            return below
        return below + (self.early_share[whole] - below) * (place - whole)

    @property
    def data_bytes(self) -> int:
        """Of the data pages."""
        return self.data_pages * self.page_size

    @property
    def whole_pages(self) -> float:
        """Data pages that are not zeros."""
        return self.data_pages * (1 - self.zero_share)
