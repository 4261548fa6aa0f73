"""How much of what loopback can carry is left when the bytes are a guest's RAM.

Each run measures, one after the other, since the machine's speed changes from minute to minute: the bare
pump (1 MiB pieces, nothing done with them), the RAM pump (read before, written and read back after), iperf3,
and one lane with idle random RAM into a destination file that has its pages in memory (warm) or is all holes
(cold). Ratios are taken within a run.
"""

from __future__ import annotations

import filecmp
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.figures import GIB, MIB, Part, Verdict, middle, table
from bench.pump import ROOT, iperf3_rate, pump_rate, ram_pump_rate

WARM_DEMAND = 0.5
CACHE_BYTES = 64 * MIB
"""migrate-src's default: in the bulk round the cache is filled, too."""


def lane_rate(source: Path, destination: Path, length: int, state: str) -> float:
    """GB/s (10**9 bytes) of RAM through one lane, from the first batch to the last acknowledgement."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "bench.lane_ends"]
        receiver = subprocess.Popen(
            [
                *(*command, "destination", str(listener.fileno()), str(destination), str(length)),
                *(state, str(CACHE_BYTES)),
            ],
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            sender = subprocess.run(
                [*command, "source", str(port), str(source), str(CACHE_BYTES)],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                text=True,
                check=True,
                timeout=120,
            )
            receiver.wait(30)
        finally:
            receiver.kill()
            receiver.wait()
    numbers = json.loads(sender.stdout)
    if not numbers["wire_bytes"] > numbers["ram_bytes"] == length:
        raise RuntimeError(f"the lane moved something else than its RAM: {numbers}")
    return float(length / numbers["seconds"] / 1e9)


def measure(runs: int, mib: int, memory: Path) -> dict[str, list[float]]:
    """GB/s of each contestant, run by run."""
    length = mib * MIB
    rates: dict[str, list[float]] = {
        name: [] for name in ("bare pump", "RAM pump", "iperf3", "lane, warm", "lane, cold")
    }
    with tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as directory:
        source, destination = Path(directory, "source"), Path(directory, "destination")
        with source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        for _ in range(runs):
            rates["bare pump"].append(pump_rate(length / GIB))
            rates["lane, warm"].append(lane_rate(source, destination, length, "warm"))
            rates["RAM pump"].append(ram_pump_rate(source, destination))
            rates["lane, cold"].append(lane_rate(source, destination, length, "cold"))
            if (rate := iperf3_rate(length / GIB)) is not None:
                rates["iperf3"].append(rate)
        if not filecmp.cmp(source, destination, shallow=False):
            raise RuntimeError("the destination's RAM is not the source's")
    return {name: values for name, values in rates.items() if values}


def run(runs: int, mib: int, memory: Path, judge: bool) -> Part:
    """Measure and report."""
    rates = measure(runs, mib, memory)
    pump = rates["bare pump"]
    ratios = {
        name: [rate / of for rate, of in zip(values, pump, strict=True)] for name, values in rates.items()
    }
    part = Part("Lane: idle random RAM over loopback, as a fraction of a bare pump")
    part.text.append(
        f"{mib} MiB, one lane, cache of {CACHE_BYTES // MIB} MiB, written and read back (proof level `ram`);"
        f" {runs} interleaved runs. Median (lowest to highest); ratios within each run."
    )
    part.text.append(
        table(
            ("", "GB/s", "of the pump"),
            ((name, middle(values), middle(ratios[name])) for name, values in rates.items()),
        )
    )
    if "iperf3" not in rates:
        part.text.append("iperf3 is not installed (`apt-get install iperf3`).")
    warm = statistics.median(ratios["lane, warm"])
    bound = statistics.median(ratios["RAM pump"])
    of_the_bound = statistics.median(
        lane / of for lane, of in zip(rates["lane, warm"], rates["RAM pump"], strict=True)
    )
    part.text.append(
        f"Reading RAM, writing it and reading it back, without records, digests, checksums and cache, leaves"
        f" {bound:.2f} of the pump; of that a lane into a warm destination moves {of_the_bound:.2f}."
    )
    part.verdicts.append(
        Verdict(
            f"a lane into a warm destination moves at least {WARM_DEMAND} of the pump",
            f"{warm:.2f}",
            warm >= WARM_DEMAND if judge else None,
        )
    )
    part.numbers = {"GB/s": rates, "of the pump": ratios}
    return part
