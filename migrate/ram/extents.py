"""Where a file has data: holes are found, not read.

Reading a hole of a tmpfs file through a mapping would allocate it (LMT 2.4), and most of a fresh guest's
RAM is holes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def data_extents(fd: int, pages: int, page_size: int, *, join_pages: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (first page, count) of each stretch with data, ascending, disjoint, rounded to whole pages.

    The file may change meanwhile: what was data (or a hole) when it was looked at is reported as that.
    SEEK_DATA and SEEK_HOLE do not depend on the descriptor's position, so threads may share it.

    Args:
        fd: open for reading.
        pages: length of the block; what the file has beyond it is left out.
        page_size: bytes of a page.
        join_pages: holes of at most that many pages are reported as data; for callers to whom a page read
            costs less than a stretch more.

    Raises:
        OSError: the file cannot be sought, or was truncated between two looks.
    """
    end = pages * page_size
    first = last = offset = 0  # first…last: the stretch not yet reported
    while offset < end:
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole up to the end
        if data >= end:
            break
        # A hole punched since makes both equal: count the page as data, so that every turn gets further.
        hole = max(min(os.lseek(fd, data, os.SEEK_HOLE), end), data + 1)
        start, stop = data // page_size, -(-hole // page_size)
        if start - last > join_pages:
            if last > first:
                yield first, last - first
            first = start
        last = stop
        offset = stop * page_size
    if last > first:
        yield first, last - first
