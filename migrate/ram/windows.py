"""Walking all RAM in windows that several threads may take at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from migrate.errors import CancelledMigration
from migrate.ram.image import RamImage
from migrate.ram.layout import BlockPlace

WINDOW_BYTES = 16 << 20
"""A multiple of every stripe; 2-3 ms of reading: a cancel is seen at once and threads end together."""

_GRAIN_BYTES = 64 << 10  # reading that much takes about as long as finding the two ends of a hole


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one block, within one window."""

    first: int
    """Page, in page space."""
    count: int
    is_data: bool
    """False: a hole."""


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def windows(image: RamImage) -> Iterator[list[Piece]]:
    """Yield all pages of the image, in order, cut into windows.

    No two windows share a stripe, hence no word of a bitmap: threads may set bits of different windows at
    once. Data comes in stretches of at least 64 KiB: holes among it are read, which finds zeros.

    Raises:
        RamError: a file was truncated, or cannot be searched.
    """
    window_pages = WINDOW_BYTES // image.layout.page_size
    for block in image.layout.blocks:
        window: list[Piece] = []
        left = window_pages
        for first, count, is_data in _stretches(image, block):
            start, rest = first, count
            while rest:
                part = min(rest, left)
                window.append(Piece(start, part, is_data))
                start, rest, left = start + part, rest - part, left - part
                if not left:
                    yield window
                    window, left = [], window_pages
        if window:
            yield window


def for_each_piece(
    image: RamImage,
    work: Callable[[Piece], int],
    pool: ThreadPoolExecutor | None,
    stop: threading.Event | None,
) -> int:
    """Call `work` for every piece of the image, here or in the pool; returns the sum of what it returned.

    When this returns or raises, no call of `work` is running any more.

    Raises:
        CancelledMigration: `stop` was set; looked at before each window.
        RamError: as `windows`; and whatever `work` raises.
    """

    def run(window: list[Piece]) -> int:
        if stop is not None and stop.is_set():
            raise CancelledMigration("cancelled while RAM was being read")
        return sum(map(work, window))

    if pool is None:
        return sum(map(run, windows(image)))
    futures: list[Future[int]] = []
    try:
        futures.extend(pool.submit(run, window) for window in windows(image))
        return sum(future.result() for future in futures)
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _stretches(image: RamImage, block: BlockPlace) -> Iterator[tuple[int, int, bool]]:
    """Data and holes of a block by turns: (first page, count, is data)."""
    at = block.first_page
    for first, count in image.data_extents(block, grain_pages=_GRAIN_BYTES // image.layout.page_size):
        if first > at:
            yield at, first - at, False
        yield first, count, True
        at = first + count
    end = block.first_page + block.pages
    if at < end:
        yield at, end - at, False
