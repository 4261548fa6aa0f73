"""The kernel in C against its twin in Python, byte for byte, on whatever hypothesis finds.

Structure (which page, which bit, where to cut) is hypothesis's, so that a failure shrinks; bulk content comes
from a seed that it draws.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from kernel_support import (
    BULK,
    LAST,
    ROUND,
    RULES,
    SEED,
    SLOT_BYTES,
    examples,
)

from migrate.kernel import _native as native
from migrate.kernel import reference

SEEDS = st.integers(0, 2**32)
STAGES = st.sampled_from([BULK, ROUND, ROUND, LAST])


def outcome(call: Any, *arguments: Any) -> Any:
    """What a call returns, or the class of what it raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error)


def pair(data: st.DataObject, size: int) -> tuple[bytes, bytes]:
    """Two pages that differ in runs and gaps of all lengths, also across word limits."""
    rng = random.Random(data.draw(SEEDS))
    old = rng.choice([bytes(size), rng.randbytes(size), b"\xff" * size])
    new = bytearray(old)
    at = 0
    steps = data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 200)), max_size=12))
    for gap, run in steps or [(rng.randrange(size), 1)] * (size > 0):
        at += gap
        for place in range(at, min(at + run, size)):
            new[place] ^= rng.randrange(1, 256)
        at += run
    for _ in range(data.draw(st.sampled_from([0, 0, 0, 30, size // 3]))):
        new[rng.randrange(size)] ^= rng.randrange(256)
    return old, bytes(new)


@examples(150)
@given(st.data(), st.sampled_from([1, 7, 64, 100, 1024, 4096, 8192, 16383]), st.integers(0, 5))
def test_xbzrle_encode(data: st.DataObject, size: int, gap: int) -> None:
    old, new = pair(data, size)
    whole = reference.xbzrle_encode(old, new, 1 << 20, gap)
    assert whole is not None
    # Around the length of the delta the three rules decide.
    for limit in {0, 1, 2, size, size - 4, *range(max(0, len(whole) - 3), len(whole) + 4)} - {-3, -2, -1}:
        found = native.xbzrle_encode(old, new, limit, gap)
        assert found == reference.xbzrle_encode(old, new, limit, gap)
    for kernel in (native, reference):
        page = bytearray(old)
        kernel.xbzrle_decode(whole, page)
        assert page == new


def lengths() -> st.SearchStrategy[bytes]:
    """LEB128 of 14 bits, also longer than need be, and (rarely) 0 or broken."""
    small = st.integers(1, 127).map(lambda n: bytes([n]))
    large = st.tuples(st.integers(128, 255), st.integers(0, 30)).map(bytes)
    return st.one_of(
        small, small, small, large, large, st.sampled_from([b"\0", b"\x80\0", b"\x80\x80", b"\xff\x7f"])
    )


@examples(300)
@given(
    st.lists(st.tuples(lengths(), lengths(), st.sampled_from([True] * 15 + [False])), max_size=4),
    st.sampled_from([b""] * 9 + [b"\0", b"\5", b"\5\1", b"\0\1\1"]),
    st.sampled_from([100, 1024, 4096, 20000]),
)
def test_xbzrle_decode(pairs: list[tuple[bytes, bytes, bool]], tail: bytes, size: int) -> None:
    delta = b""
    for unchanged, changed, honest in pairs:
        length = changed[0] & 127 | (changed[1] << 7 if len(changed) > 1 else 0)
        delta += unchanged + changed + b"\xa5" * (length if honest else 1)
    same_decoding(delta + tail, size)


@examples(200)
@given(st.data())
def test_xbzrle_decode_of_damaged_deltas(data: st.DataObject) -> None:
    old, new = pair(data, 1024)
    delta = bytearray(reference.xbzrle_encode(old, new, 1 << 20, data.draw(st.integers(0, 3))) or b"")
    for _ in range(data.draw(st.integers(1, 3))):
        if delta:
            delta[data.draw(st.integers(0, len(delta) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    same_decoding(
        bytes(delta[: data.draw(st.integers(0, len(delta)))] if data.draw(st.booleans()) else delta), 1024
    )


def same_decoding(delta: bytes, size: int) -> None:
    pages = bytearray(b"\x3c" * size), bytearray(b"\x3c" * size)
    ends = [
        outcome(kernel.xbzrle_decode, delta, page)
        for kernel, page in zip((native, reference), pages, strict=True)
    ]
    event("refused" if ends[0] is ValueError else "accepted")
    assert ends[0] == ends[1]
    assert pages[0] == pages[1]
    if ends[0] is ValueError:
        assert pages[0] == b"\x3c" * size


@examples(150)
@given(
    st.integers(0, 300),
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=3),
)
def test_is_zero(size: int, shift: int, marks: list[tuple[int, int]]) -> None:
    data = bytearray(shift + size)
    for place, value in marks:
        if place < len(data):
            data[place] = value
    view = memoryview(data)[shift:]  # at any alignment
    assert native.is_zero(view) == reference.is_zero(view)


@examples(100)
@given(SEEDS, st.integers(0, 3000), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_crc32c(seed: int, size: int, shift: int, value: int) -> None:
    view = memoryview(random.Random(seed).randbytes(size + shift))[shift:]
    assert native.crc32c(view, value) == reference.crc32c(view, value)


@examples(60)
@given(
    st.binary(min_size=32, max_size=32), st.sampled_from([1024, 2048, 4096, 65536]), SEEDS, st.integers(0, 9)
)
def test_digests_and_terms(seed: bytes, page_size: int, content_seed: int, shift: int) -> None:
    rng = random.Random(content_seed)
    ours, theirs = native.Keys(seed, page_size), reference.Keys(seed, page_size)
    assert ours.zero_digest == theirs.zero_digest
    for page_and_more in (rng.randbytes(page_size + shift), b"\xff" * (page_size + shift)):
        view = memoryview(page_and_more)[shift:]
        assert ours.page_digest(view) == theirs.page_digest(view)
    for digest in (rng.randrange(2**128), 0, 2**128 - 1):
        page = rng.randrange(2 ** rng.randrange(1, 49))
        assert ours.term(page, digest) == theirs.term(page, digest)


@examples(60)
@given(SEEDS, st.integers(0, 40), st.integers(0, 40))
def test_digest_arrays(seed: int, first: int, count: int) -> None:
    rng = random.Random(seed)
    digests = bytearray(rng.randbytes(16 * 60))
    digest = rng.randrange(2**128)
    ours, theirs = native.Keys(SEED, 1024), reference.Keys(SEED, 1024)
    for page in rng.sample(range(60), 20):
        reference.set_digests(digests, page, 1, theirs.zero_digest)
    copies = bytearray(digests), bytearray(digests)
    bits = bytearray(8), bytearray(8)
    results = [
        [
            outcome(kernel.zero_range, keys, copy, first, count, dirty),
            outcome(kernel.root, keys, copy, first, count),
            outcome(kernel.set_digests, copy, first, count, digest),
            bytes(copy),
            bytes(dirty),
        ]
        for kernel, keys, copy, dirty in zip((native, reference), (ours, theirs), copies, bits, strict=True)
    ]
    assert results[0] == results[1]


@examples(150)
@given(
    SEEDS,
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 450), st.integers(0, 450)), max_size=6),
    st.sampled_from([64, 128, 192]),
    st.integers(1, 5),
)
def test_bitmaps(
    seed: int, words: int, operations: list[tuple[int, int, int]], stripe: int, lanes: int
) -> None:
    rng = random.Random(seed)
    other = bytearray(rng.randbytes(8 * words))
    pages = b"".join(rng.randrange(64 * words + 1).to_bytes(8, "little") for _ in range(5))
    start = bytes(rng.choice([0, 0, 1 << rng.randrange(8), 255]) for _ in range(8 * words))

    def step(kernel: Any, bitmap: bytearray, operation: int, a: int, b: int) -> Any:
        if operation == 0:
            return outcome(kernel.bitmap_set_range, bitmap, a, b)
        if operation == 1:
            return kernel.bitmap_next(bitmap, a)
        if operation == 2:
            return kernel.bitmap_count(bitmap)
        if operation == 3:
            return kernel.bitmap_or(bitmap, other)
        if operation == 4:
            return kernel.bitmap_remove(bitmap, other)
        if operation == 5:
            return kernel.bitmap_select(other, bitmap, stripe, a % lanes, lanes)
        return outcome(kernel.bitmap_set_pages, bitmap, pages, a % 6)

    ours, theirs = bytearray(start), bytearray(start)
    for operation in operations:
        result = step(native, ours, *operation)
        assert result == step(reference, theirs, *operation)
        if result is ValueError:  # which bits were set before the bad number is nobody's business
            ours[:] = theirs
        assert ours == theirs


CACHE_OPERATIONS = st.tuples(
    st.sampled_from(["put", "put", "put", "zero", "touch", "get", "next round", "clear"]),
    st.integers(0, 40),
    st.integers(0, 3),
    STAGES,
)


@pytest.mark.parametrize("slots", [90, 150])
def test_cache_with_duelling_sets(rng: random.Random, slots: int) -> None:
    """More pages than fit, for some rounds: the sets keep score, and both kernels the same one."""
    caches = [
        kernel.PageCache(kernel.Keys(SEED, 1024), slots * (1024 + SLOT_BYTES), "default")
        for kernel in (native, reference)
    ]
    contents = [bytes([n]) * 1024 for n in range(3)]
    share = 0.5
    for round in range(1, 16):
        share = rng.choice([share, 0.2, 0.9])
        for page in range(slots * 3):
            if rng.random() < share:
                what = page, rng.choice(contents), round, rng.choice([BULK, ROUND, ROUND, ROUND, ROUND, LAST])
                zero = rng.random() < 0.05
                assert caches[0].put(*what, zero=zero) == caches[1].put(*what, zero=zero)
        assert caches[0].digest == caches[1].digest
        assert caches[0].items() == caches[1].items()
        if round == 9:
            for cache in caches:
                cache.clear()


@examples(120)
@given(
    st.sampled_from(RULES),
    st.sampled_from([0, 1, 2, 3, 7, 8, 9, 16, 24, 31]),
    st.lists(CACHE_OPERATIONS, min_size=5, max_size=80),
)
def test_cache(rule: str, slots: int, operations: list[tuple[str, int, int, int]]) -> None:
    contents = [bytes([n]) * 1024 for n in range(4)]
    caches = [
        kernel.PageCache(kernel.Keys(SEED, 1024), slots * (1024 + SLOT_BYTES), rule)
        for kernel in (native, reference)
    ]
    round = 1
    for operation, page, which, stage in operations:
        if operation == "next round":
            round += 1 + which
            continue
        results = []
        for cache in caches:
            if operation == "put":
                results.append(cache.put(page, contents[which], round, stage))
            elif operation == "zero":
                results.append(cache.put(page, contents[0], round, stage, zero=True))
            elif operation == "touch":
                results.append(cache.touch(page, round))
            elif operation == "get":
                results.append(cache.get(page))
            elif which == 0:  # rarely
                cache.clear()
        assert results[:1] == results[1:]
        assert caches[0].digest == caches[1].digest
    assert caches[0].items() == caches[1].items()
    assert (caches[0].entries, caches[0].slots) == (caches[1].entries, caches[1].slots)
