"""Device state: small opaque files from `--state-cmd` at the source to `--on-prepare` at the destination.

They live in a private directory (mode 0700) that the hooks find in MIGRATE_STATE_DIR. Its owner holds a lock
on it, so that whoever makes the next one finds, and removes, what a killed daemon has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from migrate.errors import GuestError, ProtocolError
from migrate.protocol.messages import MAX_BLOB_BYTES, MAX_BLOBS, MAX_STATE_BYTES

STATE_SECONDS = 30.0
"""How long the guest may take to give it, in the pause."""
_PREFIX = "migrate-state-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class DeviceState(NamedTuple):
    """One piece of device state."""

    name: str
    """[A-Za-z0-9._-]{1,64}, and not . or .. ; also its file's name."""
    data: bytes
    """At most 64 MiB."""


class StateDirectory:
    """A private temporary directory for device state; gone with everything in it after `close`."""

    def __init__(self) -> None:
        """Raises GuestError: it cannot be made."""
        try:
            _remove_abandoned()
            self.path, self._lock = _make_locked()
        except OSError as error:
            raise GuestError(f"no directory for the device state could be made: {error.strerror}") from error

    def read(self) -> list[DeviceState]:
        """What the state command has written, in the order of the names.

        Raises:
            GuestError: too many files or bytes, a name that is not allowed, or something that is no file.
        """
        try:
            names = sorted(path.name for path in self.path.iterdir())
            if len(names) > MAX_BLOBS:
                raise GuestError(f"--state-cmd made {len(names)} files: at most {MAX_BLOBS} are allowed")
            states = [DeviceState(name, self._read_file(name)) for name in names]
        except OSError as error:
            raise GuestError(f"the device state could not be read: {error.strerror}") from error
        total = sum(len(state.data) for state in states)
        if total > MAX_STATE_BYTES:
            raise GuestError(
                f"--state-cmd made {total} bytes of device state: at most {MAX_STATE_BYTES} are allowed"
            )
        return states

    def write(self, states: Sequence[DeviceState]) -> None:
        """Put the state that the peer sent where the hooks find it.

        Raises:
            ProtocolError: the peer sent too much of it, or a name that is not allowed; nothing was written.
            GuestError: there is no room for it.
        """
        fault = _fault(states)
        if fault is not None:
            raise ProtocolError(f"the peer sent {fault}")
        try:
            for state in states:
                file = os.open(
                    self.path / state.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                )
                with os.fdopen(file, "wb") as out:
                    out.write(state.data)
        except OSError as error:
            raise GuestError(f"the device state could not be stored: {error.strerror}") from error

    def close(self) -> None:
        """Remove the directory; the second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _read_file(self, name: str) -> bytes:
        if not is_state_name(name):
            raise GuestError(f"--state-cmd made a file named {name!r}: names are {_NAME.pattern}")
        # Not through a link, and not stuck on a named pipe.
        fd = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise GuestError(f"--state-cmd made {name!r}, which is not a regular file")
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_BLOB_BYTES + 1)
        finally:
            os.close(fd)
        if len(data) > MAX_BLOB_BYTES:
            raise GuestError(f"--state-cmd made {name!r} larger than {MAX_BLOB_BYTES >> 20} MiB")
        return data


def checked_states(giver: str, states: Mapping[str, object]) -> list[DeviceState]:
    """What a guest gave by itself, in the order of the names. Raises GuestError that names the giver."""
    found = []
    for name, data in states.items():
        if not isinstance(name, str) or not isinstance(data, bytes | bytearray | memoryview):
            raise GuestError(f"{giver} gave {name!r}, which is not bytes with a name", side="source")
        found.append(DeviceState(name, bytes(data)))
    fault = _fault(found)
    if fault is not None:
        raise GuestError(f"{giver} gave {fault}", side="source")
    return sorted(found)


def _fault(states: Sequence[DeviceState]) -> str | None:
    """What is wrong with it all, None: nothing."""
    if len(states) > MAX_BLOBS:
        return f"{len(states)} pieces of device state, at most {MAX_BLOBS} are allowed"
    if len({state.name for state in states}) != len(states):
        return "two pieces of device state with one name"
    for state in states:
        if not is_state_name(state.name) or len(state.data) > MAX_BLOB_BYTES:
            return (
                f"device state {state.name[:64]!r} of {len(state.data)} bytes: names are"
                f" {_NAME.pattern}, and {MAX_BLOB_BYTES} bytes the most"
            )
    total = sum(len(state.data) for state in states)
    if total > MAX_STATE_BYTES:
        return f"{total} bytes of device state, at most {MAX_STATE_BYTES} are allowed"
    return None


def is_state_name(name: str) -> bool:
    """Whether a piece of device state may be called so."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def _make_locked() -> tuple[Path, int]:
    """A new directory, and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # not taken for abandoned before it was locked
            return path, lock
        os.close(lock)


def _remove_abandoned() -> None:
    """Remove directories of this user that nobody holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # held, gone meanwhile, or somebody else's
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(lock)
