"""A device that fills memory it pinned before, at a moment of the test's choice: io_uring's fixed buffers.

To register a buffer pins its pages, which counts as a write to them. A read into it later stores into the
pages themselves, past all page tables: nothing notes that. So it is with O_DIRECT and aio, only that nobody
can say when their data lands. System calls and structs: io_uring(7), x86-64 and arm64 alike.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

_SETUP, _ENTER, _REGISTER = 425, 426, 427
_RING, _ENTRIES = 0, 0x10000000  # offsets to map
_REGISTER_BUFFERS, _GET_EVENTS, _READ_FIXED = 0, 1, 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class PinnedBuffer:
    """Some bytes of this process's memory, pinned.

    Raises OSError: the kernel or its rules do not have io_uring.
    """

    def __init__(self, address: int, length: int) -> None:
        self._address = address
        parameters = ctypes.create_string_buffer(120)
        self._fd = _call(_SETUP, 1, ctypes.addressof(parameters))
        words = struct.unpack("<30I", parameters.raw)
        _, self._tail, self._mask, _, _, _, self._array = words[10:17]
        self._head, _, self._completed_mask, _, _, self._completions = words[20:26]
        ring_bytes = max(self._array + 4 * words[0], self._completions + 16 * words[1])
        self._ring = mmap.mmap(self._fd, ring_bytes, offset=_RING)
        self._entries = mmap.mmap(self._fd, 64 * words[0], offset=_ENTRIES)
        vector = struct.pack("<QQ", address, length)
        buffer = ctypes.create_string_buffer(vector, len(vector))
        _call(_REGISTER, self._fd, _REGISTER_BUFFERS, ctypes.addressof(buffer), 1)

    def fill(self, offset: int, content: bytes) -> None:
        """Have the kernel read a file with this content into the pinned pages; done when this returns."""
        file = os.memfd_create("migrate-test")
        os.pwrite(file, content, 0)
        tail = self._word(self._tail)
        slot = tail & self._word(self._mask)
        entry = struct.pack("<BBHiQQI", _READ_FIXED, 0, 0, file, 0, self._address + offset, len(content))
        self._entries[64 * slot : 64 * slot + 64] = entry.ljust(64, b"\0")
        self._ring[self._array + 4 * slot : self._array + 4 * slot + 4] = struct.pack("<I", slot)
        self._ring[self._tail : self._tail + 4] = struct.pack("<I", tail + 1)
        _call(_ENTER, self._fd, 1, 1, _GET_EVENTS, 0, 0)
        head = self._word(self._head)
        place = self._completions + 16 * (head & self._word(self._completed_mask))
        (result,) = struct.unpack_from("<i", self._ring, place + 8)
        self._ring[self._head : self._head + 4] = struct.pack("<I", head + 1)
        os.close(file)
        assert result == len(content), result

    def _word(self, offset: int) -> int:
        (value,) = struct.unpack_from("<I", self._ring, offset)
        return int(value)


def _call(number: int, *arguments: int) -> int:
    result = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)
