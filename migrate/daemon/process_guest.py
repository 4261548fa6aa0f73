"""A guest that is a process: a signal through a pidfd, and proof from /proc that every thread stands.

That kill(2) has returned proves nothing: threads write on until each has taken the signal (LMT section 7).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Literal, NamedTuple

from migrate.daemon.guest import GuestControl, guest_died
from migrate.daemon.pidfd import has_exited, start_time, wait_exited
from migrate.errors import GuestError
from migrate.protocol.journal_record import PausedGuest

_STOPPED = frozenset("Tt")
_DEAD = frozenset("ZX")  # a thread that ended before its process, as main threads may
_FIRST_POLL = 0.0001
_POLL_GROWTH = 1.25
_LONGEST_POLL = 0.01
_LOOP_TICK = 0.001  # event loops do not sleep for less
_KILL_LIMIT = 10.0


class _Thread(NamedTuple):
    tid: int
    name: str
    state: str


class ProcessGuest(GuestControl):
    """Stops and continues a process, all its threads, by signals.

    The process is held by a pidfd from the first moment: its number may be reused, the pidfd never is.
    Writes by the kernel on behalf of the guest (asynchronous I/O in flight) are not stopped by signals.

    Args:
        pid: the process.

    Raises:
        GuestError: there is no such process, or it must not be stopped from here.
    """

    def __init__(self, pid: int) -> None:
        self.pid: int = pid
        self.was_paused_before = False
        self._paused = False
        self._stop_signal = signal.SIGSTOP
        self._pidfd = -1
        if pid == os.getpid():
            raise GuestError(f"process {pid} is this program itself", side="source")
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise GuestError(
                f"there is no process {pid}",
                side="source",
                hint="--guest-pid takes the guest's process id as this program sees it; in a container, the"
                " id in its PID namespace",
            ) from None
        except OSError as error:
            raise GuestError(
                f"process {pid} cannot be held: {error.strerror}",
                side="source",
                hint="--guest-pid takes the id of a process, not of a thread; Linux 5.3 or newer is needed",
            ) from error

    def describe(self) -> str:
        return (
            f"paused by {self._stop_signal.name} to process {self.pid},"
            " proved by the state of every thread in /proc"
        )

    def ask_to_stop(self) -> bool:
        """From now on have the process stop itself, by SIGTSTP, when nothing of what it does is half done.

        False, and nothing changes: it does not handle that signal, so it would stop anywhere, as by SIGSTOP.
        """
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        if not int(caught, 16) >> signal.SIGTSTP - 1 & 1:
            return False
        self._stop_signal = signal.SIGTSTP
        return True

    async def probe(self) -> None:
        self._signal(0)
        self._threads()

    async def how_paused(self) -> PausedGuest:
        assert self.pid is not None
        stands = self.was_paused_before if self._paused else _all_in(_STOPPED, self._threads())
        try:
            began = start_time(self.pid)
        except OSError:
            raise self._died() from None
        return PausedGuest("process", self.pid, began, stands)

    async def pause(self, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        if not self._paused:
            self.was_paused_before = _all_in(_STOPPED, self._threads())
        self._paused = True
        try:
            if not self.was_paused_before:
                self._signal(self._stop_signal)
            await self._wait_until_stopped(end, deadline_s)
        except BaseException:
            with contextlib.suppress(GuestError):  # died: the first error says so
                await self.resume()
            raise

    async def resume(self) -> None:
        if self._paused and not self.was_paused_before:
            self._signal(signal.SIGCONT)
        self._paused = False

    async def still_paused(self) -> bool:
        with contextlib.suppress(GuestError):
            return self._paused and _all_stopped(self._threads())
        return False

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # gone already
            self._send(signal.SIGKILL)
        if not await wait_exited(self._pidfd, _KILL_LIMIT):
            raise GuestError(
                f"process {self.pid} is still there {_KILL_LIMIT:g} s after SIGKILL:"
                f" {_list(self._threads())}",
                side="source",
            )

    def stopped_copy(self) -> str:
        return f"process {self.pid}, a copy now: never resume it, end it with kill -KILL {self.pid}"

    async def alive(self) -> bool:
        return not has_exited(self._pidfd)

    @property
    def pidfd(self) -> int:
        """The descriptor that holds the process; -1 once closed."""
        return self._pidfd

    def look(self) -> Literal["running", "paused", "shutdown"]:
        """How it is now, whoever made it so, in the words of QEMU's RunState; shutdown: it has ended."""
        try:
            return "paused" if _all_stopped(self._threads()) else "running"
        except GuestError:
            return "shutdown" if has_exited(self._pidfd) else "running"

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def _wait_until_stopped(self, end: float, deadline_s: float) -> None:
        """Poll until two listings in a row have the same threads, all stopped."""
        interval = _FIRST_POLL
        before: set[int] = set()
        while True:
            threads = self._threads()
            now = {thread.tid for thread in threads}
            if not _all_stopped(threads):
                before = set()
            elif now == before:
                return
            else:
                before = now
                continue  # the second look needs no waiting
            if time.monotonic() >= end:
                running = [thread for thread in threads if thread.state not in _STOPPED | _DEAD]
                raise GuestError(
                    f"the guest did not stop within {deadline_s:g} s: {_list(running)}",
                    side="source",
                    hint="a thread in state D waits for a device or a network file system",
                )
            if interval < _LOOP_TICK:
                time.sleep(interval)  # noqa: ASYNC251 - it is downtime, and shorter than the loop can wait
            else:
                await asyncio.sleep(interval)
            interval = min(interval * _POLL_GROWTH, _LONGEST_POLL)

    def _threads(self) -> list[_Thread]:
        """All threads as /proc shows them. Raises GuestError: the process has ended, or cannot be seen."""
        threads = []
        try:
            with os.scandir(f"/proc/{self.pid}/task") as tasks:
                for task in tasks:
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # that thread ended
                        threads.append(_parse_stat(Path(task.path, "stat").read_text(errors="replace")))
        except (FileNotFoundError, ProcessLookupError):
            threads = []
        except OSError as error:
            raise GuestError(
                f"the threads of process {self.pid} cannot be seen: {error.strerror}", side="source"
            ) from error
        # The process was there all the time if it is now; only then was it its own directory that was read.
        if has_exited(self._pidfd):
            raise self._died()
        if not threads:
            raise GuestError(
                f"process {self.pid} is not in /proc",
                side="source",
                hint="/proc must be mounted, of the guest's PID namespace, and without hidepid",
            )
        return threads

    def _signal(self, number: int) -> None:
        try:
            self._send(number)
        except ProcessLookupError:
            raise self._died() from None
        except PermissionError as error:
            raise GuestError(
                f"process {self.pid} may not be signalled: {error.strerror}",
                side="source",
                hint="run this as the guest's user or as root",
            ) from error

    def _send(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def _died(self) -> GuestError:
        return guest_died(f"process {self.pid} has ended")


def _all_in(states: frozenset[str], threads: list[_Thread]) -> bool:
    return all(thread.state in states for thread in threads)


def _all_stopped(threads: list[_Thread]) -> bool:
    living = [thread for thread in threads if thread.state not in _DEAD]
    return bool(living) and all(thread.state in _STOPPED for thread in living)


def _parse_stat(line: str) -> _Thread:
    """`123 (name, which may have anything in it) S …`, proc(5)."""
    tid, _, rest = line.partition(" (")
    name, _, fields = rest.rpartition(") ")
    return _Thread(int(tid), name, fields[0])


def _list(threads: list[_Thread]) -> str:
    return ", ".join(f"thread {thread.tid} ({thread.name}) in state {thread.state}" for thread in threads)
