"""Page records one by one, for people: what `kernel.walk` listed, with deltas decoded into runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from migrate.kernel.results import WALK_LISTED
from migrate.protocol.qemu_ram import ROW_BYTES
from migrate.protocol.records import (
    RAM_SAVE_FLAG_COMPRESS_PAGE,
    RAM_SAVE_FLAG_CONTINUE,
    RAM_SAVE_FLAG_PAGE,
    RAM_SAVE_FLAG_XBZRLE,
    RAM_SAVE_FLAG_ZERO,
)
from migrate.ram.layout import BlockPlace

_NAMES = {
    RAM_SAVE_FLAG_ZERO: "zero",
    RAM_SAVE_FLAG_PAGE: "page",
    RAM_SAVE_FLAG_XBZRLE: "xbzrle",
    RAM_SAVE_FLAG_COMPRESS_PAGE: "compressed",
}
_WORD, _XBZRLE_HEADER = 8, 3


class PageRecord(NamedTuple):
    """One page record of a stream."""

    at: int
    """Byte offset in the stream; in a compressed batch, in the batch unpacked."""
    type: str
    """zero, page, xbzrle or compressed."""
    block: str
    offset: int
    """Bytes, in the block."""
    runs: tuple[tuple[int, int], ...] = ()
    """XBZRLE: (first byte in the page, length) of each run of new bytes."""


def listed_records(
    listing: bytearray, rows: int, body: memoryview, start: int, blocks: Sequence[BlockPlace]
) -> Iterator[PageRecord]:
    """The records of a listing; `body` is what was walked, `start` its place in the stream."""
    for at, offset, block, flags, length in struct.iter_unpack(WALK_LISTED, listing[: rows * ROW_BYTES]):
        name = blocks[block].name
        runs: tuple[tuple[int, int], ...] = ()
        if flags & RAM_SAVE_FLAG_XBZRLE:
            named = 0 if flags & RAM_SAVE_FLAG_CONTINUE else 1 + len(name.encode())
            begin = at + _WORD + named + _XBZRLE_HEADER
            runs = delta_runs(body[begin : begin + length])
        yield PageRecord(start + at, _NAMES[flags & ~RAM_SAVE_FLAG_CONTINUE], name, offset, runs)


def delta_runs(delta: bytes | memoryview) -> tuple[tuple[int, int], ...]:
    """(first byte, length) of each run of new bytes in a delta that was checked (qemu-ram-stream.md 3.2)."""
    runs: list[tuple[int, int]] = []
    at = place = 0

    def length() -> int:
        nonlocal at
        value = delta[at]
        at += 1
        if value & 0x80:
            value = value & 0x7F | delta[at] << 7
            at += 1
        return value

    while at < len(delta):
        place += length()
        changed = length()
        runs.append((place, changed))
        at += changed
        place += changed
    return tuple(runs)
