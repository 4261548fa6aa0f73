"""How long the control sockets take to answer while a migration uses every CPU there is.

The same questions are asked of a program that does nothing but answer, in the same minute, on the same busy
CPUs: what that takes is the machine's doing, not the daemons'.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figures import MIB, Part, Verdict, table
from bench.lab import Lab

ALLOWED_MS = 50.0
PAUSE_SECONDS = 0.005
WAIT_SECONDS = 10.0
LANES = (1, 4)

ECHO = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
client, _ = server.accept()
while client.recv(4096):
    client.sendall(b'{"return": {}}\\r\\n')
"""


class Asker:
    """A client that asks one thing at a time and takes the time."""

    def __init__(self, path: Path, question: str, *, greets: bool = True) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_SECONDS)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._question = json.dumps({"execute": question}).encode() + b"\n"
        self.milliseconds: list[float] = []
        if greets:
            self._lines.readline()
            self._socket.sendall(b'{"execute": "qmp_capabilities"}\n')
            self._lines.readline()

    def ask(self) -> None:
        """One question; events in between are not the answer."""
        began = time.perf_counter()
        self._socket.sendall(self._question)
        while not self._lines.readline().startswith(b'{"return"'):
            pass
        self.milliseconds.append((time.perf_counter() - began) * 1000)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


def run(quick: bool, memory: Path) -> Part:
    """Measure and report."""
    part = Part("Control socket: time to answer under full load")
    mib, count = (64, 200) if quick else (512, 3000)
    rows = []
    for lanes in LANES:
        found, sent, seconds = _measure(memory, mib, count, lanes)
        for name, times in found.items():
            p99 = percentile(times, 0.99)
            label = f"{name}, lanes {lanes}"
            cells = (statistics.median(times), percentile(times, 0.9), p99, max(times))
            rows.append((label, *(f"{cell:.2f}" for cell in cells)))
            part.numbers[label] = dict(zip(("p50", "p90", "p99", "max"), cells, strict=True))
            if name != "echo":
                met = None if quick else p99 <= ALLOWED_MS
                demand = f"{label}: 99 of 100 answers within {ALLOWED_MS:g} ms"
                part.verdicts.append(Verdict(demand, f"{p99:.2f} ms", met))
        part.numbers[f"load, lanes {lanes}"] = {"MiB": sent / MIB, "seconds": seconds}
    part.text.append(
        f"Guest of {mib} MiB that writes all the time, no bandwidth limit, rounds without end; {count} times"
        " `query-migrate` at each side in turn, and a program that answers anything at once, for comparison."
        " Milliseconds."
    )
    part.text.append(table(("", "p50", "p90", "p99", "max"), rows))
    return part


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _measure(memory: Path, mib: int, count: int, lanes: int) -> tuple[dict[str, list[float]], int, float]:
    """Times of each side, and how much was sent in how long meanwhile."""
    with tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as name:
        directory = Path(name)
        with Lab(directory, directory, [("pc.ram", f"{mib}M")]) as lab:
            guest = lab.start_guest("--workload=kv", "--rate=100000")
            destination = lab.start_destination("--once", f"--control={directory / 'dst'}")
            source = lab.start_source(
                int(destination.wait_event("listening")["port"]),
                guest,
                *("--downtime-limit=0", "--max-rounds=1000000", f"--lanes={lanes}"),
                f"--control={directory / 'src'}",
            )
            source.wait_event("status", lambda event: event["new"] == "active")
            with subprocess.Popen(
                [sys.executable, "-c", ECHO, str(directory / "echo")], stdout=subprocess.PIPE
            ) as echo:
                assert echo.stdout is not None
                echo.stdout.readline()
                askers = {
                    "source": Asker(directory / "src", "query-migrate"),
                    "destination": Asker(directory / "dst", "query-migrate"),
                    "echo": Asker(directory / "echo", "query-migrate", greets=False),
                }
                began = time.perf_counter()
                for _ in range(count):
                    for asker in askers.values():
                        asker.ask()
                    time.sleep(PAUSE_SECONDS)
                seconds = time.perf_counter() - began
                for asker in askers.values():
                    asker.close()
            sent = int(source.found("progress")[-1]["ram"]["transferred"])
            return {name: asker.milliseconds for name, asker in askers.items()}, sent, seconds
