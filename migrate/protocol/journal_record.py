"""What a journal says: how far the handover of one migration has come at one side.

file   = two slots of SLOT_BYTES; of the whole ones that with the higher sequence counts
slot   = "MIGRJRNL", be16 version, be16 0, be32 length of the payload, be64 sequence,
         be32 CRC-32C of all before and of the payload, payload (JSON, UTF-8)

A record is written to the slot that does not hold the last durable one. A torn write so leaves the record
before it, and nothing was done yet on the strength of the torn one (design 4, Handover).
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from migrate import kernel
from migrate.errors import JournalError

VERSION = 1
SLOT_BYTES = 64 << 10
FILE_BYTES = 2 * SLOT_BYTES
_MAGIC = b"MIGRJRNL"
_HEAD = struct.Struct(">8sHHIQ")
_CRC = struct.Struct(">I")
HEADER_BYTES = _HEAD.size + _CRC.size


class Step(Enum):
    """How far one side has come."""

    MOVING = "moving"
    """Source: RAM is on its way; the guest runs, or was let run again."""
    PAUSING = "pausing"
    """Source: the guest is about to be stopped or is; nothing was promised, so it may be resumed."""
    COMMITTED = "committed"
    """Source: the guest is the destination's, unless that says `declined`."""
    TAKEN_BACK = "taken-back"
    """Source: the destination declined; the guest is the source's and is about to be resumed."""
    RESUMED = "resumed"
    """Source: it runs here again; the destination is still to be told that this is known."""
    DONE = "done"
    """Source: it runs at the destination, which is still to be told that this is known."""

    RECEIVING = "receiving"
    """Destination: RAM is on its way."""
    PREPARED = "prepared"
    """Destination: RAM is whole and proved, and the guest ready; the source decides."""
    DECLINED = "declined"
    """Destination: it never starts the guest of this pause."""
    STARTING = "starting"
    """Destination: the guest is its own and is being let go."""
    RUNNING = "running"
    """Destination: the guest runs here."""


SOURCE_STEPS = frozenset(
    {Step.MOVING, Step.PAUSING, Step.COMMITTED, Step.TAKEN_BACK, Step.RESUMED, Step.DONE}
)


@dataclass(frozen=True)
class RamPlace:
    """A RAM file: where it is, and which file that was."""

    name: str
    path: str
    """Empty: a guest holds the file, which has a place in its program only."""
    device: int
    inode: int


@dataclass(frozen=True)
class PausedGuest:
    """How a guest was paused, which is how somebody else can resume it."""

    way: str
    """`process`, `command`, `qmp`, `socket`, or `none`: nothing that another program can undo."""
    pid: int = 0
    start_time: int = 0
    """Of the process, clock ticks since the boot (proc_pid_stat(5), field 22): its number may be reused."""
    stopped_before: bool = False
    """It stood already; it is left so."""
    monitor: str = ""
    """Path of the monitor of a QEMU, or of the guest's own socket."""
    resume_cmd: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the resume command."""


@dataclass(frozen=True)
class JournalRecord:
    """One record; which fields matter depends on the side."""

    side: str
    """`source` or `destination`."""
    step: Step
    migration: str
    """Hexadecimal, 32 digits."""
    boot: str
    """Boot id of the host that wrote it."""
    ram: tuple[RamPlace, ...]
    number: int = 0
    """Of the pause."""
    attempt: int = 0
    root: str = ""
    """Of the pause's RAM, hexadecimal; what the two sides agreed on."""
    peer: str = ""
    """HOST:PORT of the other side."""
    arbiter: str = ""
    """Folder of the arbiter of this migration; empty: it has none."""
    embedded: bool = False
    """The guest is part of the process that wrote this, and has ended with it."""
    guest: PausedGuest | None = None
    """At the source, from the first pause on."""


def encode_slot(record: JournalRecord, sequence: int) -> bytes:
    """The bytes of a slot. Raises JournalError: the record is too long for one."""
    content = dataclasses.asdict(record)
    content["step"] = record.step.value
    payload = json.dumps(content, separators=(",", ":")).encode()
    if HEADER_BYTES + len(payload) > SLOT_BYTES:
        raise JournalError(f"a record of the journal has {len(payload)} bytes: its paths are too long")
    head = _HEAD.pack(_MAGIC, VERSION, 0, len(payload), sequence)
    return head + _CRC.pack(kernel.crc32c(head + payload)) + payload


def decode_slot(slot: bytes) -> tuple[int, JournalRecord] | None:
    """Sequence and record; None if the slot is empty, torn or damaged.

    Raises:
        JournalError: it is whole, but of another version, or says what no record may say.
    """
    if len(slot) < HEADER_BYTES or not slot.startswith(_MAGIC):
        return None
    _, version, _, length, sequence = _HEAD.unpack_from(slot)
    payload = slot[HEADER_BYTES : HEADER_BYTES + length]
    (crc,) = _CRC.unpack_from(slot, _HEAD.size)
    if len(payload) != length or kernel.crc32c(slot[: _HEAD.size] + payload) != crc:
        return None
    if version != VERSION:
        raise JournalError(f"the journal is of version {version}, this program reads {VERSION}")
    try:
        return sequence, _record(json.loads(payload))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise JournalError(f"the journal says what no version {VERSION} says: {error}") from error


def decode_file(data: bytes) -> tuple[int, JournalRecord]:
    """Sequence and record that count. Raises JournalError: no slot is whole."""
    slots = [decode_slot(data[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise JournalError("the journal is damaged: neither of its two records is whole")
    return max(whole, key=lambda slot: slot[0])


_Part = TypeVar("_Part", RamPlace, PausedGuest, JournalRecord)


def _record(content: Any) -> JournalRecord:
    guest = content["guest"]
    return _checked(
        JournalRecord(
            **{
                **content,
                "step": Step(content["step"]),
                "ram": tuple(_checked(RamPlace(**place)) for place in content["ram"]),
                "guest": None if guest is None else _checked(PausedGuest(**guest)),
            }
        )
    )


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "Step": Step,
    "tuple[RamPlace, ...]": tuple,
    "PausedGuest | None": (PausedGuest, type(None)),
    "Mapping[str, str]": dict,
}


def _checked(part: _Part) -> _Part:
    """The dataclass, if each field has its declared type. Raises TypeError."""
    for one in dataclasses.fields(part):
        if not isinstance(getattr(part, one.name), _TYPES[str(one.type)]):
            raise TypeError(f"{one.name} is {type(getattr(part, one.name)).__name__} instead of {one.type}")
    return part
