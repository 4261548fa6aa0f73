"""Processes into which the tests inject: each does one thing over and over, and notices when it goes wrong.

    python injected.py KIND     a line for each time it was done: "right", or what was wrong

KIND: sleep, poll, futex, read, spin, signals (a storm of them arrives); seccomp (as poll, under a filter that
kills for userfaultfd).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
SECONDS = 0.05
FUTEX = 202


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


TIME = Timespec(0, int(SECONDS * 1e9))


def sleep() -> bool:
    return libc.nanosleep(ctypes.byref(TIME), None) == 0


def poll() -> bool:
    return libc.poll(None, 0, int(SECONDS * 1000)) == 0


def futex() -> bool:
    word = ctypes.c_int(1)
    found = libc.syscall(FUTEX, ctypes.byref(word), 0, 1, ctypes.byref(TIME))
    return found == -1 and ctypes.get_errno() == 110  # ETIMEDOUT


def read() -> bool:
    ours, theirs = os.pipe()
    threading.Timer(SECONDS, os.write, (theirs, b"x")).start()
    byte = ctypes.create_string_buffer(1)
    found = libc.read(ours, byte, 1)
    os.close(ours)
    os.close(theirs)
    return found == 1 and byte.raw == b"x"


def spin() -> bool:
    return sum(i * i for i in range(200_000)) == 2666646666700000


def signals() -> bool:
    before = count[0]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        libc.sched_yield()
    return count[0] > before


count = [0]


def storm() -> None:
    def note(*_: object) -> None:
        count[0] += 1

    signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)


def forbid(number: int) -> None:
    """A seccomp filter that ends the process for this system call."""
    code = struct.pack("HBBI", 0x20, 0, 0, 0)  # the call's number
    code += struct.pack("HBBI", 0x15, 0, 1, number)
    code += struct.pack("HBBI", 0x06, 0, 0, 0x80000000)  # kill the process
    code += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    text = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(text))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0


def main() -> None:
    kind = sys.argv[1]
    if kind == "signals":
        storm()
    if kind == "seccomp":
        forbid(323)
    acts = {"sleep": sleep, "futex": futex, "read": read, "spin": spin, "signals": signals}
    act = acts.get(kind, poll)
    while True:
        began = time.monotonic()
        right = act()
        early = kind in ("sleep", "poll", "futex") and time.monotonic() - began < SECONDS
        print(
            "right" if right and not early else f"{kind} went wrong: errno {ctypes.get_errno()}", flush=True
        )


if __name__ == "__main__":
    main()
