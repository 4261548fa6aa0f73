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

from qemu_oracle import decode
from qemu_support import SHARED

from bench.lab import Program, program

QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
RAM_BYTES = 16 << 20
WAIT_SECONDS = 60.0
SHUT_LOADED = bytes.fromhex("0001000400000000")
SHUT_FAILED = bytes.fromhex("0001000400000001")
SWITCHOVER_ACK = bytes.fromhex("00070000")
PONG = bytes.fromhex("00020004")

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
    """Listens for connections, passes each on to a port of this host, and keeps both directions.

    Attributes:
        all_there: what the source said, by connection; the main channel connects first.
        all_back: what was answered.
    """

    def __init__(self, port: int, connections: int = 1) -> None:
        self.all_there = [bytearray() for _ in range(connections)]
        self.all_back = [bytearray() for _ in range(connections)]
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def there(self) -> bytearray:
        """The main channel."""
        return self.all_there[0]

    @property
    def back(self) -> bytearray:
        """Its return path."""
        return self.all_back[0]

    @property
    def extra(self) -> list[bytes]:
        """The other channels."""
        return [bytes(data) for data in self.all_there[1:]]

    def join(self) -> None:
        """Until both directions of all have ended."""
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        pairs = []
        for there, back in zip(self.all_there, self.all_back, strict=True):
            source, _ = self._listening.accept()
            pairs.append(threading.Thread(target=self._relay, args=(source, there, back), daemon=True))
            pairs[-1].start()
        self._listening.close()
        for pair in pairs:
            pair.join(WAIT_SECONDS)

    def _relay(self, source: socket.socket, there: bytearray, back: bytearray) -> None:
        with source, socket.create_connection(("127.0.0.1", self._to)) as target:
            answers = threading.Thread(target=_pump, args=(target, source, back), daemon=True)
            answers.start()
            _pump(source, target, there)
            answers.join(WAIT_SECONDS)


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 18):
            kept += data
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Destination:
    """migrate-dst and the port it listens on."""

    def __init__(self, *options: str) -> None:
        self.program = Program([program("migrate-dst"), "--listen=127.0.0.1:0", *options, "--json"])
        self.port = int(self.program.wait_event("listening")["port"])

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *args: object) -> None:
        self.program.kill()


def check_stored(output: Path, tap: Tap, **elsewhere: Path) -> dict[str, bytes]:
    """Everything in the folder is what the stream said; returns RAM by block."""
    ram, state = decode(bytes(tap.there), tap.extra)
    for name, content in ram.items():
        assert elsewhere.get(name, output / f"{name}.ram").read_bytes() == content, name
    assert (output / "device-state.bin").read_bytes() == state
    described = b'"page_size"' in state
    assert (output / "vmstate.json").exists() == described
    if described:
        assert {"page_size", "devices"} <= set(json.loads((output / "vmstate.json").read_text()))
    migration = json.loads((output / "migration.json").read_text())
    assert migration["bytes"] == len(tap.there)
    assert not list(output.glob("*.migrating"))
    return ram


def send(port: int, data: bytes) -> bytes:
    """Send it all, say that this was all, and read what comes back."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    return answer
