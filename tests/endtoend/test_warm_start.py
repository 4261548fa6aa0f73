"""What is at the destination already need not be sent again: killed daemons, old copies, there and back."""

from __future__ import annotations

import pytest

from bench.lab import Event, Lab, Program
from tests.failure_table import FailureRow

PAGES = 4096
SLOW = ("--max-bandwidth=3M", "--downtime-limit=2000", "--reconnect-timeout=30")
"""Precopy of 16 MiB lasts five seconds, of which progress is told every second."""


def finish(lab: Lab, destination: Program, source: Program) -> Event:
    """A good end; returns the source's summary."""
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0, destination.story()
    lab.end_arrived_guest(0.05)
    lab.check_arrived()
    lab.check_witness()
    return source.summary


def until_some_is_sent(source: Program) -> None:
    """Wait for a third of the pages."""
    source.wait_event("progress", lambda event: event["ram"]["normal"] > PAGES // 3)


@pytest.mark.failure_row("destination killed, started again")
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_killed_destination_costs_what_was_in_flight(lab: Lab, row: FailureRow, lanes: int) -> None:
    guest = lab.start_guest("--workload=idle", "--fill=random")
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, *SLOW, f"--lanes={lanes}")
    until_some_is_sent(source)
    destination.kill()
    source.wait_event("reconnecting")
    destination = lab.start_destination("--once", listen=f"127.0.0.1:{port}")
    summary = finish(lab, destination, source)

    assert len(source.found("paused")) == 1, "the guest is not stopped for it"
    assert source.found("begun-anew")
    assert PAGES <= summary["ram"]["normal"] < PAGES * 1.3, "a third of it was there already"
    row.check(lab, guest, source)


@pytest.mark.failure_row("source killed")
def test_a_killed_source_leaves_an_old_copy(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=idle", "--fill=random")
    destination = lab.start_destination("--reconnect-timeout=0")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, *SLOW)
    until_some_is_sent(source)
    source.kill()
    assert not lab.is_stopped(guest)
    destination.wait_event("error")
    row.check(lab, guest, source, destination)

    again = lab.start_source(port, guest, "--warm", "--downtime-limit=2000")
    assert again.wait() == 0, again.story() + destination.story()
    lab.end_arrived_guest(0.05)
    lab.check_arrived()
    lab.check_witness()
    assert again.summary["ram"]["normal"] < PAGES * 0.7
    destination.signal(15)
    assert destination.wait() == 130


@pytest.mark.parametrize("options", [(), ("--xbzrle-cache-rule=qemu",), ("--lanes=2", "--verify=full")])
def test_there_and_back_sends_what_changed(lab: Lab, options: tuple[str, ...]) -> None:
    guest = lab.start_guest("--workload=idle", "--fill=random")
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, "--source-after=kill")
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0
    guest.wait()
    away = lab.wait_arrived()

    lab.turn_round()
    destination = lab.start_destination("--once")
    port = destination.wait_event("listening")["port"]
    back = ("--warm", f"--guest-pid={away}", "--source-after=kill")
    source = lab.start_source(port, None, *back, *options)
    summary = finish(lab, destination, source)
    assert summary["ram"]["normal"] < PAGES // 10, "an idle guest changes a few pages"
    assert source.found("warm")


def test_warm_without_anything_there(lab: Lab) -> None:
    guest = lab.start_guest("--workload=idle", "--fill=random")
    destination = lab.start_destination("--once")
    source = lab.start_source(destination.wait_event("listening")["port"], guest, "--warm")
    summary = finish(lab, destination, source)
    assert summary["ram"]["normal"] >= PAGES * 0.9


def test_an_unrelated_copy_is_overwritten(lab: Lab) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=2000")
    lab.destination_ram["pc.ram"].write_bytes(b"\xa5" * (PAGES * 4096))
    destination = lab.start_destination("--once")
    source = lab.start_source(
        destination.wait_event("listening")["port"], guest, "--warm", "--downtime-limit=2000"
    )
    finish(lab, destination, source)
