"""Signals, exit codes and endings: a tiny real job under the real runner, mostly as a process of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import migrate
from migrate.cli.log_reporter import LogReporter
from migrate.cli.run_daemon import as_migrate_error, run_daemon
from migrate.errors import (
    CancelledMigration,
    MigrateError,
    NetworkError,
    RecordError,
    UndecidedError,
    VerifyError,
)

STUB = Path(__file__).with_name("daemon_stub.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(migrate.__file__).parents[1]), "TERM": "xterm"}


class Stub:
    """The stub as a process, read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def wait_for(self, text: str) -> str:
        """Read on until a line has the text; an AssertionError if the output ends first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}: {self.lines} {self.process.communicate()[1]}")

    def end(self, line: str = "") -> tuple[int, str]:
        """Send a line, wait for the end; exit code and standard error."""
        out, err = self.process.communicate(line, timeout=60)
        self.lines += out.splitlines(keepends=True)
        return self.process.returncode, err


@contextmanager
def stub(*arguments: str, shell: str = "") -> Iterator[Stub]:
    command = [sys.executable, str(STUB), *arguments]
    if shell:
        command = ["/bin/sh", "-c", f'{shell}; exec "$0" "$@"', *command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    with process:
        try:
            yield Stub(process)
        finally:
            process.kill()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_cancels_in_order_and_the_second_is_only_noticed(first: signal.Signals) -> None:
    with stub("orderly") as program:
        program.wait_for("ready")
        program.process.send_signal(first)
        program.wait_for(f"{first.name}: cancelling")
        program.wait_for("cleaning-up")
        program.process.send_signal(signal.SIGINT)
        program.wait_for("warning: SIGINT: cancelling already")
        code, err = program.end("enough\n")
    assert code == 130
    assert err == (
        f"stub: cancelled: {first.name}\n"
        "  cancelled at: the source\n"
        "  guest: runs at the source\n"
        "  exit code: 130 (cancelled)\n"
    )


def test_a_cancel_in_json() -> None:
    with stub("orderly", "--json") as program:
        program.wait_for('"ready"')
        program.process.send_signal(signal.SIGTERM)
        code, err = program.end("enough\n")
    events = [json.loads(line) for line in program.lines]
    assert [event["event"] for event in events] == ["ready", "cancelling", "cleaning-up", "error"]
    assert events[1]["signal"] == "SIGTERM"
    assert (events[3]["class"], events[3]["exit-code"]) == ("CancelledMigration", 130)
    assert (code, err) == (130, "")


def test_a_cancel_that_comes_too_late_leaves_a_success() -> None:
    with stub("completes") as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGINT)
        program.wait_for("guest runs at the destination")
        assert program.end() == (0, "")


def test_a_cancel_that_the_job_does_not_know_ends_with_130_too() -> None:
    with stub("forever") as program:
        program.wait_for("ready")
        program.process.send_signal(signal.SIGINT)
        code, err = program.end()
    assert code == 130
    assert err.startswith("stub: cancelled by a signal\n")


def test_under_nohup_a_lost_terminal_ends_nothing() -> None:
    with stub("orderly", shell="trap '' HUP") as program:
        program.wait_for("ready")
        status = Path(f"/proc/{program.process.pid}/status").read_text()
        ignored = int(re.findall(r"^SigIgn:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
        assert ignored & 1 << (signal.SIGHUP - 1)
        program.process.send_signal(signal.SIGHUP)
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("SIGTERM: cancelling")
        code, _ = program.end("enough\n")
    assert code == 130
    assert not any("SIGHUP" in line for line in program.lines)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_standard_output_does_not_end_a_migration(options: list[str]) -> None:
    with stub("talks", *options) as program:
        program.wait_for("ready")
        assert program.process.stdout is not None
        program.process.stdout.close()
        assert program.process.stdin is not None
        program.process.stdin.write("go on\n")
        program.process.stdin.flush()
        assert program.process.wait(60) == 0
        assert program.process.stderr is not None
        assert program.process.stderr.read() == "finished\n"


def test_the_error_comes_after_everything_that_was_printed_before_it() -> None:
    command = [sys.executable, str(STUB), "fails"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 4
    *before, last = done.stdout.splitlines()[-3:]
    assert before == ["stub: error: the link is cut", "  failed at: the source"]
    assert last == "  exit code: 4 (network)"
    assert done.stdout.count("talking") == 1000


def test_no_standard_output_at_all() -> None:
    with stub("talks", shell="exec >&-") as program:
        assert program.end("go on\n") == (0, "finished\n")
    assert program.lines == []


def on_terminal(job: str, number: signal.Signals | None) -> tuple[int, bytes]:
    """Run a job on a terminal, send a signal once it shows progress; exit code and all that was shown."""
    master, slave = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(
            [sys.executable, str(STUB), job], stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT
        ) as process:
            os.close(slave)
            while b"remaining" not in shown:
                shown += os.read(master, 4096)
            if number is not None:
                process.send_signal(number)
            while select.select([master], [], [], 60)[0]:
                try:
                    piece = os.read(master, 4096)
                except OSError:  # the last one on the other side has closed it
                    break
                shown += piece
            return process.wait(60), shown
    finally:
        os.close(master)


def test_on_a_terminal_ctrl_c_erases_the_live_display_and_gives_the_cursor_back() -> None:
    code, shown = on_terminal("live", signal.SIGINT)
    assert code == 130
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"cancelled by a signal" in shown
    assert shown.rindex(b"exit code") > shown.rindex(b"remaining")


def test_on_a_terminal_an_end_without_a_summary_gives_the_cursor_back_too() -> None:
    code, shown = on_terminal("shows", None)
    assert code == 0
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def ended(error: BaseException | None) -> tuple[int, str]:
    """Exit code and error block of a job that ends with this error."""

    async def job() -> None:
        await asyncio.sleep(0)
        if error is not None:
            raise error

    errors = io.StringIO()
    reporter = LogReporter(io.StringIO(), errors, program="stub", side="source")
    return run_daemon(job, reporter, "source"), errors.getvalue()


def test_success_is_0_and_silent() -> None:
    assert ended(None) == (0, "")


@pytest.mark.parametrize(
    "error",
    [
        MigrateError("x"),
        NetworkError("x"),
        RecordError("hook", 0, "x"),
        VerifyError("x"),
        UndecidedError("x"),
        CancelledMigration("x"),
    ],
)
def test_an_error_ends_with_the_code_of_its_class(error: MigrateError) -> None:
    code, text = ended(error)
    assert code == error.exit_code
    assert text.startswith(("stub: error: x", "stub: cancelled: x"))
    assert "at: the source" in text


def test_the_side_an_error_names_stays() -> None:
    _, text = ended(NetworkError("x", side="destination"))
    assert "failed at: the destination" in text


def test_an_unexpected_error_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MIGRATE_DEBUG", raising=False)
    code, text = ended(ZeroDivisionError("nobody thought of it"))
    assert code == 1
    assert text.startswith("stub: error: unexpected ZeroDivisionError: nobody thought of it\n")
    assert "MIGRATE_DEBUG=1" in text
    assert capsys.readouterr().err == ""


def test_a_developer_sees_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIGRATE_DEBUG", "1")
    assert ended(ZeroDivisionError("nobody thought of it"))[0] == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("errors", "gravest"),
    [
        ([CancelledMigration("c"), NetworkError("n")], NetworkError),
        ([NetworkError("n"), UndecidedError("u"), CancelledMigration("c")], UndecidedError),
        ([ValueError("v"), VerifyError("e")], VerifyError),
    ],
)
def test_of_several_errors_the_gravest_is_reported(
    errors: list[Exception], gravest: type[MigrateError]
) -> None:
    nested = ExceptionGroup("inner", errors)
    assert type(as_migrate_error(ExceptionGroup("outer", [nested]))) is gravest


def test_a_signal_in_the_last_moments_changes_nothing_any_more() -> None:
    """A handed-over guest must not look like a cancelled migration: signals are ignored to the very end."""
    ended(None)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert {signal.getsignal(number) for number in signals} == {signal.SIG_IGN}
