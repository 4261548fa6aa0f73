"""Holding real processes back: they stand and run in turn, and get their time back whoever dies."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from migrate.daemon import throttle_keeper
from migrate.daemon.cgroup import own_cgroup
from migrate.daemon.guest_throttle import GuestThrottle
from migrate.daemon.process_guest import ProcessGuest
from migrate.daemon.throttle_keeper import Cgroup, Commands, Signals
from migrate.errors import GuestError

BUSY = "print('ready', flush=True)\nwhile True: pass"

# A daemon that throttles by 99 % and then waits to be killed.
DAEMON = """
import asyncio, sys
from migrate.daemon.guest_throttle import GuestThrottle
from migrate.daemon.process_guest import ProcessGuest
async def main():
    throttle = GuestThrottle(ProcessGuest(int(sys.argv[1])), print)
    await throttle.set(99)
    print(throttle._keeper.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture
def guest() -> Iterator[subprocess.Popen[bytes]]:
    """A process that uses all the time it gets."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def state(guest: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{guest.pid}/stat").read_text().rpartition(") ")[2][0]


def changed(guest: subprocess.Popen[bytes], what: int, *, wait: bool = True) -> bool:
    """Whether it was stopped (WSTOPPED) or let go (WCONTINUED) since it was asked for the last time."""
    for _ in range(2000 if wait else 1):
        if os.waitid(os.P_PID, guest.pid, what | os.WNOHANG) is not None:
            return True
        time.sleep(0.01 if wait else 0)
    return False


def ended(pid: int) -> None:
    """Wait until that process, which need not be our child, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], 20)[0], "it did not end"
    finally:
        os.close(pidfd)


class Script(Commands):
    """Waits for nothing, and looks at the guest each time."""

    def __init__(self, guest: subprocess.Popen[bytes], *commands: int | None) -> None:
        super().__init__()
        self._guest = guest
        self._commands = list(commands)
        self.somebody_stopped_it = False
        self.waits: list[float | None] = []
        self.states: list[str] = []

    def wait(self, seconds: float | None) -> int | None:
        self.waits.append(None if seconds is None else round(seconds, 6))
        if len(self.waits) % 2 == 0 and not self.somebody_stopped_it:
            assert changed(self._guest, os.WSTOPPED)  # a signal needs a moment to work
        self.states.append("T" if state(self._guest) == "T" else "runs")
        return self._commands.pop(0) if self._commands else None


# --- the duty cycle ---------------------------------------------------------------------------------


def test_it_runs_and_stands_in_turn(guest: subprocess.Popen[bytes]) -> None:
    with closing(ProcessGuest(guest.pid)) as held:
        means, script = Signals(held.pidfd, guest.pid), Script(guest)
        for _ in range(3):
            assert means.keep(80, script) is None
        assert script.waits == [0.02, 0.08] * 3
        assert script.states == ["runs", "T"] * 3
        assert state(guest) != "T"


def test_a_command_breaks_a_period_off(guest: subprocess.Popen[bytes]) -> None:
    with closing(ProcessGuest(guest.pid)) as held:
        means = Signals(held.pidfd, guest.pid)
        assert means.keep(80, Script(guest, None, 0)) == 0
        assert state(guest) != "T", "it is let go before the command is carried out"
        assert means.keep(80, Script(guest, 50)) == 50
        assert not changed(guest, os.WSTOPPED, wait=False) or changed(guest, os.WCONTINUED)


def test_a_guest_that_somebody_else_stopped_is_left_alone(guest: subprocess.Popen[bytes]) -> None:
    guest.send_signal(signal.SIGSTOP)
    assert changed(guest, os.WSTOPPED)
    with closing(ProcessGuest(guest.pid)) as held:
        means, script = Signals(held.pidfd, guest.pid), Script(guest)
        script.somebody_stopped_it = True
        for _ in range(3):
            assert means.keep(50, script) is None
        means.apply(0)
        assert script.states == ["T"] * 6
        assert not changed(guest, os.WCONTINUED, wait=False)
        guest.send_signal(signal.SIGCONT)
        assert changed(guest, os.WCONTINUED)
        script.somebody_stopped_it = False
        assert means.keep(50, script) is None
        assert script.states[-2:] == ["runs", "T"]


async def test_a_whole_throttle(guest: subprocess.Popen[bytes]) -> None:
    with closing(ProcessGuest(guest.pid)) as held:
        throttle = GuestThrottle(held, pytest.fail)
        assert str(guest.pid) in throttle.describe()
        await throttle.set(50)
        for what in (os.WSTOPPED, os.WCONTINUED) * 2:
            assert await asyncio.to_thread(changed, guest, what)
        await throttle.set(0)
        assert state(guest) != "T"
        await held.pause(10)
        assert not held.was_paused_before, "that it stood for the throttle is no pause"
        assert await held.still_paused()
        await throttle.close()
        assert await held.still_paused(), "a keeper at 0 touches nothing, not even when it ends"
        await held.resume()
        await throttle.close()


async def test_a_guest_that_ends(guest: subprocess.Popen[bytes]) -> None:
    with closing(ProcessGuest(guest.pid)) as held:
        lost = asyncio.get_running_loop().create_future()
        throttle = GuestThrottle(held, lost.set_result)
        await throttle.set(50)
        guest.kill()
        assert "keeper has ended" in await asyncio.wait_for(lost, 20)
        await throttle.close()


# --- who dies ---------------------------------------------------------------------------------------


def test_a_daemon_that_is_killed_leaves_the_guest_running(guest: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen([sys.executable, "-c", DAEMON, str(guest.pid)], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        keeper = int(daemon.stdout.readline())
        assert changed(guest, os.WSTOPPED)
        os.kill(keeper, signal.SIGTERM)  # as a service manager tells everybody at once
        daemon.kill()
        daemon.wait()
        ended(keeper)
    assert state(guest) != "T"


async def test_a_keeper_that_is_killed_leaves_the_guest_running(guest: subprocess.Popen[bytes]) -> None:
    with closing(ProcessGuest(guest.pid)) as held:
        lost = asyncio.get_running_loop().create_future()
        throttle = GuestThrottle(held, lost.set_result)
        await throttle.set(99)
        assert await asyncio.to_thread(changed, guest, os.WSTOPPED)
        assert throttle._keeper is not None
        throttle._keeper.kill()
        assert "keeper has ended" in await asyncio.wait_for(lost, 20)
        assert state(guest) != "T"
        await throttle.set(50)  # a new one
        await throttle.close()


# --- cpu.max ----------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path, guest: subprocess.Popen[bytes]) -> Path:
    """Files as in a cgroup of the guest's own, which has used one and a half CPUs a second."""
    directory = tmp_path / "vm.scope"
    directory.mkdir()
    (directory / "cgroup.procs").write_text(f"{guest.pid}\n")
    (directory / "cpu.max").write_text("max 100000\n")
    (directory / "cpu.stat").write_text("usage_usec 1000\nuser_usec 1000\n")
    return directory


def _use(monkeypatch: pytest.MonkeyPatch, group: Path, cpus: float) -> None:
    """Between the first look at the clock and the second one second passes."""
    clock = iter([100.0, 101.0, 101.0])
    monkeypatch.setattr(throttle_keeper.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(throttle_keeper.time, "sleep", lambda _: None)
    usage = iter([1000, 1000 + int(cpus * 1e6)])
    monkeypatch.setattr(Cgroup, "_usage", lambda _: next(usage))


@pytest.mark.parametrize(
    "before, cpus, percent, quota",
    [
        ("max 100000", 1.5, 20, 120000),
        ("max 100000", 1.5, 99, 1500),
        ("max 100000", 16.0, 50, 800000),
        ("max 100000", 0.0, 50, 5000),  # an idle guest
        ("max 100000", 0.0, 99, 1000),  # the least that the kernel takes
        ("50000 100000", 1.5, 50, 25000),  # it had a limit, which counts
        ("200000 50000", 1.5, 50, 75000),
    ],
)
def test_a_share_of_what_it_used(
    monkeypatch: pytest.MonkeyPatch, group: Path, before: str, cpus: float, percent: int, quota: int
) -> None:
    (group / "cpu.max").write_text(f"{before}\n")
    _use(monkeypatch, group, cpus)
    means = Cgroup(group)
    means.apply(0)
    assert (group / "cpu.max").read_text() == f"{before}\n"
    means.apply(percent)
    assert (group / "cpu.max").read_text() == f"{quota} 100000"
    means.apply(0)
    assert (group / "cpu.max").read_text() == f"{before}\n"


@pytest.mark.parametrize("how", ["end of stdin", "nobody reads"])
def test_cpu_max_is_as_it_was_when_the_daemon_is_gone(group: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", throttle_keeper.__file__, "cgroup", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        keeper.stdin.write(b"40\n")
        keeper.stdin.flush()
        assert keeper.stdout.readline() == b"40\n"
        assert (group / "cpu.max").read_text() != "max 100000\n"
        if how == "nobody reads":
            keeper.stdout.close()
            keeper.stdin.write(b"50\n")
            keeper.stdin.flush()
        else:
            keeper.stdin.close()
        assert keeper.wait(20) == 0
    assert (group / "cpu.max").read_text() == "max 100000\n"


async def test_a_cgroup_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, guest: subprocess.Popen[bytes], group: Path
) -> None:
    monkeypatch.setattr("migrate.daemon.guest_throttle.own_cgroup", lambda _: group)
    with closing(ProcessGuest(guest.pid)) as held:
        throttle = GuestThrottle(held, lambda _: None)
        assert throttle.describe() == str(group / "cpu.max")
        await throttle.set(30)
        (group / "cpu.max").unlink()
        group.joinpath("cpu.max").mkdir()
        with pytest.raises(GuestError, match="cannot be throttled: Is a directory"):
            await throttle.set(40)
        await throttle.close()


def _proc(tmp_path: Path, pid: int, line: str, mounts: str) -> Path:
    proc = tmp_path / "proc"
    for name, file, text in ((str(pid), "cgroup", line), ("self", "mountinfo", mounts)):
        (proc / name).mkdir(parents=True, exist_ok=True)
        (proc / name / file).write_text(text)
    return proc


def test_whose_cgroup_it_is(tmp_path: Path, guest: subprocess.Popen[bytes], group: Path) -> None:
    mounts = (
        f"25 1 0:1 / /proc rw - proc proc rw\n30 1 0:2 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    pid = guest.pid
    proc = _proc(tmp_path, pid, "4:memory:/x\n0::/vm.scope\n", mounts)
    assert own_cgroup(pid, proc) == group
    (group / "cgroup.procs").write_text(f"{pid}\n1\n")
    assert own_cgroup(pid, proc) is None, "somebody else would be limited too"
    (group / "cgroup.procs").write_text(f"{pid}\n")
    (group / "cpu.max").unlink()
    assert own_cgroup(pid, proc) is None, "the cpu controller is not there"
    assert own_cgroup(pid, _proc(tmp_path, pid, "1:cpu:/vm.scope\n", mounts)) is None, "version 1"
    unmounted = "25 1 0:1 / /proc rw - proc proc rw\n"
    assert own_cgroup(pid, _proc(tmp_path, pid, "0::/vm.scope\n", unmounted)) is None
    assert own_cgroup(pid, _proc(tmp_path, pid, "0::/gone.scope\n", mounts)) is None
