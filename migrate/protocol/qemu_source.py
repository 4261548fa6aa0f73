"""RAM on its way into a QEMU: dirty pages become sections of its stream, round after round.

A QEMU has no page cache at the destination: a delta is applied to the page that it holds, which is what was
sent last. Our cache holds just that, so every delta that the kernel makes is right there (qemu-ram-stream.md
3.4, 3.8), whatever rule it has. The kernel's batches are QEMU's records already; each names its block.
"""

from __future__ import annotations

from migrate import kernel
from migrate.kernel.results import STAGE_BULK, FillResult
from migrate.protocol.qemu_encode import CLOSING, OPENING_BYTES, PART_OPENING, encode_start
from migrate.protocol.records import MAX_NAME_BYTES
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage

SECTION_BYTES = 1 << 20
"""Of records in one section; QEMU's own have no fixed limit."""


class QemuRamSource:
    """Makes the sections of one migration. One thread at a time.

    Args:
        image: the RAM, open for reading.
        seed: 32 bytes, for the digests by which unchanged pages are known.
        cache_bytes: of the page cache; 0: no XBZRLE.
    """

    def __init__(self, image: RamImage, seed: bytes, cache_bytes: int, cache_rule: str) -> None:
        layout = image.layout
        self.keys = kernel.Keys(seed, layout.page_size)
        self.digests = DigestTable(self.keys, layout)
        self._image = image
        self._cache = kernel.PageCache(self.keys, cache_bytes, cache_rule) if cache_bytes else None
        self._pending = DirtyBitmap(layout.total_pages)
        self._owed = DirtyBitmap(layout.total_pages)
        self._owed.set_all(layout)  # zero pages too: the memory there may be a file with old content
        self._next_page = 0
        self._round = 1
        self._stage = STAGE_BULK
        self._sent = bytearray(8 * kernel.max_records(layout.page_size))
        self._longest_record = 8 + 1 + MAX_NAME_BYTES + layout.page_size
        self._memory = memoryview(bytearray(OPENING_BYTES + SECTION_BYTES + len(CLOSING)))
        self._memory[:OPENING_BYTES] = PART_OPENING

    @property
    def remaining(self) -> int:
        """Pages that wait to be sent."""
        waiting = self._pending.copy()
        waiting.union(self._owed)
        return waiting.count()

    def start(self) -> bytes:
        """The section that lists the blocks."""
        layout = self._image.layout
        return encode_start([(block.name, block.length) for block in layout.blocks], layout.page_size)

    def start_round(self, number: int, stage: int, dirty: DirtyBitmap) -> None:
        """Send these pages too, from the next section on; round 1 has all pages already."""
        self._pending.union(dirty)
        self._next_page = 0
        self._round = number
        self._stage = stage

    def next_section(self, limit: int = SECTION_BYTES) -> tuple[memoryview, list[FillResult]] | None:
        """The next section PART with about `limit` bytes of records; None: the round is out.

        The view is valid until the next call. Raises RamError when RAM cannot be read.
        """
        end = OPENING_BYTES + min(max(limit, self._longest_record), SECTION_BYTES)
        at = OPENING_BYTES
        fills = []
        finished = False
        while not finished and end - at >= self._longest_record:
            fill = kernel.fill(
                self._image.kernel_ram,
                self.keys,
                self.digests.array,
                self._cache,
                self._pending.array,
                self._owed.array,
                self._next_page,
                self._memory[at:],
                end - at,
                self._sent,
                self._round,
                self._stage,
            )
            self._next_page = fill.next_page
            finished = fill.finished
            at += fill.length
            fills.append(fill)
        if at == OPENING_BYTES and not any(fill.unchanged for fill in fills):
            return None
        self._memory[at : at + len(CLOSING)] = CLOSING
        return self._memory[: at + len(CLOSING)], fills
