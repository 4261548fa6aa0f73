"""Either daemon killed at each step of the handover: who runs the guest, what `status` and `recover` say.

No kill is timed: the step's own command is what kills, or what stops and is then killed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_failures import port_of

from bench.lab import Lab, Program
from migrate.daemon.journal import Journal, find_journals
from migrate.protocol.journal_record import FILE_BYTES
from tests.failure_table import FailureRow

KILL_BOTH = "kill -9 $PPID $(cat /proc/$PPID/task/$PPID/children)"
"""The daemon and all its children: the supervisor, and the shell that runs this."""
QUICK = "--reconnect-timeout=0.3"


class Crash:
    """A guest and both programs, of which one dies."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.guest = lab.start_guest("--rate=100")
        self.started = lab.witness.with_name("started")
        """Exists once the destination's guest was let go."""
        self.last: Program
        """The last `status` or `recover`."""

    def destination(self, *options: str, on_commit: str = "true", listen: str = "127.0.0.1:0") -> Program:
        """One that notes when it lets the guest go, after `on_commit`."""
        commit = f"--on-commit={on_commit} && echo >> {self.started}"
        return self.lab.start_destination(QUICK, commit, *options, resume=False, listen=listen)

    def source(self, port: int, *options: str) -> Program:
        """One that gives up soon."""
        return self.lab.start_source(port, self.guest, QUICK, *options)

    @property
    def stopped(self) -> bool:
        """The source's guest stands."""
        return self.lab.is_stopped(self.guest)

    @property
    def starts(self) -> int:
        """How often the destination's guest was let go."""
        return len(self.started.read_text().splitlines()) if self.started.exists() else 0

    def status(self, side: str) -> list[dict[str, Any]]:
        """What `status` says at a side."""
        return self._command(side, "status")[1]

    def recover(self, side: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        """Exit status of `recover`, and what it says."""
        return self._command(side, "recover", *options)

    def _command(self, side: str, name: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        program = "migrate-src" if side == "source" else "migrate-dst"
        state = self.lab.source_state if side == "source" else self.lab.destination_state
        self.last = self.lab.run(program, name, f"--state-dir={state}", *options)
        return self.last.wait(), self.last.events

    def steps(self) -> tuple[list[str], list[str]]:
        """What the journals of both sides say."""
        return _steps(self.lab.source_state, "source"), _steps(self.lab.destination_state, "destination")


def _steps(directory: Path, side: str) -> list[str]:
    return [found.record.step.value for found in find_journals(directory, side) if found.record is not None]


@pytest.fixture
def crash(lab: Lab) -> Iterator[Crash]:
    yield Crash(lab)


def test_a_clean_move_leaves_no_journal(crash: Crash) -> None:
    destination = crash.destination("--once")
    source = crash.source(port_of(destination))
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    assert crash.steps() == ([], [])
    assert crash.stopped and crash.starts == 1
    assert crash.status("source") == []
    assert crash.recover("source") == (0, [])


def test_a_cancelled_pause_leaves_no_journal(crash: Crash) -> None:
    destination = crash.destination("--once", "--on-prepare=exit 3")
    source = crash.source(port_of(destination))
    assert source.wait() == 6, source.story()
    assert destination.wait() == 6
    assert crash.steps() == ([], [])
    assert not crash.stopped


@pytest.mark.failure_row("source killed in the pause")
def test_the_source_killed_in_the_pause(crash: Crash, row: FailureRow) -> None:
    """The supervisor resumes the guest at once."""
    source = crash.source(port_of(crash.destination()), "--state-cmd=kill -9 $PPID")
    assert source.wait() == -9  # and whoever has its error output has ended
    assert not crash.stopped
    assert "the guest runs here" in source.stderr
    assert crash.steps()[0] == []
    row.check(crash.lab, crash.guest, source)


@pytest.mark.failure_row("source and its supervisor killed")
def test_the_source_killed_in_the_pause_with_its_supervisor(crash: Crash, row: FailureRow) -> None:
    source = crash.source(port_of(crash.destination()), f"--state-cmd={KILL_BOTH}")
    assert source.wait() == -9
    assert crash.stopped
    [status] = crash.status("source")
    assert (status["owner"], status["step"], status["in-use"]) == ("source", "pausing", False)
    assert "stands still" in status["sentence"] and "migrate-src recover" in status["next"]
    again = crash.source(1)
    assert again.wait() == 3, "a guest that was left paused must not move before it is settled"
    assert "migrate-src recover" in again.wait_event("error")["hint"]
    code, [said] = crash.recover("source")
    recovery = crash.last
    assert (code, said["guest"]) == (0, "the guest runs here")
    assert not crash.stopped
    assert crash.recover("source") == (0, [])
    assert crash.steps()[0] == []
    row.compare("source", recovery, again)


def test_a_guest_that_stood_before_the_pause_is_left_so(crash: Crash) -> None:
    crash.guest.signal(signal.SIGSTOP)
    source = crash.source(port_of(crash.destination()), "--dirty-tracker=scan", "--state-cmd=kill -9 $PPID")
    assert source.wait() == -9
    assert "stopped here, as it was before" in source.stderr
    assert crash.stopped


def test_a_pause_command_is_undone_by_the_resume_command(crash: Crash) -> None:
    pid = crash.guest.pid
    source = crash.lab.start_source(
        port_of(crash.destination()),
        None,
        f"--pause-cmd=kill -STOP {pid}",
        f"--resume-cmd=kill -CONT {pid}",
        "--state-cmd=kill -9 $PPID",
    )
    assert source.wait() == -9
    assert not crash.stopped, source.stderr


def test_the_source_killed_while_it_is_prepared(crash: Crash) -> None:
    """It never committed: the guest is its own, and the destination declines by itself."""
    source_pid = crash.lab.witness.with_name("source.pid")
    destination = crash.destination("--once", f"--on-prepare=kill -9 $(cat {source_pid})")
    source = crash.source(port_of(destination), f"--state-cmd=echo $PPID > {source_pid}")
    assert source.wait() == -9
    assert destination.wait() == 4, destination.story()
    assert not crash.stopped and crash.starts == 0
    assert crash.steps()[0] == []


@pytest.mark.failure_row("source killed after the commit")
@pytest.mark.parametrize("once", [True, False])
def test_the_source_killed_when_it_has_committed(crash: Crash, row: FailureRow, once: bool) -> None:
    """The destination runs the guest; `recover` at the source learns it and settles."""
    source_pid = crash.lab.witness.with_name("source.pid")
    destination = crash.destination(*(["--once"] if once else []), on_commit=f"kill -9 $(cat {source_pid})")
    port = port_of(destination)
    source = crash.source(port, f"--state-cmd=echo $PPID > {source_pid}")
    assert source.wait() == -9
    assert "recover" in source.stderr
    destination.wait_event("running")
    if once:
        assert destination.wait() == 0, destination.story()
    assert crash.steps()[0] == ["committed"]
    [status] = crash.status("source")
    assert status["owner"] == "undecided" and "may run there" in status["sentence"]
    if once:
        assert crash.steps()[1] == ["running"]
        code, [said] = crash.recover("source")
        assert (code, said["exit-code"]) == (10, 10), "nobody answers"
        assert crash.stopped
        crash.destination(listen=f"127.0.0.1:{port}")
    for _ in range(2):
        code, said_twice = crash.recover("source")
        assert code == 0
        if said_twice:
            row.compare("destination", crash.last, source)
        assert [said["guest"] for said in said_twice] in ([], ["the guest runs at the destination"])
    assert crash.steps() == ([], [])
    assert crash.stopped and crash.starts == 1


def test_the_destination_killed_while_it_starts(crash: Crash) -> None:
    """It finishes once it is asked and can find out whether the guest runs."""
    destination = crash.destination("--once", on_commit="kill -9 $PPID; false")
    port = port_of(destination)
    source = crash.source(port)
    assert source.wait() == 10, source.story()
    assert "migrate-src recover" in source.wait_event("error")["hint"]
    assert destination.wait() == -9
    assert crash.steps() == (["committed"], ["starting"])
    [status] = crash.status("destination")
    assert status["owner"] == "destination" and "not known" in status["sentence"]
    blind = crash.destination(listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert code == 10 and "--is-running" in said["error"]
    assert crash.starts == 0
    blind.kill()
    crash.destination("--is-running=false", listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs at the destination")
    assert crash.recover("source") == (0, [])
    assert crash.steps() == ([], [])
    assert crash.stopped and crash.starts == 1


def test_the_destination_finds_that_the_guest_runs(crash: Crash) -> None:
    destination = crash.destination("--once", on_commit="kill -9 $PPID; false")
    source = crash.source(port_of(destination))
    assert source.wait() == 10
    for _ in range(2):
        code, [said] = crash.recover("destination", "--is-running=true", "--on-commit=exit 9")
        assert (code, said["guest"]) == (0, "the guest runs here")
    assert crash.steps() == (["committed"], ["running"])


def killed_when_prepared(crash: Crash, *options: str) -> int:
    """The source commits to a destination that is gone; returns the port. `options` are for both."""
    source_pid = crash.lab.witness.with_name("source.pid")
    destination = crash.destination("--once", f"--on-prepare=kill -STOP $(cat {source_pid})", *options)
    port = port_of(destination)
    source = crash.source(port, f"--state-cmd=echo $PPID > {source_pid}", *options)
    destination.wait_event("prepared")
    destination.signal(signal.SIGSTOP)
    source.signal(signal.SIGCONT)
    source.wait_event("committed")
    destination.kill()
    assert source.wait() == 10, source.story()
    assert crash.steps() == (["committed"], ["prepared"])
    assert crash.stopped and crash.starts == 0
    return port


@pytest.mark.failure_row("destination killed when prepared")
def test_the_destination_killed_when_it_is_prepared(crash: Crash, row: FailureRow) -> None:
    """The commit reaches its journal through another daemon: nothing was lost."""
    port = killed_when_prepared(crash)
    [status] = crash.status("destination")
    assert status["owner"] == "undecided" and "never started" in status["sentence"]
    later = crash.destination(listen=f"127.0.0.1:{port}")
    refused = crash.source(port)
    assert refused.wait() == 3, "the source's own journal is in the way"
    code, [said] = crash.recover("source")
    recovery = crash.last
    assert (code, said["guest"]) == (0, "the guest runs at the destination")
    assert later.found("committed")
    assert crash.recover("source") == (0, [])
    assert crash.steps() == ([], [])
    assert crash.stopped and crash.starts == 1
    row.compare("destination", recovery)


def test_a_prepared_destination_gives_the_guest_back(crash: Crash) -> None:
    port = killed_when_prepared(crash)
    for _ in range(2):
        code, [said] = crash.recover("destination")
        assert (code, said["guest"]) == (0, "the guest is the source's and never starts here")
    crash.destination(listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs here")
    assert not crash.stopped and crash.starts == 0
    assert crash.steps() == ([], [])


def test_a_prepared_destination_whose_host_was_started_anew_declines(crash: Crash) -> None:
    port = killed_when_prepared(crash)
    [found] = find_journals(crash.lab.destination_state, "destination")
    journal = Journal.open(found.path)
    journal.write(replace(journal.record, boot="another"))
    journal.close()
    crash.destination(listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs here")
    assert not crash.stopped and crash.starts == 0


def test_a_prepared_ram_is_not_overwritten(crash: Crash) -> None:
    killed_when_prepared(crash)
    other = crash.lab.witness.with_name("other-state")
    destination = crash.destination("--once")
    source = crash.source(port_of(destination), f"--state-dir={other}")
    assert source.wait() == 3, source.story()
    assert "not settled" in source.wait_event("error")["message"]


def test_the_source_wakes_up_after_the_destination_has_given_up(crash: Crash) -> None:
    """Its Prepared is stale. It commits, and is told that the pause was declined; or it sees first that the
    connection has broken, gives the pause up by itself, and moves the guest in a second one.
    """
    source_pid = crash.lab.witness.with_name("source.pid")
    destination = crash.destination(f"--on-prepare=kill -STOP $(cat {source_pid})", "--keepalive-timeout=1")
    source = crash.source(port_of(destination), f"--state-cmd=echo $PPID > {source_pid}")
    destination.wait_event("error")
    source.signal(signal.SIGCONT)
    code = source.wait()
    assert code in (0, 4), source.story()
    if code == 4:
        error = source.wait_event("error")
        assert "taken back" in error["message"] and "runs at the source" in error["guest"]
    assert (crash.stopped, crash.starts) == ((True, 1) if code == 0 else (False, 0))
    assert crash.steps() == ([], [])


def test_a_start_that_fails_is_tried_again_by_recover(crash: Crash) -> None:
    allowed = crash.lab.witness.with_name("allowed")
    destination = crash.destination("--is-running=false", on_commit=f"test -e {allowed}")
    source = crash.source(port_of(destination))
    assert source.wait() == 10, source.story()
    destination.wait_event("error")
    code, [said] = crash.recover("source")
    assert (code, said["exit-code"]) == (10, 10)
    allowed.touch()
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs at the destination")
    assert crash.stopped and crash.starts == 1
    assert crash.steps() == ([], [])


@pytest.mark.failure_row("journal lost at the destination")
def test_another_state_dir_at_the_destination_decides_nothing(crash: Crash, row: FailureRow) -> None:
    """Without a record there is no telling: the guest may run there."""
    destination = crash.destination("--once", on_commit="kill -9 $PPID; false")
    port = port_of(destination)
    source = crash.source(port)
    assert source.wait() == 10
    elsewhere = crash.lab.witness.with_name("elsewhere")
    crash.destination(f"--state-dir={elsewhere}", listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert code == 10 and "no journal of it" in said["error"]
    assert crash.stopped
    row.check(crash.lab, crash.guest, crash.last)


def test_a_person_may_force(crash: Crash) -> None:
    destination = crash.destination("--once", on_commit="kill -9 $PPID; false")
    port = port_of(destination)
    source = crash.source(port)
    assert source.wait() == 10
    [status] = crash.status("source")
    migration = f"--migration={status['migration']}"
    assert crash.recover("source", "--force-resume")[0] == 2, "which one?"
    code, [said] = crash.recover("destination", migration, "--force-declined")
    assert (code, said["guest"]) == (0, "the guest is the source's and never starts here")
    crash.destination("--is-running=false", listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source", migration)
    assert (code, said["guest"]) == (0, "the guest runs here")
    assert not crash.stopped and crash.starts == 0
    assert crash.steps() == ([], [])


@pytest.mark.failure_row("unsettled handover")
def test_nothing_moves_before_it_is_settled(crash: Crash, row: FailureRow) -> None:
    source = crash.source(port_of(crash.destination()), f"--state-cmd={KILL_BOTH}")
    assert source.wait() == -9
    again = crash.source(1)
    again.wait()
    row.check(crash.lab, crash.guest, again)


@pytest.mark.failure_row("journal damaged")
def test_a_journal_of_which_nothing_is_whole(crash: Crash, row: FailureRow) -> None:
    source = crash.source(port_of(crash.destination()), f"--state-cmd={KILL_BOTH}")
    assert source.wait() == -9
    [found] = find_journals(crash.lab.source_state, "source")
    found.path.write_bytes(b"torn" * (FILE_BYTES // 4))
    crash.status("source")
    status = crash.last
    assert crash.recover("source")[0] == 9
    row.check(crash.lab, crash.guest, crash.last, status)
    again = crash.source(1)
    assert again.wait() == 3, "what it says is not known, so nothing moves"
    assert f"rm {found.path}" in again.wait_event("error")["hint"]
