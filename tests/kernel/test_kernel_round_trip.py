"""`fill` at one end, `apply` at the other: after every round RAM, digests, roots and caches are equal."""

from __future__ import annotations

import mmap
import os
import random
import threading
from typing import Any

import pytest
from kernel_support import (
    BULK,
    CHANGES,
    LAST,
    LAYOUT,
    ROUND,
    RULES,
    SLOT_BYTES,
    Side,
    assert_equal_sides,
    change,
    sides,
)

from migrate.kernel.results import FillResult

STAGES = ((1, BULK), (2, ROUND), (3, ROUND), (4, ROUND), (5, LAST), (6, ROUND), (7, LAST))


def first_contents(rng: random.Random, side: Side) -> None:
    """A third of the pages is not zero, all are to be sent."""
    for page in side.pages:
        if rng.random() < 0.35:
            side.write(page, rng.randbytes(side.page_size))
    side.mark(*side.pages)


def guest_writes(rng: random.Random, side: Side) -> None:
    """A third of the pages, in every way; some are marked and did not change, some are owed."""
    for page in rng.sample(side.pages, len(side.pages) // 3):
        side.write(page, change(rng, side.read(page), rng.choice(CHANGES)))
    side.mark(*rng.sample(side.pages, 3))
    side.mark(*rng.sample(side.pages, 4), owed=True)


def transfer(source: Side, destination: Side, round: int, stage: int, limit: int) -> list[FillResult]:
    """Everything pending goes over; returns what the batches were."""
    results = []
    for batch in source.fill_all(round, stage, limit=limit):
        sent = batch.result
        results.append(sent)
        written = destination.apply(batch, round, stage)
        assert (written.records, written.zero, written.normal, written.xbzrle) == (
            sent.records,
            sent.zero,
            sent.normal,
            sent.xbzrle,
        )
        assert written.root_delta == sent.root_delta
        assert written.written <= sent.zero + sent.normal + sent.xbzrle
        assert sent.cache_hit >= sent.xbzrle + sent.overflow
        assert sent.crc == source.kernel.crc32c(batch.body)
    assert not any(source.pending)
    assert not any(source.owed)
    return results


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize(
    ("page_size", "layout"),
    [
        (1024, LAYOUT),
        (4096, LAYOUT),
        (16384, ((b"a", 0, 30), (b"b", 64, 9))),
        (65536, ((b"a", 0, 9), (b"b", 64, 5))),
    ],
)
def test_rounds(
    kernel: Any,
    rng: random.Random,
    page_size: int,
    layout: tuple[tuple[bytes, int, int], ...],
    rule: str | None,
) -> None:
    """Small batches, so that every round is resumed at many limits; a cache of a third of RAM."""
    slots = None if rule is None else sum(pages for _, _, pages in layout) // 3
    with sides(kernel, 2, page_size=page_size, layout=layout, slots=slots, rule=rule or "") as [one, two]:
        first_contents(rng, one)
        hits = 0
        for round, stage in STAGES:
            batches = transfer(one, two, round, stage, limit=300 + page_size * rng.randrange(1, 8))
            assert len(batches) > 1 or page_size > 4096
            assert_equal_sides(one, two)
            hits += sum(batch.cache_hit for batch in batches)
            guest_writes(rng, one)
        assert (hits > 0) is (rule is not None and page_size < 16384)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_at_every_limit(kernel: Any, rule: str) -> None:
    """The same round cut in all ways gives the same RAM, digests and cache, whatever the cut."""
    smallest = 8 + 1 + 255 + 1024
    for limit in range(smallest, smallest + 2100, 29):
        rng = random.Random(7)
        with sides(kernel, 2, slots=20, rule=rule, layout=((b"a", 0, 9), (b"n" * 255, 64, 9))) as [one, two]:
            first_contents(rng, one)
            transfer(one, two, 2, ROUND, 1 << 20)
            guest_writes(rng, one)
            transfer(one, two, 3, ROUND, limit)
            assert_equal_sides(one, two)


def test_pages_become_zero_and_come_back(kernel: Any) -> None:
    with sides(kernel, 2, slots=4) as [one, two]:
        for round, (content, written) in enumerate(
            [(b"\1" * 1024, 1), (bytes(1024), 1), (b"\2" * 1024, 1), (bytes(1024), 1), (bytes(1024), 0)], 2
        ):
            one.write(7, content)
            one.mark(7, owed=True)
            [batch] = one.fill_all(round, ROUND)
            assert batch.result.zero == (not any(content))
            assert two.apply(batch, round, ROUND).written == written
            assert two.read(7) == content
            assert_equal_sides(one, two)


def test_zero_pages_allocate_nothing_at_the_destination(kernel: Any) -> None:
    with sides(kernel, 2) as [one, two]:
        one.mark(*one.pages, owed=True)
        [batch] = one.fill_all(1, BULK)
        result = two.apply(batch, 1, BULK)
        assert (result.zero, result.written) == (len(one.pages), 0)
        assert all(os.fstat(fd).st_blocks == 0 for fd in two.files)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_share_ram_and_have_own_caches(kernel: Any, rng: random.Random, rule: str, lanes: int) -> None:
    """What one lane carries the others never touch; together they carry all."""
    with sides(kernel, 2, layout=((b"a", 0, 300), (b"b", 320, 70))) as [one, two]:
        budget = 20 * (1024 + SLOT_BYTES)
        caches = [[kernel.PageCache(side.keys, budget, rule) for _ in range(lanes)] for side in (one, two)]
        first_contents(rng, one)
        for round, stage in STAGES[:5]:
            everything, one.pending = one.pending, bytearray(len(one.pending))
            owed, one.owed = one.owed, bytearray(len(one.owed))
            for lane in range(lanes):
                one.cache, two.cache = caches[0][lane], caches[1][lane]
                kernel.bitmap_select(everything, one.pending, 64, lane, lanes)
                kernel.bitmap_select(owed, one.owed, 64, lane, lanes)
                for batch in one.fill_all(round, stage, limit=9000):
                    assert {page // 64 % lanes for page in batch.pages} <= {lane}
                    sums = batch.result.records, batch.result.digest_sum
                    two.apply_body(batch.body, *sums, round, stage, lane=lane, lanes=lanes)
            for lane in range(lanes):
                one.cache, two.cache = caches[0][lane], caches[1][lane]
                assert_equal_sides(one, two)
            guest_writes(rng, one)


def test_what_is_sent_is_what_was_digested_though_the_guest_writes(kernel: Any) -> None:
    """A guest that writes all the time: every batch decodes to pages of the promised digests."""
    pages = 64
    with sides(kernel, 2, slots=pages, layout=((b"a", 0, pages),)) as [one, two]:
        memory = mmap.mmap(one.files[0], pages * 1024)
        stop = threading.Event()

        def guest() -> None:
            rng = random.Random(3)
            while not stop.is_set():
                place = rng.randrange(pages * 1024 - 8)
                memory[place : place + 8] = rng.randbytes(8)

        writer = threading.Thread(target=guest)
        writer.start()
        try:
            for round in range(2, 14):
                one.mark(*range(pages))
                transfer(one, two, round, ROUND, limit=8192)
                assert two.digests == one.digests
                assert two.cache_digest() == one.cache_digest()
        finally:
            stop.set()
            writer.join()
            memory.close()
        one.mark(*range(pages))
        transfer(one, two, 14, LAST, limit=1 << 20)
        assert_equal_sides(one, two)
