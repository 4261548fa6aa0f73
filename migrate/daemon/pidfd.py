"""A pidfd never means another process: waiting for the end of one, copying a descriptor of one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
from pathlib import Path

_PIDFD_GETFD = 438  # on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


def has_exited(pidfd: int) -> bool:
    """Whether the whole process has ended; it may still be a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


async def wait_exited(pidfd: int, time_limit: float) -> bool:
    """Wait until the process has ended, at most `time_limit` seconds. Returns whether it has."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(time_limit):
                await ended.wait()
    finally:
        loop.remove_reader(pidfd)
    return has_exited(pidfd)


def start_time(pid: int) -> int:
    """When the process began, in clock ticks since the boot: with the number it names one process for ever.

    Raises OSError: there is none, or it cannot be seen.
    """
    line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(line.rpartition(") ")[2].split()[19])  # field 22, proc_pid_stat(5); the state is field 3


def copy_descriptor(pidfd: int, number: int) -> int:
    """A copy of descriptor `number` of that process (pidfd_getfd, Linux 5.6). Raises OSError."""
    copy = int(_libc.syscall(_PIDFD_GETFD, pidfd, number, 0))
    if copy < 0:
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))
    return copy
