"""Page space: where blocks, stripes and gaps lie, and what a hostile block list may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.ram.layout import MAX_RAM_BYTES, PageLayout

MIB = 1 << 20


@pytest.mark.parametrize(
    ("page_size", "stripe_pages"),
    [(1024, 1024), (4096, 256), (16384, 64), (32768, 64), (65536, 64)],
)
def test_a_stripe_is_one_mebibyte_but_at_least_64_pages(page_size: int, stripe_pages: int) -> None:
    assert PageLayout(page_size, [("pc.ram", page_size)]).stripe_pages == stripe_pages


def test_each_block_starts_a_stripe() -> None:
    layout = PageLayout(4096, [("pc.ram", 300 * 4096), ("vga", 4096), ("rom", 256 * 4096), ("end", 8192)])
    assert [(b.name, b.length, b.first_page, b.pages) for b in layout.blocks] == [
        ("pc.ram", 300 * 4096, 0, 300),
        ("vga", 4096, 512, 1),
        ("rom", 256 * 4096, 768, 256),
        ("end", 8192, 1024, 2),
    ]
    assert layout.total_pages == 1026
    assert layout.ram_pages == 559
    assert layout.ram_bytes == 559 * 4096
    assert layout.stripes == 5


def test_lanes_own_stripes_by_turns() -> None:
    layout = PageLayout(4096, [("pc.ram", 4 * MIB)])
    assert [layout.lane_of(page, 3) for page in (0, 255, 256, 511, 512, 768, 1023)] == [0, 0, 1, 1, 2, 0, 0]
    assert layout.lane_of(1023, 1) == 0


def test_block_of_finds_the_block_and_refuses_gaps() -> None:
    layout = PageLayout(4096, [("a", 300 * 4096), ("b", 4096)])
    assert [layout.block_of(page).name for page in (0, 299, 512)] == ["a", "a", "b"]
    for page in (-1, 300, 511, 513, 1 << 60):
        with pytest.raises(ValueError, match="in no RAM block"):
            layout.block_of(page)


@given(
    page_size=st.sampled_from([1024, 2048, 4096, 8192, 16384, 32768, 65536]),
    pages=st.lists(st.integers(1, 5000), min_size=1, max_size=64),
)
def test_no_two_blocks_share_a_stripe_and_none_is_far_from_the_next(page_size: int, pages: list[int]) -> None:
    layout = PageLayout(page_size, [(f"b{i}", count * page_size) for i, count in enumerate(pages)])
    end = 0
    for block, count in zip(layout.blocks, pages, strict=True):
        assert block.pages == count
        assert block.first_page % layout.stripe_pages == 0
        assert 0 <= block.first_page - end < layout.stripe_pages
        assert layout.block_of(block.first_page) == layout.block_of(block.first_page + count - 1) == block
        end = block.first_page + count
    assert layout.total_pages == end


@pytest.mark.parametrize(
    ("page_size", "blocks", "what"),
    [
        (4096, [], "0 RAM blocks"),
        (4096, [(f"b{i}", 4096) for i in range(65)], "65 RAM blocks"),
        (4096, [("", 4096)], "0 bytes"),
        (4096, [("é" * 128, 4096)], "256 bytes"),
        (4096, [("\ud800", 4096)], "not UTF-8"),
        (4096, [("a", 4096), ("a", 4096)], "listed twice"),
        (4096, [("a", 0)], "no positive multiple"),
        (4096, [("a", -4096)], "no positive multiple"),
        (4096, [("a", 4097)], "no positive multiple"),
        (4096, [("a", MAX_RAM_BYTES), ("b", 4096)], "at most 16 TiB"),
        (4096, [("a", 1 << 200)], "at most 16 TiB"),
        (0, [("a", 4096)], "page size"),
        (-4096, [("a", 4096)], "page size"),
        (512, [("a", 4096)], "page size"),
        (3000, [("a", 3000)], "page size"),
        (131072, [("a", 131072)], "page size"),
    ],
)
def test_impossible_block_lists_are_a_value_error(
    page_size: int, blocks: list[tuple[str, int]], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        PageLayout(page_size, blocks)


def test_the_largest_ram_is_allowed() -> None:
    layout = PageLayout(65536, [("é" * 127, MAX_RAM_BYTES)])
    assert layout.total_pages == MAX_RAM_BYTES // 65536
