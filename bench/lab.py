"""Real processes for tests, stress and benchmarks: a practice guest, a destination, a source.

Every program runs with `--json`; its events are read by a thread as they come, so that waiting for one
needs no sleep. `Lab` is a context manager: at its end no process of it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

WAIT_SECONDS = 60.0
Event = dict[str, Any]


def program(name: str) -> str:
    """The installed command, beside the interpreter that runs this."""
    return str(Path(sys.executable).with_name(name))


class Program:
    """A running command and the JSON events it has printed so far."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[Event] = []
        self.stderr = ""
        self._news = threading.Condition()
        self._ended = False
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def wait_event(
        self, name: str, accept: Callable[[Event], bool] = lambda _: True, seconds: float = WAIT_SECONDS
    ) -> Event:
        """The first event of that name that is accepted, past ones included.

        Raises:
            AssertionError: the program ended, or time was up, before it came; shows everything it said.
        """
        end = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for event in self.events[seen:]:
                    if event.get("event") == name and accept(event):
                        return event
                seen = len(self.events)
                left = end - time.monotonic()
                if self._ended or left <= 0 or not self._news.wait(left):
                    why = "ended" if self._ended else f"said nothing of it for {seconds:g} s"
                    raise AssertionError(f"no event {name!r}: the program {why}\n{self.story()}")

    def found(self, name: str) -> list[Event]:
        """All events of that name so far."""
        with self._news:
            return [event for event in self.events if event.get("event") == name]

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Exit status. Raises AssertionError: still running when time is up."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s\n{self.story()}") from None
        for reader in self._readers:
            reader.join()
        return status

    @property
    def summary(self) -> Event:
        """The last event `summary`."""
        return self.wait_event("summary")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, stopped or not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    def story(self) -> str:
        """Everything it printed, for a failure."""
        lines = [json.dumps(event) for event in self.events if event.get("event") != "progress"]
        return "\n".join([shlex.join(self.arguments), *lines[-60:], self.stderr])

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = {"event": "not-json", "line": line}
                with self._news:
                    self.events.append(event)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.stderr += line


class Lab:
    """One guest that moves, in a directory of its own.

    Args:
        source: directory of the source's RAM files and of the witness log.
        destination: directory of the destination's RAM files.
        blocks: (name, size as --size takes it) of each RAM block.
    """

    def __init__(
        self, source: Path, destination: Path, blocks: Sequence[tuple[str, str]] = (("pc.ram", "16M"),)
    ) -> None:
        self.blocks = list(blocks)
        self.source_ram = {name: source / f"source-{name}" for name, _ in blocks}
        self.destination_ram = {name: destination / f"destination-{name}" for name, _ in blocks}
        self.witness = source / "witness.log"
        self.source_state = source / "source-state"
        self.destination_state = source / "destination-state"
        self._directory = source
        self._arrived = 0
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for started in self._programs:
            started.kill()
        for pidfile in self._directory.glob("arrived-*.pid"):
            end_process(int(pidfile.read_text()), signal.SIGKILL)

    def run(self, name: str, *arguments: str) -> Program:
        """Start one of our commands with `--json`."""
        started = Program([*self.command(name), *arguments, "--json"])
        self._programs.append(started)
        return started

    def command(self, name: str) -> list[str]:
        """How one of our commands is called."""
        return [program(name)]

    def dirty_logs(self) -> tuple[list[str], list[str]]:
        """Options that have the guest keep a dirty log of each block, and the source read it."""
        logs = {name: Path(f"{path}.log") for name, path in self.source_ram.items()}
        kept = [f"--dirty-log={path}" for path in logs.values()]
        return kept, [f"--dirty-log={name}={path}" for name, path in logs.items()]

    def start_guest(self, *options: str) -> Program:
        """A new guest at the source, beating when this returns."""
        ram = [f"--ram={name}={path}" for name, path in self.source_ram.items()]
        sizes = [f"--size={size}" for _, size in self.blocks]
        guest = self.run(
            "migrate-guest", *ram, *sizes, f"--witness={self.witness}", "--host=source", *options
        )
        guest.wait_event("ready")
        return guest

    def start_destination(self, *options: str, resume: bool = True, listen: str = "127.0.0.1:0") -> Program:
        """migrate-dst, listening when this returns; with `resume` it starts the guest on commit."""
        ram = [f"--ram={name}={path}" for name, path in self.destination_ram.items()]
        hook = [f"--on-commit={self.resume_command}"] if resume else []
        state = f"--state-dir={self.destination_state}"
        started = self.run("migrate-dst", f"--listen={listen}", state, *ram, *hook, *options)
        started.wait_event("listening")
        return started

    def start_source(self, port: int, guest: Program | None, *options: str) -> Program:
        """migrate-src towards a port on loopback."""
        ram = [f"--ram={name}={path}" for name, path in self.source_ram.items()]
        pid = [f"--guest-pid={guest.pid}"] if guest is not None else []
        state = f"--state-dir={self.source_state}"
        return self.run("migrate-src", f"--to=127.0.0.1:{port}", state, *ram, *pid, *options)

    @property
    def resume_command(self) -> str:
        """Shell command that continues the guest at the destination, in the background."""
        self._arrived += 1
        base = self._directory / f"arrived-{self._arrived}"
        ram = " ".join(shlex.quote(f"--ram={name}={path}") for name, path in self.destination_ram.items())
        return (
            f"{program('migrate-guest')} --resume {ram} --witness={self.witness} --host=destination"
            f" --pidfile={base}.pid --ready-file={base}.ready >{base}.log 2>&1 &"
        )

    @property
    def running_command(self) -> str:
        """Shell command that is content if the guest of the last `resume_command` runs."""
        pidfile = shlex.quote(str(self._directory / f"arrived-{self._arrived}.pid"))
        return f"kill -0 $(cat {pidfile} 2>/dev/null) 2>/dev/null"

    @property
    def has_arrived(self) -> bool:
        """Whether the guest of the last `resume_command` runs."""
        return subprocess.run(self.running_command, shell=True, check=False).returncode == 0

    def wait_arrived(self) -> int:
        """Wait until the guest beats at the destination; returns its process id."""
        base = self._directory / f"arrived-{self._arrived}"
        end = time.monotonic() + WAIT_SECONDS
        while not base.with_suffix(".ready").exists():
            if time.monotonic() > end:
                log = base.with_suffix(".log")
                said = log.read_text() if log.exists() else "nothing"
                raise AssertionError(f"the guest did not come up at the destination; it said: {said}")
            time.sleep(0.005)
        return int(base.with_suffix(".pid").read_text())

    def end_arrived_guest(self, beat_seconds: float = 0.0) -> None:
        """Let the guest at the destination beat for a while, then end it in an orderly way."""
        pid = self.wait_arrived()
        time.sleep(beat_seconds)
        end_process(pid, signal.SIGTERM)

    @staticmethod
    def wait_for_file(path: Path) -> None:
        """Wait until a file exists that another process makes."""
        end = time.monotonic() + WAIT_SECONDS
        while not path.exists():
            if time.monotonic() > end:
                raise AssertionError(f"{path} was not made within {WAIT_SECONDS:g} s")
            time.sleep(0.005)

    def turn_round(self) -> None:
        """The next move goes the other way: destination and source change their files."""
        self.source_ram, self.destination_ram = self.destination_ram, self.source_ram
        self.source_state, self.destination_state = self.destination_state, self.source_state

    def differing_bytes(self) -> int:
        """Bytes that differ between the two sides' RAM files, both guests being stopped."""
        count = 0
        for name, path in self.source_ram.items():
            ours, theirs = path.read_bytes(), self.destination_ram[name].read_bytes()
            if ours != theirs:
                count += abs(len(ours) - len(theirs))
                count += sum(a != b for a, b in zip(ours, theirs, strict=False))
        return count

    def check_guest(self, ram: dict[str, Path]) -> Event:
        """`migrate-guest --check` on stopped RAM; raises AssertionError unless it is clean."""
        checker = self.run("migrate-guest", "--check", *(f"--ram={n}={p}" for n, p in ram.items()))
        status = checker.wait()
        assert status == 0, f"the guest's RAM is damaged\n{checker.story()}"
        return checker.events[-1]

    def check_arrived(self) -> Event:
        """`check_guest` of the destination's RAM."""
        return self.check_guest(self.destination_ram)

    def check_witness(self) -> Event:
        """`migrate-guest --check-witness`; raises AssertionError for two owners or lost beats."""
        checker = self.run("migrate-guest", "--check-witness", str(self.witness))
        status = checker.wait()
        assert status == 0, f"the witness saw two owners or lost beats\n{checker.story()}"
        return checker.events[-1]

    def is_stopped(self, guest: Program) -> bool:
        """Whether the process is stopped by a signal now."""
        state = Path(f"/proc/{guest.pid}/stat").read_text().rpartition(") ")[2][0]
        return state in "Tt"


def end_process(pid: int, number: int) -> None:
    """Signal a process that need not be our child, and wait until it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        ready, _, _ = select.select([pidfd], [], [], WAIT_SECONDS)
        if not ready:
            raise AssertionError(f"process {pid} did not end")
    finally:
        os.close(pidfd)
