"""What breaks while the guest is paused, or right after: rows of the README's table of failures."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_failures import port_of

from bench.lab import Lab
from tests.failure_table import FailureRow


@contextmanager
def somebody_writes(path: Path) -> Iterator[None]:
    """A thread that changes a page of the file all the time, through a mapping of its own."""
    over = threading.Event()

    def write() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as ram:
            number = 0
            while not over.wait(0.0005):
                number += 1
                ram[-8:] = number.to_bytes(8, "little")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


@pytest.mark.failure_row("RAM unequal")
def test_somebody_writes_to_the_destinations_ram(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, "--verify=full", "--max-bandwidth=50M")
    destination.wait_event("status", lambda event: event["new"] == "active")
    with somebody_writes(lab.destination_ram["pc.ram"]):
        source.wait()
    assert len(source.found("paused")) == 3, "it is repaired twice"
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("RAM written in the pause")
def test_somebody_writes_to_the_sources_ram(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once", "--on-prepare=sleep 0.1")
    source = lab.start_source(port_of(destination), guest, "--dirty-tracker=scan")
    with somebody_writes(lab.source_ram["pc.ram"]):
        source.wait()
    assert len(source.found("paused")) == 4
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("RAM differs after the handover")
def test_the_last_look_finds_a_difference(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    ram = lab.source_ram["pc.ram"]
    change = f"head -c 4096 /dev/urandom | dd of={ram} bs=4096 seek=100 conv=notrunc status=none"
    destination = lab.start_destination("--once", f"--on-commit={change}; {lab.resume_command}", resume=False)
    source = lab.start_source(port_of(destination), guest)
    source.wait()
    row.check(lab, guest, source, destination)
    lab.end_arrived_guest()
    lab.check_arrived()


@pytest.mark.failure_row("guest dies in the pause")
def test_the_guest_dies_in_the_pause(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", f"--on-prepare=kill -9 {guest.pid}")
    source = lab.start_source(port_of(destination), guest)
    source.wait()
    guest.wait()
    row.check(lab, guest, source, destination)
    assert destination.wait() != 0


@pytest.mark.failure_row("on-prepare takes too long")
def test_a_prepare_command_that_takes_too_long(lab: Lab, row: FailureRow) -> None:
    """The pause has its deadline: ten times --downtime-limit, and at least ten seconds."""
    guest = lab.start_guest("--rate=100")
    first = lab.witness.with_name("first")
    hook = f"test -e {first} || {{ touch {first}; exec sleep 60; }}"
    destination = lab.start_destination("--once", f"--on-prepare={hook}")
    source = lab.start_source(port_of(destination), guest)
    source.wait()
    row.check(lab, guest, source, destination)
    assert [len(source.found(name)) for name in ("paused", "resumed")] == [2, 1]
    lab.end_arrived_guest()
    lab.check_arrived()
    lab.check_witness()
