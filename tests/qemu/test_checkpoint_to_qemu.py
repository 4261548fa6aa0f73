"""A stored checkpoint is sent into a real QEMU, and its guest goes on there."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_qemu import RAM_BYTES, Destination, Qemu, Tap, free_port, stirrer, wait_until
from qemu_oracle import decode

from bench.lab import Program, program

PORT = free_port()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a guest that has gone on since; RAM has pages of zeros, ROM, and content."""
    directory = tmp_path_factory.mktemp("checkpoint")
    with Qemu(directory) as qemu, Destination("--once", f"--output-dir={directory / 'vm'}") as destination:
        qemu.wait_passes(3)
        qemu.capabilities("return-path")
        qemu.do("stop")  # TCG of 7.2 loses a page now and then
        qemu.do("migrate", uri=f"tcp:127.0.0.1:{destination.port}")
        assert qemu.wait_migrated()["status"] == "completed"
        assert destination.program.wait() == 0, destination.program.story()
    return directory / "vm"


def waiting(directory: Path, *more: str) -> Qemu:
    return Qemu(directory, "there", more=("-S", "-incoming", f"tcp:127.0.0.1:{PORT}", *more))


@pytest.fixture
def there(shm_dir: Path) -> Iterator[Qemu]:
    with waiting(shm_dir) as qemu:
        yield qemu


class Source:
    """migrate-src --format qemu."""

    def __init__(self, checkpoint: Path, *options: str, port: int = PORT) -> None:
        self.program = Program(
            [
                program("migrate-src"),
                f"--to=127.0.0.1:{port}",
                "--format=qemu",
                f"--checkpoint={checkpoint}",
                *options,
                "--json",
            ]
        )

    def __enter__(self) -> Program:
        return self.program

    def __exit__(self, *args: object) -> None:
        self.program.kill()


def copied(checkpoint: Path, shm_dir: Path) -> Path:
    return Path(shutil.copytree(checkpoint, shm_dir / "vm"))


def passes_at(checkpoint: Path) -> int:
    found: int = stirrer.control((checkpoint / "mem.ram").read_bytes())["pass_done"]
    return found


def test_the_guest_goes_on_in_a_real_qemu(checkpoint: Path, there: Qemu) -> None:
    with there.ram_file.open("r+b") as file:
        file.write(b"old content, which zero pages must replace".ljust(64) * (RAM_BYTES // 64))
    with Source(checkpoint) as source:
        assert source.wait() == 0, source.story()
        assert source.summary["outcome"] == "completed" and "cont" in source.summary["guest"]
    assert there.state == "paused"
    assert there.ram_file.read_bytes() == (checkpoint / "mem.ram").read_bytes()
    ram = source.summary["ram"]
    pages = json.loads((checkpoint / "migration.json").read_text())["totals"]
    assert ram["normal"] + ram["duplicate"] == ram["total"] // 4096
    assert ram["normal"] > 100 and ram["duplicate"] > 100 and pages["normal"] >= ram["normal"]
    there.goes_on()
    assert there.control()["pass_done"] >= passes_at(checkpoint)


def test_an_independent_reader_finds_what_was_stored(checkpoint: Path, there: Qemu) -> None:
    tap = Tap(PORT)
    with Source(checkpoint, port=tap.port) as source:
        assert source.wait() == 0, source.story()
    tap.join()
    stream = bytes(tap.there)
    ping = stream.rindex(bytes.fromhex("080002000400000004"))  # behind the devices, before the end
    ram, state = decode(stream[:ping] + stream[ping + 9 :])
    assert {name: (checkpoint / f"{name}.ram").read_bytes() for name in ram} == ram and len(ram) == 2
    assert state == (checkpoint / "device-state.bin").read_bytes()
    assert stream[ping + 9] == 0, "a PING where QEMU could let its guest go already"


def test_a_qemu_with_other_ram_is_named_and_a_second_attempt_succeeds(
    checkpoint: Path, shm_dir: Path
) -> None:
    with (
        waiting(
            shm_dir, "-object", "memory-backend-ram,id=less,size=8M", "-M", "memory-backend=less", "-m", "8M"
        ),
        Source(checkpoint) as source,
    ):
        assert source.wait() == 3, source.story()
        error = source.wait_event("error")
    assert "mem 16 MiB" in error["message"] and "-m" in error["hint"] and error["side"] == "destination"
    assert "sent again" in error["guest"]
    with waiting(shm_dir) as there, Source(checkpoint) as source:
        assert source.wait() == 0, source.story()
        there.goes_on()


def test_a_qemu_of_another_machine_is_named(checkpoint: Path, shm_dir: Path) -> None:
    copy = copied(checkpoint, shm_dir)
    stored = json.loads((copy / "migration.json").read_text())
    assert stored["machine"] == "microvm"
    (copy / "migration.json").write_text(json.dumps(stored | {"machine": "pc-q35-7.2"}))
    with waiting(shm_dir), Source(copy) as source:
        assert source.wait() == 3, source.story()
        assert "takes no guest of machine pc-q35-7.2" in source.wait_event("error")["message"]


def test_a_qemu_that_dies_on_the_way(checkpoint: Path, there: Qemu) -> None:
    with Source(checkpoint, "--max-bandwidth=200K") as source:
        source.wait_event("progress", lambda event: event["ram"]["transferred"] > 100_000)
        there.kill()
        assert source.wait() == 4, source.story()
        error = source.wait_event("error")
    assert "while its RAM came" in error["message"] and "sent again" in error["guest"]


def test_a_cancel_on_the_way(checkpoint: Path, there: Qemu) -> None:
    with Source(checkpoint, "--max-bandwidth=200K") as source:
        source.wait_event("progress", lambda event: event["ram"]["transferred"] > 100_000)
        source.signal(signal.SIGTERM)
        assert source.wait() == 130, source.story()
        assert source.summary["outcome"] == "cancelled"
    wait_until(lambda: there.process.poll() is not None, "end of the QEMU that was let down")


def test_devices_that_do_not_fit(checkpoint: Path, shm_dir: Path, there: Qemu) -> None:
    copy = copied(checkpoint, shm_dir)
    state = (copy / "device-state.bin").read_bytes()
    (copy / "device-state.bin").write_bytes(state.replace(b"cpu_common", b"cpu_strange", 1))
    with Source(copy) as source:
        assert source.wait() == 6, source.story()
        error = source.wait_event("error")
    assert "did not load the devices" in error["message"] and error["side"] == "destination"
    wait_until(lambda: there.process.poll() is not None, "end of that QEMU")


def test_nobody_there_or_somebody_else(checkpoint: Path) -> None:
    with Source(checkpoint) as source:
        assert source.wait() == 4
        assert "-incoming" in source.wait_event("error")["hint"]
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with Source(checkpoint, "--keepalive-timeout=0.5", port=port) as source:
            assert source.wait() == 4
            assert "said nothing for 0.5 s" in source.wait_event("error")["message"]


def test_ram_that_changed_since_is_not_sent(checkpoint: Path, shm_dir: Path) -> None:
    changed = shm_dir / "mem"
    ram = bytearray((checkpoint / "mem.ram").read_bytes())
    ram[5000] ^= 1
    changed.write_bytes(ram)
    with Source(checkpoint, f"--ram=mem={changed}") as source:
        assert source.wait() == 9
        assert "SHA-256" in source.wait_event("error")["message"]


def test_what_is_no_checkpoint(checkpoint: Path, shm_dir: Path) -> None:
    with Source(shm_dir) as source:
        assert source.wait() == 9
        assert "no checkpoint" in source.wait_event("error")["message"]
