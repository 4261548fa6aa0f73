"""A guest for the tests: its threads write its RAM file all the time, each in a nasty way of its own.

    python live_writer.py RAM-FILE        prints "ready" once every thread has written

Page 0 has the beat, a u64 that only grows. The first quarter of the rest is flipped between two contents, the
second gets whole pages that never repeat, the third single bytes, the last is punched out and written again.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import struct
import sys
import threading
from collections.abc import Callable

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    fd = os.open(sys.argv[1], os.O_RDWR)
    ram = mmap.mmap(fd, 0)
    pages = len(ram) // PAGE
    edges = [1 + (pages - 1) * k // 4 for k in range(5)]

    def flip(turn: int) -> None:
        page = edges[0] + turn // 2 % (edges[1] - edges[0])
        ram[page * PAGE : (page + 1) * PAGE] = (b"A", b"B")[turn % 2] * PAGE

    def stamp(turn: int) -> None:
        page = random.randrange(edges[1], edges[2])
        ram[page * PAGE : (page + 1) * PAGE] = struct.pack("<Q", turn) * (PAGE // 8)

    def poke(turn: int) -> None:
        ram[random.randrange(edges[2] * PAGE, edges[3] * PAGE)] = turn % 256

    def punch(turn: int) -> None:
        page = random.randrange(edges[3], edges[4])
        if turn % 3:
            ram[page * PAGE : page * PAGE + 8] = struct.pack("<Q", turn)
        else:
            _libc.fallocate(fd, 0x03, ctypes.c_long(page * PAGE), ctypes.c_long(PAGE))

    started = [threading.Event() for _ in range(4)]

    def run(write: Callable[[int], None], begun: threading.Event) -> None:
        for turn in itertools.count(1):
            write(turn)
            begun.set()

    for write, begun in zip((flip, stamp, poke, punch), started, strict=True):
        threading.Thread(target=run, args=(write, begun), daemon=True).start()
    for begun in started:
        begun.wait()
    print("ready", flush=True)
    for beat in itertools.count(1):
        ram[:8] = struct.pack("<Q", beat)


if __name__ == "__main__":
    main()
