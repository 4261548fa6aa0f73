"""Digests of all pages: root, stripes, where two tables differ, and reading RAM for proof."""

from __future__ import annotations

import os
import random
import threading

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.errors import CancelledMigration, RamError
from migrate.ram.digests import DigestTable, read_digests
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout

SUM = 1 << 128


@pytest.fixture
def layout() -> PageLayout:
    """Two blocks with a gap between them, several stripes."""
    return PageLayout(PAGE, [("pc.ram", 700 * PAGE), ("vga", 30 * PAGE)])


def put(table: DigestTable, page: int, digest: int) -> None:
    kernel.set_digests(table.array, page, 1, digest)


def bits(bitmap: bytearray) -> list[int]:
    return [page for page in range(8 * len(bitmap)) if bitmap[page >> 3] >> (page & 7) & 1]


def test_at_first_all_pages_are_zero(keys: kernel.Keys, layout: PageLayout) -> None:
    table = DigestTable(keys, layout)
    zero = keys.page_digest(bytes(PAGE)).to_bytes(16, "little")
    assert bytes(table.array) == zero * layout.total_pages
    pages = [*range(700), *range(768, 798)]
    assert table.root == sum(keys.term(page, keys.zero_digest) for page in pages) % SUM


def test_gaps_are_no_part_of_the_root(keys: kernel.Keys, layout: PageLayout) -> None:
    table = DigestTable(keys, layout)
    before = table.root
    kernel.set_digests(table.array, 700, 68, 12345)
    assert table.recompute_root() == before


def test_changes_add_up_to_the_root_of_the_array(keys: kernel.Keys, layout: PageLayout) -> None:
    table = DigestTable(keys, layout)
    for page, digest in ((0, 1), (699, 2**128 - 1), (797, 7), (0, 5)):
        old = int.from_bytes(table.array[16 * page : 16 * page + 16], "little")
        put(table, page, digest)
        table.add(keys.term(page, digest) - keys.term(page, old))
    kept = table.root
    assert 0 <= kept < SUM
    assert table.recompute_root() == kept


def test_stripe_sums_add_up_to_the_root_and_show_where_images_differ(
    keys: kernel.Keys, layout: PageLayout
) -> None:
    table = DigestTable(keys, layout)
    before = table.stripe_sums()
    assert len(before) == layout.stripes == 4
    assert sum(before) % SUM == table.root
    put(table, 600, 1)
    put(table, 768, 1)
    after = table.stripe_sums()
    assert [k for k in range(4) if before[k] != after[k]] == [600 // 256, 768 // 256]
    assert sum(after) % SUM == table.recompute_root()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_differing_finds_the_very_pages(kind: type, keys: kernel.Keys, rng: random.Random) -> None:
    # More than one coarse step of 65536 pages, and no whole number of fine steps.
    layout = PageLayout(PAGE, [("pc.ram", 140_001 * PAGE)])
    table = DigestTable(keys, layout)
    other = bytearray(table.array)
    changed = sorted({0, 65535, 65536, 140_000, *rng.sample(range(140_000), 300)})
    for page in changed:
        other[16 * page + rng.randrange(16)] ^= 1 << rng.randrange(8)  # in either half
    assert bits(table.differing(kind(other))) == changed
    assert not any(table.differing(kind(table.array)))


def test_differing_when_everything_does(keys: kernel.Keys, layout: PageLayout) -> None:
    table = DigestTable(keys, layout)
    other = bytes(byte ^ 255 for byte in table.array)
    assert bits(table.differing(other)) == list(range(layout.total_pages))


def test_tables_of_different_ram_cannot_be_compared(keys: kernel.Keys, layout: PageLayout) -> None:
    table = DigestTable(keys, layout)
    with pytest.raises(ValueError, match="digest arrays"):
        table.differing(bytes(table.array[16:]))


@pytest.mark.parametrize("threads", [1, 3])
def test_ram_read_for_proof(
    threads: int, small_ram: Ram, image: RamImage, keys: kernel.Keys, table: DigestTable, rng: random.Random
) -> None:
    for page in (0, 3, 4, 100, 199):
        small_ram.write(page, rng.randbytes(PAGE))
    allocated = small_ram.blocks_allocated()
    content = small_ram.path.read_bytes()
    expected = b"".join(
        keys.page_digest(content[at : at + PAGE]).to_bytes(16, "little")
        for at in range(0, len(content), PAGE)
    )
    digests = read_digests(image, keys, threads)
    assert bytes(digests) == expected
    assert bits(table.differing(digests)) == [0, 3, 4, 100, 199]
    assert small_ram.blocks_allocated() == allocated


def test_reading_for_proof_can_be_cancelled(image: RamImage, keys: kernel.Keys) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledMigration):
        read_digests(image, keys, 2, stop)


def test_reading_for_proof_fails_on_a_truncated_file(
    small_ram: Ram, image: RamImage, keys: kernel.Keys
) -> None:
    os.ftruncate(small_ram.fd, 10 * PAGE)
    with pytest.raises(RamError, match="truncated"):
        read_digests(image, keys, 2)
