"""`migrate-src plan` on running guests: what it says of them, and what a move of the same guest then does."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bench.lab import Event, Lab, Program
from migrate.cli.src import main

RATE = 40_000_000


def plan(lab: Lab, guest: Program, *options: str) -> Event:
    """The event `plan`, after a second of looking."""
    planner = start_plan(lab, guest, *options)
    assert planner.wait() == 0, planner.story()
    return planner.wait_event("plan")


def start_plan(lab: Lab, guest: Program, *options: str) -> Program:
    ram = [f"--ram={name}={path}" for name, path in lab.source_ram.items()]
    given = [f"--guest-pid={guest.pid}", "--duration=1", *options]
    return lab.run("migrate-src", "plan", *ram, *given)


def wait_until_filled(lab: Lab) -> None:
    """The guest fills its RAM with its first writes; a page of it may stay a hole."""
    while lab.source_ram["pc.ram"].stat().st_blocks * 512 < (16 << 20) * 0.98:
        pass


@pytest.mark.parametrize(
    ("workload", "seconds", "least_delta", "most_delta"),
    [("sparse", 3, 20, 400), ("thrash", 1, 3500, 4096)],  # wp compares what it reported after two seconds
)
def test_what_a_guest_does(lab: Lab, workload: str, seconds: int, least_delta: int, most_delta: int) -> None:
    """2000 writes a second all over 4 MiB: 1024 pages, and those of the guest's own tables."""
    guest = lab.start_guest(f"--workload={workload}", "--rate=2000", "--working-set=4M", "--fill=random")
    wait_until_filled(lab)
    said = plan(lab, guest, f"--bandwidth={RATE}", f"--duration={seconds}", "--dirty-tracker=wp")
    seen = said["workload"]
    assert seen["data-bytes"] >= (16 << 20) * 0.98
    assert seen["zero-share"] < 0.05
    assert seen["written-pages"][-1][0] > 0.8 * seconds
    assert 700 <= seen["written-pages"][-1][1] <= 1040
    assert least_delta < seen["delta-bytes"][-1][1] <= most_delta
    assert not lab.is_stopped(guest)


def test_zeros_and_holes_are_told_apart(lab: Lab, shm_dir: Path) -> None:
    """A file without a guest: 1 MiB of something, 3 MiB of zeros, 12 MiB of hole."""
    ram = shm_dir / "still.ram"
    ram.write_bytes(b"\1" * (1 << 20) + bytes(3 << 20))
    with ram.open("r+b") as file:
        file.truncate(16 << 20)
    planner = lab.run("migrate-src", "plan", f"--ram={ram}", "--duration=1", "--bandwidth=100M")
    assert planner.wait() == 0, planner.story()
    said = planner.wait_event("plan")
    assert said["workload"]["data-bytes"] == 4 << 20
    assert said["workload"]["zero-share"] == 0.75
    assert said["workload"]["written-pages"][-1][1] == 0
    assert 1 << 20 < said["predictions"][0]["transferred"] < 1.1 * (1 << 20)


@pytest.mark.parametrize("tracker", ["scan", "wp"])
def test_a_move_is_as_it_was_planned(lab: Lab, tracker: str) -> None:
    guest = lab.start_guest("--workload=kv", "--rate=2000", "--fill=random")
    wait_until_filled(lab)
    said = plan(
        lab, guest, f"--bandwidth={RATE}", f"--dirty-tracker={tracker}", "--downtime-limit", "2000", "1000"
    )
    planned, stricter = said["predictions"]
    assert (planned["downtime-limit"], stricter["downtime-limit"]) == (2.0, 1.0)
    assert planned["converges"]
    destination = lab.start_destination("--once")
    source = lab.start_source(
        destination.wait_event("listening")["port"],
        guest,
        *(f"--dirty-tracker={tracker}", f"--max-bandwidth={RATE}", "--downtime-limit=2000"),
    )
    assert source.wait() == destination.wait() == 0, source.story()
    lab.end_arrived_guest()
    transferred = source.summary["ram"]["transferred"]
    assert transferred / 1.3 < planned["transferred"] < transferred * 1.3
    first = planned["rounds"][0]
    assert first["dirty-pages"] == pytest.approx(source.summary["rounds"][0]["dirty-pages"], rel=0.05)


def test_a_link_is_measured_and_nothing_is_left_of_it(lab: Lab) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    [planned] = plan(lab, guest, f"--to=127.0.0.1:{port}")["predictions"]
    assert planned["bandwidth"] > 1 << 20
    assert 0 < planned["round-trip"] < 1
    source = lab.start_source(port, guest, "--max-bandwidth=1M")
    source.wait_event("progress", lambda event: event["ram"]["transferred"] > 0)
    assert start_plan(lab, guest, "--bandwidth=100M").wait() == 9, "its RAM belongs to a migration now"
    source.kill()
    destination.kill()


def test_a_link_is_not_measured_beside_a_migration(lab: Lab, tmp_path: Path) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, "--max-bandwidth=1M")
    source.wait_event("progress", lambda event: event["ram"]["transferred"] > 0)
    other = tmp_path / "other.ram"
    other.write_bytes(bytes(1 << 20))
    planner = lab.run("migrate-src", "plan", f"--ram={other}", f"--to=127.0.0.1:{port}", "--duration=1")
    assert planner.wait() == 4, planner.story()
    destination.wait_event(
        "warning", lambda event: "not measured while a migration is under way" in event["message"]
    )
    source.kill()
    destination.kill()


def test_a_plan_can_be_cancelled(lab: Lab) -> None:
    guest = lab.start_guest()
    planner = start_plan(lab, guest, "--duration=60", "--bandwidth=100M")
    planner.wait_event("tracker")
    planner.signal(signal.SIGINT)
    assert planner.wait() == 130
    assert not lab.is_stopped(guest)


def test_for_people(lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    guest = lab.start_guest("--workload=sparse", "--rate=2000", "--fill=random")
    wait_until_filled(lab)
    ram = f"--ram=pc.ram={lab.source_ram['pc.ram']}"
    assert main(["plan", ram, f"--guest-pid={guest.pid}", "--duration=1", "--bandwidth=400Mbit"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("RAM in use") and "MiB" in line for line in lines)
    assert any(line.startswith("written within") for line in lines)
    assert any(line.startswith("at 45.5 MiB/s, downtime limit 300 ms") for line in lines)
    labels = [line.strip().split("  ")[0] for line in lines if line.startswith("  ")]
    assert labels[-5:] == ["converges", "total time", "sent", "downtime", "page cache"]
