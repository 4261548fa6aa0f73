"""Destination of a real QEMU: the records of a RAM section, one after the other, straight into RAM."""

from __future__ import annotations

import struct
import threading
from typing import NamedTuple

from migrate.errors import RecordError
from migrate.kernel.reference import wire
from migrate.kernel.reference.bitmap import bitmap_bytes
from migrate.kernel.reference.digest import is_zero
from migrate.kernel.reference.ram import Ram
from migrate.kernel.reference.xbzrle import xbzrle_decode
from migrate.kernel.results import (
    WALK_COUNTERS,
    WALK_EOS,
    WALK_FLUSH,
    WALK_KIND,
    WALK_LISTED,
    WALK_MORE,
    WALK_ROUND,
    RamBlock,
    WalkResult,
)

_ROW = struct.Struct(WALK_LISTED)
_WIDTH = len(WALK_COUNTERS)
_LOCK = threading.Lock()
"""Channels land at once, and a bit in a bytearray is not set in one step."""


class _Record(NamedTuple):
    offset: int
    flag: int
    named: bool
    block: int
    place: int
    payload: bytes


class _ShortError(Exception):
    """The bytes end inside a record."""


def walk(
    ram: Ram,
    body: bytes | bytearray | memoryview,
    block: int | None,
    content: bytearray,
    seen: bytearray,
    counts: bytearray | memoryview,
    apply: bool,
    listing: bytearray | None = None,
    after: int | None = None,
    compressed: bool = False,
) -> WalkResult:
    """Go through the records of a RAM section. Raises RecordError, RamError, ValueError (the contract)."""
    blocks = sorted(ram.by_name.values(), key=lambda each: each.first_page)
    if block is not None and not 0 <= block < len(blocks):
        raise ValueError(f"block {block} of {len(blocks)}")
    if len(counts) != 8 * _WIDTH * len(blocks) or any(
        len(bitmap) < bitmap_bytes(ram.total_pages) for bitmap in (content, seen)
    ):
        raise ValueError("counts, content or seen do not fit the blocks")
    room = len(body) if listing is None else len(listing) // _ROW.size
    if listing is not None and not room:
        raise ValueError("listing has no room for a record")
    numbers = memoryview(counts).cast("B").cast("Q")
    data, at, listed, written = bytes(body), 0, 0, 0
    stop, rounds, after = WALK_MORE, after is not None, after or 0
    while listed < room:
        try:
            record, end = _read(ram, blocks, data, at, block)
        except _ShortError:
            break
        if (record.flag == wire.COMPRESSED) != compressed:
            stop = WALK_KIND
            break
        if record.flag in (wire.EOS, wire.FLUSH):
            at, stop = end, WALK_EOS if record.flag == wire.EOS else WALK_FLUSH
            break
        page = blocks[record.block].first_page + record.place
        if rounds and page < after:
            stop = WALK_ROUND
            break
        block, after = record.block, page + 1
        _mark(seen, page)
        numbers[block * _WIDTH + WALK_COUNTERS.index("named" if record.named else "continued")] += 1
        counted = _count(ram, blocks[block], record, content)
        if listing is not None:
            flags = record.flag | (0 if record.named else wire.CONTINUE)
            length = len(record.payload) if record.flag in (wire.XBZRLE, wire.COMPRESSED) else 0
            _ROW.pack_into(
                listing, listed * _ROW.size, at, record.place * ram.page_size, block, flags, length
            )
        listed += 1
        for name, value in counted.items():
            numbers[block * _WIDTH + WALK_COUNTERS.index(name)] += value
        written += _land(ram, blocks[block], record, content, apply)
        at = end
    return WalkResult(at, stop, block, listed if listing is not None else 0, written, after)


def land(
    ram: Ram,
    block: int,
    offsets: bytes | bytearray | memoryview,
    normal: int,
    data: bytes | bytearray | memoryview,
    content: bytearray,
    seen: bytearray,
    counts: bytearray | memoryview,
) -> int:
    """Put the pages of a multifd packet into RAM. Raises RecordError, RamError, ValueError (the contract)."""
    blocks = sorted(ram.by_name.values(), key=lambda each: each.first_page)
    if not 0 <= block < len(blocks) or len(counts) != 8 * _WIDTH * len(blocks):
        raise ValueError("block or counts do not fit the blocks")
    if any(len(bitmap) < bitmap_bytes(ram.total_pages) for bitmap in (content, seen)):
        raise ValueError("content or seen do not fit the blocks")
    if len(offsets) % 8 or not 0 <= normal <= len(offsets) // 8 or len(data) != normal * ram.page_size:
        raise ValueError("data and offsets do not fit")
    numbers = memoryview(counts).cast("B").cast("Q")
    places = [offset for (offset,) in wire.HEADER.iter_unpack(bytes(offsets))]
    for at, offset in enumerate(places):
        if offset % ram.page_size or offset // ram.page_size >= blocks[block].pages:
            raise RecordError("bad-offset", at * 8, f"page at {offset:#x} of a block")
    written = 0
    for at, offset in enumerate(places):
        payload = bytes(data[at * ram.page_size : (at + 1) * ram.page_size])
        flag = wire.PAGE if at < normal else wire.ZERO
        record = _Record(at * 8, flag, True, block, offset // ram.page_size, payload)
        page = blocks[block].first_page + record.place
        _mark(seen, page)
        for name, value in _count(ram, blocks[block], record, content).items():
            numbers[block * _WIDTH + WALK_COUNTERS.index(name)] += value
        written += _land(ram, blocks[block], record, content, True)
    return written


def _read(
    ram: Ram, blocks: list[RamBlock], data: bytes, start: int, block: int | None
) -> tuple[_Record, int]:
    at = start

    def take(length: int) -> bytes:
        nonlocal at
        if len(data) - at < length:
            raise _ShortError
        at += length
        return data[at - length : at]

    (word,) = wire.HEADER.unpack(take(wire.HEADER.size))
    flag = word & (ram.page_size - 1) & ~wire.CONTINUE
    named = not word & wire.CONTINUE
    if flag in (wire.EOS, wire.FLUSH):
        return _Record(start, flag, named, 0, 0, b""), at
    if flag == wire.HOOK:
        raise RecordError("hook", start, "an RDMA hook record")
    if flag not in (wire.ZERO, wire.PAGE, wire.XBZRLE, wire.COMPRESSED):
        raise RecordError("unknown-flags", start, f"no page record has the flags {flag:#x}")
    if named:
        name = take(take(1)[0])
        if name not in ram.by_name:
            raise RecordError("unknown-block", start, f"there is no RAM block {name!r}")
        block = blocks.index(ram.by_name[name])
    if block is None:
        raise RecordError("no-block", start, "the first record does not name its block")
    place = word // ram.page_size
    if place >= blocks[block].pages:
        raise RecordError("bad-offset", start, f"page {place} of a block of {blocks[block].pages} pages")
    if flag == wire.ZERO:
        payload = take(1)
        if payload != b"\0":
            raise RecordError("zero-fill", start, "a zero page with another fill byte than 0")
    elif flag == wire.PAGE:
        payload = take(ram.page_size)
    elif flag == wire.COMPRESSED:
        (length,) = wire.COMPRESSED_HEADER.unpack(take(wire.COMPRESSED_HEADER.size))
        most = ram.page_size + (ram.page_size >> 12) + (ram.page_size >> 14) + 13
        if not 0 < length <= min(most, 0xFFFF):
            raise RecordError("compress-length", start, f"a compressed page of {length} bytes")
        payload = take(length)
    else:
        encoding, length = wire.XBZRLE_HEADER.unpack(take(wire.XBZRLE_HEADER.size))
        if encoding != wire.XBZRLE_ENCODING:
            raise RecordError("xbzrle-encoding", start, f"unknown delta encoding {encoding}")
        if length > ram.page_size:
            raise RecordError("xbzrle-length", start, f"a delta of {length} bytes")
        payload = take(length)
    return _Record(start, flag, named, block, place, payload), at


def _count(ram: Ram, block: RamBlock, record: _Record, content: bytearray) -> dict[str, int]:
    counted: dict[str, int] = {}
    if record.flag == wire.PAGE:
        return counted | {"normal": 1}
    if record.flag == wire.ZERO:
        page = block.first_page + record.place
        return counted | {"zero_again" if content[page >> 3] >> (page & 7) & 1 else "zero": 1}
    if record.flag == wire.COMPRESSED:
        return counted | {"compressed": 1, "compressed_bytes": len(record.payload)}
    # What is left untouched does not matter here, so the runs can be told from the delta alone.
    try:
        xbzrle_decode(record.payload, bytearray(ram.page_size))
    except ValueError as error:
        raise RecordError("xbzrle-delta", record.offset, f"an undecodable delta: {error}") from error
    return counted | {"xbzrle": 1, "xbzrle_runs": _runs(record.payload), "xbzrle_bytes": len(record.payload)}


def _runs(delta: bytes) -> int:
    """Runs of changes in a delta that is known to be good."""
    at = runs = 0
    while at < len(delta):
        at += 2 if delta[at] & 128 else 1
        two = delta[at] & 128
        length = delta[at] & 127 | (delta[at + 1] << 7 if two else 0)
        at += (2 if two else 1) + length
        runs += 1
    return runs


def _land(ram: Ram, block: RamBlock, record: _Record, content: bytearray, apply: bool) -> int:
    """Put the page into RAM if need be; returns how many pages were written."""
    page = block.first_page + record.place
    held = content[page >> 3] >> (page & 7) & 1
    if record.flag == wire.COMPRESSED:
        if not apply:
            _mark(content, page, True)
        return 0
    if record.flag == wire.XBZRLE:
        if not record.payload:
            return 0
        new = bytearray(ram.page_size)
        if apply:
            ram.require_whole(block)
            if held:
                new = bytearray(ram.read(block, page))
            xbzrle_decode(record.payload, new)
        filled = not apply or not is_zero(new)
    else:
        new = bytearray(record.payload if record.flag == wire.PAGE else ram.page_size)
        filled = not is_zero(new)
        if not filled and not held:
            return 0
    _mark(content, page, filled)
    if not apply:
        return 0
    ram.require_whole(block)
    ram.write(block, page, bytes(new))
    return 1


def _mark(bitmap: bytearray, page: int, value: bool = True) -> None:
    with _LOCK:
        if value:
            bitmap[page >> 3] |= 1 << (page & 7)
        else:
            bitmap[page >> 3] &= ~(1 << (page & 7))
