"""The RAM blocks of a migration: where they are in page space, and reading and writing them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from migrate.errors import RamError
from migrate.kernel.reference.arguments import check_page_size
from migrate.kernel.results import RamBlock

_LONGEST_NAME = 255
_STRIPE_GRAIN = 64  # pages: a stripe begins at a whole word of a bitmap


class Ram:
    """The blocks of a migration: names, open descriptors, places in page space."""

    def __init__(self, page_size: int, stripe_pages: int, blocks: Sequence[RamBlock]) -> None:
        """Raises ValueError: page size, name, empty block, overlap, block or stripe off its grain."""
        check_page_size(page_size)
        if stripe_pages < _STRIPE_GRAIN or stripe_pages % _STRIPE_GRAIN:
            raise ValueError(f"a stripe of {stripe_pages} pages is not a multiple of {_STRIPE_GRAIN}")
        end = 0
        for block in sorted(blocks, key=lambda block: block.first_page):
            if not 1 <= len(block.name) <= _LONGEST_NAME:
                raise ValueError(f"a block name of {len(block.name)} bytes")
            if block.fd < 0 or block.pages < 1 or block.first_page < 0 or block.first_page % stripe_pages:
                raise ValueError(f"block {block.name!r} cannot be {block.first_page}+{block.pages}")
            if block.first_page < end:
                raise ValueError(f"block {block.name!r} overlaps the one before it")
            end = block.first_page + block.pages
        self.page_size = page_size
        self.stripe_pages = stripe_pages
        self.by_name = {block.name: block for block in blocks}
        self._blocks = tuple(blocks)
        self._total_pages = end
        if len(self.by_name) != len(blocks):
            raise ValueError("two blocks have the same name")

    @property
    def total_pages(self) -> int:
        """End of page space (gaps included): the length that bitmaps and digest arrays need."""
        return self._total_pages

    @property
    def longest_name(self) -> int:
        """Bytes of the longest block name."""
        return max((len(block.name) for block in self._blocks), default=0)

    def block_of(self, page: int) -> RamBlock | None:
        """The block that has the page; None in a gap."""
        for block in self._blocks:
            if block.first_page <= page < block.first_page + block.pages:
                return block
        return None

    def require_range(self, first: int, count: int) -> None:
        """Raise ValueError unless pages first…first+count-1 are pages of one block."""
        block = self.block_of(first)
        if count < 0 or (count and (block is None or first + count > block.first_page + block.pages)):
            raise ValueError(f"pages {first}+{count} are not pages of one block")

    def require_block(self, page: int) -> RamBlock:
        """The block that has the page. Raises ValueError: none has."""
        block = self.block_of(page)
        if block is None:
            raise ValueError(f"page {page} is in no block")
        return block

    def read_some(self, block: RamBlock, page: int) -> bytes:
        """One page as it is now, or what is left of it in the file. Raises RamError: reading failed."""
        content = b""
        while len(content) < self.page_size:
            offset = (page - block.first_page) * self.page_size + len(content)
            part = bytearray(self.page_size - len(content))
            try:
                got = os.preadv(block.fd, [part], offset)
            except OSError as error:
                raise RamError(f"{describe(block, offset)}: reading failed: {error.strerror}") from error
            if got == 0:
                break
            content += part[:got]
        return content

    def read(self, block: RamBlock, page: int) -> bytes:
        """One page as it is now. Raises RamError: the file ends before it, or reading failed."""
        content = self.read_some(block, page)
        if len(content) < self.page_size:
            offset = (page - block.first_page) * self.page_size + len(content)
            raise _too_short(block, offset)
        return content

    def write(self, block: RamBlock, page: int, content: bytes) -> None:
        """Write a run of pages. Raises RamError: writing failed."""
        done = 0
        while done < len(content):
            offset = (page - block.first_page) * self.page_size + done
            try:
                put = os.pwritev(block.fd, [memoryview(content)[done:]], offset)
            except OSError as error:
                raise RamError(f"{describe(block, offset)}: writing failed: {error.strerror}") from error
            if put == 0:
                raise RamError(f"{describe(block, offset)}: writing failed: nothing more fits")
            done += put

    def require_whole(self, block: RamBlock) -> None:
        """Raise RamError if the block's file has become shorter than the block: a write would hide that."""
        status = os.fstat(block.fd)
        if stat.S_ISREG(status.st_mode) and status.st_size < block.pages * self.page_size:
            raise _too_short(block, status.st_size)


def _too_short(block: RamBlock, end: int) -> RamError:
    return RamError(f"{describe(block, end)}: the file ends here, the block has {block.pages} pages")


def describe(block: RamBlock, offset: int) -> str:
    """Where an error happened: block and byte offset inside it."""
    return f'RAM block "{block.name.decode(errors="replace")}" at offset {offset:#x}'
