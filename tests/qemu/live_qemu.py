"""A real QEMU with the stirrer guest, its monitor, and a link that remembers what went through it."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from qemu_support import SHARED

QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
RAM_BYTES = 16 << 20
WAIT_SECONDS = 60.0

sys.path.insert(0, str(SHARED / "qemu-guest"))
stirrer: Any = importlib.import_module("stirrer")
sys.path.pop(0)

PARAMS = {
    "seed": 104,
    "count_pages": 64,
    "sparse_pages": 64,
    "sparse_step": 16,
    "sparse_bytes": 10,
    "noise_pages": 12,
    "noise_step": 1,
    "flick_pages": 32,
    "flick_step": 4,
    "edge_pages": 48,
    "edge_step": 16,
    "fill_pages": 48,
    "pass_ticks": 40000000,
}


# For KVM where the host itself is a virtual machine that emulates it: every exit is dear.
SLOW_PARAMS = {
    "seed": 105,
    "count_pages": 8,
    "sparse_pages": 8,
    "sparse_step": 4,
    "noise_pages": 2,
    "noise_step": 1,
    "flick_pages": 4,
    "flick_step": 2,
    "edge_pages": 16,
    "edge_step": 4,
    "fill_pages": 4,
    "verify_step": 4,
}


class Qemu:
    """One QEMU: machine microvm, RAM block `mem` in a file; a context manager.

    Args:
        directory: for all its files.
        name: of its RAM file, and of the socket of the monitor for others.
        accelerator: tcg or kvm; the guest of the latter does less.
        more: further arguments.
    """

    def __init__(
        self, directory: Path, name: str = "qemu", accelerator: str = "tcg", more: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.ram_file = directory / f"{name}.ram"
        self.monitor = directory / f"{name}.sock"
        self._log = (directory / f"{name}.log").open("wb")
        image = directory / f"stirrer-{accelerator}.bin"
        params = SLOW_PARAMS if accelerator == "kvm" else PARAMS
        image.write_bytes(stirrer.make_image("rom", stirrer.Params(**params).sized(RAM_BYTES)))
        self.image = image.read_bytes()
        here, there = socket.socketpair()
        machine = (
            "microvm,memory-backend=mem,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,"
            "x-option-roms=off,auto-kernel-cmdline=off"
        )
        backend = f"memory-backend-file,id=mem,size={RAM_BYTES},mem-path={self.ram_file},share=on"
        command = f"{QEMU} -accel {accelerator} -m 16M -nodefaults -no-user-config"
        self.process = subprocess.Popen(
            [
                *command.split(),
                *["-vga", "none", "-net", "none", "-display", "none"],
                *("-object", backend),
                *("-M", machine),
                *("-bios", str(image)),
                *("-chardev", f"socket,id=monitor,fd={there.fileno()}"),
                *("-mon", "chardev=monitor,mode=control"),
                *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
                *more,
            ],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        there.close()
        here.settimeout(WAIT_SECONDS)
        self._socket = here
        self._monitor = here.makefile("rwb")
        json.loads(self._monitor.readline())
        self.do("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        with suppress(OSError, ValueError):
            self._monitor.close()
        self._socket.close()
        self.process.kill()
        self.process.wait()
        self._log.close()

    def do(self, command: str, **arguments: object) -> Any:
        """A QMP command; returns its answer."""
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        self._monitor.flush()
        while True:
            answer = json.loads(self._monitor.readline())
            if "return" in answer or "error" in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def capabilities(self, *names: str) -> None:
        self.do(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in names],
        )

    @property
    def state(self) -> str:
        """`query-status`'s status; "gone" if it has ended."""
        try:
            return str(self.do("query-status")["status"])
        except (OSError, ValueError):  # an empty line is no JSON
            return "gone"

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def control(self) -> dict[str, int]:
        """The guest's own counters."""
        found: dict[str, int] = stirrer.control(self.ram_file.read_bytes())
        return found

    def wait_passes(self, passes: int) -> None:
        """Until the guest has done so many passes over its pages."""

        def done() -> bool:
            with suppress(ValueError):
                return self.control()["pass_done"] >= passes
            return False

        wait_until(done, f"{passes} passes of the guest")

    def wait_migrated(self) -> dict[str, Any]:
        """query-migrate's answer once the migration has ended."""
        answer: dict[str, Any] = {}

        def ended() -> bool:
            answer.update(self.do("query-migrate"))
            return answer.get("status") in ("completed", "failed", "cancelled")

        wait_until(ended, "the end of the migration")
        return answer

    def goes_on(self) -> None:
        """`cont`, and the guest's beat is seen to advance."""
        self.do("cont")
        self.check_runs(self.control()["beat"])

    def check_runs(self, before: int) -> None:
        """It runs, its beat advances beyond that, its RAM is what it should be; it is stopped for that."""
        assert self.state == "running"
        wait_until(lambda: self.control()["beat"] > before, "a beat of the guest")
        self.do("stop")
        assert stirrer.check(self.ram_file.read_bytes()) == []


def wait_until(condition: Any, what: str) -> None:
    """Ask until it is so. Raises AssertionError."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Tap:
    """Listens for one connection, passes it on to a port of this host, and keeps both directions."""

    def __init__(self, port: int) -> None:
        self.there, self.back = bytearray(), bytearray()
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Until both directions have ended."""
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        source, _ = self._listening.accept()
        self._listening.close()
        with source, socket.create_connection(("127.0.0.1", self._to)) as target:
            back = threading.Thread(target=_pump, args=(target, source, self.back), daemon=True)
            back.start()
            _pump(source, target, self.there)
            back.join(WAIT_SECONDS)


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 18):
            kept += data
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
