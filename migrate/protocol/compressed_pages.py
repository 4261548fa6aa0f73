"""Pages that an old QEMU packed one by one: capability `compress`, gone since 9.1 (qemu-ram-stream.md 2.7).

What comes out of a record is bounded by a page. Slices of a listing are independent of each other, so that
threads may share them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from migrate.errors import RecordError
from migrate.kernel.results import WALK_LISTED
from migrate.protocol.records import RAM_SAVE_FLAG_CONTINUE

SLICE = 64
"""Pages that one thread unpacks in one go: inflating a page takes some ten times what calling for it does."""
_WORD, _LENGTH = 8, 4


class CompressedPage(NamedTuple):
    """One record COMPRESS_PAGE."""

    at: int
    """Place of the record in the body."""
    block: int
    offset: int
    begin: int
    """Where its zlib stream begins in the body."""
    end: int


Unpack = Callable[[Sequence[CompressedPage]], bytes]
Spread = Callable[[Unpack, Sequence[Sequence[CompressedPage]]], Iterable[bytes]]
"""Calls a function for each slice and gives the results in their order: `map`, or a pool's."""


def compressed_pages(listing: bytes | memoryview, name_lengths: Sequence[int]) -> list[CompressedPage]:
    """The records of a listing; `name_lengths`: bytes of each block's name."""
    pages = []
    for at, offset, block, flags, length in struct.iter_unpack(WALK_LISTED, listing):
        named = 0 if flags & RAM_SAVE_FLAG_CONTINUE else 1 + name_lengths[block]
        begin = at + _WORD + named + _LENGTH
        pages.append(CompressedPage(at, block, offset, begin, begin + length))
    return pages


def unpack_pages(body: memoryview, page_size: int, pages: Sequence[CompressedPage], spread: Spread) -> bytes:
    """The content of all of them, one after the other.

    Raises:
        RecordError: rule "compress-data": one is not exactly a page.
    """

    def unpack(some: Sequence[CompressedPage]) -> bytes:
        return b"".join(_unpack(body, page_size, page) for page in some)

    return b"".join(spread(unpack, [pages[at : at + SLICE] for at in range(0, len(pages), SLICE)]))


def _unpack(body: memoryview, page_size: int, page: CompressedPage) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(body[page.begin : page.end], page_size + 1)
    except zlib.error as error:
        raise RecordError("compress-data", page.at, f"an undecodable page: {error}") from error
    if len(content) != page_size or not stream.eof or stream.unused_data:
        raise RecordError("compress-data", page.at, f"what is compressed is not exactly {page_size} bytes")
    return content
