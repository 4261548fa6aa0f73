"""What the file system under a RAM file is, and how much still fits into it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HUGETLBFS_MAGIC = 0x958458F6  # <linux/magic.h>
_KEEP_SIZE_PUNCH_HOLE = 0x03  # <linux/falloc.h>
_STATFS_BYTES = 256  # more than struct statfs has anywhere
_libc = ctypes.CDLL(None, use_errno=True)


def is_hugetlbfs(fd: int) -> bool:
    """Whether the file lives in hugetlbfs, where write() does not exist. Raises OSError."""
    result = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, result):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    f_type = ctypes.c_long.from_buffer(result).value  # its first member
    return f_type & 0xFFFFFFFF == _HUGETLBFS_MAGIC


def punch(fd: int, length: int) -> None:
    """Make the first `length` bytes a hole; the file keeps its length. Raises OSError."""
    if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def free_bytes(place: int | Path) -> int | None:
    """Bytes that can still be written there by anybody; None if the file system has no limit of its own.

    Args:
        place: a descriptor, or a path on the file system.

    Raises:
        OSError: the file system does not answer.
    """
    status = os.statvfs(place)
    if status.f_blocks == 0:  # tmpfs without a size, and memfd
        return None
    return status.f_bavail * status.f_frsize
