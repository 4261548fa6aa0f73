"""Destination: a batch body to pages of RAM, in two passes; a bad body never touches RAM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from migrate.errors import RecordError, VerifyError
from migrate.kernel.reference import wire
from migrate.kernel.reference.arguments import (
    check_digests,
    check_lane,
    check_round,
    check_same_page_size,
    check_stage,
)
from migrate.kernel.reference.cache import PageCache
from migrate.kernel.reference.digest import MASK128, Keys, get_digest, is_zero, put_digest
from migrate.kernel.reference.ram import Ram, describe
from migrate.kernel.reference.xbzrle import xbzrle_decode
from migrate.kernel.results import STAGE_BULK, ApplyResult, RamBlock


@dataclass(frozen=True)
class _Record:
    """One record as it stands in the body. `payload` is the page or the delta, empty for ZERO."""

    offset: int
    flag: int
    block: RamBlock
    page: int
    payload: bytes


def apply(
    ram: Ram,
    keys: Keys,
    digests: bytearray,
    cache: PageCache | None,
    body: bytes | bytearray | memoryview,
    records: int,
    digest_sum: int,
    lane: int,
    lanes: int,
    round: int,
    stage: int,
    readback: bool,
) -> ApplyResult:
    """Check and decode a batch body of RAM page records, then write it to RAM.

    All of the body is checked before the first write, its digest sum too. A page may occur several times: the
    cache sees all of its records in order, RAM gets the last content.

    Raises:
        RecordError: the body breaks a rule; nothing was written, the cache may have changed.
        RamError: writing or reading back failed, or a file is shorter than its block.
        VerifyError: RAM read back is not what was written.
        ValueError: `digests` is too small, or an argument is out of its range.
    """
    check_same_page_size(ram.page_size, keys.page_size, cache.page_size if cache else ram.page_size)
    check_digests(digests, 0, ram.total_pages)
    check_lane(lane, lanes)
    check_round(round)
    check_stage(stage)

    cache = cache if wire.can_delta(ram.page_size) else None
    contents: dict[int, bytes] = {}  # the last content of each page that the body changes
    after: dict[int, int] = {}  # the digests of these
    flags: list[int] = []
    found_sum = 0
    for record in _parse(ram, bytes(body), lane, lanes):
        page = record.page
        content = _content(keys, cache, record, stage)
        if content is not None:
            contents[page] = content
            after[page] = keys.page_digest(content)
            flags.append(record.flag)
            if cache is not None:
                cache.put(page, content, round, stage, zero=record.flag == wire.ZERO)
        elif cache is not None:
            flags.append(0)
            cache.touch(page, round)
        found_sum += keys.term(page, after.get(page, get_digest(digests, page)))
    if len(flags) != records:
        raise RecordError("record-count", len(body), f"{len(flags)} records instead of {records}")
    if found_sum & MASK128 != digest_sum:
        raise RecordError("digest", len(body), "the pages are not those that the source sent")

    written = {
        page: contents[page]
        for page in sorted(contents)
        if not is_zero(contents[page]) or get_digest(digests, page) != keys.zero_digest
    }
    _write(ram, written, readback)
    root_delta = 0
    for page, digest in after.items():
        root_delta += keys.term(page, digest) - keys.term(page, get_digest(digests, page))
        put_digest(digests, page, digest)
    return ApplyResult(
        records=len(flags),
        root_delta=root_delta & MASK128,
        zero=flags.count(wire.ZERO),
        normal=flags.count(wire.PAGE),
        xbzrle=flags.count(wire.XBZRLE),
        written=len(written),
    )


def _parse(ram: Ram, body: bytes, lane: int, lanes: int) -> Iterator[_Record]:
    """The records of a body, each checked for what can be told without the cache."""
    at = count = 0
    block: RamBlock | None = None

    def take(length: int) -> bytes:
        nonlocal at
        if len(body) - at < length:
            raise RecordError("truncated", offset, "the batch ends inside a record")
        at += length
        return body[at - length : at]

    while at < len(body):
        offset = at
        if count == wire.max_records(ram.page_size):
            raise RecordError("too-many-records", offset, f"more than {count} records")
        count += 1
        (word,) = wire.HEADER.unpack(take(wire.HEADER.size))
        flag = word & (ram.page_size - 1) & ~wire.CONTINUE
        if flag == wire.HOOK:
            raise RecordError("hook", offset, "an RDMA hook record")
        if flag not in (wire.ZERO, wire.PAGE, wire.XBZRLE):
            raise RecordError("unknown-flags", offset, f"no page record has the flags {flag:#x}")
        if not word & wire.CONTINUE:
            name = take(take(1)[0])
            block = ram.by_name.get(name)
            if block is None:
                raise RecordError("unknown-block", offset, f"there is no RAM block {name!r}")
        if block is None:
            raise RecordError("no-block", offset, "the first record does not name its block")
        place = word // ram.page_size
        if place >= block.pages:
            raise RecordError("bad-offset", offset, f"page {place} of a block of {block.pages} pages")
        page = block.first_page + place
        if page // ram.stripe_pages % lanes != lane:
            raise RecordError("wrong-lane", offset, f"page {page} does not travel in lane {lane} of {lanes}")
        yield _Record(offset, flag, block, page, _payload(ram, flag, offset, take))


def _payload(ram: Ram, flag: int, offset: int, take: Callable[[int], bytes]) -> bytes:
    if flag == wire.PAGE:
        return take(ram.page_size)
    if flag == wire.ZERO:
        if take(1) != b"\0":
            raise RecordError("zero-fill", offset, "a zero page with another fill byte than 0")
        return b""
    encoding, length = wire.XBZRLE_HEADER.unpack(take(wire.XBZRLE_HEADER.size))
    if encoding != wire.XBZRLE_ENCODING:
        raise RecordError("xbzrle-encoding", offset, f"unknown delta encoding {encoding}")
    if length > ram.page_size:
        raise RecordError("xbzrle-length", offset, f"a delta of {length} bytes for a page of {ram.page_size}")
    return take(length)


def _content(keys: Keys, cache: PageCache | None, record: _Record, stage: int) -> bytes | None:
    """The page after the record; None for the XBZRLE record of length 0, which leaves it as it is."""
    if record.flag == wire.ZERO:
        return bytes(keys.page_size)
    if record.flag == wire.PAGE:
        return record.payload
    as_qemu = cache is not None and cache.rule == "qemu"
    if cache is None or (as_qemu and stage == STAGE_BULK):
        raise RecordError("xbzrle-disabled", record.offset, "a delta where none may be sent")
    if not record.payload and not as_qemu:
        raise RecordError("xbzrle-length", record.offset, "an empty delta")
    held = cache.get(record.page)
    if held is None:
        raise RecordError("xbzrle-not-held", record.offset, f"a delta for page {record.page}, not held")
    if not record.payload:
        return None
    content = bytearray(held)
    try:
        xbzrle_decode(record.payload, content)
    except ValueError as error:
        raise RecordError("xbzrle-delta", record.offset, f"an undecodable delta: {error}") from error
    return bytes(content)


def _write(ram: Ram, written: dict[int, bytes], readback: bool) -> None:
    looked_at: set[RamBlock] = set()
    for first, content in _runs(ram, written):
        block = ram.require_block(first)
        if block not in looked_at:
            ram.require_whole(block)
            looked_at.add(block)
        ram.write(block, first, content)
        for page in range(first, first + len(content) // ram.page_size if readback else first):
            if ram.read_some(block, page) != written[page]:
                offset = (page - block.first_page) * ram.page_size
                raise VerifyError(f"{describe(block, offset)}: read back is not what was written")


def _runs(ram: Ram, written: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Join pages that follow each other in one block: first page and content of each run."""
    run: list[int] = []
    for page in written:
        if run and (page != run[-1] + 1 or ram.block_of(page) is not ram.block_of(run[0])):
            yield run[0], b"".join(written[part] for part in run)
            run = []
        run.append(page)
    if run:
        yield run[0], b"".join(written[part] for part in run)
