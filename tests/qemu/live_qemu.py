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


class Qemu:
    """One QEMU source: TCG, machine microvm, RAM block `mem` in a file; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.ram_file = directory / "qemu.ram"
        self._log = (directory / "qemu.log").open("wb")
        image = directory / "stirrer.bin"
        image.write_bytes(stirrer.make_image("rom", stirrer.Params(**PARAMS).sized(RAM_BYTES)))
        self.image = image.read_bytes()
        here, there = socket.socketpair()
        machine = (
            "microvm,memory-backend=mem,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,"
            "x-option-roms=off,auto-kernel-cmdline=off"
        )
        backend = f"memory-backend-file,id=mem,size={RAM_BYTES},mem-path={self.ram_file},share=on"
        command = f"{QEMU} -accel tcg -m 16M -nodefaults -no-user-config -vga none -net none -display none"
        self.process = subprocess.Popen(
            [
                *command.split(),
                *("-object", backend),
                *("-M", machine),
                *("-bios", str(image)),
                *("-chardev", f"socket,id=monitor,fd={there.fileno()}"),
                *("-mon", "chardev=monitor,mode=control"),
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
        before = self.control()["beat"]
        self.do("cont")
        assert self.do("query-status")["status"] == "running"
        wait_until(lambda: self.control()["beat"] > before, "a beat of the guest")
        self.do("stop")
        assert stirrer.check(self.ram_file.read_bytes()) == []


def wait_until(condition: Any, what: str) -> None:
    """Ask until it is so. Raises AssertionError."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.01)


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
