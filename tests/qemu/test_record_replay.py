"""`migrate-inspect record` between the two sides, and `replay` of what it kept."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from live_qemu import SHUT_LOADED, Destination
from qemu_support import channels, stream, truth

from bench.lab import Lab, Program, program
from migrate.cli.inspect import main
from migrate.config import Address
from migrate.daemon import replay

WITH_RETURN_PATH = "return-path-q10.0"


class Recording:
    """A running `migrate-inspect record`; a context manager."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.program = Program(
            [
                *(program("migrate-inspect"), "record", str(directory)),
                *("--listen=127.0.0.1:0", f"--target=127.0.0.1:{port}"),
            ]
        )
        line = self.program.wait_event("not-json")["line"]
        self.port = int(line.split(",")[0].rpartition(":")[2])

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *args: object) -> None:
        self.program.kill()

    def end(self) -> None:
        self.program.signal(signal.SIGTERM)
        assert self.program.wait() == 0, self.program.story()


@pytest.fixture
def moved(shm_dir: Path) -> Path:
    """A recording of a native migration with two lanes; the guest's RAM at its end is beside it."""
    directory = shm_dir / "recording"
    with Lab(shm_dir, shm_dir) as lab:
        guest = lab.start_guest("--workload=kv")
        destination = lab.start_destination("--once")
        with Recording(directory, int(destination.wait_event("listening")["port"])) as recording:
            source = lab.start_source(recording.port, guest, "--lanes=2")
            assert source.wait() == 0, source.story()
            assert destination.wait() == 0
            recording.end()
        lab.end_arrived_guest(0.05)
    return directory


def test_a_native_migration_is_recorded_and_played_again(moved: Path, shm_dir: Path) -> None:
    heads = {path.name: path.read_bytes()[:8] for path in moved.glob("*.up")}
    assert sorted(heads.values()) == [b"MIGRATE\1", b"MIGRATE\2", b"MIGRATE\2"]
    assert {path.name for path in moved.iterdir()} == {
        f"{n}.{way}" for n in range(3) for way in ("up", "down")
    }
    for name, head in heads.items():
        if head == b"MIGRATE\2":
            assert main([str(moved / name)]) == 0, "a lane is legal"
    ram = shm_dir / "again"
    with Destination("--once", f"--ram={ram}") as destination:
        assert main(["replay", str(moved), f"--to=127.0.0.1:{destination.port}"]) == 0
        assert destination.program.wait() == 0, destination.program.story()
    assert ram.stat().st_size == 16 << 20
    checker = Program([program("migrate-guest"), "--check", f"--ram=pc.ram={ram}", "--json"])
    assert checker.wait() == 0, checker.story()


def test_a_damaged_recording_is_not_taken(
    moved: Path, shm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = next(path for path in sorted(moved.glob("*.up")) if path.read_bytes().startswith(b"MIGRATE\2"))
    data = bytearray(lane.read_bytes())
    data[len(data) // 2] ^= 1
    lane.write_bytes(data)
    with Destination("--once", f"--ram={shm_dir / 'again'}", "--reconnect-timeout=1") as destination:
        assert main(["replay", str(moved), f"--to=127.0.0.1:{destination.port}"]) == 1
        assert "lane-reset" in capsys.readouterr().out
        assert destination.program.wait() != 0


def test_what_was_no_one_migration_is_refused(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = next(path for path in sorted(moved.glob("*.up")) if path.read_bytes().startswith(b"MIGRATE\1"))
    (moved / "9.up").write_bytes(control.read_bytes())
    assert main(["replay", str(moved), "--to=127.0.0.1:1"]) == 1
    assert "2 control connections" in capsys.readouterr().out
    control.write_bytes(b"nothing of ours")
    assert main(["replay", str(moved), "--to=127.0.0.1:1"]) == 1
    assert main(["replay", str(moved / "9.up"), "--to=127.0.0.1:1"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_a_qemu_stream_goes_through_the_recorder_unchanged_and_is_played_again(
    output: Path, shm_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stream(WITH_RETURN_PATH)
    with Destination(f"--output-dir={output}") as destination:
        with Recording(shm_dir / "recording", destination.port) as recording:
            with socket.create_connection(("127.0.0.1", recording.port)) as sock:
                sock.sendall(data)
                answer = b""
                while part := sock.recv(4096):
                    answer += part
            recording.end()
        assert (shm_dir / "recording/0.up").read_bytes() == data
        assert (shm_dir / "recording/0.down").read_bytes() == answer
        assert answer.endswith(SHUT_LOADED)
    again = shm_dir / "again"
    with Destination("--once", f"--output-dir={again}") as destination:
        to = f"--to=127.0.0.1:{destination.port}"
        assert main(["replay", str(shm_dir / "recording"), to, "--max-bandwidth=20M"]) == 0
        assert capsys.readouterr().out.startswith("loaded; ")
        assert destination.program.wait() == 0
    assert main(["diff", str(shm_dir / "recording/0.up"), str(shm_dir / "recording/0.up")]) == 0
    for block, content in truth(WITH_RETURN_PATH).items():
        assert (again / f"{block}.ram").read_bytes() == content


def test_the_channels_of_multifd_are_played_too(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "multifd-pc-q10.0"
    paths = [tmp_path / str(number) for number in range(4)]
    for path, data in zip(paths, [stream(name), *channels(name)], strict=True):
        path.write_bytes(data)
    with Destination("--once", f"--output-dir={output}", "--multifd-channels=3") as destination:
        to = f"--to=127.0.0.1:{destination.port}"
        assert main(["replay", *map(str, paths), to]) == 0
        assert destination.program.wait() == 0
    paths[0].write_bytes(stream(name)[:-3000])
    capsys.readouterr()
    with Destination("--once", f"--output-dir={tmp_path / 'out'}", "--multifd-channels=3") as destination:
        to = f"--to=127.0.0.1:{destination.port}"
        assert main(["replay", *map(str, paths), to]) == 1
        assert "did not load it" in capsys.readouterr().out
        assert destination.program.wait() == 5


def test_the_rate_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the token bucket, which the waits move on, so that a slow machine does not matter."""
    now, taken = [0.0], bytearray()
    monkeypatch.setattr(replay.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(replay.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    path = tmp_path / "stream"
    path.write_bytes(b"QEVM" + bytes(10 << 20))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            sock, _ = server.accept()
            with sock:
                while part := sock.recv(1 << 20):
                    taken.extend(part)

        taker = threading.Thread(target=take)
        taker.start()
        played = replay.Replay([path], Address("127.0.0.1", server.getsockname()[1]), 1 << 20)
        played.run()
        taker.join()
    assert bytes(taken) == path.read_bytes() and played.sent == len(taken)
    assert 9 < now[0] < 11


def test_a_recording_goes_into_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_bytes(b"")
    arguments: Sequence[str] = ["record", str(tmp_path), "--listen=127.0.0.1:0", "--target=127.0.0.1:1"]
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err
