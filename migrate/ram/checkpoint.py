"""The folder that a stream of QEMU leaves: RAM blocks as files, device state, and what is known about them.

NAME.ram           each RAM block that has no other place; '/' in a name is %2F, '%' is %25
device-state.bin   what followed the RAM, byte for byte
vmstate.json       QEMU's description of it, if it sent one
migration.json     statistics, blocks, digests
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from migrate.config import RamSpec
from migrate.errors import RamError

DEVICE_STATE = "device-state.bin"
DESCRIPTION = "vmstate.json"
MIGRATION = "migration.json"


def block_file(directory: Path, name: str) -> Path:
    """Where the block of that name goes."""
    quoted = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return directory / f"{quoted}.ram"


def places(directory: Path | None, specs: Sequence[RamSpec], names: Sequence[str]) -> list[RamSpec]:
    """The file of each block: as `--ram` says, else in the folder.

    Raises:
        RamError: a block has neither.
    """
    given = {spec.name for spec in specs}
    missing = [name for name in names if name not in given]
    if missing and directory is None:
        raise RamError(
            f"the source sends a RAM block {missing[0]!r} that has no file here",
            side="destination",
            hint=f"--ram {missing[0]}=PATH, or --output-dir DIR for all that have none",
        )
    assert directory is not None or not missing
    return [*specs, *(RamSpec(name, block_file(directory, name)) for name in missing if directory)]


def make_directory(directory: Path) -> None:
    """Have the folder. Raises RamError; a checkpoint that is there already is never overwritten."""
    if os.path.lexists(directory / MIGRATION):
        raise RamError(
            f"{directory} holds a checkpoint already",
            side="destination",
            hint=f"name another folder, or if nobody needs it: rm -r {directory}",
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RamError(f"{directory} cannot be made: {error.strerror}", side="destination") from error


def digest(path: Path, side: str = "destination") -> str:
    """SHA-256 of a file. Raises RamError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RamError(f"{path} cannot be read: {error.strerror}", side=side) from error


def write_state(directory: Path, state: bytes, description: bytes | None) -> None:
    """Write what followed the RAM; on disk when this returns. Raises RamError."""
    _write(directory / DEVICE_STATE, state)
    if description is not None:
        _write(directory / DESCRIPTION, description)


def write_migration(directory: Path, migration: Mapping[str, object]) -> None:
    """Write the statistics, in place of those that are there; on disk when this returns. Raises RamError."""
    _write(directory / MIGRATION, json.dumps(migration, indent=1).encode() + b"\n")


def _write(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        with open(new, "wb", opener=_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise RamError(f"{path} cannot be written: {error.strerror}", side="destination") from error


def _private(path: str, flags: int) -> int:
    """Device state is as secret as RAM."""
    return os.open(path, flags, 0o600)
