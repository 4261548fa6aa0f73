"""Numbers and small messages of QEMU's migration stream (qemu-ram-stream.md 1.2-1.6, 2.2, 6.1).

header     "QEVM" be32 3
section    u8 type, be32 id, START and FULL: str8 name, be32 instance, be32 version; body; 0x7e, be32 id
command    0x08 be16 number be16 length payload
answers    be16 type be16 length payload       (return path, destination to source)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from migrate.protocol.mapped_ram import MappedPages

MAGIC = b"QEVM"
MULTIFD_MAGIC = b"\x11\x22\x33\x44"
VERSION = 3
RAM_VERSION = 4

EOF = 0x00
SUBSECTION = 0x05
VMDESCRIPTION = 0x06
CONFIGURATION = 0x07
COMMAND = 0x08
FOOTER = 0x7E

ANSWER_SHUT = 1
ANSWER_PONG = 2
ANSWER_BYTES = 4
MAX_ANSWER_BYTES = 512
"""What follows the head of an answer at most: REQ_PAGES with a name has 8 + 4 + 1 + 255."""

CAP_IGNORE_SHARED = "x-ignore-shared"
CAP_MAPPED_RAM = "mapped-ram"


class Section(IntEnum):
    """What a section is."""

    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04


class Command(IntEnum):
    """What a source tells beside its sections."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


COMMAND_LENGTHS: dict[Command, tuple[int, ...]] = {
    Command.OPEN_RETURN_PATH: (0,),
    Command.PING: (4,),
    Command.POSTCOPY_ADVISE: (0, 16),
    Command.PACKAGED: (4,),
    Command.SWITCHOVER_START: (0,),
}
"""Payload bytes of the commands that a stream may hold outside a package and a recovery."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the configuration section says."""

    machine: str
    page_size: int = 4096
    """Bytes; without the subsection target-page-bits the smallest of the CPU family: 4096 on x86."""
    capabilities: tuple[str, ...] = ()
    uuid: bytes | None = None


@dataclass(frozen=True, slots=True)
class StreamBlock:
    """One entry of the MEM_SIZE list."""

    name: str
    length: int
    """Bytes."""
    address: int | None = None
    """Guest-physical; only with x-ignore-shared."""
    mapped: MappedPages | None = None
    """Where its pages are in the file; only with mapped-ram."""


def encode_shut(status: int) -> bytes:
    """The last message of a return path: 0 = loaded, else the source keeps its guest."""
    return struct.pack(">HHI", ANSWER_SHUT, 4, status)


def encode_switchover_ack() -> bytes:
    """The source may stop its guest; with the capability switchover-ack it waits for that."""
    return struct.pack(">HH", 7, 0)


def encode_pong(value: bytes) -> bytes:
    """The answer to a PING with that payload."""
    return struct.pack(">HH", ANSWER_PONG, 4) + value


def check_discard(payload: bytes) -> None:
    """POSTCOPY_RAM_DISCARD: u8 0, str8 block, u8 0, then be64 start and be64 length of each range.

    Raises:
        ValueError: version, terminator or length are wrong (qemu-ram-stream.md 7.3).
    """
    if len(payload) < 20 or payload[0] != 0:
        raise ValueError("it is too short, or of an unknown version")
    end = 2 + payload[1]
    if end >= len(payload) or payload[end] != 0 or (len(payload) - end - 1) % 16:
        raise ValueError("its name or its list of ranges does not end where it should")
