"""Page tables asked by the C kernel, those of this process: its twin in Python cannot."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from migrate.kernel import _native

PAGES = 16


@pytest.fixture
def mapped() -> Iterator[mmap.mmap]:
    """A memory file of 16 pages of 4096 bytes, none of which is in the page tables."""
    file = os.memfd_create("migrate-test")
    os.ftruncate(file, PAGES * 4096)
    with closing(mmap.mmap(file, PAGES * 4096)) as made:
        os.close(file)
        yield made


def present(mapped: mmap.mmap, page_size: int, origin: int = 0, bits: int = 64) -> list[int]:
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    bitmap = bytearray(bits // 8)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        _native.present_pages(pagemap, start, len(mapped), origin, page_size, bitmap)
    finally:
        os.close(pagemap)
    return [page for page in range(bits) if bitmap[page >> 3] >> (page & 7) & 1]


def touch(mapped: mmap.mmap, *pages: int) -> None:
    for page in pages:
        mapped[page * 4096] = 1


def test_pages_that_are_there(mapped: mmap.mmap) -> None:
    touch(mapped, 0, 3, 4, 15)
    assert present(mapped, 4096) == [0, 3, 4, 15]
    assert present(mapped, 4096, origin=20 * 4096) == [20, 23, 24, 35]


def test_a_larger_page_is_there_if_all_of_it_is(mapped: mmap.mmap) -> None:
    touch(mapped, 1, 2, 3, 4, 8, 9, 10, 11, 12)
    assert present(mapped, 8192) == [1, 4, 5]
    assert present(mapped, 16384) == [2]


def test_smaller_pages_are_there_together(mapped: mmap.mmap) -> None:
    touch(mapped, 1)
    assert present(mapped, 1024) == [4, 5, 6, 7]


def test_what_leaves_the_bitmap_is_refused(mapped: mmap.mmap) -> None:
    with pytest.raises(ValueError, match="not all in a bitmap"):
        present(mapped, 4096, origin=49 * 4096)


def test_a_descriptor_that_is_none_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.present_pages(999, 0, 4096, 0, 4096, bytearray(8))
