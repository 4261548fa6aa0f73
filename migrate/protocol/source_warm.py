"""A destination that holds RAM already: its digests come first, and only what differs is sent.

    idle ──accepted with warm──→ waiting ──the last digest──→ idle, the table is the destination's
                                    ↑  │ a new attempt: from the first one
                                    └──┘

An old copy (`--warm`), or what an earlier run of the destination's daemon had received (design 4, Resume in
precopy). No lane is opened before the table is known: what it says is what the destination's RAM was read to
hold, so a page with the same digest needs no record.
"""

from __future__ import annotations

from migrate.errors import NetworkError, ProtocolError
from migrate.protocol import messages as m
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DIGEST_BYTES, DigestTable, zero_digests

SLOWEST_READING = 50e6
"""Bytes a second: a destination that reads its RAM files slower than that is taken for dead …"""
GRACE_SECONDS = 30.0
"""… after this."""


class SourceWarm:
    """The digests of a destination, as they come.

    Args:
        table: the source's table of what the destination holds.
        ram_bytes: what the destination has to read.
    """

    def __init__(self, table: DigestTable, ram_bytes: int) -> None:
        self._table = table
        self._allowed = GRACE_SECONDS + ram_bytes / SLOWEST_READING
        self._number = 0
        self._received: bytearray | None = None
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """The table is not known yet."""
        return self._received is not None

    def begin(self, now: float, attempt: int) -> None:
        """The destination of this attempt will send all digests."""
        self._number = attempt
        self._received = bytearray()
        self._since = now

    def message(self, message: m.Digests) -> DirtyBitmap | None:
        """Take a piece. With the last one the table is the destination's.

        Returns the pages that it holds in another way than the table said, once all are known.

        Raises:
            ProtocolError: out of order, or not as many as there are pages.
        """
        if self._received is None or message.number != self._number:
            return None  # of an attempt that is over
        expected = len(self._table.array)
        if message.first * DIGEST_BYTES != len(self._received):
            raise ProtocolError("the destination's digests came out of order")
        self._received += message.data
        if len(self._received) > expected or message.last != (len(self._received) == expected):
            raise ProtocolError("the destination's digests are not as many as the pages")
        if not message.last:
            return None
        received, self._received = self._received, None
        self._check_gaps(received)
        return self._take(received)

    def empty(self) -> DirtyBitmap:
        """The destination holds zeros. Returns the pages that the table said otherwise of."""
        return self._take(zero_digests(self._table.keys, self._table.layout))

    def check(self, now: float) -> None:
        """Raise NetworkError if the destination takes too long."""
        if self.waiting and now - self._since > self._allowed:
            raise NetworkError(
                f"the destination did not tell what its RAM files hold within {self._allowed:.0f} s",
                side="destination",
                hint="is the disk of its RAM files that slow? without --warm they are not read",
            )

    def _check_gaps(self, held: bytearray) -> None:
        """Pages that no block has are never sent: nothing may be said of them."""
        end = 0
        for first, pages in [(b.first_page, b.pages) for b in self._table.layout.blocks]:
            gap = slice(DIGEST_BYTES * end, DIGEST_BYTES * first)
            if held[gap] != self._table.array[gap]:
                raise ProtocolError("the destination tells digests of pages that no RAM block has")
            end = first + pages

    def _take(self, held: bytearray) -> DirtyBitmap:
        differing = DirtyBitmap(len(held) // DIGEST_BYTES)
        differing.array[:] = self._table.differing(held)
        self._table.array[:] = held
        self._table.recompute_root()
        return differing
