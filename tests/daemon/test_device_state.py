"""Device state as files: what the state command may make, and what a peer may send."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from migrate.daemon.device_state import MAX_BLOB_BYTES, MAX_BLOBS, DeviceState, StateDirectory
from migrate.daemon.hooks import run_hook
from migrate.errors import GuestError, ProtocolError


async def test_from_a_command_here_to_a_command_there() -> None:
    with StateDirectory() as source, StateDirectory() as destination:
        command = 'cd "$MIGRATE_STATE_DIR"; printf "a\\0b" > vmstate; : > empty; chmod 600 *'
        await run_hook("--state-cmd", command, {"MIGRATE_STATE_DIR": str(source.path)}, 30.0)
        states = source.read()
        assert states == [DeviceState("empty", b""), DeviceState("vmstate", b"a\0b")]
        destination.write(states)
        environment = {"MIGRATE_STATE_DIR": str(destination.path)}
        ran = await run_hook(
            "--on-prepare", 'cd "$MIGRATE_STATE_DIR"; ls; wc -c < vmstate', environment, 30.0
        )
        assert ran.output.split() == ["empty", "vmstate", "3"]


def test_the_directory_is_private_and_goes_away() -> None:
    with StateDirectory() as directory:
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        directory.write([DeviceState("x", b"secret")])
        assert stat.S_IMODE((directory.path / "x").stat().st_mode) == 0o600
    assert not directory.path.exists()
    directory.close()


def test_what_a_killed_daemon_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import os, signal; from migrate.daemon.device_state import StateDirectory\n"
        "made = StateDirectory(); print(made.path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, check=False
    )
    abandoned = Path(killed.stdout.decode().strip())
    assert abandoned.parent == tmp_path and abandoned.is_dir()
    with StateDirectory() as one, StateDirectory() as other:
        assert not abandoned.exists()
        assert one.path.is_dir() and other.path.is_dir(), "a lock is respected"


def test_no_directory_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(GuestError, match="no directory for the device state"):
        StateDirectory()


def make_link(path: Path) -> None:
    (path / "link").symlink_to("/etc/hostname")


def make_folder(path: Path) -> None:
    (path / "folder").mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path / "pipe")


def make_spaced(path: Path) -> None:
    (path / "a b").touch()


def make_long(path: Path) -> None:
    (path / ("n" * 65)).touch()


def make_many(path: Path) -> None:
    for number in range(MAX_BLOBS + 1):
        (path / str(number)).touch()


def make_large(path: Path) -> None:
    with (path / "large").open("wb") as file:
        file.truncate(MAX_BLOB_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_link, "could not be read: Too many levels"),
        (make_folder, "not a regular file"),
        (make_pipe, "not a regular file"),
        (make_spaced, "'a b': names are"),
        (make_long, "names are"),
        (make_many, "made 65 files"),
        (make_large, "'large' larger than 64 MiB"),
    ],
)
def test_what_the_state_command_may_not_make(make: object, what: str) -> None:
    assert callable(make)
    with StateDirectory() as directory:
        make(directory.path)
        with pytest.raises(GuestError, match=what):
            directory.read()


@pytest.mark.parametrize(
    "states",
    [
        [DeviceState("..", b"")],
        [DeviceState(".", b"")],
        [DeviceState("../x", b"")],
        [DeviceState("/etc/passwd", b"")],
        [DeviceState("", b"")],
        [DeviceState("n" * 65, b"")],
        [DeviceState("é", b"")],
        [DeviceState("a\n", b"")],
        [DeviceState("ok", b""), DeviceState("a\0", b"")],
        [DeviceState("same", b"1"), DeviceState("same", b"2")],
        [DeviceState(str(number), b"") for number in range(MAX_BLOBS + 1)],
        [DeviceState("large", bytes(MAX_BLOB_BYTES + 1))],
    ],
    ids=lambda states: repr(states[-1].name[:8]),
)
def test_what_a_peer_may_not_send(states: list[DeviceState]) -> None:
    with StateDirectory() as directory:
        with pytest.raises(ProtocolError, match="the peer sent"):
            directory.write(states)
        assert list(directory.path.iterdir()) == []
