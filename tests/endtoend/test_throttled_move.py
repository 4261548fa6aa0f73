"""A guest that writes faster than the link carries pages: held back until it fits, let go at every end."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from test_control_clients import client

from bench.lab import Lab, Program

GUEST = ("--workload=sparse", "--rate=20000")
LINK = ("--max-bandwidth=40M", "--switchover-bandwidth=40M", "--xbzrle-cache-size=0")
"""10000 pages a second, and a guest that dirties twice as many."""


def start(lab: Lab, *options: str) -> tuple[Program, Program, Program]:
    guest = lab.start_guest(*GUEST)
    destination = lab.start_destination("--once")
    port = int(destination.wait_event("listening")["port"])
    return guest, destination, lab.start_source(port, guest, *LINK, *options)


def percents(source: Program) -> list[int]:
    return [event["percent"] for event in source.found("throttle")]


def keeper_of(guest: Program) -> int:
    """The process that holds it back."""
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"signals" in arguments and str(guest.pid).encode() in arguments:
            return int(entry.name)
    raise AssertionError("nobody holds it back")


def test_what_does_not_converge_does_with_auto(lab: Lab) -> None:
    limits = ("--downtime-limit=100", "--max-rounds=5")
    guest, destination, source = start(lab, *limits)
    assert source.wait() == 7, source.story()
    assert percents(source) == []
    destination.wait()
    guest.kill()

    again = Lab(lab.witness.parent / "again", lab.witness.parent / "again")
    again.witness.parent.mkdir()
    with again:
        _, destination, source = start(again, "--downtime-limit=100", "--max-rounds=60", "--throttle=auto")
        assert source.wait() == 0, source.story()
        assert destination.wait() == 0
        steps = percents(source)
        assert steps[0] == 20 and steps[-1] == 0 and len(steps) >= 3, steps
        assert steps[:-1] == sorted(steps[:-1])
        rows = source.summary["rounds"]
        assert max(row.get("cpu-throttle-percentage", 0) for row in rows) == max(steps)
        again.end_arrived_guest(beat_seconds=0.1)  # it comes up and runs there
        again.check_arrived()
        again.check_witness()


def test_changed_and_cancelled_from_another_terminal(lab: Lab, shm_dir: Path) -> None:
    control = f"--control={shm_dir / 'src'}"
    guest, destination, source = start(lab, "--downtime-limit=0", "--max-rounds=100000", control)
    source.wait_event("status", lambda event: event["new"] == "active")
    assert client("set", control, "--throttle=60%").returncode == 0
    source.wait_event("round", lambda event: event.get("cpu-throttle-percentage") == 60)
    source.wait_event("progress", lambda event: event.get("cpu-throttle-percentage") == 60)
    keeper = os.pidfd_open(keeper_of(guest))
    assert client("set", control, "--throttle=off").returncode == 0
    source.wait_event("throttle", lambda event: event["percent"] == 0)
    assert client("set", control, "--throttle=99%", "--max-cpu-throttle=99").returncode == 0
    source.wait_event("round", lambda event: event.get("cpu-throttle-percentage") == 99)
    assert client("cancel", control).returncode == 0
    assert source.wait() == 130
    assert select.select([keeper], [], [], 0)[0], "the keeper has ended before the daemon"
    os.close(keeper)
    assert percents(source) == [60, 0, 99, 0]
    assert not lab.is_stopped(guest)
    assert destination.wait() == 130


def test_a_daemon_that_is_killed(lab: Lab) -> None:
    guest, _, source = start(lab, "--downtime-limit=0", "--max-rounds=100000", "--throttle=99%")
    source.wait_event("round", lambda event: event.get("cpu-throttle-percentage") == 99)
    keeper = os.pidfd_open(keeper_of(guest))
    source.signal(signal.SIGKILL)
    assert select.select([keeper], [], [], 20)[0]
    os.close(keeper)
    assert not lab.is_stopped(guest)
