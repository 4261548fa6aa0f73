"""What a source writes around its RAM records (qemu-ram-stream.md 1.2-1.6, 2.2).

head        header, configuration section
section     opening, records, EOS, footer
end         EOF, description
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from migrate.protocol import qemu_wire as wire
from migrate.protocol.qemu_wire import Command, Configuration, Section
from migrate.protocol.records import EOS, encode_block_list

RAM_SECTION = 2
"""Our number of it; any but 0 will do, and it may be a device's as well (1.4, 1.7)."""
OPENING_BYTES = 5
_BASE_PAGE = 4096


def encode_head(configuration: Configuration) -> bytes:
    """Header and configuration section.

    A page of another size than 4096 is the exception, and said; machines on which it is the rule would not
    take that, and none of them is known here.
    """
    machine = configuration.machine.encode()
    parts = [wire.MAGIC, struct.pack(">IBI", wire.VERSION, wire.CONFIGURATION, len(machine)), machine]
    if configuration.page_size != _BASE_PAGE:
        bits = configuration.page_size.bit_length() - 1
        parts += [_subsection("configuration/target-page-bits"), struct.pack(">I", bits)]
    if configuration.capabilities:
        parts += [
            _subsection("configuration/capabilities"),
            struct.pack(">I", len(configuration.capabilities)),
            *(_str8(name) for name in configuration.capabilities),
        ]
    if configuration.uuid is not None:
        parts += [_subsection("configuration/uuid"), configuration.uuid]
    return b"".join(parts)


def encode_command(command: Command, payload: bytes = b"") -> bytes:
    """A command; it may stand between any two sections."""
    return struct.pack(">BHH", wire.COMMAND, command, len(payload)) + payload


def encode_ping(value: int) -> bytes:
    """To be answered by a PONG with the same value, once all before it was taken."""
    return encode_command(Command.PING, value.to_bytes(4, "big"))


def encode_start(blocks: Sequence[tuple[str, int]], page_size: int) -> bytes:
    """The START section of RAM: name and length in bytes of every block."""
    identity = _str8("ram") + struct.pack(">II", 0, wire.RAM_VERSION)
    body = encode_block_list(blocks, page_size)
    return _opening(Section.START) + identity + body + FOOTER


def encode_part(records: bytes, section: Section = Section.PART) -> bytes:
    """A section PART or END with these records, which may be none."""
    return _opening(section) + records + CLOSING


def _opening(section: Section) -> bytes:
    return struct.pack(">BI", section, RAM_SECTION)


def _subsection(name: str) -> bytes:
    return bytes((wire.SUBSECTION,)) + _str8(name) + struct.pack(">I", 1)


def _str8(text: str) -> bytes:
    raw = text.encode()
    return bytes((len(raw),)) + raw


FOOTER = struct.pack(">BI", wire.FOOTER, RAM_SECTION)
CLOSING = EOS + FOOTER
"""What ends a section of records."""
PART_OPENING = _opening(Section.PART)
NO_DESCRIPTION = struct.pack(">BI", wire.VMDESCRIPTION, 2) + b"{}"
"""In place of the source's: a QEMU that gets none waits for one more byte (1.5)."""
