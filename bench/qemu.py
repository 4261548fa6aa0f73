"""Our destination against a QEMU's own: who receives faster from the same QEMU.

The source is a QEMU that was never started, with random RAM in a file; each run migrates it to a QEMU whose
memory is fresh (cold) or was touched before (warm), and to migrate-dst into a fresh file, one after another,
since the machine's speed changes from minute to minute. The clock runs from `migrate` until query-migrate
says `completed`, with a return path: that is the destination's word that all is loaded, or stored.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import MIB, Part, Verdict, middle, table
from bench.lab import Program, program
from bench.qemu_process import QEMU, QemuProcess, free_port

DEMAND = 1.0


def run(runs: int, mib: int, memory: Path, judge: bool) -> Part:
    """Measure and report."""
    part = Part("A QEMU's stream: our destination as a fraction of a QEMU's")
    if shutil.which(QEMU) is None:
        part.text.append(f"{QEMU} is not installed (`apt-get install qemu-system-x86`).")
        return part
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as directory:
        ram = Path(directory, "source.ram")
        with ram.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        for channels in (0, 2):
            with_multifd = f", multifd {channels}" if channels else ""
            for _ in range(runs):
                for name, destination in (
                    ("QEMU, cold", _qemu(directory, mib, channels, warm=False)),
                    ("QEMU, warm", _qemu(directory, mib, channels, warm=True)),
                    ("migrate-dst", _ours(Path(directory), channels)),
                ):
                    with destination as port:
                        rate = _migrate(ram, mib, port, channels)
                    rates.setdefault(name + with_multifd, []).append(rate)
    part.text.append(
        f"{mib} MiB of random RAM of a QEMU that stands still, one channel, and multifd with two; {runs}"
        " interleaved runs. Median (lowest to highest); ratios within each run."
    )
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates[name], rates[rival], strict=True)]
        for name in rates
        for rival in [name.replace("migrate-dst", "QEMU, cold")]
        if name != rival
    }
    rows = [
        (name, middle(found), middle(ratios[name]) if name in ratios else "") for name, found in rates.items()
    ]
    part.text.append(table(("", "GB/s", "of QEMU, cold"), rows))
    for name, found in ratios.items():
        ratio = statistics.median(found)
        part.verdicts.append(
            Verdict(
                f"{name}: at least the rate of a QEMU whose memory is fresh, too",
                f"{ratio:.2f}",
                ratio >= DEMAND if judge else None,
            )
        )
    part.numbers = {"GB/s": rates, "of QEMU, cold": ratios}
    return part


@contextmanager
def _qemu(directory: str, mib: int, channels: int, *, warm: bool) -> Iterator[int]:
    """A QEMU that waits for the migration, and its port."""
    port = free_port()
    path = Path(directory, "destination.ram")
    options = ("prealloc=on",) if warm else ()
    try:
        with QemuProcess(path, mib, ["-incoming", "defer"], memory_options=options) as qemu:
            qemu.enable_multifd(channels)
            qemu.do("migrate-incoming", uri=f"tcp:127.0.0.1:{port}")
            yield port
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _ours(directory: Path, channels: int) -> Iterator[int]:
    """A migrate-dst, and its port."""
    output = directory / "checkpoint"
    started = Program(
        [
            *(program("migrate-dst"), "--listen=127.0.0.1:0", "--json", "--once"),
            *(f"--output-dir={output}", f"--multifd-channels={channels}"),
        ]
    )
    try:
        yield int(started.wait_event("listening")["port"])
        if started.wait() != 0:
            raise RuntimeError(f"migrate-dst failed\n{started.story()}")
    finally:
        started.kill()
        shutil.rmtree(output, ignore_errors=True)


def _migrate(ram: Path, mib: int, port: int, channels: int) -> float:
    """GB/s (10**9 bytes) of RAM from a new QEMU with that RAM to the port."""
    with QemuProcess(ram, mib, ["-S"]) as source:
        source.enable_multifd(channels)
        source.capability("return-path")
        source.do("migrate-set-parameters", **{"max-bandwidth": 0})
        began = time.perf_counter()
        source.do("migrate", uri=f"tcp:127.0.0.1:{port}")
        ended = source.wait_migrated()
        seconds = time.perf_counter() - began
    if ended["status"] != "completed":
        raise RuntimeError(f"the migration failed: {ended}")
    return mib * MIB / seconds / 1e9
