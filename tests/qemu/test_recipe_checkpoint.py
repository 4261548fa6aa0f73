"""The README's recipe for a checkpoint of a running QEMU, run as it is printed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

from live_qemu import QEMU, WAIT_SECONDS, free_port, wait_until
from test_recipe_live_move import blocks, shell

COMMAND = f"{QEMU} -machine pc -m 64M -display none -monitor stdio"


def test_the_recipe_works_as_it_is_printed(shm_dir: Path) -> None:
    port = free_port()
    there, monitor = (
        re.sub("/var/tmp/", f"{shm_dir}/", text).replace(":4444", f":{port}")
        for text in blocks("Checkpoint of a running QEMU")
    )
    with (
        shell(there) as destination,
        subprocess.Popen(COMMAND.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu,
    ):
        try:
            assert qemu.stdin is not None
            wait_until(lambda: listens(port), "migrate-dst")
            output, _ = qemu.communicate(f"{monitor}\ninfo migrate\ninfo status\nquit\n", WAIT_SECONDS)
            assert destination.wait(WAIT_SECONDS) == 0
        finally:
            destination.kill()
            qemu.kill()
    assert "Migration status: completed" in output
    assert "VM status: running" in output
    stored = json.loads((shm_dir / "vm/migration.json").read_text())
    for block in stored["blocks"]:
        content = Path(block["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (block["length"], block["sha256"])
    assert (shm_dir / "vm/pc.ram.ram").stat().st_size == 64 << 20
    assert (shm_dir / "vm/device-state.bin").stat().st_size > 1000


def listens(port: int) -> bool:
    """Looked at without a connection: the destination takes one migration only."""
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()
