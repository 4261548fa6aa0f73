"""What the kernel tests share: a RAM over memory files with all that `fill` and `apply` need; bodies by hand.

Hypothesis runs the same examples every time here, so a red run can simply be repeated. For a search,
`MIGRATE_KERNEL_EXAMPLES=50` takes 50 times as many, new ones each time; a failure prints what repeats it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND, ApplyResult, FillResult, RamBlock

BULK, ROUND, LAST = STAGE_BULK, STAGE_ROUND, STAGE_LAST
RULES = ("default", "qemu")
SEED = bytes(range(32))  # of the digest keys
SLOT_BYTES = 32  # what a cache slot needs beside the page
ZERO, PAGE, CONTINUE, XBZRLE, HOOK = 0x02, 0x08, 0x20, 0x40, 0x80

HELD = 8  # the page that `prepare` puts into the cache
RAM = b"pc.ram"

_FACTOR = int(os.environ.get("MIGRATE_KERNEL_EXAMPLES", "1"))

# Two gaps, the second block shorter than a stripe, the longest name there may be.
LAYOUT = ((b"pc.ram", 0, 100), (b"vga.vram", 128, 30), (b"n" * 255, 192, 5))


def examples(count: int) -> settings:
    """How many examples a property gets: `count`, the same every time, unless a search is asked for."""
    return settings(
        max_examples=count * _FACTOR,
        derandomize=_FACTOR == 1,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Batch:
    """What `fill` returned and wrote."""

    result: FillResult
    body: bytes
    pages: tuple[int, ...]


class Side:
    """One end of a lane: RAM over memory files, digests, cache, dirty bits and the root kept by deltas."""

    def __init__(
        self,
        kernel: Any,
        *,
        page_size: int = 1024,
        layout: Sequence[tuple[bytes, int, int]] = LAYOUT,
        slots: int | None = None,
        rule: str = "default",
        files: Sequence[int] | None = None,
    ) -> None:
        """`slots` None: no cache. `files`: read these instead of having own ones."""
        self.kernel = kernel
        self.page_size = page_size
        self.own = [os.memfd_create("migrate-test") for _ in layout] if files is None else []
        self.files = list(files) if files is not None else self.own
        self.blocks = [
            RamBlock(name, fd, first, pages)
            for (name, first, pages), fd in zip(layout, self.files, strict=True)
        ]
        for block in self.blocks if files is None else ():
            os.ftruncate(block.fd, block.pages * page_size)
        self.keys = kernel.Keys(SEED, page_size)
        self.ram = kernel.Ram(page_size, 64, self.blocks)
        total = self.ram.total_pages
        self.pages = [
            p for block in self.blocks for p in range(block.first_page, block.first_page + block.pages)
        ]
        self.digests = bytearray(16 * total)
        kernel.set_digests(self.digests, 0, total, self.keys.zero_digest)
        self.root = kernel.root(self.keys, self.digests, 0, total)
        self.pending = bytearray(kernel.bitmap_bytes(total))
        self.owed = bytearray(len(self.pending))
        self.cache = None
        if slots is not None:
            self.cache = kernel.PageCache(self.keys, slots * (page_size + SLOT_BYTES), rule)

    def close(self) -> None:
        for fd in self.own:
            os.close(fd)

    def place(self, page: int) -> tuple[int, int]:
        """Descriptor and byte offset of a page."""
        block = next(b for b in self.blocks if b.first_page <= page < b.first_page + b.pages)
        return block.fd, (page - block.first_page) * self.page_size

    def read(self, page: int) -> bytes:
        fd, offset = self.place(page)
        return os.pread(fd, self.page_size, offset)

    def write(self, page: int, content: bytes, *, dirty: bool = True) -> None:
        """The guest writes a page; the tracker sees it if `dirty`."""
        fd, offset = self.place(page)
        assert os.pwrite(fd, content, offset) == len(content) == self.page_size
        if dirty:
            self.mark(page)

    def mark(self, *pages: int, owed: bool = False) -> None:
        for page in pages:
            self.kernel.bitmap_set_range(self.owed if owed else self.pending, page, 1)

    def image(self) -> list[bytes]:
        """Content of every block."""
        return [os.pread(block.fd, (block.pages + 1) * self.page_size, 0) for block in self.blocks]

    def held(self) -> list[tuple[int, int, bytes]]:
        return [] if self.cache is None else self.cache.items()

    def cache_digest(self) -> int:
        return 0 if self.cache is None else int(self.cache.digest)

    def fill(self, round: int, stage: int, *, start: int = 0, limit: int = 1 << 20) -> Batch:
        out = bytearray(limit)
        sent = bytearray(8 * self.kernel.max_records(self.page_size))
        result = self.kernel.fill(
            self.ram, self.keys, self.digests, self.cache, self.pending, self.owed,
            start, out, limit, sent, round, stage,
        )  # fmt: skip
        self.root = (self.root + result.root_delta) % 2**128
        pages = struct.unpack_from(f"<{result.records}Q", sent)
        return Batch(result, bytes(out[: result.length]), pages)

    def fill_all(self, round: int, stage: int, *, limit: int = 1 << 20) -> Iterator[Batch]:
        """Batches until nothing is left."""
        start = 0
        while True:
            batch = self.fill(round, stage, start=start, limit=limit)
            yield batch
            if batch.result.finished:
                return
            assert batch.result.next_page > start or start == 0
            start = batch.result.next_page

    def apply(self, batch: Batch, round: int, stage: int, *, readback: bool = True) -> ApplyResult:
        return self.apply_body(
            batch.body, batch.result.records, batch.result.digest_sum, round, stage, readback=readback
        )

    def apply_body(
        self,
        body: bytes,
        records: int,
        digest_sum: int,
        round: int = 2,
        stage: int = ROUND,
        *,
        lane: int = 0,
        lanes: int = 1,
        readback: bool = True,
    ) -> ApplyResult:
        result: ApplyResult = self.kernel.apply(
            self.ram, self.keys, self.digests, self.cache, body, records, digest_sum,
            lane, lanes, round, stage, readback,
        )  # fmt: skip
        self.root = (self.root + result.root_delta) % 2**128
        return result

    def terms(self, *contents: tuple[int, bytes]) -> int:
        """Digest sum of a body that leaves these pages with these contents."""
        return (
            sum(self.keys.term(page, self.keys.page_digest(content)) for page, content in contents) % 2**128
        )


@contextmanager
def sides(kernel: Any, count: int = 1, **options: Any) -> Iterator[list[Side]]:
    """Several equal sides of one kernel, closed at the end."""
    made = [Side(kernel, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for side in made:
            side.close()


def assert_equal_sides(source: Side, destination: Side) -> None:
    """What has to hold after every round: RAM, digests, roots and caches are equal."""
    assert destination.image() == source.image()
    assert destination.digests == source.digests
    assert destination.held() == source.held()
    assert destination.cache_digest() == source.cache_digest()
    total = source.ram.total_pages
    assert source.root == destination.root == source.kernel.root(source.keys, source.digests, 0, total)


def record(flags: int, offset: int, name: bytes | None, payload: bytes) -> bytes:
    """One RAM record; without a name it says CONTINUE."""
    if name is None:
        return struct.pack(">Q", offset | flags | CONTINUE) + payload
    return struct.pack(">Q", offset | flags) + bytes([len(name)]) + name + payload


def zero_record(offset: int, name: bytes | None = None) -> bytes:
    return record(ZERO, offset, name, b"\0")


def page_record(offset: int, content: bytes, name: bytes | None = None) -> bytes:
    return record(PAGE, offset, name, content)


def delta_record(offset: int, delta: bytes, name: bytes | None = None) -> bytes:
    return record(XBZRLE, offset, name, struct.pack(">BH", 1, len(delta)) + delta)


def change(rng: random.Random, content: bytes, kind: str) -> bytes:
    """A page after a guest's write."""
    size = len(content)
    if kind == "zero":
        return bytes(size)
    if kind == "random":
        return rng.randbytes(size)
    if kind == "same":
        return content
    page = bytearray(content)
    if kind == "run":
        start = rng.randrange(size)
        page[start : start + 100] = rng.randbytes(len(page[start : start + 100]))
    else:
        for _ in range(int(kind)):  # so many bytes anywhere
            page[rng.randrange(size)] = rng.randrange(256)
    return bytes(page)


CHANGES = ("zero", "random", "same", "run", "1", "8", "200", "700")


def counters(result: FillResult) -> dict[str, int]:
    """The counters that are not zero."""
    names = result._fields[7:]
    return {name: getattr(result, name) for name in names if getattr(result, name)}


def content(seed: int, size: int = 1024) -> bytes:
    """A page of random bytes, always the same for a seed."""
    return random.Random(seed).randbytes(size)


def prepare(side: Side) -> None:
    """Pages HELD, 9 and 10 have content, known to the digests; HELD is cached."""
    for page in (HELD, 9, 10):
        side.write(page, content(page), dirty=False)
    for page in (HELD, 9, 10):
        side.kernel.set_digests(side.digests, page, 1, side.keys.page_digest(content(page)))
    if side.cache is not None:
        assert side.cache.put(HELD, content(HELD), 2, ROUND)


def edited(page: bytes, place: int, new: bytes) -> bytes:
    """The page with `new` at `place`."""
    return page[:place] + new + page[place + len(new) :]
