"""Looking at RAM again: what differs is found wherever it lies, and a look ends where it was told to."""

from __future__ import annotations

import os
import random
from pathlib import Path

from ram_support import PAGE, Ram

from migrate import kernel
from migrate.config import RamSpec
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable, read_digests
from migrate.ram.image import RamImage
from migrate.ram.reread import Rereader

BLOCKS = (200, 70, 4500)
"""Pages; the last one is more than a window."""


def pages_of(bitmap: DirtyBitmap | None) -> set[int]:
    found: set[int] = set()
    page = -1 if bitmap is None else bitmap.next()
    while bitmap is not None and page >= 0:
        found.add(page)
        page = bitmap.next(page + 1) if page + 1 < bitmap.pages else -1
    return found


def test_every_candidate_that_differs_and_is_no_hole_is_found(
    shm_dir: Path, rng: random.Random, keys: kernel.Keys
) -> None:
    rams = [Ram(shm_dir / f"ram{number}", pages) for number, pages in enumerate(BLOCKS)]
    for ram in rams:
        for page in rng.sample(range(ram.pages), ram.pages // 3):
            ram.fill(page, 1)
    specs = [RamSpec(f"ram{number}", ram.path) for number, ram in enumerate(rams)]
    with RamImage.open_source(specs, PAGE) as image:
        table = DigestTable(keys, image.layout)
        table.array[:] = read_digests(image, keys, 1)
        changed = set()
        for ram, block in zip(rams, image.layout.blocks, strict=True):
            for page in rng.sample(range(ram.pages), ram.pages // 5):
                ram.fill(page, 2)
                changed.add(block.first_page + page)
            ram.punch(7, 3)  # others look for holes
            changed -= set(range(block.first_page + 7, block.first_page + 10))
        candidates = DirtyBitmap(image.layout.total_pages)
        candidates.set_all(image.layout)
        left_out = DirtyBitmap(candidates.pages)
        for page in rng.sample(sorted(changed), len(changed) // 4):
            left_out.set_range(page, 1)
        candidates.remove(left_out)
        rereader = Rereader(image, table)
        found: set[int] = set()
        position, looks, pages_read = 0, 0, 0
        while position or not looks:
            look = rereader.look(candidates, position, 256)
            assert look.pages_read < 256 + 256
            assert look.next_page == 0 or look.next_page > position, "it goes on"
            found |= pages_of(look.differing)
            position, looks, pages_read = look.next_page, looks + 1, pages_read + look.pages_read
        assert found == changed - pages_of(left_out)
        assert looks > 3, "by pieces"
        assert len(found) < pages_read < sum(BLOCKS), "holes are not read"
    for ram in rams:
        os.close(ram.fd)


def test_where_nothing_differs_nothing_is_said(image: RamImage, table: DigestTable, small_ram: Ram) -> None:
    small_ram.fill(3, 1)
    table.array[:] = read_digests(image, table.keys, 1)
    candidates = DirtyBitmap(image.layout.total_pages)
    candidates.set_all(image.layout)
    look = Rereader(image, table).look(candidates, 0, 4096)
    assert (look.next_page, look.pages_read, look.differing) == (0, 1, None)
