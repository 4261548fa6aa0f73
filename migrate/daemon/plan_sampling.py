"""Samples a running guest for `migrate-src plan`: nothing is sent, the guest is neither changed nor stopped.

The tracker that a migration would use says which pages were written, over windows from 5 ms to the whole
time; copies of some hundred of these pages say how large their deltas become. RAM is read only in samples,
but for the tracker scan, which reads all of it in every window, as it does in a migration.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time

from migrate import kernel
from migrate.daemon.delta_sample import DeltaSample, NoDeltas, ascending
from migrate.errors import CancelledMigration, GuestError
from migrate.protocol.plan_workload import Curve, Workload
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable, read_digests
from migrate.ram.image import RamImage
from migrate.ram.trackers import DirtyTracker, mark_all_data
from migrate.ram.trackers.marking import COMPARE_RATE, MarkingTracker
from migrate.ram.windows import cpu_count

WINDOWS = (0.005, 0.01, 0.02, 0.04)
"""Seconds of the first windows; the others are STEP long."""
STEP = 0.1
MOST_STEPS = 100
"""In a longer time the steps are longer."""
PILOT_SHARE = 0.1
"""Of the time: then pages for deltas are taken, from those written until then, and from the others."""
MOST_DELTA_PAGES = 512
"""Of each of the two."""
MOST_READ_BYTES = 128 << 20
"""Of RAM, for the share of zeros and the speed of reading."""
PARALLEL_GAIN = 0.75
"""What each CPU adds to the speed of reading RAM."""
_STRETCH_PAGES = 256
_EARLY_PARTS = 256
_BATCH_BYTES = 1 << 20
_SPEED_PAGES = 4096
_CHUNK_BYTES = 64
_WHOLE_PAGES = ((0.001, 65536.0),)  # where no changed page was seen, none counts as a delta


class GuestSampler:
    """One sampling of one guest.

    Args:
        image: RAM, open for reading.
        tracker: not started yet; closed by whoever made it.
        seconds: how long to look, once the tracker is ready.
    """

    def __init__(self, image: RamImage, tracker: DirtyTracker, seconds: float) -> None:
        self._image = image
        self._layout = image.layout
        self._tracker = tracker
        self._seconds = seconds
        self._keys = kernel.Keys(os.urandom(32), self._layout.page_size)
        self._random = random.Random()
        self._marking = isinstance(tracker, MarkingTracker)

    def run(self, stop: threading.Event) -> Workload:
        """Look at the guest. Blocks: call it in a thread.

        Raises:
            RamError: RAM cannot be read.
            GuestError: the tracker failed on the way, so that nothing is known.
            CancelledMigration: `stop` was set.
        """
        began = time.monotonic()
        table = DigestTable(self._keys, self._layout)
        self._tracker.start(self._image, table)
        start_seconds = time.monotonic() - began
        data = DirtyBitmap(self._layout.total_pages)
        data_pages = mark_all_data(self._image, data)
        zero_share, read_rate = self._read_some(data)
        page_seconds = self._record_seconds(data)
        if not self._marking:
            table.array[:] = read_digests(self._image, self._keys, cpu_count(), stop)
        harvests = self._watch(data, stop)
        if self._tracker.fault is not None:
            raise GuestError(f"the guest could not be sampled: {self._tracker.fault}", side="source")
        return Workload(
            page_size=self._layout.page_size,
            data_pages=data_pages,
            zero_share=zero_share,
            written=Curve(harvests.curve(self._marking), float(self._pages)),
            written_zero_share=harvests.deltas.zero_share,
            delta_bytes=Curve(harvests.deltas.curve or _WHOLE_PAGES, float(self._layout.page_size)),
            early_share=_early_share(data, harvests.all),
            harvest_seconds=statistics.median(each.seconds for each in harvests.taken),
            page_seconds=page_seconds,
            read_bytes_per_second=read_rate * max(1.0, PARALLEL_GAIN * cpu_count()),
            compares_all=not self._marking,
            settle_seconds=self._tracker.settle_seconds if isinstance(self._tracker, MarkingTracker) else 0.0,
            start_seconds=start_seconds,
        )

    @property
    def _pages(self) -> int:
        return sum(block.pages for block in self._layout.blocks)

    def _watch(self, data: DirtyBitmap, stop: threading.Event) -> Harvests:
        harvests = Harvests(self._layout.total_pages)
        base = self._collect(harvests, stop)
        harvests.begin(base)
        deltas: DeltaSample | None = None
        step = max(STEP, self._seconds / MOST_STEPS)
        due = [sum(WINDOWS[: count + 1]) for count in range(len(WINDOWS))]
        while due[-1] + step <= self._seconds * 1.0001:
            due.append(due[-1] + step)
        for instant in due:
            left = base + instant - time.monotonic()
            if stop.wait(max(left, 0.0)):
                raise CancelledMigration("cancelled while the guest was sampled")
            now = self._collect(harvests, stop)
            if deltas is not None:
                deltas.look(now)
            elif now - base >= PILOT_SHARE * self._seconds and harvests.all.count():
                deltas = harvests.deltas = DeltaSample(self._image, self._groups(harvests.all, data))
        return harvests

    def _groups(self, written: DirtyBitmap, data: DirtyBitmap) -> list[tuple[list[int], int]]:
        """Pages that were written and data pages that were not, some of each, and how many there are."""
        rest = DirtyBitmap(data.pages)
        bits = int.from_bytes(data.array, "little") & ~int.from_bytes(written.array, "little")
        rest.array[:] = bits.to_bytes(len(rest.array), "little")
        groups = [(self._choose(pages), pages.count()) for pages in (written, rest)]
        return [(pages, count) for pages, count in groups if pages]

    def _collect(self, harvests: Harvests, stop: threading.Event) -> float:
        """Harvest; returns the instant."""
        began = time.monotonic()
        if isinstance(self._tracker, MarkingTracker):
            reported = self._tracker.reported()
            bitmap = DirtyBitmap(self._layout.total_pages) if reported is None else reported
        else:
            bitmap = DirtyBitmap(self._layout.total_pages)
            self._tracker.collect(bitmap, stop=stop)
        harvests.add(began, bitmap, time.monotonic() - began)
        return began

    def _choose(self, pages: DirtyBitmap) -> list[int]:
        """Some of the pages, each as likely as the others."""
        count = pages.count()
        ranks = sorted(self._random.sample(range(count), min(count, MOST_DELTA_PAGES)), reverse=True)
        found: list[int] = []
        passed = 0
        for at in range(0, len(pages.array), _CHUNK_BYTES):
            inside = kernel.bitmap_count(pages.array[at : at + _CHUNK_BYTES])
            page, rank = 8 * at - 1, passed - 1
            while ranks and ranks[-1] < passed + inside:
                while rank < ranks[-1]:
                    page = pages.next(page + 1)
                    rank += 1
                found.append(page)
                ranks.pop()
            passed += inside
        return found

    def _read_some(self, data: DirtyBitmap) -> tuple[float, float]:
        """Share of zeros among the data pages, and bytes a second that reading and digesting takes."""
        stretches = self._stretches(data, MOST_READ_BYTES // self._layout.page_size)
        zeros = DigestTable(self._keys, self._layout)
        found = DirtyBitmap(self._layout.total_pages)
        filled = pages = 0
        times: list[float] = []
        for first, count in stretches:
            began = time.monotonic()
            filled += kernel.scan(self._image.kernel_ram, self._keys, zeros.array, first, count, found.array)
            times.append((time.monotonic() - began) / count)
            pages += count
        if not pages:
            return 0.0, COMPARE_RATE
        return 1 - filled / pages, self._layout.page_size / _undisturbed(times)

    def _record_seconds(self, data: DirtyBitmap) -> float:
        """What it takes to read a page and make a record of it."""
        pending = DirtyBitmap(self._layout.total_pages)
        for first, count in self._stretches(data, _SPEED_PAGES):
            pending.set_range(first, count)
        digests = DigestTable(self._keys, self._layout).array
        owed = DirtyBitmap(self._layout.total_pages)
        out, sent = (
            bytearray(_BATCH_BYTES + (64 << 10)),
            bytearray(8 * kernel.max_records(self._layout.page_size)),
        )
        at, done = 0, False
        times: list[float] = []
        while not done:
            began = time.monotonic()
            filled = kernel.fill(
                *(self._image.kernel_ram, self._keys, digests, None, pending.array, owed.array),
                *(at, out, _BATCH_BYTES, sent, 1, 1),
            )
            at, done = filled.next_page, filled.finished
            if filled.records:
                times.append((time.monotonic() - began) / filled.records)
        return _undisturbed(times)

    def _stretches(self, data: DirtyBitmap, most_pages: int) -> list[tuple[int, int]]:
        """Stretches of data pages, all of them or some at random, at most so many pages."""
        extents = [
            (first + at, min(_STRETCH_PAGES, count - at))
            for block in self._layout.blocks
            for first, count in self._image.data_extents(block)
            for at in range(0, count, _STRETCH_PAGES)
        ]
        self._random.shuffle(extents)
        found, pages = [], 0
        for first, count in extents:
            if pages + count > most_pages:
                break
            found.append((first, count))
            pages += count
        return found or extents[:1]


class Harvests:
    """What the windows found."""

    def __init__(self, pages: int) -> None:
        self.all = DirtyBitmap(pages)
        """Everything since `begin`."""
        self.taken: list[_Harvest] = []
        self.deltas: DeltaSample | NoDeltas = NoDeltas()
        self._pages = pages

    def begin(self, at: float) -> None:
        """The windows begin; what was found before is nothing to go by."""
        self._base = at
        self.taken.clear()
        self.all.clear()

    def add(self, at: float, found: DirtyBitmap, seconds: float) -> None:
        """A window ends."""
        self.taken.append(_Harvest(at, found, seconds))
        self.all.union(found)

    def curve(self, each_is_new: bool) -> tuple[tuple[float, float], ...]:
        """(seconds, different pages): over windows of any length, from the mean of those that there are.

        Args:
            each_is_new: a harvest has what was written since the last one; else since the begin.
        """
        if not each_is_new:
            points = [(each.at - self._base, float(each.found.count())) for each in self.taken]
            return ascending(points)
        points, so_far = [], DirtyBitmap(self._pages)
        short = len(WINDOWS)
        for each in self.taken[:short]:
            so_far.union(each.found)
            points.append((each.at - self._base, float(so_far.count())))
        rest = self.taken[short:]
        length = 1
        while length <= len(rest):
            points.append(self._mean(rest, length, self.taken[short - 1].at))
            length = length * 2 if length * 2 <= len(rest) or length == len(rest) else len(rest)
        return ascending(points)

    def _mean(self, rest: list[_Harvest], length: int, base: float) -> tuple[float, float]:
        """Over the windows of `length` harvests that follow each other: (seconds, pages), the means."""
        seconds, pages, windows = 0.0, 0, len(rest) // length
        for window in range(windows):
            together = DirtyBitmap(self._pages)
            first = window * length
            for each in rest[first : first + length]:
                together.union(each.found)
            begin = rest[first - 1].at if first else base
            seconds += rest[first + length - 1].at - begin
            pages += together.count()
        return seconds / windows, pages / windows


class _Harvest:
    """One window's end."""

    __slots__ = ("at", "found", "seconds")

    def __init__(self, at: float, found: DirtyBitmap, seconds: float) -> None:
        self.at = at
        self.found = found
        self.seconds = seconds


def _undisturbed(times: list[float]) -> float:
    """What it takes with free CPUs, as they are once the guest is stopped: the least tenth of the times."""
    return sorted(times)[len(times) // 10] if times else 0.0


def _early_share(data: DirtyBitmap, written: DirtyBitmap) -> tuple[float, ...]:
    """`Workload.early_share`: counted in stretches of page space, read off at equal shares of the data."""
    size = -(-len(data.array) // _EARLY_PARTS)
    size += -size % 8
    counts = [
        (kernel.bitmap_count(data.array[at : at + size]), kernel.bitmap_count(written.array[at : at + size]))
        for at in range(0, len(data.array), size)
    ]
    all_data, all_written = (max(sum(column), 1) for column in zip(*counts, strict=True))
    found: list[float] = []
    data_so_far = written_so_far = 0
    for in_data, in_written in counts:
        while (
            len(found) < _EARLY_PARTS
            and (len(found) + 1) * all_data <= (data_so_far + in_data) * _EARLY_PARTS
        ):
            part = ((len(found) + 1) * all_data / _EARLY_PARTS - data_so_far) / max(in_data, 1)
            found.append((written_so_far + part * in_written) / all_written)
        data_so_far += in_data
        written_so_far += in_written
    return tuple(found) or (1.0,)
