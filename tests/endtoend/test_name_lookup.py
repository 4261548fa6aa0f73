"""A resolver that does not answer, or does not know: getaddrinfo(3) of the C library itself is replaced."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_library import LyingLab

from bench.lab import Program
from tests.failure_table import FailureRow


@pytest.fixture
def hanging(shm_dir: Path) -> Iterator[LyingLab]:
    with LyingLab(shm_dir) as made:
        yield made


def _interrupt(lab: LyingLab, program: Program) -> None:
    """Ctrl-C in the midst of the lookup ends it: the lookup does not end at all."""
    lab.wait_for_file(lab.since)
    program.signal(signal.SIGINT)
    assert program.wait(20) == 130, program.story()


def test_a_source_is_not_held_by_it(hanging: LyingLab) -> None:
    ram = hanging.source_ram["pc.ram"]
    ram.write_bytes(bytes(1 << 20))
    state = f"--state-dir={hanging.source_state}"
    _interrupt(hanging, hanging.run("migrate-src", "--to=hangs.example:4444", state, f"--ram={ram}"))


def _move_to(lab: LyingLab, host: str) -> tuple[Program, Program]:
    """Guest and source, which has ended."""
    guest = lab.start_guest("--rate=100")
    source = lab.run(
        "migrate-src",
        f"--to={host}:4444",
        f"--state-dir={lab.source_state}",
        f"--ram={lab.source_ram['pc.ram']}",
        f"--guest-pid={guest.pid}",
        "--keepalive-timeout=0.5",
    )
    source.wait(20)
    return guest, source


@pytest.mark.failure_row("name lookup hangs")
def test_a_source_gives_it_up_in_time(hanging: LyingLab, row: FailureRow) -> None:
    guest, source = _move_to(hanging, "hangs.example")
    assert hanging.since.exists()
    row.check(hanging, guest, source)


@pytest.mark.failure_row("name unknown")
def test_a_name_that_nobody_knows(hanging: LyingLab, row: FailureRow) -> None:
    guest, source = _move_to(hanging, "nowhere.example")
    row.check(hanging, guest, source)


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_destination_is_not_held_by_it(hanging: LyingLab, option: str) -> None:
    hangs = "hangs.example:4444"
    listen = "127.0.0.1:0" if option == "--metrics" else hangs
    more = [f"--metrics={hangs}"] if option == "--metrics" else ["--insecure"]
    ram = f"--ram={hanging.destination_ram['pc.ram']}"
    _interrupt(hanging, hanging.run("migrate-dst", f"--listen={listen}", ram, *more))


def test_a_plan_is_not_held_by_it(hanging: LyingLab) -> None:
    guest = hanging.start_guest("--rate=100")
    ram = f"--ram={hanging.source_ram['pc.ram']}"
    _interrupt(
        hanging,
        hanging.run("migrate-src", "plan", ram, f"--guest-pid={guest.pid}", "--to=hangs.example:4444"),
    )
