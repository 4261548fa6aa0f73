"""Two QEMUs and the two daemons that move a guest from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from live_qemu import Qemu

from bench.lab import Program, program

WAITS = ("-S", "-incoming", "defer")
Start = Callable[..., Qemu]


class Move:
    """The daemons of one move between two QEMUs; a context manager."""

    def __init__(self, source: Qemu, destination: Qemu) -> None:
        self.source, self.destination = source, destination
        self._programs: list[Program] = []

    def __enter__(self) -> Move:
        return self

    def __exit__(self, *args: object) -> None:
        for started in self._programs:
            started.kill()

    def start_destination(self, *options: str, monitor: Path | None = None) -> Program:
        started = Program(
            [
                *(program("migrate-dst"), "--listen=127.0.0.1:0", "--json"),
                f"--ram={self.destination.ram_file}",
                f"--guest-qmp={monitor or self.destination.monitor}",
                *options,
            ]
        )
        self._programs.append(started)
        self.port = int(started.wait_event("listening")["port"])
        return started

    def start_source(self, *options: str, monitor: Path | None = None) -> Program:
        started = Program(
            [
                *(program("migrate-src"), f"--to=127.0.0.1:{self.port}", "--json"),
                f"--ram={self.source.ram_file}",
                f"--guest-qmp={monitor or self.source.monitor}",
                *options,
            ]
        )
        self._programs.append(started)
        return started
