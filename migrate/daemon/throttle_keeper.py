"""Holds a guest back, in a process of its own, and lets it go when the daemon that began it is gone.

Run as a file, with nothing but the standard library, so that it is there in a moment:

    throttle_keeper.py signals PIDFD PID       SIGSTOP and SIGCONT in turn
    throttle_keeper.py cgroup DIRECTORY        cpu.max of a cgroup (version 2)

stdin: lines with a percentage, how much of its time the guest is to lose; 0: none. stdout: the percentage
again once it is in force, or `! reason`, and then it ends. At the end of stdin, which comes with the end of
the daemon however that ends, the guest gets all its time back.

While it is at 0 it touches nothing: a guest that somebody paused stays paused. A guest that somebody else
stops while it runs is left alone until it runs again; while it stands anyway that cannot be seen.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

PERIOD_SECONDS = 0.1
SAMPLE_SECONDS = 0.2
LEAST_CPUS = 0.1
"""Of a guest that was idle: what it is taken to use all the same."""
LEAST_QUOTA_US = 1000  # the kernel takes no less
DEAD = frozenset("ZX")


class Commands:
    """The percentages that come in.

    Args:
        pidfd: of the guest, whose end ends the waiting; -1: not looked at.
    """

    def __init__(self, pidfd: int = -1) -> None:
        self._pidfd = pidfd
        self._rest = b""

    def wait(self, seconds: float | None) -> int | None:
        """The last percentage that came within that time, or None.

        Raises EOFError: the daemon is gone. ProcessLookupError: the guest is.
        """
        ready, _, _ = select.select([0] if self._pidfd < 0 else [0, self._pidfd], [], [], seconds)
        if self._pidfd in ready:
            raise ProcessLookupError("the guest has ended")
        if not ready:
            return None
        data = os.read(0, 4096)
        if not data:
            raise EOFError
        *lines, self._rest = (self._rest + data).split(b"\n")
        return int(lines[-1]) if lines else None


class Signals:
    """Lets the guest stand for a share of every period."""

    def __init__(self, pidfd: int, pid: int) -> None:
        self._pidfd = pidfd
        self._tasks = Path(f"/proc/{pid}/task")
        self._stopped = False

    def apply(self, percent: int) -> None:
        """From here on; 0: let it go. Raises OSError."""
        del percent
        self._go_on()

    def keep(self, percent: int, commands: Commands) -> int | None:
        """One period of it; returns the command that broke it off. Raises OSError, EOFError."""
        standing = PERIOD_SECONDS * percent / 100
        command = commands.wait(PERIOD_SECONDS - standing)
        if command is not None:
            return command
        if self._stands():
            return commands.wait(PERIOD_SECONDS)  # by somebody else's hand: none of our business
        self._stopped = True
        signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
        command = commands.wait(standing)
        self._go_on()
        return command

    def _go_on(self) -> None:
        if self._stopped:
            self._stopped = False
            signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def _stands(self) -> bool:
        """Whether every thread is stopped, proc(5)."""
        states = []
        for task in self._tasks.iterdir():
            try:
                states.append((task / "stat").read_text().rpartition(") ")[2][0])
            except (FileNotFoundError, ProcessLookupError):
                continue  # that thread ended
        living = [state for state in states if state not in DEAD]
        return bool(living) and all(state == "T" for state in living)


class Cgroup:
    """Lowers cpu.max to a share of the CPU time that the guest used before."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "cpu.max"
        self._stat = directory / "cpu.stat"
        self._before = self._file.read_text()
        self._began, self._used = time.monotonic(), self._usage()
        self._cpus = 0.0
        self._applied = False

    def apply(self, percent: int) -> None:
        """From here on; 0: as it was. Raises OSError."""
        if percent:
            self._applied = True
            self._file.write_text(f"{self._quota(percent)} 100000")
        elif self._applied:
            self._applied = False
            self._file.write_text(self._before)

    def keep(self, percent: int, commands: Commands) -> int | None:
        """The kernel keeps it. Raises EOFError."""
        del percent
        return commands.wait(None)

    def _quota(self, percent: int) -> int:
        """Microseconds in 100 ms, over all CPUs."""
        if not self._cpus:
            time.sleep(max(0.0, self._began + SAMPLE_SECONDS - time.monotonic()))
            seconds = time.monotonic() - self._began
            self._cpus = max(LEAST_CPUS, (self._usage() - self._used) / 1e6 / seconds)
            quota, period = self._before.split()
            if quota != "max":
                self._cpus = min(self._cpus, int(quota) / int(period))
        return max(LEAST_QUOTA_US, int(self._cpus * (100 - percent) * 1000))

    def _usage(self) -> int:
        """Microseconds of CPU time so far."""
        values = dict(line.split() for line in self._stat.read_text().splitlines())
        return int(values["usage_usec"])


def main(arguments: list[str]) -> int:
    """Serve until the end of stdin; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the daemon ends it by that
    kind, *rest = arguments
    try:
        means: Signals | Cgroup
        if kind == "signals":
            means, commands = Signals(int(rest[0]), int(rest[1])), Commands(int(rest[0]))
        else:
            means, commands = Cgroup(Path(rest[0])), Commands()
        try:
            serve(means, commands)
        finally:
            means.apply(0)
    except EOFError:
        return 0
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        with contextlib.suppress(EOFError):
            say(f"! {reason}")
    return 1


def serve(means: Signals | Cgroup, commands: Commands) -> None:
    """Do as the commands say. Raises OSError; EOFError: the daemon is gone."""
    percent = 0
    while True:
        command = means.keep(percent, commands) if percent else commands.wait(None)
        if command is not None:
            means.apply(command)
            percent = command
            say(str(percent))


def say(line: str) -> None:
    """Raises EOFError: nobody reads it any more."""
    try:
        os.write(1, f"{line}\n".encode())
    except BrokenPipeError:
        raise EOFError from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
