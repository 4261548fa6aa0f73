"""The witness log: what it proves about owners, beats and gaps."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from guest_support import GuestProcess, json_of, read_ram, run_guest, wait_until

from migrate.errors import RamError
from migrate.guest.witness import analyse, line_prefix

MS = 1_000_000
StartGuest = Callable[..., GuestProcess]


def line(run: str, beat: int, ms: float, *, boot: str = "boot-a", realtime_ms: float | None = None) -> str:
    """One line; the host is the run's first letter. The clocks count in ms from an arbitrary time."""
    real_ns = 1_700_000_000_000 * MS + round((ms if realtime_ms is None else realtime_ms) * MS)
    return f"W1 00000000000000aa {run[0]} {run} {boot} {beat} {round((ms + 5000) * MS)} {real_ns}\n"


def lived(run: str, beats: Sequence[int], begin_ms: float, **more: str) -> list[str]:
    """A line a millisecond."""
    return [line(run, beat, begin_ms + index, **more) for index, beat in enumerate(beats)]


@pytest.fixture
def log(tmp_path: Path) -> Callable[[list[str]], Path]:
    def write(lines: list[str]) -> Path:
        path = tmp_path / "witness"
        path.write_text("".join(lines))
        return path

    return write


Log = Callable[[list[str]], Path]


@pytest.mark.parametrize("first_beat", [11, 12])
def test_hand_over(first_beat: int, log: Log) -> None:
    """The next beat, or the one after it if the line of the last beat in RAM was not written any more."""
    report = analyse([log(lived("a1", range(1, 11), 0) + lived("b1", range(first_beat, 30), 50))])
    assert report.clean
    assert [(run.host, run.first_beat, run.last_beat) for run in report.runs] == [
        ("a", 1, 10),
        ("b", first_beat, 29),
    ]
    (gap,) = report.gaps
    assert (gap.from_host, gap.to_host, gap.after_beat, gap.hand_over) == ("a", "b", 10, True)
    assert gap.ms == pytest.approx(41)


def test_two_beats_missing_at_a_hand_over(log: Log) -> None:
    report = analyse([log(lived("a1", range(1, 11), 0) + lived("b1", range(13, 30), 50))])
    assert not report.clean
    assert len(report.missing) == 1
    assert "beats 11 to 12" in report.missing[0]
    assert not report.overlaps


def test_beat_missing_inside_a_run(log: Log) -> None:
    report = analyse([log(lived("a1", [1, 2, 3, 5, 6], 0))])
    assert not report.clean
    assert "beats 4 to 4" in report.missing[0]


@pytest.mark.parametrize("beats", [[1, 2, 2, 3], [1, 2, 3, 2, 4]])
def test_beat_repeated_by_one_run(beats: list[int], log: Log) -> None:
    report = analyse([log(lived("a1", beats, 0))])
    assert not report.clean
    assert len(report.backwards) == 1


def test_clock_backwards_in_one_run(log: Log) -> None:
    report = analyse([log([line("a1", 1, 10), line("a1", 2, 9)])])
    assert not report.clean
    assert "clock" in report.backwards[0]


def test_beats_lived_by_two_runs(log: Log) -> None:
    """Not at the same time, and still two owners: the later run went on from an older RAM."""
    report = analyse([log(lived("a1", range(1, 11), 0) + lived("b1", range(10, 20), 50))])
    assert not report.clean
    assert len(report.overlaps) == 1
    assert "beats 10 to 10" in report.overlaps[0]


def test_two_runs_at_one_time(log: Log) -> None:
    """Beats that follow one another do not help if both ran."""
    report = analyse([log(lived("a1", range(1, 11), 0) + lived("b1", range(11, 20), 5.5))])
    assert not report.clean
    assert len(report.overlaps) == 1
    assert "at the same time for 3.5 ms" in report.overlaps[0]


def test_an_earlier_run_that_comes_back(log: Log) -> None:
    """a hands over to b, b to c; then a lives on: the overlap with b and c is seen though c is between."""
    lines = lived("a1", range(1, 5), 0) + lived("b1", range(5, 9), 10) + lived("c1", range(9, 12), 20)
    assert analyse([log(lines)]).clean
    report = analyse([log([*lines, *lived("a1", range(5, 11), 30)])])
    assert len(report.overlaps) == 2


def test_clocks_of_different_boots_are_not_compared(log: Log) -> None:
    lines = lived("a1", range(1, 11), 900) + lived("b1", range(11, 20), 5, boot="boot-b")
    assert analyse([log(lines)]).clean
    gap_ns = line("b1", 11, 5, boot="boot-b", realtime_ms=950)
    (gap,) = analyse([log([*lived("a1", range(1, 11), 900), gap_ns])]).gaps
    assert gap.ms == pytest.approx(950 - 909)


def test_logs_of_two_hosts_are_judged_together(tmp_path: Path) -> None:
    logs = [tmp_path / "a", tmp_path / "b"]
    logs[0].write_text("".join(lived("a1", range(1, 11), 0)))
    logs[1].write_text("".join(lived("b1", range(8, 20), 50)))
    assert analyse(logs[:1]).clean
    assert analyse(logs[1:]).clean
    assert len(analyse(logs).overlaps) == 1


def test_other_guests_in_the_same_log_do_not_matter(log: Log) -> None:
    other = [text.replace("00aa", "00bb") for text in lived("b1", range(1, 11), 5)]
    report = analyse([log(lived("a1", range(1, 11), 0) + other)])
    assert report.clean
    assert len(report.runs) == 2


def test_incomplete_last_line_and_damage(log: Log) -> None:
    whole = lived("a1", range(1, 11), 0)
    report = analyse([log([*whole, line("a1", 11, 10)[:-12]])])
    assert report.clean
    assert report.incomplete_last_line
    report = analyse([log([*whole, "W1 nonsense\n", line("a1", 11, 10)])])
    assert not report.clean
    assert (report.damaged_lines, report.missing) == (1, [])


def test_unreadable_log(tmp_path: Path) -> None:
    with pytest.raises(RamError, match="cannot be read"):
        analyse([tmp_path / "missing"])
    result = run_guest("--check-witness", tmp_path)
    assert result.returncode == 9
    assert str(tmp_path) in result.stderr


def test_host_names_are_made_fit_for_a_line() -> None:
    prefix = line_prefix(1, "a b\nc\udcff" + "x" * 600)
    assert prefix.split(b" ")[:3] == [b"W1", b"0000000000000001", b"a-b-c" + b"\xef\xbf\xbd" + b"x" * 194]
    assert len(prefix) < 300
    assert line_prefix(1, "").split(b" ")[2] == b"-"


# ---- real guests ----


def beats_of(witness: Path, host: str) -> list[int]:
    rows = [row.split() for row in witness.read_text().splitlines(keepends=True) if row.endswith("\n")]
    return [int(row[5]) for row in rows if row[2] == host]


def options(ram: Path, witness: Path, host: str) -> list[object]:
    return ["--ram", ram, "--witness", witness, "--host", host]


@pytest.mark.parametrize("stopped_source", ["killed", "left stopped"])
def test_real_hand_over(stopped_source: str, shm_dir: Path, start_guest: StartGuest) -> None:
    ram, copy, witness = shm_dir / "ram", shm_dir / "copy", shm_dir / "witness"
    source = start_guest(*options(ram, witness, "alpha"), "--size", "1M", "--workload", "mixed")
    wait_until(lambda: len(beats_of(witness, "alpha")) > 20, "alpha lives")
    source.stop()
    shutil.copyfile(ram, copy)
    if stopped_source == "killed":
        source.end(signal.SIGKILL)
    destination = start_guest("--resume", *options(copy, witness, "beta"))
    wait_until(lambda: len(beats_of(witness, "beta")) > 20, "beta lives")
    assert destination.end().returncode == 0
    result = run_guest("--check-witness", witness, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json_of(result, "check-witness")
    runs = report["runs"]
    assert isinstance(runs, list)
    assert [run["host"] for run in runs] == ["alpha", "beta"]
    assert runs[1]["first-beat"] - runs[0]["last-beat"] in (1, 2)
    gap_ms = (runs[1]["first-ns"] - runs[0]["last-ns"]) / MS
    assert report["longest-hand-over-ms"] == pytest.approx(gap_ms)
    assert gap_ms > 0
    assert "alpha -> beta" in run_guest("--check-witness", witness).stdout


def test_two_real_owners(shm_dir: Path, start_guest: StartGuest) -> None:
    """What must never happen: the source goes on while the destination runs."""
    ram, copy, witness = shm_dir / "ram", shm_dir / "copy", shm_dir / "witness"
    source = start_guest(*options(ram, witness, "alpha"), "--size", "1M", "--workload", "kv")
    source.stop()
    shutil.copyfile(ram, copy)
    destination = start_guest("--resume", *options(copy, witness, "beta"))
    source.go_on()
    before = len(beats_of(witness, "alpha"))
    wait_until(lambda: len(beats_of(witness, "alpha")) > before + 20, "alpha lives on")
    wait_until(lambda: len(beats_of(witness, "beta")) > 20, "beta lives")
    source.end()
    destination.end()
    result = run_guest("--check-witness", witness)
    assert result.returncode == 8
    assert "TWO OWNERS" in result.stdout
    report = analyse([witness])
    assert report.overlaps
    assert not report.damaged_lines  # appends of two processes never mix


def test_a_stopped_guest_shows_a_gap_and_goes_on(shm_dir: Path, start_guest: StartGuest) -> None:
    ram, witness = shm_dir / "ram", shm_dir / "witness"
    guest = start_guest(*options(ram, witness, "alpha"), "--size", "1M", "--workload", "sparse", "--rate", 0)
    wait_until(lambda: len(beats_of(witness, "alpha")) > 10, "the guest lives")
    guest.stop()
    begin = time.monotonic()
    last = beats_of(witness, "alpha")[-1]
    assert read_ram([ram]).beat - last in (0, 1)
    time.sleep(0.03)  # the downtime that the log is to show
    held_ms = (time.monotonic() - begin) * 1000
    guest.go_on()
    wait_until(lambda: beats_of(witness, "alpha")[-1] > last + 10, "the guest lives on")
    guest.end()
    report = analyse([witness])
    assert report.clean
    # The stop may have come between the clock and the line of a beat: then the gap stands one line later.
    assert any(gap.after_beat in (last - 1, last, last + 1) and gap.ms >= held_ms for gap in report.gaps)


def test_a_killed_guest_loses_at_most_one_line(shm_dir: Path, start_guest: StartGuest) -> None:
    ram, witness = shm_dir / "ram", shm_dir / "witness"
    guest = start_guest(*options(ram, witness, "alpha"), "--size", "1M", "--workload", "thrash")
    wait_until(lambda: len(beats_of(witness, "alpha")) > 10, "the guest lives")
    assert guest.end(signal.SIGKILL).returncode == -signal.SIGKILL
    beats = beats_of(witness, "alpha")
    assert beats == list(range(1, len(beats) + 1))
    assert read_ram([ram]).beat - beats[-1] in (0, 1)
    assert analyse([witness]).clean
