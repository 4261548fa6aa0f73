"""A running QEMU is moved live by the two daemons: we move its RAM, it moves its devices."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_move import WAITS, Move, Start
from live_qemu import RAM_BYTES, Qemu, wait_until
from monitor_tap import MonitorTap

from bench.lab import Program, program
from tests.failure_table import FailureRow


@pytest.fixture
def qemu(shm_dir: Path) -> Iterator[Start]:
    """Starts QEMUs in the test's directory."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Qemu(shm_dir, *args, **options))


@pytest.fixture
def move(qemu: Start) -> Iterator[Move]:
    """A guest that runs, and a QEMU that waits for it."""
    destination = qemu("destination", more=WAITS)
    source = qemu("source")
    source.wait_passes(3)
    with Move(source, destination) as made:
        yield made


def check_moved(source: Qemu, destination: Qemu) -> None:
    """The guest stands at the source and goes on at the destination, from where it was."""
    assert source.state == "postmigrate"
    before = source.control()
    destination.check_runs(before["beat"])
    assert destination.control()["pass_done"] >= before["pass_done"]


def check_stays(source: Qemu) -> None:
    """The guest runs at the source, nothing of it is damaged."""
    source.check_runs(source.control()["beat"])
    source.do("cont")


@pytest.mark.parametrize("tracker", ["scan", "wp-inject"])
def test_a_running_guest_moves_and_goes_on(move: Move, shm_dir: Path, tracker: str) -> None:
    equal = shm_dir / "equal"
    compare = f"cmp {move.source.ram_file} {move.destination.ram_file} && touch {equal}"
    destination = move.start_destination("--once", f"--on-prepare={compare}")
    source = move.start_source(f"--dirty-tracker={tracker}")
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    check_moved(move.source, move.destination)
    assert source.summary["dirty-tracker"] == tracker
    assert equal.exists(), "loading the devices changed RAM"
    assert source.summary["downtime-parts"]["pause"] > 0
    assert "quit" in source.summary["stopped-here"]
    on = [c["capability"] for c in move.source.do("query-migrate-capabilities") if c["state"]]
    assert on == [], "the capabilities are as they were"


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="this host has no KVM")
def test_the_same_with_kvm(qemu: Start) -> None:
    destination, source = qemu("destination", "kvm", WAITS), qemu("source", "kvm")
    source.wait_passes(1)
    with Move(source, destination) as move:
        receiver = move.start_destination("--once")
        sender = move.start_source("--source-after=kill", "--dirty-tracker=wp-inject")
        assert sender.wait() == 0, sender.story()
        assert receiver.wait() == 0, receiver.story()
        assert sender.summary["dirty-tracker"] == "wp-inject"
        source.process.wait(10)
        destination.check_runs(source.control()["beat"])


def test_a_guest_that_stands_still_moves_too(move: Move) -> None:
    move.source.do("stop")
    move.start_destination("--once")
    source = move.start_source()
    assert source.wait() == 0, source.story()
    check_moved(move.source, move.destination)


@pytest.mark.parametrize("moment", [("before", "migrate-continue"), ("answer", '"completed"')])
def test_cancelled_in_the_pause_the_guest_runs_on_and_a_second_attempt_succeeds(
    move: Move, qemu: Start, shm_dir: Path, moment: tuple[str, str]
) -> None:
    receiver = move.start_destination()
    with MonitorTap(
        shm_dir / "tap", move.source.monitor, moment, lambda: sender.signal(signal.SIGTERM)
    ) as tap:
        sender = move.start_source(monitor=tap.path)
        assert sender.wait() == 130, sender.story()
    check_stays(move.source)
    assert move.destination.state in ("inmigrate", "paused")
    receiver.wait_event("summary")

    if move.destination.state == "paused":  # it has loaded devices: it can do that only once
        refused = move.start_source()
        assert refused.wait() == 3
        assert "-incoming defer" in refused.wait_event("error")["hint"]
        move.destination.kill()
        move.destination = qemu("destination", more=WAITS)
    again = move.start_source()
    assert again.wait() == 0, again.story()
    check_moved(move.source, move.destination)


def test_a_destination_that_fails_in_prepare_leaves_the_guest_where_it_was(
    move: Move, qemu: Start, shm_dir: Path
) -> None:
    receiver = move.start_destination("--once", "--on-prepare=exit 3")
    sender = move.start_source()
    assert sender.wait() == 6, sender.story()
    assert receiver.wait() == 6
    check_stays(move.source)
    assert move.destination.state == "paused"
    move.destination.kill()
    move.destination = qemu(
        "destination", more=WAITS[1:]
    )  # without -S: it must wait for the commit all the same
    move.start_destination("--once")
    again = move.start_source()
    assert again.wait() == 0, again.story()
    check_moved(move.source, move.destination)


def test_a_pause_given_up_behind_the_loading_ends_it_with_a_word_what_to_do(
    move: Move, shm_dir: Path
) -> None:
    """Somebody lets the source's guest run while the destination is ready: the commit never comes."""

    def somebody() -> None:
        wait_until(lambda: move.source.state == "postmigrate", "end of QEMU's migration")
        move.source.do("cont")

    move.start_destination("--once")
    with MonitorTap(shm_dir / "tap", move.source.monitor, ("answer", '"completed"'), somebody) as tap:
        sender = move.start_source(monitor=tap.path)
        assert sender.wait() == 6, sender.story()
    error = sender.wait_event("error")
    assert "earlier pause" in error["message"]
    check_stays(move.source)
    assert move.destination.state == "paused"


def refusal(move: Move, *options: str, code: int = 3) -> str:
    """What the source says when it is refused, in one line."""
    sender = move.start_source(*options)
    assert sender.wait() == code, sender.story()
    error = sender.wait_event("error")
    check_stays(move.source)
    return f"{error['message']} | {error.get('hint')}"


def test_what_does_not_fit_is_refused_before_anything_moves(move: Move, qemu: Start, shm_dir: Path) -> None:
    move.start_destination()
    checked = move.start_source("--check")
    assert checked.wait() == 0, checked.story()
    rows = {row["what"]: row["value"] for row in checked.wait_event("check")["items"]}
    assert rows["QEMU"].startswith("microvm, tcg")

    move.source.capabilities("multifd")
    assert "migrate_set_capability multifd off" in refusal(move)
    move.source.do("migrate-set-capabilities", capabilities=[{"capability": "multifd", "state": False}])
    other = shm_dir / "other.ram"
    other.write_bytes(bytes(RAM_BYTES))
    text = refusal(move, f"--ram=more={other}")
    assert "no memory of the QEMU" in text and str(move.source.ram_file) in text

    plain = qemu("plain")  # runs, does not wait
    move.start_destination(monitor=plain.monitor)
    assert "-S -incoming defer" in refusal(move)
    private = qemu("private", more=(*WAITS, "-object", "memory-backend-ram,id=dimm,size=1M"))
    move.destination = private
    move.start_destination()
    assert "memory-backend-file,id=dimm" in refusal(move)
    silent = shm_dir / "nobody.sock"
    move.start_destination(monitor=silent)
    assert f"-qmp unix:{silent},server=on,wait=off" in refusal(move)


def test_a_qemu_on_one_side_only_is_refused_by_name(move: Move, qemu: Start, shm_dir: Path) -> None:
    receiver = Program([program("migrate-dst"), "--listen=127.0.0.1:0", f"--ram={shm_dir / 'ram'}", "--json"])
    try:
        move.port = int(receiver.wait_event("listening")["port"])
        assert "change --guest-qmp" in refusal(move)
    finally:
        receiver.kill()
    move.start_destination()
    sender = Program(
        [
            *(program("migrate-src"), f"--to=127.0.0.1:{move.port}", "--json"),
            f"--ram={move.source.ram_file}",
        ]
    )
    try:
        assert sender.wait() == 3
        assert "a QEMU waits at the destination" in sender.wait_event("error")["message"]
    finally:
        sender.kill()


@pytest.mark.failure_row("QEMU at the destination ends")
def test_a_qemu_that_lacks_a_device_refuses_it_and_the_guest_runs_on(qemu: Start, row: FailureRow) -> None:
    destination, source = (
        qemu("destination", more=WAITS),
        qemu("source", more=("-device", "virtio-rng-device")),
    )
    source.wait_passes(1)
    with Move(source, destination) as move:
        receiver = move.start_destination("--once")
        sender = move.start_source()
        assert sender.wait() == 6, sender.story()
        error = sender.wait_event("error")
        assert "did not take the guest" in error["message"] and "it has ended" in error["message"]
        assert receiver.wait() == 6
        assert "start QEMU anew" in receiver.wait_event("error")["hint"]
        check_stays(source)
        row.compare("source", sender, receiver)
        assert destination.state == "gone"
