"""Pausing real processes: no write after a pause, no guest left stopped by a failure, no wrong process."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from migrate.daemon.guest_control import CommandGuest, NoGuest, ProcessGuest
from migrate.daemon.hooks import HookError
from migrate.errors import GuestError

THREADS = 6
AREA = 256 << 10
NOBODY = 65534

# ctypes lets go of Python's lock during memset, so the threads really write at once.
WRITER = f"""
import ctypes, mmap, os, sys, threading
file = os.open(sys.argv[1], os.O_RDWR)
ram = mmap.mmap(file, {THREADS * AREA})
def run(number):
    area = (ctypes.c_char * {AREA}).from_buffer(ram, number * {AREA})
    turn = 0
    while True:
        turn += 1
        ctypes.memset(area, turn % 256, {AREA})
for number in range({THREADS}):
    threading.Thread(target=run, args=(number,)).start()
print("ready", flush=True)
"""
POLITE = """
import os, signal
def stop(*_):
    print("finished", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
signal.signal(signal.SIGTSTP, stop)
print("ready", flush=True)
while True:
    signal.pause()
"""
EXIT_THREAD = {"x86_64": 60, "aarch64": 93}
CLONE = {"x86_64": 56, "aarch64": 220}

# A parent in vfork waits in state D until its child ends: as deaf to SIGSTOP as one waiting for a disk.
DEAF = f"""
import ctypes, os
libc = ctypes.PyDLL(None)
vfork, sigchld = 0x4000, 17
print("ready", flush=True)
child = libc.syscall({CLONE.get(platform.machine())}, vfork | sigchld, 0, 0, 0, 0)
if child == 0:
    os.read(0, 1)
    os._exit(0)
os.waitpid(child, 0)
print("runs on", flush=True)
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python scripts and waits until they say "ready"; they end with the test, however that ends."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(script: str, *arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield run
    for process in processes:
        with process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def ram(shm_dir: Path) -> Path:
    path = shm_dir / "guest.ram"
    path.write_bytes(bytes(THREADS * AREA))
    return path


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def pending_signals(pid: int) -> int:
    """Signals sent to the process as a whole that it has not taken yet, as a mask."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("ShdPnd:\t")[2].partition("\n")[0], 16)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never happened"


def content(ram: Path) -> bytes:
    return ram.read_bytes()


def wait_until_written(ram: Path, before: bytes) -> None:
    wait_for(lambda: content(ram) != before)


def let_go(deaf: subprocess.Popen[bytes]) -> bytes:
    """End the child that the deaf process waits for; returns what the process then says."""
    out, _ = deaf.communicate(b"x", timeout=30)
    return out


def die(process: subprocess.Popen[bytes], *, reaped: bool) -> None:
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        process.wait()


def stop_and_wait(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


class TestProcessGuest:
    async def test_after_a_pause_nothing_is_written(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            await guest.probe()
            for _ in range(15):
                await guest.pause(10.0)
                at_once = content(ram)
                assert await guest.still_paused()
                assert content(ram) == at_once
                assert not guest.was_paused_before
                await guest.resume()
                wait_until_written(ram, at_once)
                assert not await guest.still_paused()
            assert await guest.alive()

    async def test_a_guest_that_was_paused_stays_paused(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        stop_and_wait(writer)
        with closing(ProcessGuest(writer.pid)) as guest:
            await guest.pause(10.0)
            assert guest.was_paused_before
            assert await guest.still_paused()
            await guest.resume()
        assert state_of(writer.pid) == "T"
        assert pending_signals(writer.pid) == 0

    async def test_a_second_pause_forgets_nothing(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            await guest.pause(10.0)
            await guest.pause(10.0)
            assert not guest.was_paused_before
            await guest.resume()
            assert state_of(writer.pid) != "T"
            stop_and_wait(writer)  # by somebody else, between two attempts
            await guest.pause(10.0)
            assert guest.was_paused_before

    async def test_resume_without_a_pause_sends_nothing(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        stop_and_wait(writer)
        with closing(ProcessGuest(writer.pid)) as guest:
            await guest.resume()
        assert state_of(writer.pid) == "T"

    async def test_a_guest_continued_by_somebody_else_is_noticed(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            await guest.pause(10.0)
            os.kill(writer.pid, signal.SIGCONT)
            assert not await guest.still_paused()

    async def test_threads_outlive_their_main_thread(self, start: Start, ram: Path) -> None:
        if platform.machine() not in EXIT_THREAD:
            pytest.skip("the number of exit(2) here is not known to this test")
        ends = f"\nctypes.CDLL(None).syscall({EXIT_THREAD[platform.machine()]}, 0)"
        writer = start(WRITER + ends, ram)
        wait_for(lambda: state_of(writer.pid) == "Z")
        with closing(ProcessGuest(writer.pid)) as guest:
            assert await guest.alive()
            await guest.pause(10.0)
            at_once = content(ram)
            assert await guest.still_paused()
            assert content(ram) == at_once
            await guest.resume()
            wait_until_written(ram, at_once)

    async def test_a_thread_that_cannot_stop_ends_the_pause_and_the_guest_goes_on(self, start: Start) -> None:
        if platform.machine() not in CLONE:
            pytest.skip("the number of clone(2) here is not known to this test")
        deaf = start(DEAF)
        wait_for(lambda: state_of(deaf.pid) == "D")
        with closing(ProcessGuest(deaf.pid)) as guest:
            with pytest.raises(
                GuestError, match=rf"did not stop within 0\.02 s: thread {deaf.pid} \(.*\) in state D"
            ):
                await guest.pause(0.02)
            assert not await guest.still_paused()
        assert let_go(deaf) == b"runs on\n"

    async def test_a_cancelled_pause_leaves_the_guest_running(self, start: Start) -> None:
        if platform.machine() not in CLONE:
            pytest.skip("the number of clone(2) here is not known to this test")
        deaf = start(DEAF)
        wait_for(lambda: state_of(deaf.pid) == "D")
        with closing(ProcessGuest(deaf.pid)) as guest:
            pausing = asyncio.create_task(guest.pause(60.0))
            await asyncio.sleep(0)
            pausing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pausing
        assert let_go(deaf) == b"runs on\n"

    @pytest.mark.parametrize("reaped", [False, True])
    async def test_a_dead_guest(self, reaped: bool, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            die(writer, reaped=reaped)
            assert not await guest.alive()
            assert not await guest.still_paused()
            for action in (guest.probe(), guest.pause(1.0)):
                with pytest.raises(GuestError, match="the guest died") as caught:
                    await action
                assert caught.value.guest == "the guest runs nowhere"
            await guest.kill()

    @pytest.mark.parametrize("paused", [False, True])
    async def test_kill(self, paused: bool, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            if paused:
                await guest.pause(10.0)
            await guest.kill()
            assert not await guest.alive()
            await guest.kill()
        assert writer.poll() == -signal.SIGKILL

    async def test_closing_changes_nothing(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        guest = ProcessGuest(writer.pid)
        await guest.pause(10.0)
        guest.close()
        guest.close()
        assert state_of(writer.pid) == "T"

    def test_no_such_process(self) -> None:
        with subprocess.Popen(["true"]) as process:
            process.wait()
        with pytest.raises(GuestError, match=f"there is no process {process.pid}"):
            ProcessGuest(process.pid)

    def test_a_thread_is_no_process(self, start: Start, ram: Path) -> None:
        writer = start(WRITER, ram)
        threads = {int(task.name) for task in Path(f"/proc/{writer.pid}/task").iterdir()}
        thread = max(threads - {writer.pid})
        with pytest.raises(GuestError, match="cannot be held") as caught:
            ProcessGuest(thread)
        assert "not of a thread" in (caught.value.hint or "")

    def test_this_program_does_not_stop_itself(self) -> None:
        with pytest.raises(GuestError, match="this program itself"):
            ProcessGuest(os.getpid())

    async def test_somebody_elses_process(self, start: Start, ram: Path) -> None:
        if os.getuid() != 0:
            pytest.skip("needs a process of another user")
        writer = start(WRITER, ram)
        with closing(ProcessGuest(writer.pid)) as guest:
            os.setresuid(NOBODY, NOBODY, 0)
            try:
                with pytest.raises(GuestError, match="may not be signalled"):
                    await guest.probe()
                with pytest.raises(GuestError, match="may not be signalled"):
                    await guest.pause(1.0)
            finally:
                os.setresuid(0, 0, 0)
        assert state_of(writer.pid) != "T"


class TestCommandGuest:
    def log(self, path: Path) -> list[str]:
        return path.read_text().split() if path.exists() else []

    async def test_runs_its_commands_in_turn(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        guest = CommandGuest(
            'echo pause-$ID >> "$LOG"', 'echo resume >> "$LOG"', {"LOG": str(log), "ID": "7"}
        )
        await guest.probe()
        assert not await guest.still_paused()
        await guest.resume()  # not paused
        await guest.pause(30.0)
        assert await guest.still_paused()
        assert await guest.alive()
        await guest.resume()
        await guest.resume()
        assert not await guest.still_paused()
        assert self.log(log) == ["pause-7", "resume"]

    async def test_a_failed_pause_is_taken_back(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        guest = CommandGuest("echo no monitor >&2; exit 3", f"echo resume >> {log}")
        with pytest.raises(GuestError, match="--pause-cmd ended with status 3") as caught:
            await guest.pause(30.0)
        assert "no monitor" in caught.value.message
        assert caught.value.guest == "the guest runs at the source"
        assert self.log(log) == ["resume"]
        assert not await guest.still_paused()

    async def test_a_pause_that_takes_too_long_is_taken_back(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        guest = CommandGuest("sleep 600", f"echo resume >> {log}")
        with pytest.raises(GuestError, match=r"--pause-cmd took longer than 0\.05 s"):
            await guest.pause(0.05)
        assert self.log(log) == ["resume"]

    async def test_a_cancelled_pause_is_taken_back(self, tmp_path: Path) -> None:
        log, pipe = tmp_path / "log", tmp_path / "pipe"
        os.mkfifo(pipe)
        guest = CommandGuest(f"echo paused > {pipe}; sleep 600", f"echo resume >> {log}")
        pausing = asyncio.create_task(guest.pause(60.0))
        assert await asyncio.to_thread(pipe.read_text) == "paused\n"
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        assert self.log(log) == ["resume"]

    async def test_when_both_fail_the_guest_may_be_paused_and_the_error_says_so(self) -> None:
        guest = CommandGuest("exit 3", "echo stuck >&2; exit 4")
        with pytest.raises(GuestError, match="--pause-cmd ended with status 3") as caught:
            await guest.pause(30.0)
        assert "may be paused" in (caught.value.guest or "")
        assert "stuck" in (caught.value.hint or "")
        assert await guest.still_paused()
        with pytest.raises(HookError, match="--resume-cmd ended with status 4"):
            await guest.resume()

    async def test_resume_is_not_waited_for_without_end(self) -> None:
        guest = CommandGuest("true", "sleep 600", time_limit=0.05)
        await guest.pause(30.0)
        with pytest.raises(GuestError, match=r"--resume-cmd took longer than 0\.05 s"):
            await guest.resume()
        assert await guest.still_paused()

    async def test_it_cannot_kill(self) -> None:
        with pytest.raises(GuestError, match="cannot be killed"):
            await CommandGuest("true", "true").kill()

    async def test_empty_commands_cannot_work(self) -> None:
        with pytest.raises(GuestError, match="--resume-cmd: the command is empty"):
            await CommandGuest("true", "  ").probe()


async def test_no_guest_has_nothing_to_pause_and_says_so() -> None:
    guest = NoGuest()
    await guest.probe()
    await guest.pause(1.0)
    assert await guest.still_paused()
    assert await guest.alive()
    await guest.resume()
    guest.close()
    assert "must have stopped" in guest.describe()
    with pytest.raises(GuestError, match="no guest to kill"):
        await guest.kill()


async def test_a_process_that_can_is_asked_to_stop_itself(start: Start) -> None:
    process = start(POLITE)
    with closing(ProcessGuest(process.pid)) as guest:
        assert guest.ask_to_stop()
        assert "SIGTSTP" in guest.describe()
        for _ in range(2):
            await guest.pause(10.0)
            assert await guest.still_paused()
            assert process.stdout is not None
            assert process.stdout.readline() == b"finished\n"
            await guest.resume()


async def test_a_process_that_cannot_is_stopped_anywhere(start: Start) -> None:
    process = start("import time; print('ready', flush=True); time.sleep(99)")
    with closing(ProcessGuest(process.pid)) as guest:
        assert not guest.ask_to_stop()
        assert "SIGSTOP" in guest.describe()
        await guest.pause(10.0)
        assert await guest.still_paused()
