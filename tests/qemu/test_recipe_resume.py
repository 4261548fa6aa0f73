"""The README's recipe for resuming a checkpoint elsewhere, run as it is printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from live_qemu import QEMU, WAIT_SECONDS, Destination, free_port, wait_until
from test_recipe_checkpoint import listens
from test_recipe_live_move import ROOT, blocks, shell


def make_checkpoint(directory: Path) -> None:
    command = f"{QEMU} -machine pc -m 64M -display none -monitor stdio"
    with (
        Destination("--once", f"--output-dir={directory}") as destination,
        subprocess.Popen(command.split(), stdin=subprocess.PIPE, text=True) as qemu,
    ):
        monitor = f"migrate_set_capability return-path on\nmigrate tcp:127.0.0.1:{destination.port}\nquit\n"
        try:
            qemu.communicate(monitor, WAIT_SECONDS)
            assert destination.program.wait() == 0, destination.program.story()
        finally:
            qemu.kill()


def test_the_recipe_works_as_it_is_printed(shm_dir: Path) -> None:
    port = free_port()
    there, here, monitor = (
        re.sub("/var/tmp/", f"{shm_dir}/", text).replace(":4445", f":{port}")
        for text in blocks("Resume it elsewhere")
    )
    make_checkpoint(shm_dir / "vm")
    waiting = ["sh", "-e", "-c", f"exec {there}"]
    with subprocess.Popen(
        waiting, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as qemu:
        try:
            wait_until(lambda: listens(port), "QEMU that waits")
            with shell(here) as source:
                assert source.wait(WAIT_SECONDS) == 0
            output, _ = qemu.communicate(f"info status\n{monitor}\ninfo status\nquit\n", WAIT_SECONDS)
        finally:
            qemu.kill()
    before, after = re.findall("VM status: (.*)", output)
    assert before.startswith("paused") and after.startswith("running")
