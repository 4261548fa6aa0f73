"""How fast `migrate-inspect` reads a stream of whole pages."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import MIB, Part, Verdict, middle, table
from bench.lab import program

DEMAND = 0.3
"""GB/s."""
PAGE = 4096


def run(runs: int, mib: int, memory: Path, judge: bool) -> Part:
    """Measure and report."""
    rates: list[float] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as directory:
        stream = Path(directory, "stream")
        _write_stream(stream, mib)
        length = stream.stat().st_size
        for _ in range(runs):
            began = time.perf_counter()
            inspector = subprocess.Popen([program("migrate-inspect"), str(stream)], stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(inspector.pid, 0)
            inspector.returncode = os.waitstatus_to_exitcode(status)
            if inspector.returncode != 0:
                raise RuntimeError("migrate-inspect takes the stream for illegal")
            rates.append(length / (time.perf_counter() - began) / 1e9)
            peaks.append(used.ru_maxrss / 1024)
    part = Part("migrate-inspect: a stream of whole pages")
    part.text.append(f"{mib} MiB of random pages, the start of the program included; {runs} runs.")
    rows = [("GB/s", middle(rates)), ("peak memory, MiB", middle(peaks, digits=0))]
    part.text.append(table(("", "median (range)"), rows))
    rate = statistics.median(rates)
    part.verdicts.append(
        Verdict(
            f"it reads at least {DEMAND * 1000:.0f} MB/s",
            f"{rate * 1000:.0f} MB/s",
            rate >= DEMAND if judge else None,
        )
    )
    part.numbers = {"GB/s": rates, "peak MiB": peaks}
    return part


def _write_stream(path: Path, mib: int) -> None:
    """The RAM part of a QEMU's stream with whole pages, and an empty device state."""
    length = mib * MIB
    ends = (0x10).to_bytes(8, "big") + b"\x7e\0\0\0\1"
    with path.open("wb") as file:
        file.write(b"QEVM\0\0\0\3\7\0\0\0\2pc\1\0\0\0\1\3ram\0\0\0\0\0\0\0\4")
        file.write((length | 4).to_bytes(8, "big") + b"\3mem" + length.to_bytes(8, "big") + ends)
        for at in range(0, length, MIB):
            file.write(b"\2\0\0\0\1")
            for offset in range(at, at + MIB, PAGE):
                word = offset | 8 | (0x20 if offset else 0)
                file.write(word.to_bytes(8, "big") + (b"" if offset else b"\3mem") + os.urandom(PAGE))
            file.write(ends)
        file.write(b"\3\0\0\0\1" + ends + b"\0")
