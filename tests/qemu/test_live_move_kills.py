"""Whoever dies in whichever moment of a live move: never two running guests, and what runs where afterwards.

Long; it has a command of its own, bin/test-qemu.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from live_move import WAITS, Move
from live_qemu import Qemu, wait_until
from monitor_tap import AFTER, ANSWER, BEFORE, MonitorTap

from bench.lab import Program

SOURCE, DESTINATION = "source", "destination"
COMPLETED = '"completed"'

# Which monitor, and which moment of its talk with our daemon.
MOMENTS = {
    "rounds": (SOURCE, BEFORE, "migrate"),
    "pre-switchover": (SOURCE, BEFORE, "migrate-continue"),
    "device": (SOURCE, AFTER, "migrate-continue"),
    "loading": (DESTINATION, BEFORE, "migrate-incoming"),
    "loaded": (DESTINATION, ANSWER, COMPLETED),
    "ready": (SOURCE, ANSWER, COMPLETED),
    "commit": (DESTINATION, BEFORE, "cont"),
    "running": (DESTINATION, AFTER, "cont"),
}
# The guest at the source and at the destination (idle: QEMU stands, or gave up in the middle of its loading)
# after the death of
#              QEMU here        QEMU there       migrate-src        migrate-dst
TABLE = """
rounds         gone   stands    runs   gone      runs   stands      runs   stands
pre-switchover gone   stands    runs   gone      runs   stands      runs   stands
device         gone   stands    runs   gone      runs   stands      runs   stands
loading        gone   idle      runs   gone      runs   idle        runs   stands
loaded         gone   stands    runs   gone      runs   stands      runs   stands
ready          gone   stands    runs   gone      runs   stands      runs   stands
commit         gone   runs      stands gone      stands runs        stands stands
running        gone   runs      stands gone      stands runs        stands runs
"""
VICTIMS = ("qemu-at-source", "qemu-at-destination", "migrate-src", "migrate-dst")


class Case(NamedTuple):
    """One death, and where the guest is after it."""

    moment: str
    victim: str
    source: str
    destination: str


CASES = [
    Case(moment, victim, *states[2 * at : 2 * at + 2])
    for moment, *states in map(str.split, TABLE.strip().splitlines())
    for at, victim in enumerate(VICTIMS)
]


@pytest.fixture
def move(shm_dir: Path) -> Iterator[Move]:
    with ExitStack() as stack:
        destination = stack.enter_context(Qemu(shm_dir, DESTINATION, more=WAITS))
        source = stack.enter_context(Qemu(shm_dir, SOURCE))
        source.wait_passes(1)
        yield stack.enter_context(Move(source, destination))


def guest_of(qemu: Qemu) -> str:
    """Whether it runs, by its own beat as well as QEMU's word."""
    state = qemu.state
    if state == "gone":
        return state
    if state != "running":
        return "stands"
    before = qemu.control()["beat"]
    wait_until(lambda: qemu.control()["beat"] > before, "a beat of the guest")
    return "runs"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.moment}-{case.victim}")
def test_who_dies_when(move: Move, shm_dir: Path, case: Case) -> None:
    monitor, when, what = MOMENTS[case.moment]
    programs: dict[str, Program] = {}
    qemus = {"qemu-at-source": move.source, "qemu-at-destination": move.destination}

    def kill() -> None:
        victim = (qemus | programs)[case.victim].process
        victim.kill()
        victim.wait()
        if monitor == SOURCE and case.victim == "qemu-at-destination":
            programs["migrate-dst"].wait_event("error")  # else the commit might cross its word: undecided

    tapped = {SOURCE: move.source, DESTINATION: move.destination}[monitor]
    with MonitorTap(shm_dir / "tap", tapped.monitor, (when, what), kill) as tap:
        taps = {monitor: tap.path}
        soon = "--reconnect-timeout=0.3"
        programs["migrate-dst"] = move.start_destination("--once", soon, monitor=taps.get(DESTINATION))
        programs["migrate-src"] = move.start_source(soon, monitor=taps.get(SOURCE))
        for started in programs.values():
            started.wait()
    story = "\n".join(started.story() for started in programs.values())

    def is_as_expected() -> bool:
        there = guest_of(move.destination)
        as_there = there in ("stands", "gone") if case.destination == "idle" else there == case.destination
        return guest_of(move.source) == case.source and as_there

    wait_until(is_as_expected, f"guest that {case.source} here and {case.destination} there:\n{story}")
    assert (guest_of(move.source), guest_of(move.destination)) != ("runs", "runs")
    if case.victim != "migrate-src":
        said = programs["migrate-src"].summary["guest"]
        assert ("runs at the source" in said) == (case.source == "runs"), said
