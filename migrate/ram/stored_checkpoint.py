"""A stored checkpoint (`migrate.ram.checkpoint`) that is read again, to be sent into a QEMU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migrate.config import RamSpec
from migrate.errors import RamError
from migrate.ram.checkpoint import DESCRIPTION, DEVICE_STATE, MIGRATION, block_file

MOST_BYTES = 64 << 20
"""Of device state, as when it was stored."""
_FULL_SECTION = 0x04
_EOF = b"\0"
_FOOTER = b"\x7e"
_HEAD_BYTES = 5
"""In front of the description: its mark and its length."""
_FOOTER_BYTES = 5


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One RAM block of it."""

    spec: RamSpec
    length: int
    """Bytes."""
    sha256: str | None
    """None: the program that stored it ended before that was known."""


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """What is known of it."""

    directory: Path
    machine: str
    page_size: int
    uuid: bytes | None
    blocks: tuple[StoredBlock, ...]
    """In the order of the stream."""
    devices: bytes
    """All sections behind the RAM."""
    end: bytes
    """What follows them: EOF, and the description if there is one."""


def read_checkpoint(directory: Path, elsewhere: Sequence[RamSpec] = ()) -> StoredCheckpoint:
    """Read all of it but RAM.

    Args:
        elsewhere: files of blocks that are neither in the folder nor where they were stored.

    Raises:
        RamError: it is none, not whole, or of a kind that cannot be sent.
    """
    stored = _migration(directory)
    machine, page_size, uuid = (stored.get(name) for name in ("machine", "page_size", "uuid"))
    listed, capabilities = stored.get("blocks"), stored.get("capabilities")
    if (
        not (isinstance(machine, str) and isinstance(page_size, int) and isinstance(uuid, str | None))
        or not (isinstance(listed, list) and isinstance(capabilities, list))
        or not listed
    ):
        raise _error(f"{directory / MIGRATION} does not describe a checkpoint")
    if "x-ignore-shared" in capabilities:
        raise _error(
            f"the checkpoint in {directory} has no shared RAM in it: it was made with x-ignore-shared",
            "make one without: migrate_set_capability x-ignore-shared off",
        )
    given = {spec.name: spec.path for spec in elsewhere}
    blocks = tuple(_block(directory, row, given) for row in listed)
    unknown = given.keys() - {block.spec.name for block in blocks}
    if unknown:
        raise _error(f"--ram {min(unknown)}=…: the checkpoint in {directory} has no such RAM block")
    try:
        parsed = bytes.fromhex(uuid) if uuid is not None else None
    except ValueError:
        raise _error(f"{directory / MIGRATION} has no UUID {uuid!r}") from None
    return StoredCheckpoint(directory, machine, page_size, parsed, blocks, *_state(directory))


def _migration(directory: Path) -> Mapping[str, object]:
    path = directory / MIGRATION
    if not path.exists():
        raise _error(f"{directory} holds no checkpoint: there is no {MIGRATION} in it", "make one: README")
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != "qemu":
        raise _error(f"{path} is not what migrate-dst --output-dir writes")
    return found


def _block(directory: Path, row: object, given: Mapping[str, Path]) -> StoredBlock:
    found = row if isinstance(row, dict) else {}
    name, length, file, sha256 = (found.get(key) for key in ("name", "length", "file", "sha256"))
    if not (isinstance(name, str) and isinstance(length, int) and isinstance(file, str)):
        raise _error(f"{directory / MIGRATION} lists a RAM block without name, length or file")
    path = given.get(name)
    if path is None:
        path = block_file(directory, name)
        path = path if path.exists() else Path(file)
    return StoredBlock(RamSpec(name, path), length, sha256 if isinstance(sha256, str) else None)


def _state(directory: Path) -> tuple[bytes, bytes]:
    """The device sections, and what follows them."""
    path = directory / DEVICE_STATE
    state = _read(path)
    if not state or state[0] != _FULL_SECTION:
        raise _error(
            f"{path} does not begin with a device: is it from a recorded postcopy?",
            "a checkpoint is made by precopy",
        )
    described = directory / DESCRIPTION
    end = _EOF
    if described.exists():
        description = _read(described)
        end = state[-len(description) - _HEAD_BYTES - 1 :]
        if not end.startswith(_EOF) or not end.endswith(description):
            raise _error(f"{path} does not end with what {DESCRIPTION} holds")
    devices = state.removesuffix(end)
    if len(devices) == len(state) or not devices[-_FOOTER_BYTES:].startswith(_FOOTER):
        raise _error(f"{path} does not end behind a device: it was cut or changed")
    return devices, end


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES + (1 << 20):
            raise _error(f"{path} is larger than any device state")
        return path.read_bytes()
    except OSError as error:
        raise _error(f"{path} cannot be read: {error.strerror}") from error


def _error(message: str, hint: str | None = None) -> RamError:
    return RamError(message, side="source", hint=hint)
