"""Where a file has data: holes are found, not read.

Reading a hole of a tmpfs file through a mapping would allocate it (LMT 2.4), and most of a fresh guest's
RAM is holes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def data_extents(fd: int, pages: int, page_size: int, *, grain_pages: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (first page, count) of each stretch with data, ascending, disjoint, rounded to whole pages.

    The file may change meanwhile: what was data (or a hole) when it was looked at is reported as that.
    SEEK_DATA and SEEK_HOLE do not depend on the descriptor's position, so threads may share it.

    Args:
        fd: open for reading.
        pages: length of the block; what the file has beyond it is left out.
        page_size: bytes of a page.
        grain_pages: every stretch is made at least that long, so that holes in it count as data. For callers
            to whom reading a few pages costs less than finding their holes, 1-2 us a stretch.

    Raises:
        OSError: the file cannot be sought, or was truncated between two looks.
    """
    end = pages * page_size
    first = last = offset = 0  # pages first…last: the stretch not yet reported
    while offset < end:
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole up to the end
        if data >= end:
            break
        start = data // page_size
        if start + max(grain_pages, 1) >= pages:
            stop = pages
        else:
            search = max(data, (start + grain_pages) * page_size)
            # A hole punched since may be here: at least one page all the same, so each turn gets further.
            stop = max(min(-(-os.lseek(fd, search, os.SEEK_HOLE) // page_size), pages), start + 1)
        if start > last:
            if last > first:
                yield first, last - first
            first = start
        last = stop
        offset = stop * page_size
    if last > first:
        yield first, last - first
