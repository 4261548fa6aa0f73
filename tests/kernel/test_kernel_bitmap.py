"""Bitmaps and the small numbers that sizes are made of."""

from __future__ import annotations

import struct
from typing import Any

import pytest


def bits(bitmap: bytes) -> list[int]:
    return [n for n in range(8 * len(bitmap)) if bitmap[n >> 3] >> (n & 7) & 1]


@pytest.mark.parametrize(("pages", "size"), [(0, 0), (1, 8), (63, 8), (64, 8), (65, 16), (1 << 20, 1 << 17)])
def test_bitmap_bytes(kernel: Any, pages: int, size: int) -> None:
    assert kernel.bitmap_bytes(pages) == size


@pytest.mark.parametrize(
    ("page_size", "records"), [(1024, 2048), (4096, 2048), (8192, 1024), (16384, 512), (65536, 128)]
)
def test_max_records(kernel: Any, page_size: int, records: int) -> None:
    assert kernel.max_records(page_size) == records


@pytest.mark.parametrize("page_size", [0, 512, 4097, 131072])
def test_max_records_of_no_page_size(kernel: Any, page_size: int) -> None:
    with pytest.raises(ValueError):
        kernel.max_records(page_size)


def test_bit_p_is_in_byte_p_over_8(kernel: Any) -> None:
    for page in range(192):
        bitmap = bytearray(24)
        kernel.bitmap_set_range(bitmap, page, 1)
        assert bits(bitmap) == [page]
        assert bitmap[page >> 3] == 1 << (page & 7)


def test_set_range(kernel: Any) -> None:
    for first in (0, 1, 5, 63, 64, 65, 130):
        for count in (0, 1, 3, 8, 61, 62, 64, 126 - first % 64):
            bitmap = bytearray(32)
            kernel.bitmap_set_range(bitmap, first, count)
            assert bits(bitmap) == list(range(first, first + count))
            assert kernel.bitmap_count(bitmap) == count
    full = bytearray(b"\xff" * 16)
    kernel.bitmap_set_range(full, 3, 100)
    assert full == b"\xff" * 16


@pytest.mark.parametrize(("first", "count"), [(0, 129), (128, 1), (127, 2), (-1, 1), (0, -1), (2**63, 2**63)])
def test_set_range_refuses_what_is_beyond(kernel: Any, first: int, count: int) -> None:
    bitmap = bytearray(16)
    with pytest.raises((ValueError, OverflowError)):
        kernel.bitmap_set_range(bitmap, first, count)
    assert not any(bitmap)


def test_next(kernel: Any) -> None:
    bitmap = bytearray(32)
    assert kernel.bitmap_next(bitmap, 0) == -1
    assert kernel.bitmap_next(bytearray(), 0) == -1
    for page in (3, 64, 127, 255):
        kernel.bitmap_set_range(bitmap, page, 1)
    found = [kernel.bitmap_next(bitmap, start) for start in range(257)]
    assert found == [3] * 4 + [64] * 61 + [127] * 63 + [255] * 128 + [-1]
    assert kernel.bitmap_next(bitmap, 1 << 40) == -1


def test_set_pages(kernel: Any) -> None:
    bitmap = bytearray(16)
    numbers = struct.pack("<4Q", 100, 3, 127, 50)
    kernel.bitmap_set_pages(bitmap, numbers, 3)
    assert bits(bitmap) == [3, 100, 127]
    kernel.bitmap_set_pages(bitmap, memoryview(numbers), 4)
    kernel.bitmap_set_pages(bitmap, b"", 0)
    assert bits(bitmap) == [3, 50, 100, 127]
    for beyond in (128, 2**48, 2**64 - 1):
        with pytest.raises(ValueError):
            kernel.bitmap_set_pages(bitmap, struct.pack("<Q", beyond), 1)
    with pytest.raises(ValueError):
        kernel.bitmap_set_pages(bitmap, numbers, 5)
    assert bits(bitmap) == [3, 50, 100, 127]


def test_or(kernel: Any) -> None:
    target, source = bytearray(16), bytearray(16)
    kernel.bitmap_set_range(target, 0, 10)
    kernel.bitmap_set_range(source, 5, 100)
    kernel.bitmap_or(target, source)
    assert bits(target) == list(range(105))
    assert bits(source) == list(range(5, 105))
    with pytest.raises(ValueError):
        kernel.bitmap_or(target, bytearray(8))


@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
def test_select_takes_the_stripes_of_a_lane(kernel: Any, lanes: int) -> None:
    source = bytearray(8 * 20)
    kernel.bitmap_set_range(source, 10, 1200)
    together = bytearray(len(source))
    for lane in range(lanes):
        target = bytearray(len(source))
        target[0] = 1  # what is set stays
        kernel.bitmap_select(source, target, 128, lane, lanes)
        assert bits(target) == [0] + [p for p in range(10, 1210) if p // 128 % lanes == lane]
        target[0] &= 0xFE
        assert kernel.bitmap_count(together) + kernel.bitmap_count(target) == kernel.bitmap_count(
            bytearray(a | b for a, b in zip(together, target, strict=True))
        )
        kernel.bitmap_or(together, target)
    assert together == source


@pytest.mark.parametrize(("lane", "lanes"), [(0, 0), (1, 1), (-1, 2), (2, 2)])
def test_select_of_no_lane(kernel: Any, lane: int, lanes: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        kernel.bitmap_select(bytearray(8), bytearray(8), 64, lane, lanes)


def test_bitmaps_are_whole_words(kernel: Any) -> None:
    for call in (
        lambda: kernel.bitmap_count(bytearray(7)),
        lambda: kernel.bitmap_next(bytearray(12), 0),
        lambda: kernel.bitmap_set_range(bytearray(9), 0, 1),
        lambda: kernel.bitmap_or(bytearray(4), bytearray(4)),
    ):
        with pytest.raises(ValueError):
            call()
