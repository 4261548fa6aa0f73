"""What write protection is blind to is found during the rounds: somebody else writes the RAM file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.lab import Lab, Program

PAGE = 4096
AT = 16 * PAGE
"""Bytes from the end of the RAM file: beyond the working set of the guest."""

BY_WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = os.fstat(fd).st_size - int(sys.argv[2])
os.pwrite(fd, b"not the guest" * 100, at)
"""
BY_A_MAPPING_THAT_GOES = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
at = os.fstat(fd).st_size - int(sys.argv[2])
with mmap.mmap(fd, 0) as ram:
    ram[at : at + 1300] = b"not the guest" * 100
"""


def begin(lab: Lab, seconds: int) -> tuple[Program, Program, Program]:
    """Guest, destination and source, in rounds that go on for so long."""
    guest = lab.start_guest("--workload=kv", "--working-set=1M", "--rate=3000")
    destination = lab.start_destination("--once", resume=False)
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(
        port,
        guest,
        "--dirty-tracker=wp",
        "--max-bandwidth=20M",
        "--downtime-limit=1",
        "--max-rounds=1000000",
        f"--timeout={seconds}",
        "--timeout-action=pause",
    )
    return guest, destination, source


def end(lab: Lab, destination: Program, source: Program) -> None:
    """Both sides end well, with equal RAM; what the source read after `running` was as sent."""
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    here, there = lab.source_ram["pc.ram"].read_bytes(), lab.destination_ram["pc.ram"].read_bytes()
    assert here[-AT : -AT + PAGE] == there[-AT : -AT + PAGE]
    assert b"not the guest" in there[-AT : -AT + PAGE]


@pytest.mark.parametrize("how", [BY_WRITE, BY_A_MAPPING_THAT_GOES], ids=["write(2)", "mapping"])
def test_somebody_else_writes(lab: Lab, how: str) -> None:
    _, destination, source = begin(lab, 9)
    # what is reported in the first two seconds is compared anyway, for DMA in flight
    source.wait_event("progress", lambda event: event["ram"]["reread-pages"] > 1000)
    subprocess.run([sys.executable, "-c", how, str(lab.source_ram["pc.ram"]), str(AT)], check=True)
    warning = source.wait_event("warning", lambda event: "was not reported" in event["message"])
    offset = (16 << 20) - AT
    for word in ("dirty tracker wp failed", f"{offset:#x}", "'pc.ram'", "write(2)", "scan compares"):
        assert word in warning["message"]
    assert not source.found("pausing"), "it was found while the guest ran"
    end(lab, destination, source)
    assert source.summary["ram"]["unreported-pages"] == 1


def test_without_another_writer_nobody_is_accused(lab: Lab) -> None:
    _, destination, source = begin(lab, 6)
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    assert not [event for event in source.found("warning") if "dirty tracker" in event["message"]]
    assert source.summary["ram"]["unreported-pages"] == 0
    assert source.summary["ram"]["reread-pages"] > 4096, "all of RAM, more than once"
