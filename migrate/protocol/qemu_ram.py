"""The RAM of a QEMU stream: the blocks it lists, what was counted in each, and where its records land."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from migrate import kernel
from migrate.errors import RecordError, StreamError
from migrate.kernel.results import WALK_COUNTERS, WALK_LISTED, WALK_ROUND, RamBlock
from migrate.protocol.compressed_pages import Spread, compressed_pages, unpack_pages
from migrate.protocol.qemu_multifd import Packet
from migrate.protocol.qemu_wire import StreamBlock
from migrate.ram.layout import PageLayout

ROWS = 4096
"""Of a listing that is long enough."""
ROW_BYTES = struct.calcsize(WALK_LISTED)
_WIDTH = len(WALK_COUNTERS)


class Walked(NamedTuple):
    """Bytes used, why it stopped (WALK_*), rows listed."""

    used: int
    stop: int
    rows: int


class QemuRam:
    """Walks the page records of one stream.

    Args:
        page_size: bytes of a target page.
        blocks: the stream's list.
        ram: the same blocks with open files that begin zeroed; None: nothing is written, only looked at.

    Raises:
        ValueError: a block list that no migration can have.
    """

    def __init__(self, page_size: int, blocks: Sequence[StreamBlock], ram: kernel.Ram | None) -> None:
        self.layout = PageLayout(page_size, [(block.name, block.length) for block in blocks])
        self._written = 0
        self._apply = ram is not None
        self._ram = ram or _unopened(self.layout)
        self._content = bytearray(kernel.bitmap_bytes(self.layout.total_pages))
        self._seen = bytearray(len(self._content))
        self._counts = bytearray(8 * _WIDTH * len(blocks))
        self._landers: list[PageLander] = []
        self._block: int | None = None
        self._after = 0

    def walk(self, body: memoryview, listing: bytearray | None = None, *, rounds: bool = False) -> Walked:
        """Take records, up to a COMPRESS_PAGE (WALK_KIND). Raises RecordError, RamError.

        Args:
            listing: gets a row for each (`WALK_LISTED`).
            rounds: stop where one begins (WALK_ROUND).
        """
        return self._walk(body, listing, rounds, compressed=False)

    def walk_compressed(
        self, body: memoryview, listing: bytearray, *, rounds: bool = False, spread: Spread = map
    ) -> Walked:
        """Take records COMPRESS_PAGE, up to another one (WALK_KIND). Raises RecordError, RamError.

        Args:
            spread: who unpacks them.
        """
        walked = self._walk(body, listing, rounds, compressed=True)
        names = [len(block.name.encode()) for block in self.layout.blocks]
        pages = compressed_pages(memoryview(listing)[: walked.rows * ROW_BYTES], names)
        size = self.layout.page_size
        content = memoryview(unpack_pages(body, size, pages, spread))
        lander = PageLander(self._ram, self.layout, self._content, self._seen)
        for block, group in groupby(pages, key=lambda page: page.block) if self._apply else ():
            offsets = [page.offset for page in group]
            packet = Packet(
                self.layout.blocks[block].name,
                len(offsets),
                struct.pack(f">{len(offsets)}Q", *offsets),
                content[: len(offsets) * size],
                sync=False,
            )
            lander.land(packet)  # counts what `walk` has counted
            content = content[len(offsets) * size :]
        self._written += lander.written
        return walked

    def _walk(self, body: memoryview, listing: bytearray | None, rounds: bool, *, compressed: bool) -> Walked:
        result = kernel.walk(
            self._ram,
            body,
            self._block,
            self._content,
            self._seen,
            self._counts,
            self._apply,
            listing,
            self._after if rounds else None,
            compressed,
        )
        self._block = result.block
        self._after = 0 if result.stop == WALK_ROUND else result.after
        self._written += result.written
        return Walked(result.consumed, result.stop, result.listed)

    def page_channel(self) -> PageLander:
        """One more channel that pages come through; only with open files."""
        lander = PageLander(self._ram, self.layout, self._content, self._seen)
        self._landers.append(lander)
        return lander

    def forget_block(self) -> None:
        """The next record must name its block (a batch of the native protocol begins)."""
        self._block = None

    @property
    def written(self) -> int:
        """Pages written into files."""
        return self._written + sum(lander.written for lander in self._landers)

    @property
    def never_sent(self) -> dict[str, int]:
        """How many pages of each block had no record."""
        missing = {}
        for block in self.layout.blocks:
            bits = self._seen[block.first_page // 8 :][: kernel.bitmap_bytes(block.pages)]
            missing[block.name] = block.pages - kernel.bitmap_count(bits + bytes(-len(bits) % 8))
        return missing

    @property
    def by_block(self) -> dict[str, dict[str, int]]:
        """The counters of each block (`WALK_COUNTERS`)."""
        numbers = self._numbers()
        rows = (numbers[at : at + _WIDTH] for at in range(0, len(numbers), _WIDTH))
        return {
            block.name: dict(zip(WALK_COUNTERS, row, strict=True))
            for block, row in zip(self.layout.blocks, rows, strict=True)
        }

    @property
    def totals(self) -> dict[str, int]:
        """The counters over all blocks."""
        numbers = self._numbers()
        return {name: sum(numbers[at::_WIDTH]) for at, name in enumerate(WALK_COUNTERS)}

    def _numbers(self) -> list[int]:
        """The counters of all channels together."""
        of_channels = [self._counts, *(lander.counts for lander in self._landers)]
        columns = zip(*(memoryview(counts).cast("Q") for counts in of_channels), strict=True)
        return [sum(column) for column in columns]


class PageLander:
    """Puts the packets of one multifd channel into RAM; channels may do so at the same time.

    Attributes:
        counts: of this channel alone, so that no two threads add to one number.
        written: pages written into files.
    """

    def __init__(self, ram: kernel.Ram, layout: PageLayout, content: bytearray, seen: bytearray) -> None:
        self._ram = ram
        self._places = {block.name: place for place, block in enumerate(layout.blocks)}
        self._content = content
        self._seen = seen
        self.counts = bytearray(8 * _WIDTH * len(layout.blocks))
        self.written = 0

    def land(self, packet: Packet) -> None:
        """Put the pages of a packet into RAM. Raises StreamError, RamError."""
        if not packet.offsets:
            return
        place = self._places.get(packet.block)
        if place is None:
            raise StreamError("unknown-block", 0, f"a packet for a RAM block {packet.block!r}, not listed")
        try:
            self.written += kernel.land(
                self._ram,
                place,
                packet.offsets,
                packet.normal,
                packet.data,
                self._content,
                self._seen,
                self.counts,
            )
        except RecordError as error:
            raise StreamError(error.rule, error.offset, "a packet for a page beyond its block") from error


def kernel_ram(layout: PageLayout, descriptors: Mapping[str, int]) -> kernel.Ram:
    """The blocks for kernel calls, with an open file each."""
    return kernel.Ram(
        layout.page_size,
        layout.stripe_pages,
        [
            RamBlock(block.name.encode(), descriptors[block.name], block.first_page, block.pages)
            for block in layout.blocks
        ],
    )


def _unopened(layout: PageLayout) -> kernel.Ram:
    return kernel_ram(layout, dict.fromkeys((block.name for block in layout.blocks), 0))
