"""The layout of RAM page records, as in QEMU's stream (qemu-ram-stream.md sections 2.1, 2.4 and 3.1).

be64  byte offset inside the block | flags        (flags are below 1024, the smallest page)
u8 n, n bytes                                     name of the block, unless CONTINUE
ZERO: u8 0    PAGE: the page    XBZRLE: u8 1, be16 n, n bytes of delta
"""

from __future__ import annotations

import struct

from migrate.kernel.reference.arguments import check_page_size
from migrate.kernel.reference.xbzrle import LONGEST_RUN

ZERO = 0x002
PAGE = 0x008
EOS = 0x010
CONTINUE = 0x020
XBZRLE = 0x040
HOOK = 0x080
COMPRESSED = 0x100
FLUSH = 0x200

HEADER = struct.Struct(">Q")
COMPRESSED_HEADER = struct.Struct(">I")
XBZRLE_HEADER = struct.Struct(">BH")
XBZRLE_ENCODING = 1
GAP = 1  # a run header costs two bytes, a longer run one more: a gap of one is never longer inside the run
LOOKS_PER_RECORD = 16  # a call looks at no more than this many times max_records pages


def max_records(page_size: int) -> int:
    """Most page records a batch may hold: 2048, fewer where 8 MiB of pages are fewer."""
    check_page_size(page_size)
    return min(2048, (8 << 20) // page_size)


def longest_delta(page_size: int) -> int:
    """Longest delta worth sending: with its 3-byte header it is still shorter than the page."""
    return page_size - XBZRLE_HEADER.size - 1


def can_delta(page_size: int) -> bool:
    """Whether run lengths reach over a page of that size."""
    return page_size <= LONGEST_RUN
