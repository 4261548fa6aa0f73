"""What fails, where the guest runs afterwards, and what the programs say: real processes, real signals."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from bench.lab import Event, Lab, Program
from tests.failure_table import FailureRow


def port_of(destination: Program) -> int:
    """Where it listens."""
    port = destination.wait_event("listening")["port"]
    assert isinstance(port, int)
    return port


def assert_failed(lab: Lab, source: Program, guest: Program, exit_code: int, *words: str) -> Event:
    """The source ended with that code and those words, and its guest runs."""
    assert source.wait() == exit_code, source.story()
    error = source.wait_event("error")
    said = " ".join(str(error[key]) for key in ("message", "hint", "guest"))
    for word in words:
        assert word in said, source.story()
    assert not lab.is_stopped(guest)
    return error


def slow(*more: str) -> list[str]:
    """Options that make precopy of 16 MiB last some seconds."""
    return ["--max-bandwidth=4M", *more]


@pytest.mark.failure_row("nobody listens")
def test_nobody_listens(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        source = lab.start_source(unused.getsockname()[1], guest)
        assert_failed(lab, source, guest, 4, "Connection refused", "migrate-dst", "runs at the source")
    row.check(lab, guest, source)


@pytest.mark.failure_row("other blocks")
def test_other_block_names_are_refused_before_anything_is_touched(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once", f"--ram=vga={lab.destination_ram['pc.ram']}x")
    source = lab.start_source(port_of(destination), guest)
    assert_failed(lab, source, guest, 3, "vga", "--ram")
    assert not lab.destination_ram["pc.ram"].exists()
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("other size")
def test_a_file_of_another_size_is_not_overwritten(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    lab.destination_ram["pc.ram"].write_bytes(b"precious" * 512)
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest)
    assert_failed(lab, source, guest, 3, "4096", "16777216")
    assert lab.destination_ram["pc.ram"].read_bytes() == b"precious" * 512
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("file in use")
def test_ram_in_use_by_another_migration(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    first = lab.start_source(port_of(destination), guest, *slow())
    first.wait_event("status", lambda event: event["new"] == "active")
    second = lab.start_source(port_of(destination), guest)
    assert_failed(lab, second, guest, 9, "migration")
    row.check(lab, guest, second)
    first.signal(signal.SIGTERM)
    assert first.wait() == 130, first.story()


@pytest.mark.failure_row("on-prepare fails")
def test_prepare_hook_fails(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-prepare=echo no vCPU left >&2; exit 7")
    source = lab.start_source(port_of(destination), guest)
    assert_failed(lab, source, guest, 6, "status 7", "no vCPU left", "runs at the source")
    assert destination.wait() == 6, destination.story()
    ram = lab.destination_ram["pc.ram"]
    assert ram.with_name(ram.name + ".migrating").exists()
    refused = lab.run("migrate-guest", "--resume", f"--ram={ram}")
    assert refused.wait() != 0
    assert "migrating" in refused.story()
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("on-commit fails")
def test_commit_hook_fails(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-commit=exit 9", resume=False)
    source = lab.start_source(port_of(destination), guest)
    assert source.wait() == 10, source.story()
    error = source.wait_event("error")
    assert f"kill -CONT {guest.pid}" in error["hint"]
    assert "stopped at the source" in error["guest"]
    assert lab.is_stopped(guest), "nobody knows whether the guest runs at the destination"
    assert destination.wait() == 6, destination.story()
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("destination killed in the handover")
def test_destination_dies_while_it_starts_the_guest(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-commit=kill -9 $PPID", resume=False)
    source = lab.start_source(port_of(destination), guest, "--reconnect-timeout=0.5")
    assert source.wait() == 10, source.story()
    assert lab.is_stopped(guest)
    assert destination.wait() == -9
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("destination killed in the pause")
def test_destination_dies_while_it_prepares(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-prepare=kill -9 $PPID")
    source = lab.start_source(port_of(destination), guest, "--reconnect-timeout=1")
    assert_failed(lab, source, guest, 4, "did not come back", "runs at the source")
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("destination killed for good")
def test_destination_dies_in_precopy(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow("--reconnect-timeout=1"))
    source.wait_event("status", lambda event: event["new"] == "active")
    destination.kill()
    assert_failed(lab, source, guest, 4, "did not come back")
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("Ctrl-C at the source")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_precopy(lab: Lab, row: FailureRow, number: signal.Signals) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    source.signal(number)
    assert_failed(lab, source, guest, 130, "cancel")
    assert destination.wait() == 130, destination.story()
    assert source.summary["outcome"] == destination.summary["outcome"] == "cancelled"
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("Ctrl-C in the pause")
def test_a_signal_cancels_the_pause_and_the_guest_runs_again(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-prepare=sleep 30")
    source = lab.start_source(port_of(destination), guest)
    source.wait_event("paused")
    destination.wait_event("status", lambda event: event["new"] == "device")
    assert lab.is_stopped(guest)
    source.signal(signal.SIGINT)
    assert_failed(lab, source, guest, 130, "runs at the source")
    assert destination.wait() == 130
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("Ctrl-C at the destination")
def test_the_destination_cancels(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    destination.signal(signal.SIGTERM)
    assert_failed(lab, source, guest, 130, "the destination cancelled")
    row.check(lab, guest, source, destination)


def test_an_idle_destination_ends_at_once(lab: Lab) -> None:
    destination = lab.start_destination()
    destination.signal(signal.SIGTERM)
    assert destination.wait() == 130, destination.story()


@pytest.mark.failure_row("guest dies")
def test_the_guest_dies(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    guest.kill()
    assert source.wait() == 6, source.story()
    assert "died" in source.wait_event("error")["message"]
    assert destination.wait() != 0
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("source's file truncated")
def test_source_ram_is_truncated(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=idle")
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    os.truncate(lab.source_ram["pc.ram"], 8 << 20)
    assert source.wait() == 9, source.story()
    assert "the file ended" in source.wait_event("error")["message"]
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("destination's file truncated")
def test_destination_ram_is_truncated(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    os.truncate(lab.destination_ram["pc.ram"], 1 << 20)
    error = assert_failed(lab, source, guest, 9, "destination-pc.ram")
    assert error["side"] == "destination"
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("never fits")
def test_thrash_does_not_converge_and_says_why(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=thrash")
    destination = lab.start_destination("--once")
    source = lab.start_source(
        port_of(destination), guest, "--max-rounds=2", "--downtime-limit=1", "--max-bandwidth=20M"
    )
    assert_failed(lab, source, guest, 7, "dirty rate", "--")
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("time is up")
def test_timeout_cancels_in_the_middle_of_a_round(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--workload=thrash")
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest, *slow("--timeout=1"))
    assert_failed(lab, source, guest, 7, "--timeout 1 s")
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("destination silent")
def test_a_destination_that_stops_reading(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    destination = lab.start_destination("--once")
    source = lab.start_source(
        port_of(destination), guest, *slow("--keepalive-timeout=1", "--reconnect-timeout=1")
    )
    source.wait_event("status", lambda event: event["new"] == "active")
    destination.signal(signal.SIGSTOP)
    assert_failed(lab, source, guest, 4, "silent")
    row.check(lab, guest, source, destination)


@pytest.mark.failure_row("no answer")
def test_a_peer_that_says_nothing(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        source = lab.start_source(silent.getsockname()[1], guest, "--keepalive-timeout=1")
        assert_failed(lab, source, guest, 4, "no answer")
    row.check(lab, guest, source)


def test_strangers_do_not_disturb_the_destination(lab: Lab) -> None:
    destination = lab.start_destination("--once", "--keepalive-timeout=2")
    port = port_of(destination)
    first_bytes = [
        b"QEVM\x00\x00\x00\x03",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/1.0\r\n\r\n",
        b"MIGRATE\x01" + b"\xff" * 64,
        b"MIGRATE\x03" + b"\x00\x10\x00\x01",
    ]
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for number, stranger in enumerate(strangers[:32]):
        stranger.sendall(first_bytes[number % len(first_bytes)])
    destination.wait_event("warning", lambda event: "QEMU" in event["message"])
    destination.wait_event("warning", lambda event: "TLS" in event["message"])
    destination.wait_event("warning", lambda event: "a piece of 1048577 bytes" in event["message"])
    for stranger in strangers:
        stranger.close()
    guest = lab.start_guest("--rate=100")
    source = lab.start_source(port, guest)
    assert source.wait() == 0, source.story() + destination.story()
    lab.end_arrived_guest()


@pytest.mark.failure_row("somebody resumes the guest")
def test_a_guest_that_somebody_resumes_in_the_pause_is_not_committed(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    hook = f"kill -CONT {guest.pid}; sleep 0.2"
    destination = lab.start_destination("--once", f"--on-prepare={hook}")
    source = lab.start_source(port_of(destination), guest)
    assert_failed(lab, source, guest, 6, "resumed the guest during the pause")
    assert len(source.found("paused")) == 4
    assert not source.found("committed")
    assert destination.wait() == 6
    row.check(lab, guest, source, destination)


def test_a_signal_after_the_handover_does_not_look_like_a_cancel(lab: Lab) -> None:
    """Exit code 130 says that the guest is the source's: a supervisor would resume it there."""
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest)
    source.wait_event("running")
    source.signal(signal.SIGTERM)
    destination.wait_event("running")
    destination.signal(signal.SIGTERM)
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    lab.end_arrived_guest()


def test_much_device_state_arrives(lab: Lab) -> None:
    guest = lab.start_guest("--rate=100")
    pieces = 'for n in 1 2 3; do head -c 30000000 /dev/urandom > "$MIGRATE_STATE_DIR"/$n; done'
    seen = lab.witness.with_name("seen")
    destination = lab.start_destination("--once", f'--on-prepare=cat "$MIGRATE_STATE_DIR"/* | wc -c > {seen}')
    source = lab.start_source(port_of(destination), guest, f"--state-cmd={pieces}")
    assert source.wait() == 0, source.story()
    assert int(seen.read_text()) == 90_000_000
    lab.end_arrived_guest()


def test_too_much_device_state_is_refused_where_it_is_made(lab: Lab) -> None:
    guest = lab.start_guest("--rate=100")
    pieces = 'for n in 1 2 3 4 5; do truncate -s 60M "$MIGRATE_STATE_DIR"/$n; done'
    source = lab.start_source(port_of(lab.start_destination("--once")), guest, f"--state-cmd={pieces}")
    assert_failed(lab, source, guest, 6, "device state", "at most")


@pytest.mark.failure_row("guest cannot be resumed")
def test_a_resume_command_that_cannot_be_run_is_told(lab: Lab, row: FailureRow) -> None:
    """The pause fails and so does resuming: the program must end and say that the guest may stand."""
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once")
    source = lab.start_source(
        port_of(destination), None, f"--pause-cmd=kill -STOP {guest.pid}; exit 3", "--resume-cmd=exit 4"
    )
    assert source.wait() == 6, source.story()
    assert "stopped at the source" in source.wait_event("error")["guest"]

    row.check(lab, guest, source, destination)
