"""A guest may be stopped at any instruction: its RAM is whole but for one page, and it can go on."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import single_step
from guest_support import (
    GuestProcess,
    assert_whole,
    guest_in_this_process,
    json_of,
    live,
    make_layout,
    read_ram,
    run_guest,
    wait_until,
)

from migrate.guest import checker
from migrate.guest.layout import WORKLOADS
from migrate.guest.ram_files import RamFiles

GOALS = {"idle": 1, "sparse": 30, "kv": 8, "thrash": 2, "zero": 3, "mixed": 6}
"""Page writes to step through; a whole page takes thousands of instructions. (log: as thrash)"""
BEATS = 6
RECOVERED = 0.1
"""Share of the half-done states that a resume is tried on."""


def copy_files(paths: list[Path], directory: Path) -> list[Path]:
    directory.mkdir(exist_ok=True)
    return [Path(shutil.copyfile(path, directory / path.name)) for path in paths]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_stopped_at_random_instants(
    workload: str, shm_dir: Path, start_guest: Callable[..., GuestProcess], rng: random.Random
) -> None:
    paths = [shm_dir / "a", shm_dir / "b"]
    names = [word for path in paths for word in ("--ram", path)]
    guest = start_guest(*names, "--size", "128K", "--workload", workload, "--rate", 0, "--seed", 7)
    last_beat = last_done = 0
    for _ in range(12):
        time.sleep(rng.uniform(0, 0.004))  # the instant is what is random, nothing waits for it
        guest.stop()
        copies = copy_files(paths, shm_dir / "copy")
        guest.go_on()
        report = checker.check(copies)
        assert report.clean, report.faults
        ram = assert_whole(copies)
        assert (report.beat, report.writes) == (ram.beat, ram.done)
        assert ram.beat >= last_beat
        assert ram.done >= last_done
        last_beat, last_done = ram.beat, ram.done
        with RamFiles.resume(copies) as files:
            live(files, 0 if workload == "idle" else 100)
        assert_whole(copies)
    ended = guest.end()
    assert (ended.returncode, ended.stderr) == (0, "")
    ram = assert_whole(paths)
    assert not ram.in_flight
    assert ram.done > last_done or workload == "idle"


def recovered(paths: list[Path], directory: Path) -> list[bytes]:
    """What finishing the write in flight makes of a copy of this RAM."""
    copies = copy_files(paths, directory)
    with RamFiles.resume(copies) as files, guest_in_this_process(files) as guest:
        assert guest.recover() == 1
    return [path.read_bytes() for path in copies]


@pytest.mark.parametrize("workload", GOALS)
def test_every_instruction(workload: str, shm_dir: Path, rng: random.Random) -> None:
    """After each single instruction the check is clean; a write finished by a resume is the write itself."""
    paths = [shm_dir / "a", shm_dir / "b"]
    layout = make_layout(workload, 16, 16)
    with RamFiles.create(paths, layout) as files:
        live(files, layout.fill_writes + (0 if workload == "idle" else 300))
    first = read_ram(paths)
    script = Path(__file__).with_name("stepped_guest.py")
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    same_modules = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, script, *paths], env=same_modules)
    try:
        wait_until(lambda: beat_of(paths[0]) > first.beat + 3, "the guest beats")
        try:
            single_step.hold(process.pid)
        except PermissionError:
            pytest.skip("tracing a child process is not permitted here")
        torn_seen, writes_seen, beats_seen = 0, set(), set()
        before: list[bytes] = []
        finished: list[list[bytes]] = []
        goal = GOALS[workload]
        while len(writes_seen) < goal or (workload == "idle" and len(beats_seen) < BEATS):
            single_step.step(process.pid)
            now = [os.pread(fd, 1 << 20, 0) for fd in fds]
            if now == before:
                continue
            before = now
            report = checker.check(paths)
            assert report.clean, report.faults
            beats_seen.add(report.beat)
            if not report.in_flight:
                for made in finished:
                    assert made == now  # beats only happen between writes
                finished.clear()
                writes_seen.add(report.writes)
            else:
                torn_seen += 1
                if rng.random() < RECOVERED:
                    finished.append(recovered(paths, shm_dir / "copy"))
        assert torn_seen > goal or workload == "idle"
    finally:
        process.kill()
        process.wait()
        for fd in fds:
            os.close(fd)


def beat_of(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(4096 + 8)
        return int.from_bytes(file.read(8), "little")


def test_a_moved_guest_lives_on_as_the_original_would(shm_dir: Path) -> None:
    """Resumed on copies again and again, or never moved: a page of a given version has the same content."""
    moved, stayed = shm_dir / "moved", shm_dir / "stayed"
    for path in (moved, stayed):
        with RamFiles.create([path], make_layout("mixed", 400)):
            pass
    for hop in range(20):
        moved = moved.rename(shm_dir / f"hop{hop}")
        with RamFiles.resume([moved]) as files:
            live(files, 100, rate=10_000)
    with RamFiles.resume([stayed]) as files:
        live(files, read_ram([moved]).done, rate=10_000)
    one, other = assert_whole([moved]), assert_whole([stayed])
    common = [page for page in one.data_pages() if one.version(*page) == other.version(*page)]
    assert len(common) > 200
    assert max(one.version(*page) for page in common) > 5
    for page in common:
        assert one.page(*page) == other.page(*page)


def test_resumed_by_another_process_with_other_options(
    shm_dir: Path, start_guest: Callable[..., GuestProcess]
) -> None:
    path = shm_dir / "ram"
    guest = start_guest("--ram", path, "--size", "1M", "--workload", "kv", "--rate", 50000)
    guest.stop()
    copy = Path(shutil.copyfile(path, shm_dir / "copy"))
    guest.end()
    before = read_ram([copy])
    result = run_guest("--resume", "--ram", f"pc.ram={copy}", "--rate", 0, "--duration", "0.05", "--json")
    assert result.returncode == 0, result.stderr
    ended = json_of(result, "ended")
    after = assert_whole([copy])
    assert (ended["ended-by"], ended["beat"], ended["writes"]) == ("duration", after.beat, after.done)
    assert after.beat > before.beat
    assert after.done > before.done
