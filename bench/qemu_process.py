"""A QEMU whose RAM is a file, and its monitor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
WAIT_SECONDS = 120.0
LOOK_SECONDS = 0.002


class QemuProcess:
    """Machine pc, TCG; a context manager.

    Args:
        ram: file of its RAM; keeps what it holds.
        options: of its command line.
        memory_options: of its memory backend.
    """

    def __init__(
        self, ram: Path, mib: int, options: Sequence[str], memory_options: Sequence[str] = ()
    ) -> None:
        here, there = socket.socketpair()
        backend = f"memory-backend-file,id=mem,size={mib}M,mem-path={ram},share=on"
        self._process = subprocess.Popen(
            [
                *(QEMU, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"),
                *("-m", f"{mib}M", "-object", ",".join((backend, *memory_options))),
                *("-machine", "pc,memory-backend=mem"),
                *("-chardev", f"socket,id=monitor,fd={there.fileno()}"),
                *("-mon", "chardev=monitor,mode=control"),
                *options,
            ],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        there.close()
        here.settimeout(WAIT_SECONDS)
        self._socket = here
        self._monitor = here.makefile("rwb")
        self._monitor.readline()
        self.do("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._process.kill()
        self._process.wait()
        self._monitor.close()
        self._socket.close()

    def do(self, command: str, **arguments: object) -> Any:
        """A QMP command; returns its answer. Raises RuntimeError."""
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        self._monitor.flush()
        while line := self._monitor.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"QEMU ended before it answered {command}")

    def capability(self, name: str) -> None:
        """Set a capability of its migrations."""
        self.do("migrate-set-capabilities", capabilities=[{"capability": name, "state": True}])

    def enable_multifd(self, channels: int) -> None:
        """Let it migrate through so many page channels; 0: it does not."""
        if channels:
            self.capability("multifd")
            self.do("migrate-set-parameters", **{"multifd-channels": channels})

    def wait_migrated(self) -> dict[str, Any]:
        """query-migrate's answer once its migration has ended. Raises RuntimeError."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            answer: dict[str, Any] = self.do("query-migrate")
            if answer["status"] in ("completed", "failed", "cancelled"):
                return answer
            time.sleep(LOOK_SECONDS)
        raise RuntimeError(f"the migration did not end within {WAIT_SECONDS:g} s")


def free_port() -> int:
    """A TCP port of this host that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
