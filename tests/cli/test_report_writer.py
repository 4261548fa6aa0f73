"""`--report`: one JSON object for a run, whatever its end, in bounded space."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli_support import MIB, filled, source_stats, tell_migration

from migrate.cli.program import run_program
from migrate.cli.report_writer import ReportWriter
from migrate.cli.src import PROGRAM
from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig
from migrate.errors import CancelledMigration, MigrateError, NetworkError, UndecidedError
from migrate.kernel.results import STAGE_ROUND
from migrate.protocol.run_report import MOST_EVENTS, MOST_ROUNDS, MOST_SAMPLES, TIMELINE_COLUMNS
from migrate.protocol.stats import MigrationStats

RAM = (RamSpec("pc.ram", Path("/dev/shm/vm")),)
STARTED_AT = 1_000_000.25


class Silent:
    """A reporter that remembers the warnings."""

    def __init__(self) -> None:
        self.warnings: list[object] = []

    def event(self, name: str, /, **fields: object) -> None:
        if name == "warning":
            self.warnings.append(fields["message"])

    def progress(self, stats: MigrationStats, now: float) -> None: ...

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None: ...

    def error(self, error: MigrateError) -> None: ...


class Clock:
    """Shows what it was set to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def writer(path: Path, **settings: Any) -> tuple[ReportWriter, Clock, Silent]:
    config = SourceConfig(Address("192.0.2.7", 4444), RAM, report=path, **settings)
    clock, inner = Clock(), Silent()
    made = ReportWriter(inner, "source", config, clock=clock, wall_clock=lambda: STARTED_AT)
    return made, clock, inner


def begin(made: ReportWriter, migration: str = "ab" * 16) -> None:
    made.event("migration", id=migration, attempt=1, blocks=[{"name": "pc.ram", "length": 1 << 30}])


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return found


def test_a_whole_migration(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    made, _, _ = writer(path, pause_cmd="pause --password hunter2", resume_cmd="resume", lanes=2)
    begin(made)
    stats, now = tell_migration(made)
    report = read(path)
    assert (report["schema"], report["version"], report["side"]) == ("migrate-report", 1, "source")
    assert (report["migration"], report["started-at"]) == ("ab" * 16, STARTED_AT)
    assert report["attempt"] == 1
    assert report["blocks"] == [{"name": "pc.ram", "length": 1 << 30}]
    assert report["tracker"]["reasons"] == ["wp: the guest gave no userfaultfd", "scan: always works"]
    assert report["outcome"] == "completed"
    assert report["error"] is None
    assert report["configuration"]["ram"] == ["pc.ram=/dev/shm/vm"]
    assert report["configuration"]["to"] == "192.0.2.7:4444"
    assert (report["configuration"]["pause-cmd"], report["configuration"]["state-cmd"]) == ("set", "not set")
    assert "hunter2" not in path.read_text()
    statistics = report["statistics"]
    rounds = [row.as_dict(now, 4096) | {"start": pytest.approx(row.started - 100.0)} for row in stats.rounds]
    assert statistics["rounds"] == rounds
    whole = json.loads(json.dumps(stats.as_dict(now)))
    assert {name: value for name, value in statistics.items() if name in whole} | {
        "rounds": whole["rounds"]
    } == whole
    columns = dict(zip(TIMELINE_COLUMNS, zip(*report["timeline"]["rows"], strict=True), strict=True))
    assert list(columns["time"]) == sorted(columns["time"])
    assert columns["transferred"][-1] == stats.transferred
    assert columns["remaining"][0] == (262144 - 7168 - 25600) * 4096
    assert {event["event"] for event in report["events"]} >= {"lane-reset", "paused", "running", "ended"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (
            NetworkError("the link is cut", side="source", guest="the guest runs here", hint="mend it"),
            "failed",
        ),
        (CancelledMigration("cancelled"), "cancelled"),
        (UndecidedError("who knows"), "undecided"),
    ],
)
def test_a_run_that_fails_before_it_has_numbers(tmp_path: Path, error: MigrateError, outcome: str) -> None:
    made, _, _ = writer(tmp_path / "run.json")
    made.error(error)
    report = read(tmp_path / "run.json")
    assert (report["outcome"], report["statistics"], report["guest"]) == (outcome, None, error.guest)
    assert report["error"]["message"] == error.message
    assert report["error"]["hint"] == error.hint
    assert report["error"]["exit-code"] == error.exit_code


def test_the_error_that_comes_after_the_numbers_is_added(tmp_path: Path) -> None:
    made, _, _ = writer(tmp_path / "run.json")
    begin(made)
    made.summary(source_stats(), 105.0, "failed", guest="the guest runs at the source")
    assert read(tmp_path / "run.json")["error"] is None
    made.error(NetworkError("the link is cut"))
    report = read(tmp_path / "run.json")
    assert (report["outcome"], report["guest"]) == ("failed", "the guest runs at the source")
    assert report["error"]["class"] == "NetworkError"
    assert report["statistics"]["ram"]["total"] == 1 << 30


def test_a_directory_gets_a_report_for_each_migration(tmp_path: Path) -> None:
    made, _, _ = writer(tmp_path)
    for migration in ("aa", "bb"):
        begin(made, migration)
        made.event("lane-reset", lane=0, epoch=2, reason=migration)
        made.summary(source_stats(), 105.0, "failed")
        made.error(NetworkError(migration))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aa-source.json", "bb-source.json"]
    report = read(tmp_path / "bb-source.json")
    assert [event.get("reason") for event in report["events"]] == ["bb", None]
    assert report["error"]["message"] == "bb"


def test_a_long_run_stays_small_and_its_totals_exact(tmp_path: Path) -> None:
    made, clock, _ = writer(tmp_path / "run.json")
    begin(made)
    stats = MigrationStats(total=1 << 30)
    stats.start(100.0)
    number = 0
    for step in range(30_000):
        clock.now = 100.0 + step / 4
        if step % 20 == 0:
            number += 1
            stats.round_started(number, 1000, clock.now)
            made.event("lane-reset", lane=number)
        stats.add_fill(filled(MIB, normal=256), STAGE_ROUND)
        made.progress(stats, clock.now)
    made.summary(stats, clock.now, "failed")
    report = read(tmp_path / "run.json")
    rows = report["timeline"]["rows"]
    assert MOST_SAMPLES / 2 <= len(rows) <= MOST_SAMPLES + 1
    times = [row[0] for row in rows]
    assert times[0] == 0.0 and times[-1] == 29_999 / 4
    gaps = [after - before for before, after in pairwise(times[:-1])]
    assert max(gaps) <= 2.01 * min(gaps)
    transferred = TIMELINE_COLUMNS.index("transferred")
    assert all(row[transferred] == (row[0] * 4 + 1) * MIB for row in rows)
    assert len(report["events"]) == MOST_EVENTS
    assert report["events-left-out"] == number + 1 - MOST_EVENTS
    assert [event.get("lane") for event in report["events"][-2:]] == [number, None]
    assert len(report["statistics"]["rounds"]) == MOST_ROUNDS
    assert report["statistics"]["rounds-left-out"] == number - MOST_ROUNDS
    assert (tmp_path / "run.json").stat().st_size < 400_000


def test_times_that_json_cannot_say_are_null(tmp_path: Path) -> None:
    made, _, _ = writer(tmp_path / "run.json")
    begin(made)
    stats = source_stats()
    stats.start(100.0)
    stats.expect_end(100.0, (2.0, math.inf))
    made.progress(stats, 100.5)
    made.event("outlook", time_left=[2.0, math.inf])
    made.summary(stats, 101.0, "failed")
    report = read(tmp_path / "run.json")
    row = dict(zip(TIMELINE_COLUMNS, report["timeline"]["rows"][0], strict=True))
    assert (row["time-left-best"], row["time-left-worst"]) == (1.5, None)
    assert report["events"][0]["time-left"] == [2.0, None]


def test_the_old_report_stands_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    made, _, inner = writer(path)

    def full(self: Path, target: Path) -> None:
        assert path.read_text() == "old" and json.loads(self.read_text())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    made.error(NetworkError("the link is cut"))
    assert inner.warnings == [f"the report {path} cannot be written: No space left on device"]
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("run.json", "old")]


def test_a_place_where_nothing_can_be_written_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing" / "run.json"
    arguments = ["--to", "192.0.2.7:4444", "--ram", str(tmp_path / "vm"), "--report", str(path)]
    assert run_program(PROGRAM, arguments) == 2
    assert f"there is no directory {path.parent}" in capsys.readouterr().err


def test_the_destination_has_a_configuration_too(tmp_path: Path) -> None:
    config = DestinationConfig(
        Address("0.0.0.0", 4444), RAM, on_commit="start --key s3cret", report=tmp_path / "run.json"
    )
    made = ReportWriter(Silent(), "destination", config)
    made.error(NetworkError("cannot listen"))
    settings = read(tmp_path / "run.json")["configuration"]
    assert (settings["listen"], settings["on-commit"]) == ("0.0.0.0:4444", "set")
    assert "s3cret" not in (tmp_path / "run.json").read_text()
