"""What the RAM tests share: a file written as a guest would, and the rights of somebody else."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 4096
_NOBODY = 65534
_KEEP_SIZE_PUNCH_HOLE = 0x03  # <linux/falloc.h>
_libc = ctypes.CDLL(None, use_errno=True)


class Ram:
    """A RAM file that a test writes, as a guest would, page by page."""

    def __init__(self, path: Path, pages: int, page_size: int = PAGE) -> None:
        self.path = path
        self.pages = pages
        self.page_size = page_size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self.fd, pages * page_size)

    def write(self, page: int, content: bytes) -> None:
        """Fill whole pages from that one on."""
        assert len(content) % self.page_size == 0
        assert os.pwrite(self.fd, content, page * self.page_size) == len(content)

    def fill(self, page: int, byte: int) -> None:
        self.write(page, bytes([byte]) * self.page_size)

    def punch(self, page: int, count: int = 1) -> None:
        """Make a hole (fallocate(2); Python has no name for it)."""
        offset, length = page * self.page_size, count * self.page_size
        result = _libc.fallocate(self.fd, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length))
        assert result == 0, os.strerror(ctypes.get_errno())

    def blocks_allocated(self) -> int:
        return os.fstat(self.fd).st_blocks


@contextmanager
def as_nobody() -> Iterator[None]:
    """File access with the rights of somebody else, also when the tests run as root."""
    if os.geteuid() == 0:
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield
