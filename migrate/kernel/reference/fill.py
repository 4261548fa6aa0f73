"""Source: pages of RAM to a batch body."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from migrate.kernel.reference import wire
from migrate.kernel.reference.arguments import (
    check_bitmap,
    check_digests,
    check_round,
    check_same_page_size,
    check_stage,
)
from migrate.kernel.reference.bitmap import bitmap_clear, bitmap_pages
from migrate.kernel.reference.cache import PageCache
from migrate.kernel.reference.digest import MASK128, Keys, crc32c, get_digest, is_zero, put_digest
from migrate.kernel.reference.ram import Ram
from migrate.kernel.reference.xbzrle import xbzrle_encode
from migrate.kernel.results import STAGE_BULK, FillResult, RamBlock


class _Kind(enum.Enum):
    SKIP = enum.auto()  # unchanged: no record
    SAME = enum.auto()  # unchanged, rule "qemu": an XBZRLE record of length 0
    ZERO = enum.auto()
    DELTA = enum.auto()
    MISS = enum.auto()  # whole page: not in the cache
    OVERFLOW = enum.auto()  # whole page: in the cache, but the delta does not pay
    PLAIN = enum.auto()  # whole page: no cache, or no lookup in this stage


@dataclass
class _Batch:
    """Records made so far."""

    page_size: int
    limit: int
    most_records: int
    body: bytearray = field(default_factory=bytearray)
    pages: list[int] = field(default_factory=list)
    kinds: list[_Kind] = field(default_factory=list)
    block: RamBlock | None = None
    xbzrle_bytes: int = 0

    def add(self, block: RamBlock, page: int, flag: int, payload: bytes) -> bool:
        """Append one record. False, and nothing done, if it would exceed the batch."""
        known = block is self.block
        word = (page - block.first_page) * self.page_size | flag | (wire.CONTINUE if known else 0)
        name = b"" if known else bytes([len(block.name)]) + block.name
        record = wire.HEADER.pack(word) + name + payload
        if len(self.body) + len(record) > self.limit or len(self.pages) == self.most_records:
            return False
        self.body += record
        self.pages.append(page)
        self.block = block
        if flag == wire.XBZRLE and len(payload) > wire.XBZRLE_HEADER.size:
            self.xbzrle_bytes += len(record) - wire.HEADER.size
        return True


def fill(
    ram: Ram,
    keys: Keys,
    digests: bytearray,
    cache: PageCache | None,
    pending: bytearray,
    owed: bytearray,
    start: int,
    out: bytearray | memoryview,
    limit: int,
    sent: bytearray,
    round: int,
    stage: int,
) -> FillResult:
    """Turn pages of `pending | owed`, ascending from page `start`, into RAM records in `out`.

    Each page is read once; zero test, unchanged test, delta, digest and cache all use that copy, and it is
    what goes out. A record that would exceed `limit` or the number of records ends the batch, its page stays
    as it was. Bits in gaps are ignored and stay.

    Raises:
        RamError: the file ended before the block did, or reading failed.
        ValueError: a buffer is too small (`out` and `limit` must have room for one PAGE record with the
            longest name), or an argument is out of its range.
    """
    most_records = wire.max_records(ram.page_size)
    check_same_page_size(ram.page_size, keys.page_size, cache.page_size if cache else ram.page_size)
    check_digests(digests, 0, ram.total_pages)
    check_bitmap(pending, ram.total_pages)
    check_bitmap(owed, 8 * len(pending))
    check_round(round)
    check_stage(stage)
    if start < 0:
        raise ValueError(f"page {start}")
    if limit < wire.HEADER.size + 1 + ram.longest_name + ram.page_size or limit > len(out):
        raise ValueError(f"no batch of up to {limit} bytes fits into a buffer of {len(out)}")
    if len(sent) < 8 * most_records:
        raise ValueError(f"{len(sent)} bytes are too few for {most_records} page numbers")

    cache = cache if wire.can_delta(ram.page_size) else None
    batch = _Batch(ram.page_size, limit, most_records)
    digest_sum = root_delta = 0
    next_page = ram.total_pages
    finished = True
    owed_pages = set(bitmap_pages(owed, start))
    for page in sorted(owed_pages.union(bitmap_pages(pending, start))):
        block = ram.block_of(page)
        if block is None:
            continue  # a gap: no page has this number
        if len(batch.kinds) == wire.LOOKS_PER_RECORD * most_records:
            next_page, finished = page, False
            break
        content = ram.read(block, page)
        digest = keys.page_digest(content)
        before = get_digest(digests, page)
        unchanged = page not in owed_pages and digest == before
        kind, flag, payload = _judge(page, content, unchanged, cache, stage)
        if kind is not _Kind.SKIP and not batch.add(block, page, flag, payload):
            next_page, finished = page, False
            break
        batch.kinds.append(kind)
        if cache is not None and kind is _Kind.SAME:
            cache.touch(page, round)
        elif cache is not None and kind is not _Kind.SKIP:
            cache.put(page, content, round, stage, zero=kind is _Kind.ZERO)
        bitmap_clear(pending, page)
        bitmap_clear(owed, page)
        put_digest(digests, page, digest)
        if kind is not _Kind.SKIP:
            digest_sum += keys.term(page, digest)
        if digest != before:
            root_delta += keys.term(page, digest) - keys.term(page, before)

    out[: len(batch.body)] = batch.body
    sent[: 8 * len(batch.pages)] = b"".join(page.to_bytes(8, "little") for page in batch.pages)
    count = batch.kinds.count
    return FillResult(
        length=len(batch.body),
        records=len(batch.pages),
        next_page=next_page,
        finished=finished,
        crc=crc32c(batch.body),
        digest_sum=digest_sum & MASK128,
        root_delta=root_delta & MASK128,
        zero=count(_Kind.ZERO),
        normal=count(_Kind.MISS) + count(_Kind.OVERFLOW) + count(_Kind.PLAIN),
        xbzrle=count(_Kind.DELTA),
        unchanged=count(_Kind.SKIP) + count(_Kind.SAME),
        cache_hit=count(_Kind.DELTA) + count(_Kind.OVERFLOW) + count(_Kind.SAME),
        cache_miss=count(_Kind.MISS),
        overflow=count(_Kind.OVERFLOW),
        xbzrle_bytes=batch.xbzrle_bytes + count(_Kind.OVERFLOW) * ram.page_size,
    )


def _judge(
    page: int, content: bytes, unchanged: bool, cache: PageCache | None, stage: int
) -> tuple[_Kind, int, bytes]:
    """How the page goes out: kind, flag and payload of its record. Changes nothing."""
    size = len(content)
    as_qemu = cache is not None and cache.rule == "qemu"
    looks_up = cache is not None and not (as_qemu and stage == STAGE_BULK)
    held = cache.get(page) if cache and looks_up else None
    # QEMU sends every page of the bulk round, since its peer's RAM is zero then; a peer that began with an
    # old copy holds others already.
    if unchanged and (not as_qemu or (not looks_up and not is_zero(content))):
        return _Kind.SKIP, 0, b""
    if unchanged and held is not None:
        return _Kind.SAME, wire.XBZRLE, wire.XBZRLE_HEADER.pack(wire.XBZRLE_ENCODING, 0)
    if is_zero(content):
        return _Kind.ZERO, wire.ZERO, b"\0"
    if held is not None:
        delta = xbzrle_encode(held, content, wire.longest_delta(size), wire.GAP)
        if delta is None:
            return _Kind.OVERFLOW, wire.PAGE, content
        # Length 0 means that RAM is right already, but this page has to be written: change a byte to itself.
        delta = delta or bytes([0, 1, content[0]])
        return _Kind.DELTA, wire.XBZRLE, wire.XBZRLE_HEADER.pack(wire.XBZRLE_ENCODING, len(delta)) + delta
    missed = cache is not None and stage != STAGE_BULK
    return _Kind.MISS if missed else _Kind.PLAIN, wire.PAGE, content
