"""The tracker by a log: a shared bitmap that the emulator sets, in vhost's layout (LMT section 4)."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping

from migrate import kernel
from migrate.errors import UsageError
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.image import RamImage
from migrate.ram.trackers.holes import GuestPages
from migrate.ram.trackers.marking import MarkingTracker

LOG_PAGE = 4096
"""Bytes of RAM for one bit of a log."""


class LogTracker(MarkingTracker):
    """Fetches and clears the log of every block, atomically by words of 64 bits.

    The emulator stores data first and then sets the bit, with release order; devices mark what they wrote
    before they tell the guest. What it does not mark is not seen,
    and found by the background re-read (`protocol/source_reread.py`), which ends this tracker.

    Args:
        fds: an open file for each block, by its name, readable and writable. Stay open; closed by the caller.
        pages: as for every tracker that is told of writes.

    Raises:
        UsageError: the kernel in use cannot fetch and clear in one step.
    """

    name = "log"
    blind_to = "the emulator does not mark all that it writes, or something else writes the RAM file"

    def __init__(self, fds: Mapping[str, int], pages: GuestPages | None = None) -> None:
        super().__init__(pages)
        if kernel.IMPLEMENTATION != "native":
            raise UsageError("--dirty-log needs the native kernel: unset MIGRATE_KERNEL", side="source")
        self._fds = dict(fds)
        self._logs: dict[str, mmap.mmap] = {}

    def describe(self) -> str:
        return (
            "log: a bitmap that the emulator sets for each page it writes; sees what the emulator marks and"
            " nothing else; a harvest costs microseconds"
        )

    def close(self) -> None:
        super().close()
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    def _begin(self, image: RamImage) -> None:
        self._ram = image
        for block in image.layout.blocks:
            self._check_length(block.name, log_bytes(block.length))
            self._logs[block.name] = mmap.mmap(self._fds[block.name], log_bytes(block.length))
        self._fetch(DirtyBitmap(image.layout.total_pages))

    def _fetch(self, found: DirtyBitmap) -> None:
        for block in self._ram.layout.blocks:
            self._check_length(block.name, log_bytes(block.length))
            kernel.take_log(
                self._logs[block.name],
                block.length,
                self._ram.layout.page_size,
                block.first_page,
                found.array,
            )

    def _check_length(self, name: str, needed: int) -> None:
        """A log that was cut off must not be touched: that would be a SIGBUS. Raises OSError."""
        length = os.fstat(self._fds[name]).st_size
        if length < needed:
            raise OSError(f"the log of block {name!r} has {length} bytes, {needed} are needed")


def log_bytes(ram_bytes: int) -> int:
    """Bytes of the log of a block: whole words of 64 bits."""
    return -(-ram_bytes // (LOG_PAGE * 64)) * 8
