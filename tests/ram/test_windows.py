"""The walk over all RAM that threads share: every page once, and no two threads in one word of a bitmap."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ram_support import Ram

from migrate.errors import CancelledMigration
from migrate.ram.image import RamImage, RamSpec
from migrate.ram.windows import WINDOW_BYTES, Piece, for_each_piece, windows

PAGE = 65536
WINDOW_PAGES = WINDOW_BYTES // PAGE
BITS_A_WORD = 64


@pytest.fixture
def rams(shm_dir: Path) -> Iterator[list[Ram]]:
    """Two blocks, of two windows and a bit and of less than one."""
    rams = [Ram(shm_dir / "a", 2 * WINDOW_PAGES + 77, PAGE), Ram(shm_dir / "b", 5, PAGE)]
    yield rams
    for ram in rams:
        os.close(ram.fd)


@pytest.fixture
def image(rams: list[Ram]) -> Iterator[RamImage]:
    with RamImage.open_source([RamSpec(ram.path.name, ram.path) for ram in rams], PAGE) as image:
        yield image


def test_every_page_once_as_what_it_is(rams: list[Ram], image: RamImage, rng: random.Random) -> None:
    data = set()
    for ram, block in zip(rams, image.layout.blocks, strict=True):
        for page in rng.sample(range(ram.pages), ram.pages // 3):
            ram.fill(page, 1)
            data.add(block.first_page + page)
    found = {}
    words: dict[int, int] = {}
    for number, window in enumerate(windows(image)):
        for piece in window:
            for page in range(piece.first, piece.first + piece.count):
                assert page not in found
                found[page] = piece.is_data
                assert words.setdefault(page // BITS_A_WORD, number) == number
        assert sum(piece.count for piece in window) * PAGE <= WINDOW_BYTES
    blocks = image.layout.blocks
    everything = {page for b in blocks for page in range(b.first_page, b.first_page + b.pages)}
    assert set(found) == everything
    assert {page for page, is_data in found.items() if is_data} == data


def test_holes_that_cost_less_to_read_than_to_find_are_read(small_ram: Ram) -> None:
    for page in (0, 9, 20):
        small_ram.fill(page, 1)
    with RamImage.open_source([RamSpec("pc.ram", small_ram.path)], small_ram.page_size) as image:
        assert list(windows(image)) == [
            [Piece(0, 16, True), Piece(16, 4, False), Piece(20, 16, True), Piece(36, 164, False)]
        ]


@pytest.mark.parametrize("threads", [0, 3])
def test_when_it_raises_nobody_works_any_more(threads: int, image: RamImage) -> None:
    """The bitmap may be used again at once, by others."""
    at_work = 0
    lock = threading.Lock()

    def work(piece: Piece) -> int:
        nonlocal at_work
        with lock:
            at_work += 1
        try:
            if piece.first == WINDOW_PAGES:
                raise OSError("a bad page")
            return piece.count
        finally:
            with lock:
                at_work -= 1

    pool = ThreadPoolExecutor(threads) if threads else None
    with pytest.raises(OSError, match="a bad page"):
        for_each_piece(image, work, pool, None)
    assert at_work == 0
    if pool is not None:
        pool.shutdown()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_cancel_is_seen_between_two_windows(threads: int, image: RamImage) -> None:
    stop = threading.Event()
    done: list[Piece] = []

    def work(piece: Piece) -> int:
        done.append(piece)
        stop.set()
        return 0

    pool = ThreadPoolExecutor(threads) if threads else None
    with pytest.raises(CancelledMigration):
        for_each_piece(image, work, pool, stop)
    assert done == [Piece(0, WINDOW_PAGES, False)]
    if pool is not None:
        pool.shutdown()
