"""Checks of arguments that both kernels make before they do anything; all raise ValueError."""

from __future__ import annotations

from migrate.kernel.results import STAGE_BULK, STAGE_LAST

_SMALLEST_PAGE = 1024
_LARGEST_PAGE = 65536
_PAGE_NUMBERS = 2**48


def check_page_size(page_size: int) -> None:
    """A power of two in 1024…65536."""
    if not _SMALLEST_PAGE <= page_size <= _LARGEST_PAGE or page_size & (page_size - 1):
        raise ValueError(f"page size {page_size} is not a power of two from 1024 to 65536")


def check_same_page_size(*sizes: int) -> None:
    """Ram, Keys and PageCache of one call belong together."""
    if len(set(sizes)) > 1:
        raise ValueError(f"page sizes {sizes} in one call")


def check_page(page: int) -> None:
    """A number in page space."""
    if not 0 <= page < _PAGE_NUMBERS:
        raise ValueError(f"page number {page}")


def check_round(round: int) -> None:
    """An unsigned number of 32 bits."""
    if not 0 <= round < 2**32:
        raise ValueError(f"round {round}")


def check_stage(stage: int) -> None:
    """BULK, ROUND or LAST."""
    if not STAGE_BULK <= stage <= STAGE_LAST:
        raise ValueError(f"stage {stage}")


def check_lane(lane: int, lanes: int) -> None:
    """0 <= lane < lanes."""
    if not 0 <= lane < lanes:
        raise ValueError(f"lane {lane} of {lanes}")


def check_bitmap(bitmap: bytes | bytearray | memoryview, pages: int = 0) -> None:
    """Whole 64-bit words, with a bit for each of `pages` pages."""
    if len(bitmap) % 8 or 8 * len(bitmap) < pages:
        raise ValueError(f"a bitmap of {len(bitmap)} bytes for {pages} pages")


def check_digests(digests: bytes | bytearray | memoryview, first: int, count: int) -> None:
    """The array has digests of pages first…first+count-1."""
    if first < 0 or count < 0 or 16 * (first + count) > len(digests):
        raise ValueError(f"pages {first}+{count} of an array of {len(digests) // 16} digests")
