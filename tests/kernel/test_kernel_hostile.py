"""`apply` of damaged bodies: cut at every byte, every bit flipped; and of arguments out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kernel_support import (
    HELD,
    RAM,
    ROUND,
    RULES,
    Side,
    content,
    delta_record,
    edited,
    page_record,
    prepare,
    sides,
    zero_record,
)

from migrate.errors import RecordError


def small_body(side: Side) -> tuple[bytes, int, int]:
    """One record of each kind, over two blocks."""
    new = edited(content(HELD), 3, b"\xcc\xdd")
    body = b"".join(
        [
            zero_record(9 * 1024, RAM),
            delta_record(HELD * 1024, b"\3\2\xcc\xdd"),
            zero_record(10 * 1024),
            page_record(2 * 1024, content(5), b"vga.vram"),
        ]
    )
    total = side.terms((9, bytes(1024)), (HELD, new), (10, bytes(1024)), (130, content(5)))
    return body, 4, total


def refresh(side: Side) -> None:
    """The cache as `prepare` left it; a refused body may have changed it."""
    assert side.cache is not None
    side.cache.clear()
    assert side.cache.put(HELD, content(HELD), 2, ROUND)


@pytest.mark.parametrize("rule", RULES)
def test_cut_at_every_byte(kernel: Any, rule: str) -> None:
    with sides(kernel, slots=4, rule=rule) as [side]:
        prepare(side)
        body, records, total = small_body(side)
        image, digests = side.image(), bytes(side.digests)
        seen = set()
        for cut in range(len(body)):
            refresh(side)
            with pytest.raises(RecordError) as caught:
                side.apply_body(body[:cut], records, total)
            seen.add(caught.value.rule)
            assert caught.value.offset <= cut
            assert (side.image(), side.digests) == (image, digests)
        assert seen == {"truncated", "record-count"}
        refresh(side)
        assert side.apply_body(body, records, total).written == 4
        assert side.image() != image


@pytest.mark.parametrize("rule", RULES)
def test_every_bit_flipped(kernel: Any, rule: str) -> None:
    """Each bit of headers, names and deltas, and one bit of each byte of the page."""
    with sides(kernel, slots=4, rule=rule) as [side]:
        prepare(side)
        body, records, total = small_body(side)
        image, digests = side.image(), bytes(side.digests)
        payload = range(len(body) - 1024, len(body))
        flips = [
            (place, bit)
            for place in range(len(body))
            for bit in ([place % 8] if place in payload else range(8))
        ]
        for place, bit in flips:
            refresh(side)
            mutated = bytearray(body)
            mutated[place] ^= 1 << bit
            with pytest.raises(RecordError):
                side.apply_body(bytes(mutated), records, total)
            assert side.digests == digests
            if place % 16 == 0:
                assert side.image() == image
        assert side.image() == image


def bad_calls(side: Side, body: bytes) -> list[Callable[[], object]]:
    k = side.kernel
    other = k.Keys(bytes(32), 4096)

    def call(**change: Any) -> Callable[[], object]:
        arguments = {
            "ram": side.ram, "keys": side.keys, "digests": side.digests, "cache": side.cache, "body": body,
            "records": 1, "digest_sum": side.terms((0, content(1))), "lane": 0, "lanes": 1, "round": 2,
            "stage": ROUND, "readback": True,
        }  # fmt: skip
        return lambda: k.apply(*(arguments | change).values())

    return [
        call(digests=bytearray(len(side.digests) - 1)),
        call(lane=1),
        call(lane=-1),
        call(lanes=0),
        call(round=-1),
        call(round=2**32),
        call(stage=0),
        call(stage=4),
        call(keys=other),
        call(cache=k.PageCache(other, 1 << 20, "default")),
    ]


def test_bad_arguments(kernel: Any) -> None:
    with sides(kernel, slots=2) as [side]:
        body = page_record(0, content(1), RAM)
        for call in bad_calls(side, body):
            with pytest.raises((ValueError, OverflowError)):
                call()
        assert side.read(0) == bytes(1024)
        assert side.apply_body(body, 1, side.terms((0, content(1)))).written == 1
