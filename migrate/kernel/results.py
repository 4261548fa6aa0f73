"""What the batch calls return, and the block they take; shared by both kernels."""

from __future__ import annotations

from typing import NamedTuple

STAGE_BULK = 1  # first round: everything is sent once
STAGE_ROUND = 2  # later rounds, the guest runs
STAGE_LAST = 3  # the guest is stopped

WALK_MORE = 0  # the bytes ended, or the listing is full
WALK_EOS = 1  # a record EOS: the section ends
WALK_FLUSH = 2  # a record MULTIFD_FLUSH
WALK_ROUND = 3  # the next record goes back in RAM: a round begins
WALK_KIND = 4  # the next record is compressed and the ones before were not, or the other way round
WALK_COUNTERS = (
    "zero",
    "zero_again",
    "normal",
    "xbzrle",
    "xbzrle_runs",
    "xbzrle_bytes",
    "named",
    "continued",
    "compressed",
    "compressed_bytes",
)
"""What `walk` counts for each block. `zero_again`: on a page that was not zero; `zero`: on all others."""
WALK_LISTED = "=QQIHH"
"""A row of a listing: place in the body, offset in the block, block, flags, bytes of delta or packed page."""


class RamBlock(NamedTuple):
    """One RAM block as the kernel sees it."""

    name: bytes
    """1…255 bytes, unique."""
    fd: int
    """Open file; readable at the source, readable and writable at the destination."""
    first_page: int
    """Place in page space, a multiple of the stripe."""
    pages: int


class FillResult(NamedTuple):
    """One batch made by `fill`."""

    length: int
    """Bytes of records in the output buffer."""
    records: int
    next_page: int
    """Where the next call goes on."""
    finished: bool
    """No page is left at or after `start`."""
    crc: int
    """CRC-32C of the body."""
    digest_sum: int
    """Sum of the terms of the pages sent."""
    root_delta: int
    """What the root changed by, modulo 2**128."""
    zero: int
    normal: int
    xbzrle: int
    unchanged: int
    cache_hit: int
    """Lookups that hit: encoded + overflow + (rule "qemu") unchanged."""
    cache_miss: int
    overflow: int
    xbzrle_bytes: int
    """Over encoded pages record bytes - 8, plus a page per overflow (QEMU's `bytes`)."""


class ApplyResult(NamedTuple):
    """One batch applied by `apply`."""

    records: int
    root_delta: int
    zero: int
    normal: int
    xbzrle: int
    written: int
    """Pages written to RAM; the rest were zero already."""


class WalkResult(NamedTuple):
    """How far `walk` came in the records of a RAM section."""

    consumed: int
    """Bytes of whole records; what is left is the beginning of the next one."""
    stop: int
    """WALK_*; EOS or MULTIFD_FLUSH that stopped it is consumed, a record that begins a round is not."""
    block: int | None
    """Block named last: what CONTINUE means in the next call."""
    listed: int
    written: int
    """Pages written to RAM."""
    after: int
    """The page behind that of the last record."""
