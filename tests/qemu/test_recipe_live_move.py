"""The README's recipe for moving a running QEMU, run as it is printed."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from live_qemu import WAIT_SECONDS, free_port, wait_until

from bench.lab import end_process
from migrate.daemon.qmp_monitor import Monitor

ROOT = Path(__file__).parents[2]
PORT = free_port()


def blocks(heading: str) -> list[str]:
    """The indented blocks of a section of the README."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:\n {4}.*)+", section)]


@pytest.fixture
def recipe(shm_dir: Path) -> Iterator[list[str]]:
    """Its commands, with files and port of this test; the QEMUs that they leave are ended."""
    yield [
        re.sub("/dev/shm/|/tmp/", f"{shm_dir}/", text).replace(":4444", f":{PORT}")
        for text in blocks("Move a running QEMU guest live")
    ]
    for pid in qemus_of(shm_dir):
        end_process(pid, signal.SIGKILL)


def qemus_of(directory: Path) -> list[int]:
    """The processes that have RAM in this directory mapped."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if f"{directory}/qemu" in maps.read_text():
                found.append(int(maps.parent.name))
    return found


def listens() -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", PORT))):
        return True
    return False


def shell(text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-e", "-c", text], cwd=ROOT, stdin=subprocess.DEVNULL)


async def test_the_recipe_works_as_it_is_printed(recipe: list[str], shm_dir: Path) -> None:
    there, here = recipe
    with shell(there) as destination:
        try:
            wait_until(listens, "migrate-dst")
            with shell(here) as source:
                assert source.wait(WAIT_SECONDS) == 0
            assert destination.wait(WAIT_SECONDS) == 0
        finally:
            destination.kill()
    wait_until(lambda: len(qemus_of(shm_dir)) == 1, "end of the source's QEMU")
    monitor = Monitor(shm_dir / "qemu-at-dst.qmp", "destination")
    await monitor.connect()
    try:
        assert await monitor.run_state() == "running"
    finally:
        await monitor.close()
