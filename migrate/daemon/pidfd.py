"""Waiting for the end of a process through its pidfd, which never means another process."""

from __future__ import annotations

import asyncio
import contextlib
import select


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
