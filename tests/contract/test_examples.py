"""The examples for authors of emulators: they move live, and the machine's own arithmetic proves it.

The machine prints how far it has counted and the sum of what it found in RAM on its way. A lost or repeated
step, or a page that is not the one it wrote, would change that sum for ever.
"""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from scripted_guest import ScriptedGuest, says, scripted_guest

from bench.lab import Lab, Program

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "migrate" / "guest" / "examples"
HALF = 1 << 18


class Machine:
    """A running example and what it printed."""

    def __init__(self, command: Sequence[str], path: Path, what: str) -> None:
        self.socket = path
        self.process = subprocess.Popen([*command, str(path), what], stdout=subprocess.PIPE, text=True)
        self.printed: list[tuple[int, int]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                count, total = map(int, line.split())
                with self._news:
                    self.printed.append((count, total))
                    self._news.notify_all()

    def wait_printed(self, more: int) -> None:
        """Wait for so many more lines."""
        with self._news:
            wanted = len(self.printed) + more
            assert self._news.wait_for(lambda: len(self.printed) >= wanted, 60), "it does not go on"

    def end(self) -> list[tuple[int, int]]:
        """All that it printed."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        return self.printed


def check(printed: list[tuple[int, int]], every: int) -> None:
    """No step was lost or repeated, and every word of RAM was what had been stored there."""
    assert [count for count, _ in printed] == list(range(printed[0][0], printed[-1][0] + 1, every)), (
        "a gap, or two owners"
    )
    for count, total in printed:
        passed = max(count - HALF, 0)  # words that were stored before and found again
        assert total == passed * (passed + 1) // 2 % (1 << 64), f"wrong after {count} steps"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    machine = tmp_path_factory.mktemp("examples") / "machine"
    subprocess.run(
        ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", machine, EXAMPLES / "machine.c"], check=True
    )
    return {"c": [str(machine)], "python": [sys.executable, str(EXAMPLES / "machine.py")]}


@pytest.fixture
def start(shm_dir: Path, commands: dict[str, list[str]]) -> Iterator[type[Machine]]:
    """Start an example: language, what it shall do."""
    started: list[Machine] = []

    def make(language: str, what: str) -> Machine:
        machine = Machine(commands[language], shm_dir / f"{len(started)}.sock", what)
        started.append(machine)
        return machine

    yield make  # type: ignore[misc]
    for machine in started:
        machine.end()


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """For what nobody tells."""
    pause = threading.Event()
    for _ in range(4000):
        if reached():
            return
        pause.wait(0.005)
    raise AssertionError(f"not reached: {what}")


def wait_listening(machine: Machine) -> None:
    wait_until(machine.socket.exists, "it listens")


def sleeps(machine: Machine) -> bool:
    """It waits in the kernel; while it runs, it never does."""
    return Path(f"/proc/{machine.process.pid}/stat").read_text().rpartition(") ")[2][0] == "S"


def daemons(lab: Lab, here: Machine, there: Path, *options: str) -> tuple[Program, Program]:
    """A destination and a source for them."""
    destination = lab.run("migrate-dst", "--listen=127.0.0.1:0", f"--guest-socket={there}", "--once")
    port = destination.wait_event("listening")["port"]
    source = lab.run(
        "migrate-src",
        f"--to=127.0.0.1:{port}",
        f"--guest-socket={here.socket}",
        "--downtime-limit=2000",
        *options,
    )
    return source, destination


@pytest.mark.parametrize(
    ("language", "lines", "every", "tracker"), [("c", 1, 1 << 20, "log"), ("python", 5, 1 << 16, "wp")]
)
def test_a_machine_moves_live(
    lab: Lab, start: type[Machine], language: str, lines: int, every: int, tracker: str
) -> None:
    here, there = start(language, "run"), start(language, "wait")  # type: ignore[arg-type,call-arg]
    wait_listening(there)
    here.wait_printed(lines)
    source, destination = daemons(lab, here, there.socket, "--source-after=kill")
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0
    assert here.process.wait(20) == -9, "--source-after kill ends it"
    assert source.summary["dirty-tracker"] == tracker
    assert source.summary["ram"]["dirty-sync-count"] >= 2
    there.wait_printed(2)
    check(here.end() + there.end(), every)


def test_from_c_to_python(lab: Lab, start: type[Machine]) -> None:
    """The contract is all that they share."""
    here, there = start("c", "run"), start("python", "wait")  # type: ignore[arg-type,call-arg]
    wait_listening(there)
    here.wait_printed(1)
    source, destination = daemons(lab, here, there.socket)
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0
    there.wait_printed(2)
    assert here.end()[-1][0] <= there.end()[0][0]
    check(here.printed, 1 << 20)
    check(there.printed, 1 << 16)


def test_a_failure_after_the_pause_lets_it_run_on_here(lab: Lab, start: type[Machine], shm_dir: Path) -> None:
    here = start("c", "run")  # type: ignore[arg-type,call-arg]
    here.wait_printed(1)
    with waiting_there(shm_dir, load=says("error no such device")) as there:
        source, destination = daemons(lab, here, there.path)
        assert source.wait() == 6, source.story()
        assert destination.wait() == 6
    error = source.wait_event("error")
    assert "answered to 'load': no such device" in error["message"]
    assert error["guest"] == "the guest runs at the source as before"
    assert source.found("paused")
    here.wait_printed(2)
    check(here.end(), 1 << 20)


def test_a_machine_that_dies_is_no_machine_any_more(lab: Lab, start: type[Machine]) -> None:
    here, there = start("c", "run"), start("c", "wait")  # type: ignore[arg-type,call-arg]
    wait_listening(there)
    here.wait_printed(1)
    source, destination = daemons(lab, here, there.socket, "--max-bandwidth=1M")
    source.wait_event("status", lambda event: event["new"] == "active")
    here.process.kill()
    assert source.wait() == 6
    assert source.wait_event("error")["guest"] == "the guest runs nowhere"
    assert destination.wait() == 6
    assert there.end() == []


def waiting_there(shm_dir: Path, **scripts: Any) -> AbstractContextManager[ScriptedGuest]:
    """A guest that takes the machine's RAM, and then does as told."""
    offer = says("ok\nram machine 4194304", lambda guest: guest.memfd("ram", bytes(4 << 20)))
    return scripted_guest(shm_dir / "there", migrate=offer, **scripts)


def test_a_source_that_is_killed_in_the_pause_lets_the_machine_go_on(
    lab: Lab, start: type[Machine], shm_dir: Path
) -> None:
    """Its supervisor asks the machine on its socket."""
    here = start("c", "run")  # type: ignore[arg-type,call-arg]
    here.wait_printed(1)
    reached = threading.Event()
    with waiting_there(shm_dir, load=lambda *_: reached.set()) as there:
        source, _ = daemons(lab, here, there.path)
        assert reached.wait(60)
        source.kill()
        here.wait_printed(2)
    check(here.end(), 1 << 20)


def test_a_destination_that_is_killed_in_the_commit_is_taken_up_by_the_next(
    lab: Lab, start: type[Machine], shm_dir: Path
) -> None:
    here = start("c", "run")  # type: ignore[arg-type,call-arg]
    here.wait_printed(1)
    reached = threading.Event()
    with waiting_there(shm_dir, run=lambda *_: reached.set()) as there:
        source, destination = daemons(lab, here, there.path, "--reconnect-timeout=0.5")
        assert reached.wait(60)
        destination.kill()
        assert source.wait() == 10, source.story()
        assert sleeps(here)
        del there.scripts["run"]
        again = lab.run("migrate-dst", "--listen=127.0.0.1:0", f"--guest-socket={there.path}")
        port = again.wait_event("listening")["port"]
        recovering = lab.run("migrate-src", "recover", f"--to=127.0.0.1:{port}")
        assert recovering.wait() == 0, recovering.story() + again.story()
        assert there.calls == ["migrate 1 destination", "load", "run", "run"]
        again.signal(signal.SIGTERM)
        assert again.wait() == 130
    assert sleeps(here)


def test_a_paused_machine_stays_so_until_somebody_lets_it_run(start: type[Machine]) -> None:
    """Whoever asked it has gone; it may have been handed over. The command is that of the contract's page."""
    here = start("c", "run")  # type: ignore[arg-type,call-arg]
    here.wait_printed(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
        daemon.connect(str(here.socket))
        daemon.send(b"pause")
        assert daemon.recv(100) == b"ok"
        daemon.send(b"pause")
        assert daemon.recv(100) == b"ok paused"
    wait_until(lambda: sleeps(here), "it waits for its socket and does nothing else")
    subprocess.run(["sh", "-c", resume_by_hand().replace("PATH", str(here.socket))], check=True)
    here.wait_printed(2)
    check(here.end(), 1 << 20)


@pytest.mark.parametrize("language", ["c", "python"])
def test_a_machine_that_waits_never_runs_an_empty_one(start: type[Machine], language: str) -> None:
    there = start(language, "wait")  # type: ignore[arg-type,call-arg]
    wait_listening(there)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
        daemon.connect(str(there.socket))
        for call in (b"run", b"resume", b"migrate 1 source", b"load", b"nonsense"):
            daemon.send(call)
            assert daemon.recv(100).startswith(b"error ")
    assert there.end() == []


def resume_by_hand() -> str:
    """As the contract's page has it."""
    lines = (EXAMPLES.parent / "contract.md").read_text().splitlines()
    return next(line for line in lines if line.startswith("    python3 -c"))


@pytest.mark.parametrize(("name", "most"), [("machine.c", 60), ("machine.py", 100)])
def test_the_examples_are_short(name: str, most: int) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= most


@pytest.mark.parametrize(("language", "every"), [("c", 1 << 20), ("python", 1 << 16)])
def test_the_commands_of_the_readme(lab: Lab, shm_dir: Path, language: str, every: int) -> None:
    """As printed there, but for the port and the folder."""
    section = (ROOT / "README.md").read_text().split("### A guest that takes part")[1].split("\n### ")[0]
    lines = [shlex.split(line) for line in section.splitlines() if line.startswith("    ")]
    compiling, *machines, listening, moving = [
        [word.replace("/tmp/", f"{shm_dir}/") for word in line] for line in lines
    ]
    subprocess.run(compiling, check=True, cwd=ROOT)
    programs = [line[:-2] for line in machines]
    if language == "python":
        in_python = section.split("In Python: `")[1].split("`")[0].split()
        assert "` for `/tmp/machine`" in section and programs == [[f"{shm_dir}/machine"]] * 2
        programs = [[in_python[0], str(ROOT / in_python[1])]] * 2
    here, there = [
        Machine(program, Path(line[-2]), line[-1]) for program, line in zip(programs, machines, strict=True)
    ]
    try:
        wait_listening(there)
        here.wait_printed(1)
        port = listening[2].rpartition(":")[2]
        assert (listening[0], moving[0]) == ("bin/migrate-dst", "bin/migrate-src")
        destination = lab.run("migrate-dst", *(word.replace(f":{port}", ":0") for word in listening[1:]))
        free = destination.wait_event("listening")["port"]
        source = lab.run("migrate-src", *(word.replace(f":{port}", f":{free}") for word in moving[1:]))
        assert source.wait() == 0, source.story()
        assert destination.wait() == 0
        there.wait_printed(1)
    finally:
        printed = here.end() + there.end()
    check(printed, every)
