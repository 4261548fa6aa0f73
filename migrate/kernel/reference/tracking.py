"""What a guest wrote: the log of an emulator; page tables need system calls that only the C kernel makes."""

from __future__ import annotations

from mmap import mmap

from migrate.kernel.reference.arguments import check_bitmap, check_page_size
from migrate.kernel.reference.bitmap import bitmap_pages, bitmap_set_range

_LOG_PAGE = 4096
_NATIVE_ONLY = "only the native kernel tracks writes by page tables: unset MIGRATE_KERNEL"


def take_log(log: mmap | bytearray, length: int, page_size: int, first: int, bitmap: bytearray) -> int:
    """Fetch and clear the log of `length` bytes of RAM that begin with page `first`.

    Not atomic, which Python cannot be: the emulator must stand still.

    Returns:
        How many bits were set.

    Raises:
        ValueError: the log is too short, `first` is no multiple of 64, or `length` is not whole pages.
    """
    check_page_size(page_size)
    if len(log) % 8 or len(log) * 8 * _LOG_PAGE < length:
        raise ValueError(f"a log of {len(log)} bytes for {length} bytes of RAM")
    if length % page_size or first % 64 or first < 0:
        raise ValueError(f"{length} bytes of RAM from page {first} on")
    check_bitmap(bitmap, first + length // page_size)
    bits = -(-length // _LOG_PAGE)
    words = -(-bits // 64)
    found = [bit for bit in bitmap_pages(bytes(log[: 8 * words])) if bit < bits]
    log[: 8 * words] = bytes(8 * words)
    for bit in found:
        begin, end = bit * _LOG_PAGE, min((bit + 1) * _LOG_PAGE, length)
        page, last = begin // page_size, (end - 1) // page_size
        bitmap_set_range(bitmap, first + page, last - page + 1)
    return len(found)


def written_pages(
    pagemap: int, start: int, length: int, window: int, origin: int, page_size: int, bitmap: bytearray
) -> None:
    """Not here. Raises OSError."""
    raise OSError(_NATIVE_ONLY)


def present_pages(
    pagemap: int, start: int, length: int, origin: int, page_size: int, bitmap: bytearray
) -> None:
    """Not here. Raises OSError."""
    raise OSError(_NATIVE_ONLY)


def probe_write_tracking() -> None:
    """Not here. Raises OSError."""
    raise OSError(_NATIVE_ONLY)


def track_writes(userfaultfd: int, start: int, length: int) -> None:
    """Not here. Raises OSError."""
    raise OSError(_NATIVE_ONLY)
