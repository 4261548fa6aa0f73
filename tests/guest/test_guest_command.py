"""`migrate-guest` as a command: what it refuses and with which exit code, how it ends, what it leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from guest_support import (
    PAGE,
    GuestProcess,
    assert_whole,
    command,
    guest_in_this_process,
    json_of,
    live,
    make_layout,
    read_ram,
    run_guest,
)

from migrate.cli.guest import main
from migrate.guest import checker
from migrate.guest.ram_files import RamFiles

StartGuest = Callable[..., GuestProcess]
SIZE = ("--size", "256K")


def in_process(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command that is refused before anything runs."""
    code = main([str(argument) for argument in arguments])
    return code, capfd.readouterr().err


@pytest.fixture
def two_blocks(shm_dir: Path) -> list[Path]:
    paths = [shm_dir / "a", shm_dir / "b"]
    with RamFiles.create(paths, make_layout("kv", 64, 32)) as files:
        live(files, 200)
    return paths


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--ram is missing"),
        (["--ram", "x"], "--size is missing"),
        (["--ram", "x", "--size", "60K"], "at least 64K"),
        (["--ram", "x", "--size", "100001"], "whole number of pages"),
        (["--ram", "x", "--size", "big"], "not a size"),
        (["--ram", "x", "--ram", "y", *SIZE, *SIZE, *SIZE], "3 times"),
        (["--ram", "x", *SIZE, "--rate", "-1"], "--rate"),
        (["--ram", "x", *SIZE, "--rate", "fast"], "not a whole number"),
        (["--ram", "x", *SIZE, "--working-set", "1M"], "--working-set"),
        (["--ram", "x", *SIZE, "--working-set", "8K"], "--working-set"),
        (["--ram", "x", *SIZE, "--workload", "chess"], "chess"),
        (["--ram", "x", *SIZE, "--fill", "ones"], "ones"),
        (["--ram", "x", *SIZE, "--seed", "-3"], "--seed"),
        (["--ram", "x", *SIZE, "--duration", "0"], "--duration"),
        (["--ram", "x", *SIZE, "--duration", "nan"], "--duration"),
        (["--ram", "", *SIZE], "no path"),
        (["--resume", "--check", "--ram", "x"], "not allowed with"),
        ([word for number in range(65) for word in ("--ram", f"x{number}")] + list(SIZE), "at most 64"),
    ],
)
def test_options_that_cannot_work(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, errors = in_process(capfd, *arguments)
    assert code == 2
    assert words in errors
    assert not list(tmp_path.iterdir())


def test_help_states_units(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capfd.readouterr().out
    assert "64M = 64 * 2^20" in text
    assert "page writes a second" in text
    assert "SECONDS" in text or "seconds" in text


@pytest.mark.parametrize("action", ["--resume", "--check"])
def test_files_that_are_no_guest(
    action: str, two_blocks: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = two_blocks
    whole = a.read_bytes()
    names = ("missing", "empty", "short", "magic", "crc", "directory", "pipe", "truncated", "longer", "tail")
    bad = {name: tmp_path / name for name in names}
    bad["empty"].touch()
    bad["short"].write_bytes(whole[:100])
    bad["magic"].write_bytes(bytes(8) + whole[8:])
    bad["crc"].write_bytes(whole[:24] + bytes([whole[24] ^ 1]) + whole[25:])
    bad["directory"].mkdir()
    os.mkfifo(bad["pipe"])
    bad["truncated"].write_bytes(whole[:-PAGE])
    bad["longer"].write_bytes(whole + bytes(PAGE))
    bad["tail"].write_bytes(whole[:600] + b"\1" + whole[601:])
    words = {
        "missing": "does not exist",
        "short": "too small",
        "empty": "too small",
        "magic": "magic",
        "crc": "CRC",
        "directory": "irectory" if action == "--resume" else "not a regular file",
        "pipe": "not a regular file",
        "truncated": f"{len(whole) - PAGE} bytes",
        "longer": f"{len(whole) + PAGE} bytes",
        "tail": "zeros must be",
    }
    for name, path in bad.items():
        code, errors = in_process(capfd, action, "--ram", path, "--ram", b)
        assert (name, code) == (name, 9)
        assert words[name] in errors
        assert str(path) in errors
    assert not bad["missing"].exists()


@pytest.mark.parametrize("action", ["--resume", "--check"])
def test_blocks_must_be_those_of_the_guest(
    action: str, two_blocks: list[Path], shm_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = two_blocks
    stranger = shm_dir / "stranger"
    with RamFiles.create([shm_dir / "strange-a", stranger], make_layout("kv", 64, 32, guest_id=9)):
        pass
    for blocks, words in (
        ([b, a], "is block 1 of the 2"),
        ([a], "is block 0 of the 2"),
        ([a, a], "given twice"),
        ([a, stranger], "not blocks of the same guest"),
    ):
        code, errors = in_process(capfd, action, *(word for path in blocks for word in ("--ram", path)))
        assert code == 9
        assert words in errors


def test_marked_copy_is_refused(two_blocks: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    a, b = two_blocks
    marker = b.with_name("b.migrating")
    marker.write_text("{}")
    contents = [path.read_bytes() for path in two_blocks]
    for action in (["--resume"], [*SIZE]):
        code, errors = in_process(capfd, *action, "--ram", a, "--ram", b)
        assert code == 3
        assert str(marker) in errors
    assert contents == [path.read_bytes() for path in two_blocks]
    assert main(["--check", "--ram", str(a), "--ram", str(b)]) == 0  # looking is allowed
    marker.unlink()
    assert run_guest("--resume", "--ram", a, "--ram", b, "--duration", "0.02").returncode == 0


def test_resume_with_options_that_disagree(two_blocks: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    names = [word for path in two_blocks for word in ("--ram", path)]
    for option, value in (
        ("--size", "256K"),
        ("--workload", "log"),
        ("--working-set", "128K"),
        ("--fill", "none"),
        ("--seed", "43"),
    ):
        code, errors = in_process(capfd, "--resume", *names, option, value)
        assert code == 3
        assert option in errors
    agreeing = ("--size", "256K", "--size", "128K", "--workload", "kv", "--fill", "random", "--seed", 42)
    assert run_guest("--resume", *names, *agreeing, "--rate", 5, "--duration", "0.02").returncode == 0


def test_something_else_in_the_file_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "letters"
    path.write_text("to nobody")
    code, errors = in_process(capfd, "--ram", path, *SIZE)
    assert code == 9
    assert "left as it is" in errors
    assert path.read_text() == "to nobody"


def test_a_dead_guest_is_replaced_and_a_stopped_one_is_not(
    shm_dir: Path, start_guest: StartGuest, capfd: pytest.CaptureFixture[str]
) -> None:
    path = shm_dir / "ram"
    guest = start_guest("--ram", path, *SIZE)
    guest.stop()
    content = path.read_bytes()
    for action in (["--resume"], [*SIZE]):
        code, errors = in_process(capfd, *action, "--ram", path)
        assert code == 3
        assert "a practice guest runs" in errors
    assert path.read_bytes() == content
    assert checker.check([path]).clean
    guest.end(signal.SIGKILL)
    result = run_guest("--ram", path, "--size", "128K", "--duration", "0.02")
    assert result.returncode == 0
    assert read_ram([path]).guest_id != int.from_bytes(content[16:24], "little")
    assert path.stat().st_size == 128 * 1024


def test_running_guest_cannot_be_checked(
    shm_dir: Path, start_guest: StartGuest, capfd: pytest.CaptureFixture[str]
) -> None:
    path = shm_dir / "ram"
    guest = start_guest("--ram", path, "--size", "64M", "--workload", "sparse", "--rate", 0)
    code, errors = in_process(capfd, "--check", "--ram", path)
    assert code == 3
    assert "runs" in errors
    guest.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end(number: signal.Signals, shm_dir: Path, start_guest: StartGuest) -> None:
    path, pidfile = shm_dir / "ram", shm_dir / "pid"
    arguments = ("--ram", path, "--size", "1M", "--workload", "mixed", "--rate", 0, "--host", "h", "--json")
    guest = start_guest(*arguments, "--pidfile", pidfile)
    assert int(pidfile.read_text()) == guest.pid
    assert int(guest.ready_file.read_text()) == guest.pid
    ended = guest.end(number)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not pidfile.exists()
    ram = assert_whole([path])
    assert not ram.in_flight
    ready, summary = json_of(ended, "ready"), json_of(ended, "ended")
    assert (ready["pid"], ready["host"], ready["workload"]) == (guest.pid, "h", "mixed")
    assert ready["guest-id"] == f"{ram.guest_id:016x}"
    assert (summary["ended-by"], summary["beat"], summary["writes"]) == (number.name, ram.beat, ram.done)


def test_a_polite_stop_comes_between_two_writes(shm_dir: Path, start_guest: StartGuest) -> None:
    """What SIGSTOP cannot promise: with SIGTSTP nothing is ever in flight, and all of it is in the log."""
    path, log = shm_dir / "ram", shm_dir / "log"
    arguments = ("--ram", path, "--size", "1M", "--workload", "thrash", "--fill", "none")
    guest = start_guest(*arguments, "--dirty-log", log)
    for _ in range(10):
        guest.stop(signal.SIGTSTP)
        ram = read_ram([path])
        assert not ram.in_flight
        marks = int.from_bytes(log.read_bytes(), "little")
        assert all(marks >> page & 1 for _, page in ram.data_pages() if ram.version(0, page))
        guest.go_on()
    guest.end()


def test_logs_that_cannot_be_kept(shm_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = ("--ram", shm_dir / "ram", "--ram", shm_dir / "ram2", *SIZE)
    code, errors = in_process(capfd, *base, "--dirty-log", shm_dir / "log")
    assert code == 2
    assert "one for each --ram" in errors
    nowhere = shm_dir / "no" / "log"
    code, errors = in_process(capfd, *base, "--dirty-log", shm_dir / "log", "--dirty-log", nowhere)
    assert code == 1
    assert f"the dirty log {nowhere} cannot be made" in errors


def test_closed_standard_output_does_not_end_a_guest(shm_dir: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        arguments = command("--ram", shm_dir / "ram", *SIZE, "--duration", "0.02")
        result = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=20)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")


def test_truncated_while_it_runs(shm_dir: Path, start_guest: StartGuest) -> None:
    path = shm_dir / "ram"
    guest = start_guest("--ram", path, "--size", "1M", "--workload", "thrash")
    os.truncate(path, 64 * 1024)
    ended = guest.wait()
    assert ended.returncode == 9
    assert "truncated" in ended.stderr


def test_full_disk_under_the_witness(shm_dir: Path) -> None:
    path = shm_dir / "ram"
    result = run_guest("--ram", path, *SIZE, "--witness", "/dev/full")
    assert result.returncode == 1
    assert "No space left" in result.stderr
    assert "can be resumed" in result.stderr
    assert not assert_whole([path]).in_flight
    assert run_guest("--resume", "--ram", path, "--duration", "0.02").returncode == 0


@pytest.mark.parametrize("option", ["--witness", "--pidfile", "--ready-file"])
def test_files_that_cannot_be_written(option: str, shm_dir: Path) -> None:
    result = run_guest("--ram", shm_dir / "ram", *SIZE, option, shm_dir / "no" / "directory")
    assert result.returncode == 1
    assert "no/directory" in result.stderr


def test_moved_while_it_fills(shm_dir: Path) -> None:
    """The fill is made of page writes too: a copy from the middle of it goes on filling."""
    path, copy = shm_dir / "ram", shm_dir / "copy"
    with RamFiles.create([path], make_layout("sparse", 20_000)) as files:
        with guest_in_this_process(files) as guest:
            while not guest.writes:
                assert guest.run(time.monotonic_ns() + 100_000)  # at most one beat, a millisecond
        shutil.copyfile(path, copy)
    report = checker.check([copy])
    assert report.clean
    assert 0 < report.writes < report.pages_checked
    with RamFiles.resume([copy]) as files:
        live(files, report.pages_checked)
    report = checker.check([copy])
    assert report.clean
    assert report.writes > report.pages_checked
