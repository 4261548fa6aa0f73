"""A guest for the tests of write tracking: does what it is told on its standard input, line by line.

    python wp_guest.py RAM-FILE [none]     prints "ready USERFAULTFD"; with `none` it offers none

`store PAGE BYTE`, `load PAGE`, `pwrite PAGE BYTE`, `punch PAGE COUNT` act on its first mapping or the file;
`map FIRST COUNT` adds a mapping of a part, `store-there PAGE BYTE` writes through the one added last, `unmap`
removes that one; `remap` maps all of RAM anew at the same addresses; `drop` takes all of RAM out of its page
tables, content stays; `collapse` fills RAM with ones, in huge pages; `pin PAGE COUNT` pins pages as a device
does that will fill them, and `fill PAGE BYTE` is when that happens to one of them; `fork` leaves a child that
has RAM mapped, until `end-child`; `tables` is answered by the KiB of its page tables, all others by "done".
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from pathlib import Path

from pinned_io import PinnedBuffer

from migrate.guest._native import offer_tracking

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_FIXED = 0x10
_NO_ACCESS, _PRIVATE_ANONYMOUS = 0, 0x22
_DONTNEED, _COLLAPSE = 4, 25
HUGE = 2 << 20


class Guest:
    """Its RAM and the way it writes."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.length = os.fstat(self.fd).st_size
        room = _libc.mmap(None, self.length + HUGE, _NO_ACCESS, _PRIVATE_ANONYMOUS, -1, 0)
        self.base = self._map(0, self.length, -(-int(room) // HUGE) * HUGE)
        self.added: list[tuple[int, int]] = []
        self.child = 0
        self.pinned: tuple[int, PinnedBuffer]

    def _map(self, offset: int, length: int, at: int | None = None) -> int:
        flags = mmap.MAP_SHARED | (_FIXED if at is not None else 0)
        address = _libc.mmap(at, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, self.fd, offset)
        assert address not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
        return int(address)

    def store(self, page: int, byte: int) -> None:
        ctypes.memset(self.base + page * PAGE, byte, PAGE)

    def load(self, page: int) -> None:
        ctypes.string_at(self.base + page * PAGE, PAGE)

    def pwrite(self, page: int, byte: int) -> None:
        os.pwrite(self.fd, bytes([byte]) * PAGE, page * PAGE)

    def punch(self, page: int, count: int) -> None:
        offset, length = ctypes.c_long(page * PAGE), ctypes.c_long(count * PAGE)
        assert _libc.fallocate(self.fd, 0x03, offset, length) == 0

    def map(self, first: int, count: int) -> None:
        self.added.append((self._map(first * PAGE, count * PAGE), count * PAGE))

    def store_there(self, page: int, byte: int) -> None:
        ctypes.memset(self.added[-1][0] + page * PAGE, byte, PAGE)

    def unmap(self) -> None:
        address, length = self.added.pop()
        assert _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length)) == 0

    def remap(self) -> None:
        self._map(0, self.length, self.base)

    def drop(self) -> None:
        self._advise(_DONTNEED)

    def collapse(self) -> None:
        ctypes.memset(self.base, 1, self.length)
        self._advise(_COLLAPSE)

    def _advise(self, advice: int) -> None:
        address, length = ctypes.c_void_p(self.base), ctypes.c_size_t(self.length)
        assert _libc.madvise(address, length, advice) == 0, os.strerror(ctypes.get_errno())

    def pin(self, page: int, count: int) -> None:
        self.pinned = page, PinnedBuffer(self.base + page * PAGE, count * PAGE)

    def fill(self, page: int, byte: int) -> None:
        first, buffer = self.pinned
        buffer.fill((page - first) * PAGE, bytes([byte]) * PAGE)

    def tables(self) -> str:
        status = Path("/proc/self/status").read_text()
        return next(line.split()[1] for line in status.splitlines() if line.startswith("VmPTE:"))

    def fork(self) -> None:
        self.child = os.fork()
        if not self.child:
            signal.pause()
            os._exit(0)

    def end_child(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


def main() -> None:
    guest = Guest(sys.argv[1])
    print("ready", offer_tracking() if len(sys.argv) == 2 else -1, flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        answer = getattr(guest, name.replace("-", "_"))(*map(int, numbers))
        print(answer or "done", flush=True)


if __name__ == "__main__":
    main()
