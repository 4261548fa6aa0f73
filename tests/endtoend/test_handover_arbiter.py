"""An arbiter on shared storage: a guest in doubt is somebody's although the other side cannot be asked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_failures import port_of
from test_handover_crash import Crash, killed_when_prepared

from bench.lab import Lab, Program
from tests.failure_table import FailureRow


class Arbiter:
    """A folder, as both daemons are told of it."""

    def __init__(self, lab: Lab) -> None:
        self.path = lab.witness.with_name("arbiter")
        self.path.mkdir()
        self.option = f"--arbiter={self.path}"

    def names(self) -> list[str]:
        """What was decided: the endings of its files."""
        return [path.suffix for path in self.path.iterdir()]


@pytest.fixture
def crash(lab: Lab) -> Crash:
    return Crash(lab)


@pytest.fixture
def arbiter(lab: Lab) -> Arbiter:
    return Arbiter(lab)


def test_a_clean_move_leaves_nothing_there(crash: Crash, arbiter: Arbiter) -> None:
    destination = crash.destination(
        "--once", arbiter.option, on_commit=f"ls {arbiter.path} > {crash.started}.ls"
    )
    source = crash.source(port_of(destination), arbiter.option)
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    assert Path(f"{crash.started}.ls").read_text().strip().endswith(".destination")
    assert arbiter.names() == []
    assert crash.steps() == ([], [])


def test_a_preflight_and_a_failure_leave_nothing_there(crash: Crash, arbiter: Arbiter) -> None:
    destination = crash.destination(arbiter.option, "--on-prepare=exit 3")
    for options, code in ((["--check"], 0), ([], 6)):
        source = crash.source(port_of(destination), arbiter.option, *options)
        assert source.wait() == code, source.story()
        assert arbiter.names() == []
    assert not crash.stopped


@pytest.mark.failure_row("other arbiter")
def test_both_sides_have_the_same_or_none(crash: Crash, arbiter: Arbiter, row: FailureRow) -> None:
    other = arbiter.path.with_name("another-arbiter")
    other.mkdir()
    for there, here, said in (
        ([], [arbiter.option], "the source has an arbiter, the destination none"),
        ([arbiter.option], [], "the destination has an arbiter, the source none"),
        ([f"--arbiter={other}"], [arbiter.option], "cannot be found"),
    ):
        destination = crash.destination(*there)
        source = crash.source(port_of(destination), *here)
        assert source.wait() == 3, source.story()
        assert said in source.wait_event("error")["message"]
        assert "--arbiter DIR" in source.wait_event("error")["hint"]
        destination.kill()
    row.check(crash.lab, crash.guest, source)
    assert arbiter.names() == [] and list(other.iterdir()) == []


@pytest.mark.failure_row("destination gone, with an arbiter")
def test_the_guest_is_taken_back_from_a_host_that_is_gone(
    crash: Crash, arbiter: Arbiter, row: FailureRow
) -> None:
    """It may come back later: it learns that it has lost, and never starts."""
    port = killed_when_prepared(crash, arbiter.option)
    assert crash.source(port, arbiter.option).wait() == 3, "the journal is in the way"
    assert arbiter.names() == [".undecided"]
    code, [said] = crash.recover("source")
    assert code == 0 and "runs here, by the arbiter's word" in said["guest"]
    assert not crash.stopped
    row.compare("source", crash.last)
    assert arbiter.names() == [".source"]
    assert crash.steps() == (["resumed"], ["prepared"])
    code, [said] = crash.recover("source")
    assert code == 4 and "nothing is undecided" in said["hint"]
    crash.destination(arbiter.option, listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs here")
    assert crash.steps() == ([], [])
    assert arbiter.names() == []
    assert not crash.stopped and crash.starts == 0


@pytest.mark.failure_row("the arbiter gave it away")
def test_a_guest_that_was_being_started_there_is_not_taken_back(
    crash: Crash, arbiter: Arbiter, row: FailureRow
) -> None:
    destination = crash.destination("--once", arbiter.option, on_commit="kill -9 $PPID; false")
    port = port_of(destination)
    source = crash.source(port, arbiter.option)
    assert source.wait() == 10, source.story()
    assert "arbiter" in source.wait_event("error")["hint"]
    for _ in range(2):
        code, [said] = crash.recover("source")
        assert code == 10 and "the arbiter gave the guest to the destination" in said["error"]
    assert crash.stopped and crash.starts == 0
    row.compare("stopped at the source", crash.last)
    crash.destination("--is-running=false", listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs at the destination")
    assert crash.stopped and crash.starts == 1
    assert arbiter.names() == []


def test_a_commit_that_comes_late_starts_nothing(crash: Crash, arbiter: Arbiter) -> None:
    """The source wins while the destination has not read the commit yet."""
    port = killed_when_prepared(crash, arbiter.option)
    [undecided] = arbiter.path.iterdir()
    undecided.rename(undecided.with_suffix(".source"))
    later = crash.destination(arbiter.option, listen=f"127.0.0.1:{port}")
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs here"), later.story()
    assert not crash.stopped and crash.starts == 0
    assert crash.steps() == ([], [])


@pytest.mark.failure_row("arbiter silent")
def test_without_an_answer_nobody_starts(crash: Crash, arbiter: Arbiter, row: FailureRow) -> None:
    """The storage fails at the commit; once it is back everything is settled."""
    away = arbiter.path.with_name("away")
    destination = crash.destination(arbiter.option, f"--on-prepare=mv {arbiter.path} {away}")
    source = crash.source(port_of(destination), arbiter.option)
    assert source.wait() == 10, source.story()
    row.check(crash.lab, crash.guest, source)
    assert crash.steps() == (["committed"], ["prepared"])
    code, [said] = crash.recover("source")
    assert code == 10 and "arbiter" in said["error"]
    assert crash.stopped and crash.starts == 0
    away.rename(arbiter.path)
    code, [said] = crash.recover("source")
    assert (code, said["guest"]) == (0, "the guest runs at the destination")
    assert crash.stopped and crash.starts == 1
    assert crash.steps() == ([], [])
    assert arbiter.names() == []


def test_what_a_killed_source_left_there_goes_with_its_journal(crash: Crash, arbiter: Arbiter) -> None:
    destination = crash.destination(arbiter.option, "--on-prepare=exit 3")
    source = crash.source(port_of(destination), arbiter.option, "--max-bandwidth=1M")
    source.wait_event("negotiated")
    os.kill(supervisor_of(source), signal.SIGKILL)
    source.kill()
    assert (arbiter.names(), crash.steps()[0]) == ([".undecided"], ["moving"])
    destination.wait_event("error")
    again = crash.source(port_of(destination), arbiter.option)
    assert again.wait() == 6, again.story()
    assert (arbiter.names(), crash.steps()[0]) == ([], [])


def supervisor_of(source: Program) -> int:
    """Process id of the only child that migrate-src has while the guest runs."""
    [child] = Path(f"/proc/{source.pid}/task/{source.pid}/children").read_text().split()
    return int(child)
