"""The witness: a log outside RAM of who ran when, appended by each run of the guest.

One line a beat (about a millisecond), one append each:

    W1 GUEST-ID HOST RUN BOOT BEAT MONOTONIC-NS REALTIME-NS

GUEST-ID ties it to the RAM, RUN is new with each process, BOOT names the boot of the machine, so that
monotonic clocks are compared only where they are the same clock.

The line of beat *n* is written after *n* is in RAM. Therefore:

* a run's lines have beats n, n+1, n+2 … without a gap; a guest that was stopped and continued shows a gap in
  *time* only;
* a run that goes on from the RAM of another begins at that one's last beat + 1; or + 2, if the other was
  stopped between storing a beat and writing its line. So at most one beat may be missing at a hand-over;
* no beat is ever written twice, without exception: a beat that two runs have means two owners, or a RAM older
  than the one the guest had when it was stopped;
* a line can be missing at the end of a run that was killed, never inside. An incomplete last line of the file
  is a kill's or a full disk's and is only counted.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from migrate.errors import RamError

LINE_TAG = "W1"
_GAPS_SHOWN = 10
_PAUSE_NS = 10_000_000
"""Lines of one run further apart than this are counted as a pause."""
_LINE = re.compile(rb"W1 ([0-9a-f]{16}) (\S+) (\S+) (\S+) (\d+) (\d+) (\d+)\n")


def line_prefix(guest_id: int, host: str) -> bytes:
    """What each line of this run begins with. White space in `host` becomes a dash; at most 200 bytes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    name = (re.sub(rb"\s", b"-", os.fsencode(host))[:200] or b"-").decode("utf-8", "replace")
    run = f"{os.getpid()}-{secrets.token_hex(4)}"
    return f"{LINE_TAG} {guest_id:016x} {name} {run} {boot}".encode()


@dataclass(slots=True)
class Run:
    """What one process wrote."""

    guest_id: str
    host: str
    run: str
    boot: str
    first_beat: int
    last_beat: int
    first_ns: int
    last_ns: int
    """CLOCK_MONOTONIC of that boot."""
    first_realtime_ns: int
    last_realtime_ns: int
    longest_pause_ns: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without a line: the downtime as the guest felt it."""

    guest_id: str
    after_beat: int
    ms: float
    from_host: str
    to_host: str
    hand_over: bool
    """Another run went on; otherwise the same one was held."""


@dataclass(slots=True)
class WitnessReport:
    """What `analyse` found."""

    lines: int = 0
    damaged_lines: int = 0
    incomplete_last_line: bool = False
    overlaps: list[str] = field(default_factory=list)
    """Two owners: two runs at one time, or a beat that two runs have."""
    backwards: list[str] = field(default_factory=list)
    """Beats, or the clock, of one run that repeat or decrease."""
    missing: list[str] = field(default_factory=list)
    """Beats that no line has, beyond the one a hand-over may cost."""
    runs: list[Run] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    """Every hand-over, and the longest pauses inside runs."""

    @property
    def clean(self) -> bool:
        """One owner at all times, no beat lost."""
        return not (self.overlaps or self.backwards or self.missing or self.damaged_lines)

    def as_json(self) -> dict[str, object]:
        """Keys with dashes; `longest-gap-ms` and `longest-hand-over-ms` for scripts."""
        report: dict[str, object] = {
            "clean": self.clean,
            "longest-gap-ms": max((gap.ms for gap in self.gaps), default=0.0),
            "longest-hand-over-ms": max((gap.ms for gap in self.gaps if gap.hand_over), default=0.0),
        }
        return report | _dashed(asdict(self))


def _dashed(values: dict[str, object]) -> dict[str, object]:
    def convert(value: object) -> object:
        if isinstance(value, dict):
            return _dashed(value)
        return [convert(item) for item in value] if isinstance(value, list) else value

    return {key.replace("_", "-"): convert(value) for key, value in values.items()}


def analyse(paths: Iterable[Path]) -> WitnessReport:
    """Read one or more witness logs (a host may keep its own) and judge them together.

    Raises RamError: a log cannot be read.
    """
    report = WitnessReport()
    runs: dict[tuple[str, str, str, str], Run] = {}
    pauses: list[Gap] = []
    for path in paths:
        for line in _lines(path, report):
            guest_id, host, run, boot = (part.decode("utf-8", "replace") for part in line.group(1, 2, 3, 4))
            _add_line(report, runs, pauses, (guest_id, host, run, boot), tuple(map(int, line.group(5, 6, 7))))
    pauses.sort(key=lambda gap: -gap.ms)
    report.gaps = pauses[:_GAPS_SHOWN]
    report.runs = sorted(runs.values(), key=lambda run: (run.guest_id, run.first_beat, run.first_realtime_ns))
    for guest_id in sorted({run.guest_id for run in report.runs}):
        _judge_guest([run for run in report.runs if run.guest_id == guest_id], report)
    report.gaps.sort(key=lambda gap: -gap.ms)
    return report


def _lines(path: Path, report: WitnessReport) -> Iterator[re.Match[bytes]]:
    try:
        with path.open("rb") as file:
            for line in file:
                report.lines += 1
                if match := _LINE.fullmatch(line):
                    yield match
                elif not line.endswith(b"\n"):
                    report.incomplete_last_line = True
                else:
                    report.damaged_lines += 1
    except OSError as error:
        raise RamError(f"the witness log {path} cannot be read: {error.strerror}") from error


def _add_line(
    report: WitnessReport,
    runs: dict[tuple[str, str, str, str], Run],
    pauses: list[Gap],
    key: tuple[str, str, str, str],
    numbers: tuple[int, ...],
) -> None:
    beat, monotonic_ns, realtime_ns = numbers
    run = runs.get(key)
    if run is None:
        runs[key] = Run(*key, beat, beat, monotonic_ns, monotonic_ns, realtime_ns, realtime_ns)
        return
    who = f"guest {run.guest_id}: run {run.run} on {run.host}"
    if beat <= run.last_beat:
        report.backwards.append(f"{who}: beat {beat} comes after beat {run.last_beat}")
        return
    if beat > run.last_beat + 1:
        report.missing.append(f"{who}: beats {run.last_beat + 1} to {beat - 1} have no line")
    passed_ns = monotonic_ns - run.last_ns
    if passed_ns < 0:
        report.backwards.append(f"{who}: the clock went back by {-passed_ns} ns at beat {beat}")
    if passed_ns > _PAUSE_NS:
        pauses.append(Gap(run.guest_id, run.last_beat, passed_ns / 1e6, run.host, run.host, hand_over=False))
    run.longest_pause_ns = max(run.longest_pause_ns, passed_ns)
    run.last_beat, run.last_ns, run.last_realtime_ns = beat, monotonic_ns, realtime_ns


def _judge_guest(runs: list[Run], report: WitnessReport) -> None:
    """Runs of one guest, sorted by first beat: each against every earlier one that reaches into it."""
    for index, run in enumerate(runs):
        for other in runs[:index]:
            if run.first_beat <= other.last_beat:
                last = min(run.last_beat, other.last_beat)
                report.overlaps.append(
                    f"guest {run.guest_id}: beats {run.first_beat} to {last} were lived by"
                    f" run {other.run} on {other.host} and by run {run.run} on {run.host}"
                )
            elif run.boot == other.boot and run.first_ns <= other.last_ns:
                both_ms = (min(run.last_ns, other.last_ns) - max(run.first_ns, other.first_ns)) / 1e6
                report.overlaps.append(
                    f"guest {run.guest_id}: run {other.run} on {other.host} and run {run.run} on {run.host}"
                    f" ran at the same time for {both_ms:.1f} ms"
                )
        if index == 0:
            continue
        before = max(runs[:index], key=lambda other: other.last_beat)
        if run.first_beat > before.last_beat + 2:
            report.missing.append(
                f"guest {run.guest_id}: beats {before.last_beat + 1} to {run.first_beat - 1} have no line,"
                f" between run {before.run} on {before.host} and run {run.run} on {run.host}"
            )
        report.gaps.append(
            Gap(
                run.guest_id,
                before.last_beat,
                _between_ms(before, run),
                before.host,
                run.host,
                hand_over=True,
            )
        )


def _between_ms(before: Run, after: Run) -> float:
    if before.boot == after.boot:
        return (after.first_ns - before.last_ns) / 1e6
    return (after.first_realtime_ns - before.last_realtime_ns) / 1e6
