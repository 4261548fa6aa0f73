"""A userfaultfd from a process that knows nothing: it notices nothing, whatever it does, whatever fails."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from migrate.daemon.injection import inject_userfaultfd
from migrate.daemon.tracee import Tracee

SCRIPT = Path(__file__).with_name("injected.py")
USERFAULTFD = "anon_inode:[userfaultfd]"
NOBODY = 65534
KINDS = ["sleep", "poll", "futex", "read", "spin", "signals"]


class Target:
    """The process, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def status(self, *names: str) -> dict[str, str]:
        text = Path(f"/proc/{self.pid}/status").read_text()
        lines = dict(line.split(":", 1) for line in text.splitlines())
        return {name: lines[name].strip() for name in names}

    def descriptors(self) -> set[str]:
        """What it has open, but for its pipes, which come and go."""
        found = set()
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                opened = str(path.readlink())
                if "pipe" not in opened:
                    found.add(f"{path.name} {opened}")
        return found

    def check_right(self, times: int = 3) -> None:
        """It goes on, and all it does is right."""
        assert self._process.stdout is not None
        for _ in range(times):
            ready, _, _ = select.select([self._process.stdout], [], [], 20)
            assert ready, f"the process stands: {self.status('State', 'TracerPid')}"
            assert self._process.stdout.readline() == "right\n"


@contextmanager
def target(kind: str) -> Iterator[Target]:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), kind], stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            started = Target(process)
            started.check_right(1)
            yield started
        finally:
            process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_goes_on_as_if_nothing_had_been(kind: str) -> None:
    with target(kind) as process:
        before = process.descriptors(), process.status("SigBlk", "SigCgt", "SigIgn")
        for _ in range(5):
            fd, seconds = inject_userfaultfd(process.pid)
            try:
                assert str(Path(f"/proc/self/fd/{fd}").readlink()) == USERFAULTFD
                assert 0 < seconds < 5
            finally:
                os.close(fd)
            process.check_right()
        assert (process.descriptors(), process.status("SigBlk", "SigCgt", "SigIgn")) == before
        assert process.status("TracerPid") == {"TracerPid": "0"}


def check_refused(process: Target, words: str) -> None:
    with pytest.raises(OSError) as caught:
        inject_userfaultfd(process.pid)
    assert words in (caught.value.strerror or str(caught.value))


def test_a_stopped_process_stays_stopped_and_goes_on_later() -> None:
    with target("poll") as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        check_refused(process, "is stopped")
        assert process.status("State")["State"].startswith("T")
        os.kill(process.pid, signal.SIGCONT)
        process.check_right()


def test_a_seccomp_filter_that_kills_for_it_is_not_tried() -> None:
    with target("seccomp") as process:
        check_refused(process, "seccomp")
        process.check_right()


def test_without_the_right_to_trace_nothing_happens() -> None:
    if os.getuid() != 0:
        pytest.skip("needs a process of another user")
    with target("poll") as process:
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            with pytest.raises(PermissionError, match="cannot be traced"), Tracee(process.pid):
                pass
        finally:
            os.setresuid(0, 0, 0)
        process.check_right()


def test_a_process_that_is_traced_already_is_left_alone() -> None:
    with target("poll") as process:
        strange = subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import ctypes; libc = ctypes.CDLL(None)\n"
                f"assert libc.ptrace(0x4206, {process.pid}, 0, 0) == 0; print('traces', flush=True); input()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert strange.stdout is not None and strange.stdin is not None
        with strange:
            assert strange.stdout.readline() == b"traces\n"
            check_refused(process, "cannot be traced")
            strange.stdin.close()
        process.check_right()


def test_a_process_that_has_ended_is_named() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError, match="has ended"):
            inject_userfaultfd(process.pid)


def test_a_daemon_killed_in_the_middle_leaves_the_process_as_it_was() -> None:
    """SIGKILL comes while the process is traced; who began it is killed, what was begun is finished."""
    with target("spin") as process:
        before = process.descriptors()
        for _ in range(10):
            daemon = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    "from migrate.daemon.injection import inject_userfaultfd as i\n"
                    f"while True: i({process.pid})",
                ],
                cwd=Path(__file__).parents[2],
            )
            with daemon:
                end = time.monotonic() + 20
                while process.status("TracerPid")["TracerPid"] == "0":
                    assert time.monotonic() < end and daemon.poll() is None
                daemon.kill()
            process.check_right()
        end = time.monotonic() + 20
        while process.status("TracerPid")["TracerPid"] != "0":
            assert time.monotonic() < end
            time.sleep(0.001)
        process.check_right()
        assert process.descriptors() == before
