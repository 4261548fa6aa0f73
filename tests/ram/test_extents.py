"""Holes are found by SEEK_DATA and SEEK_HOLE, rounded to whole pages."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from migrate.ram.extents import data_extents

PAGE = 4096


@pytest.fixture
def file(directory: Path) -> Path:
    path = directory / "sparse"
    path.touch()
    return path


def make(path: Path, pages: int, data: set[int]) -> int:
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, pages * PAGE)
    for page in data:
        os.pwrite(fd, b"x", page * PAGE + 7)
    return fd


def extents_of(fd: int, pages: int, page_size: int = PAGE, grain_pages: int = 0) -> list[tuple[int, int]]:
    return list(data_extents(fd, pages, page_size, grain_pages=grain_pages))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (set(), []),
        ({0}, [(0, 1)]),
        ({63}, [(63, 1)]),
        ({0, 1, 5, 6, 7, 40}, [(0, 2), (5, 3), (40, 1)]),
        (set(range(64)), [(0, 64)]),
    ],
)
def test_stretches_of_data(file: Path, data: set[int], expected: list[tuple[int, int]]) -> None:
    fd = make(file, 64, data)
    try:
        assert extents_of(fd, 64) == expected
    finally:
        os.close(fd)


def test_random_holes(file: Path, rng: random.Random) -> None:
    data = {page for page in range(500) if rng.random() < 0.5}
    fd = make(file, 500, data)
    try:
        found = extents_of(fd, 500)
    finally:
        os.close(fd)
    assert [page for first, count in found for page in range(first, first + count)] == sorted(data)
    ends = [first + count for first, count in found]
    assert all(end < first for end, (first, _) in zip(ends, found[1:], strict=False))  # none touch


def test_extents_are_rounded_outward_and_joined_to_larger_pages(file: Path) -> None:
    fd = make(file, 64, {3, 5, 7, 8, 40})
    try:
        assert extents_of(fd, 16, 4 * PAGE) == [(0, 3), (10, 1)]
    finally:
        os.close(fd)


def test_short_holes_can_count_as_data(file: Path) -> None:
    fd = make(file, 64, {2, 5, 10, 11, 12, 40, 62})
    try:
        assert extents_of(fd, 64, grain_pages=2) == [(2, 2), (5, 2), (10, 3), (40, 2), (62, 2)]
        assert extents_of(fd, 64, grain_pages=4) == [(2, 4), (10, 4), (40, 4), (62, 2)]
        assert extents_of(fd, 64, grain_pages=8) == [(2, 11), (40, 8), (62, 2)]
        assert extents_of(fd, 64, grain_pages=100) == [(2, 62)]
    finally:
        os.close(fd)


def test_what_lies_beyond_the_block_is_left_out(file: Path) -> None:
    fd = make(file, 64, {9, 10, 11, 50})
    try:
        assert extents_of(fd, 11) == [(9, 2)]
        assert extents_of(fd, 9) == []
    finally:
        os.close(fd)


def test_finding_holes_allocates_none_of_them(file: Path) -> None:
    fd = make(file, 64, {9})
    try:
        allocated = os.fstat(fd).st_blocks
        extents_of(fd, 64)
        assert os.fstat(fd).st_blocks == allocated
    finally:
        os.close(fd)
