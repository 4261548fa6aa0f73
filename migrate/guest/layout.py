"""What lies where in the RAM of a practice guest.

RAM is one or more blocks, each a file, in pages of 4096 bytes. All numbers are unsigned and little-endian.
The *place* of a page is `block << 32 | page number in the block`.

    page of a block          block 0                other blocks
    0                        header                 header
    1                        state                  first table page
    next ceil(pages / 512)   version table          (the rest of it)
    up to the end            data pages             data pages

Header (page 0; block 0 is written last, so a header means that the layout is complete):

    offset  bytes
    0       8       magic "MGGUEST1"
    8       4       number of this block
    12      4       number of blocks
    16      8       guest id, random: ties blocks, pages and witness lines together
    24      8       seed
    32      4       workload: 0 idle 1 sparse 2 kv 3 log 4 thrash 5 zero 6 mixed
    36      4       fill: 0 none 1 zero 2 random 3 working-set
    40      8       page writes a second, 0 = as fast as it can
    48      8       working set, in pages over all blocks
    56      8 * 64  pages of each block; 0 beyond the last
    568     4       CRC-32 (as zlib) of bytes 0…567
    572     1476    zero
    2048    8       the beat once more (the mirror): equal to the beat, or one behind it
    2056    2040    zero

State (page 1 of block 0). Each field is changed by one 8-byte store:

    0       8       magic "MGSTATE1"
    8       8       beat: grows by one about every millisecond while the guest runs
    16      8       the beat's complement; may be that of the beat before
    24      8       started: number of the last page write begun
    32      8       done: number of the last page write finished
    40      8       slot: place of the page that write `started` goes to
    48      8       slot: operation: 1 whole page, 2 words in place, 3 words on a page of zeros, 4 to zeros
    56      8       slot: the page's table entry after the write
    64      8       slot: the page's sum after the write (0 for operation 4)
    72      4024    zero

`started == done`: nothing is in flight, the slot means nothing. `started == done + 1`: the slot's page holds
any mixture of its old and its new content, its table entry is the old or the new one. Nothing else occurs at
any instruction.

Version table: 8 bytes a page of the block, entry k for page k; 0 for header, state and table pages, beyond
the last page and for a data page that was never written (which is all zeros):

    bits 24…63   version: how many writes the page has had
    bits 16…23   kind: 1 filled, 2 zero (written so)
    bits 0…15    low bits of mix(mix(place) ^ (entry with these bits 0)), mix = splitmix64's step

The versions of all pages add up to `done`: not a single write can be lost unseen, not even page and entry
together.

Filled data page:

    0       8       tag: bytes "PAGE", then the low half of the guest id
    8       8       place
    16      8       version, equal to the table's
    24      8       sum: of word i * weight i over the 512 words of 8 bytes, modulo 2**64;
                    weight i is mix(i) | 1, and 0 for this word
    32      4056    content
    4088    8       version again

A sum with odd weights sees every change of a single word for certain and anything else but for one case in
about 2**64, and it follows a change of few words at the cost of these words.

Writes are planned from the seed and their number alone (plan.c): first, with fill "random", every data page
in order (with "working-set" every one of the working set), then the workload. So after a move the guest goes
on exactly as it would have without.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

PAGE = 4096
MAX_BLOCKS = 64
SMALLEST_BLOCK = 16 * PAGE
SMALLEST_WORKING_SET = 4 * PAGE
HIGHEST_RATE = 10**9

HEADER_MAGIC = b"MGGUEST1"
STATE_MAGIC = b"MGSTATE1"
WORKLOADS = ("idle", "sparse", "kv", "log", "thrash", "zero", "mixed")
FILLS = ("none", "zero", "random", "working-set")

_HEADER = struct.Struct(f"<8sIIQQIIQQ{MAX_BLOCKS}Q")
_CRC = struct.Struct("<I")
_STATE = struct.Struct("<8s8Q")
_MIRROR = struct.Struct("<Q")
_MIRROR_OFFSET = 2048


class LayoutError(Exception):
    """A page of the guest is not what it must be; the text says what is wrong with it, not where it is."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The constants of a guest, equal in the headers of all its blocks."""

    guest_id: int
    seed: int
    workload: str
    fill: str
    rate: int
    """Page writes a second, 0 = as fast as it can."""
    working_set_pages: int
    block_pages: tuple[int, ...]

    @property
    def tag(self) -> int:
        """First word of each filled data page."""
        return int.from_bytes(b"PAGE", "little") | (self.guest_id & 0xFFFFFFFF) << 32

    @property
    def fill_writes(self) -> int:
        """The first so many writes fill RAM."""
        return {"random": self.data_pages, "working-set": self.working_set_pages}.get(self.fill, 0)

    @property
    def data_pages(self) -> int:
        """Data pages of all blocks."""
        return sum(self.data_pages_of(block) for block in range(len(self.block_pages)))

    def first_table_page(self, block: int) -> int:
        """Where the version table of a block starts."""
        return 2 if block == 0 else 1

    def first_data_page(self, block: int) -> int:
        """Where the data pages of a block start."""
        return self.first_table_page(block) + -(-self.block_pages[block] * 8 // PAGE)

    def data_pages_of(self, block: int) -> int:
        """Number of data pages of a block."""
        return self.block_pages[block] - self.first_data_page(block)

    def native_blocks(self) -> list[tuple[int, int, int, int]]:
        """(pages, first table page, first data page, pages of the working set) of each block.

        The working set takes the same share of each block, from its first data page on.
        """
        blocks, before, taken, total = [], 0, 0, self.data_pages
        for block, pages in enumerate(self.block_pages):
            before += self.data_pages_of(block)
            upto = self.working_set_pages * before // total
            blocks.append((pages, self.first_table_page(block), self.first_data_page(block), upto - taken))
            taken = upto
        return blocks


@dataclass(frozen=True, slots=True)
class State:
    """The state page of a guest that does not run."""

    beat: int
    beat_check: int
    started: int
    done: int
    slot_place: int
    slot_operation: int
    slot_entry: int
    slot_sum: int

    @property
    def slot(self) -> tuple[int, int, int, int, int] | None:
        """Number, place, operation, table entry and sum of the write in flight, None if there is none."""
        if self.started == self.done:
            return None
        return self.started, self.slot_place, self.slot_operation, self.slot_entry, self.slot_sum


def pack_header(layout: Layout, block: int, mirror: int) -> bytes:
    """Page 0 of a block."""
    sizes = layout.block_pages + (0,) * (MAX_BLOCKS - len(layout.block_pages))
    body = _HEADER.pack(
        HEADER_MAGIC,
        block,
        len(layout.block_pages),
        layout.guest_id,
        layout.seed,
        WORKLOADS.index(layout.workload),
        FILLS.index(layout.fill),
        layout.rate,
        layout.working_set_pages,
        *sizes,
    )
    page = bytearray(PAGE)
    page[: len(body)] = body
    _CRC.pack_into(page, len(body), zlib.crc32(body))
    _MIRROR.pack_into(page, _MIRROR_OFFSET, mirror)
    return bytes(page)


def is_header(page: bytes) -> bool:
    """Whether this begins like a practice guest's block."""
    return page.startswith(HEADER_MAGIC)


def unpack_header(page: bytes) -> tuple[Layout, int, int]:
    """Layout, block number and mirror of the beat of a header page.

    Raises LayoutError: magic, CRC, a value that cannot be, or bytes where zeros must be.
    """
    if not is_header(page):
        raise LayoutError("no practice guest's RAM: the magic of its first page is missing")
    (crc,) = _CRC.unpack_from(page, _HEADER.size)
    if crc != zlib.crc32(page[: _HEADER.size]):
        raise LayoutError("the CRC of its header is wrong")
    _, block, blocks, guest_id, seed, workload, fill, rate, working_set, *sizes = _HEADER.unpack_from(page)
    (mirror,) = _MIRROR.unpack_from(page, _MIRROR_OFFSET)
    # The CRC is right, so these were written like this: by another version of this program, or on purpose.
    if (
        not block < blocks <= MAX_BLOCKS
        or workload >= len(WORKLOADS)
        or fill >= len(FILLS)
        or rate > HIGHEST_RATE
        or any(not SMALLEST_BLOCK <= pages * PAGE < 1 << 44 for pages in sizes[:blocks])
    ):
        raise LayoutError("its header has values that this version of the program does not know")
    layout = Layout(
        guest_id, seed, WORKLOADS[workload], FILLS[fill], rate, working_set, tuple(sizes[:blocks])
    )
    if not SMALLEST_WORKING_SET <= working_set * PAGE <= layout.data_pages * PAGE:
        raise LayoutError("its header has a working set that does not fit its data pages")
    if page != pack_header(layout, block, mirror):
        raise LayoutError("there are bytes in its header page where zeros must be")
    return layout, block, mirror


def pack_state(state: State) -> bytes:
    """Page 1 of block 0."""
    return _STATE.pack(
        STATE_MAGIC,
        state.beat,
        state.beat_check,
        state.started,
        state.done,
        state.slot_place,
        state.slot_operation,
        state.slot_entry,
        state.slot_sum,
    ).ljust(PAGE, b"\0")


def unpack_state(page: bytes) -> State:
    """The state page. Raises LayoutError: it is none, or no instruction can have left it like this."""
    magic, *words = _STATE.unpack_from(page)
    state = State(*words)
    if magic != STATE_MAGIC:
        raise LayoutError("the magic of the state page is missing")
    if any(page[_STATE.size :]):
        raise LayoutError("there are bytes in the state page where zeros must be")
    if state.beat_check ^ 0xFFFFFFFFFFFFFFFF not in (state.beat, state.beat - 1):
        raise LayoutError("the beat and its complement in the state page do not fit together")
    if state.started - state.done not in (0, 1):
        raise LayoutError(f"write {state.started} was started while {state.done} were done")
    return state


def new_state() -> State:
    """The state of a guest that has not run yet."""
    return State(0, 0xFFFFFFFFFFFFFFFF, 0, 0, 0, 0, 0, 0)
