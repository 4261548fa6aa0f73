"""A live guest moves between two real daemons, in every combination of options that changes the way."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from pathlib import Path

import pytest

from bench.lab import Lab, Program
from migrate.cli.src import NO_TLS


def move(
    lab: Lab, guest: Program, *source_options: str, destination_options: tuple[str, ...] = ()
) -> Program:
    """Move the guest, end it at the destination, check everything there is to check; returns the source."""
    destination = lab.start_destination("--once", *destination_options)
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, *source_options)
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0, destination.story()
    assert lab.is_stopped(guest)
    lab.end_arrived_guest(beat_seconds=0.05)
    lab.check_guest(lab.destination_ram)
    lab.check_witness()
    assert source.summary["outcome"] == destination.summary["outcome"] == "completed"
    return source


@pytest.mark.parametrize("workload", ["idle", "sparse", "kv", "log", "zero", "mixed"])
def test_every_workload_goes_on_at_the_destination(lab: Lab, workload: str) -> None:
    guest = lab.start_guest(f"--workload={workload}", "--rate=20000")
    source = move(lab, guest, "--downtime-limit=1000")
    assert source.summary["ram"]["dirty-sync-count"] >= 2


@pytest.mark.parametrize(
    "options",
    [
        ("--xbzrle-cache-size=0",),
        ("--xbzrle-cache-size=1M", "--xbzrle-cache-rule=qemu"),
        ("--xbzrle-cache-size=1M", "--max-bandwidth=40M"),
        ("--verify=stream",),
        ("--verify=full",),
        ("--compression=zlib",),
        ("--dirty-tracker=stop",),
        ("--dirty-tracker=scan",),
        ("--dirty-tracker=wp",),
        ("--dirty-tracker=wp", "--verify=full"),
        ("--lanes=3", "--compression=zlib", "--verify=full"),
    ],
    ids=" ".join,
)
def test_options_together(lab: Lab, options: tuple[str, ...]) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=20000")
    move(lab, guest, "--downtime-limit=2000", *options)


def test_several_blocks_on_disk_and_tmpfs(shm_dir: Path, tmp_path: Path) -> None:
    blocks = [("pc.ram", "8M"), ("vga.vram", "1M"), ("/rom@etc/acpi/tables", "128K")]
    names = {name: name.replace("/", "_") for name, _ in blocks}
    with Lab(shm_dir, tmp_path, blocks) as lab:
        lab.source_ram = {name: shm_dir / f"s-{names[name]}" for name in lab.source_ram}
        lab.destination_ram = {name: tmp_path / f"d-{names[name]}" for name in lab.destination_ram}
        guest = lab.start_guest("--workload=mixed", "--rate=20000")
        move(lab, guest, "--downtime-limit=2000")


def test_auto_takes_write_protection_and_says_why(lab: Lab) -> None:
    guest = lab.start_guest("--workload=kv", "--rate=20000")
    source = move(lab, guest, "--downtime-limit=1000")
    event = source.wait_event("tracker")
    assert event["name"] == source.summary["dirty-tracker"] == "wp"
    assert event["reasons"] == [
        "log: no --dirty-log was given",
        f"wp: process {guest.pid} offers a userfaultfd",
    ]
    assert [event["message"] for event in source.found("warning")] == [NO_TLS]


def test_auto_falls_back_to_scan_and_says_why(lab: Lab) -> None:
    """Two guests' worth of mappings: write protection would not see the other's writes."""
    guest = lab.start_guest("--workload=kv", "--rate=20000")
    with lab.source_ram["pc.ram"].open("r+b") as file, mmap.mmap(file.fileno(), 0):
        source = move(lab, guest, "--downtime-limit=1000")
    event = source.wait_event("tracker")
    assert event["name"] == "scan"
    assert f"wp: process {os.getpid()} can write the RAM file as well" in event["reasons"][1]


def test_a_log_that_the_emulator_sets(lab: Lab, shm_dir: Path) -> None:
    """The guest stands still but for what this test writes and marks, in an order that only the log tells."""
    guest = lab.start_guest("--workload=idle")
    guest.signal(signal.SIGSTOP)
    log = shm_dir / "log"
    log.write_bytes(bytes(512))
    destination = lab.start_destination("--once", resume=False)
    source = lab.start_source(
        destination.wait_event("listening")["port"],
        guest,
        "--dirty-tracker=log",
        f"--dirty-log=pc.ram={log}",
        "--max-bandwidth=20M",
    )
    source.wait_event("status", lambda event: event["new"] == "active")
    with lab.source_ram["pc.ram"].open("r+b") as ram, log.open("r+b") as marks:
        for page in range(100, 4000, 37):
            ram.seek(page * 4096)
            ram.write(b"changed")
            ram.flush()
            marks.seek(page >> 3)
            marks.write(bytes([1 << (page & 7)]))
            marks.flush()
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0
    assert source.summary["dirty-tracker"] == "log"
    assert lab.differing_bytes() == 0


def test_a_guest_that_keeps_a_log_while_it_runs(lab: Lab, shm_dir: Path) -> None:
    log = shm_dir / "log"
    guest = lab.start_guest("--workload=kv", "--rate=20000", f"--dirty-log={log}")
    source = move(lab, guest, f"--dirty-log=pc.ram={log}", "--downtime-limit=1000")
    assert source.summary["dirty-tracker"] == "log"
    assert "SIGTSTP" in source.wait_event("tracker")["reasons"][0]
    assert [event["message"] for event in source.found("warning")] == [NO_TLS]


def test_a_log_of_a_guest_that_would_stop_anywhere_is_refused(lab: Lab, shm_dir: Path) -> None:
    """SIGSTOP between a store and its mark: the log would lack the page."""
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once")
    with subprocess.Popen(["sleep", "60"]) as other:
        source = lab.run(
            "migrate-src",
            f"--to=127.0.0.1:{destination.wait_event('listening')['port']}",
            f"--ram={lab.source_ram['pc.ram']}",
            f"--guest-pid={other.pid}",
            "--dirty-tracker=log",
            f"--dirty-log={shm_dir / 'log'}",
        )
        assert source.wait() == 3, source.story()
        other.kill()
    assert "does not handle SIGTSTP" in source.wait_event("error")["message"]
    assert not lab.is_stopped(guest)


def test_thrash_moves_when_the_pause_is_forced(lab: Lab) -> None:
    guest = lab.start_guest("--workload=thrash")
    options = ("--downtime-limit=1", "--max-rounds=3", "--timeout-action=pause")
    source = move(lab, guest, *options)
    assert source.summary["ram"]["dirty-sync-count"] == 4


def test_the_rams_are_equal_when_the_guest_is_not_resumed(lab: Lab) -> None:
    guest = lab.start_guest("--workload=sparse", "--rate=50000")
    destination = lab.start_destination("--once", resume=False)
    source = lab.start_source(destination.wait_event("listening")["port"], guest, "--downtime-limit=1000")
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0
    assert lab.differing_bytes() == 0


def test_source_after_kill_ends_the_guest(lab: Lab) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once")
    source = lab.start_source(destination.wait_event("listening")["port"], guest, "--source-after=kill")
    assert source.wait() == 0, source.story()
    assert guest.wait() == -9
    lab.end_arrived_guest()


def test_device_state_reaches_the_prepare_hook(lab: Lab, shm_dir: Path) -> None:
    guest = lab.start_guest("--workload=idle")
    seen = shm_dir / "seen"
    destination = lab.start_destination("--once", f'--on-prepare=cp "$MIGRATE_STATE_DIR"/cpu0 {seen}')
    source = lab.start_source(
        destination.wait_event("listening")["port"],
        guest,
        '--state-cmd=printf registers-of-$MIGRATE_GUEST_PID > "$MIGRATE_STATE_DIR"/cpu0',
    )
    assert source.wait() == 0, source.story() + destination.story()
    assert seen.read_text() == f"registers-of-{guest.pid}"
    lab.end_arrived_guest()


def test_pause_and_resume_commands(lab: Lab, shm_dir: Path) -> None:
    guest = lab.start_guest("--workload=sparse")
    destination = lab.start_destination("--once")
    source = lab.start_source(
        destination.wait_event("listening")["port"],
        None,
        f"--pause-cmd=kill -STOP {guest.pid}; sleep 0.05",
        f"--resume-cmd=kill -CONT {guest.pid}",
        "--downtime-limit=1000",
    )
    assert source.wait() == 0, source.story()
    assert lab.is_stopped(guest)
    lab.end_arrived_guest()
    lab.check_guest(lab.destination_ram)


def test_check_moves_nothing(lab: Lab) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, "--check")
    assert source.wait() == 0, source.story()
    items = {row["what"]: row for row in source.wait_event("check")["items"]}
    assert items["RAM block pc.ram"]["verdict"] == "ok"
    assert items["dirty tracker"]["value"] == f"{source.wait_event('tracker')['name']} (chosen by auto)"
    assert not lab.is_stopped(guest)
    assert not any(path.exists() for path in lab.destination_ram.values())
    assert destination.process.poll() is None, "a pre-flight is not the one migration of --once"


def test_a_second_migration_does_not_touch_the_arrived_guest(lab: Lab) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination()
    port = destination.wait_event("listening")["port"]
    first = lab.start_source(port, guest)
    assert first.wait() == 0, first.story()
    lab.end_arrived_guest()
    before = lab.destination_ram["pc.ram"].read_bytes()
    again = lab.start_source(port, guest)
    assert again.wait() == 3
    assert "belongs to the guest" in again.wait_event("error")["message"]
    assert lab.destination_ram["pc.ram"].read_bytes() == before
