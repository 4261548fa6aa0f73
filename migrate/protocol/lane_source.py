"""The source's half of a lane: dirty pages in, batches out, and what to send again after a reset.

    closed ──open(epoch)──→ opening ──reset batch──→ idle ←────────────┐
       ↑                                              │ start_round     │ round-end
       │                                              ↓                 │
       └────────── reset(applied), from anywhere ── sending ────────────┤
                                                                        └ final: finished until the next reset

A page cache of another size takes effect where no round is under way: after a round's end, or behind the
batch that opens an epoch. It is announced again in the next epoch unless the destination has applied it.

A lane is owned by one thread at a time: its own while it sends, the migration machine's otherwise. Its
order is the order of everything on it, so the two caches, changed by nothing but what is on the lane,
stay equal. Pages of batches that were not acknowledged when the lane breaks become *owed*: they are sent
again without asking whether they changed (design 3 and 4).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND, FillResult
from migrate.protocol.batch import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    BatchHeader,
    Codec,
    Kind,
    encode_marker,
    encode_resize,
    pack_body,
)
from migrate.protocol.lane_destination import COMMITTED_CACHE_BYTES
from migrate.protocol.records import MAX_NAME_BYTES, encode_block_list
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.image import RamImage

MAX_UNACKNOWLEDGED_BATCHES = 32
"""The window: bounds what is sent twice after a cut, and the memory that remembers it."""

_SUM = 1 << 128


class LaneState(Enum):
    """Where a source lane stands; see the diagram above."""

    CLOSED = "closed"
    OPENING = "opening"
    IDLE = "idle"
    SENDING = "sending"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SentBatch:
    """One batch on its way, as the machine counts it."""

    kind: Kind
    epoch: int
    sequence: int
    round: int
    stage: int
    wire_bytes: int
    fill: FillResult | None
    """None for batches without page records."""


@dataclass(slots=True)
class _Unacknowledged:
    sequence: int
    pages: bytes
    count: int


@dataclass(slots=True)
class _Resize:
    number: int
    cache_bytes: int
    cache: kernel.PageCache | None
    sequence: int = 0
    """Of the batch that announced it in this epoch; 0: it waits."""


class SourceLane:
    """One lane's share of RAM, cache and order at the source.

    Args:
        image: the RAM, open for reading.
        digests: the table of all lanes; this lane touches only its own pages.
        cache_bytes: this lane's share of the agreed cache, 0 for no XBZRLE.
    """

    def __init__(
        self,
        number: int,
        lanes: int,
        image: RamImage,
        keys: kernel.Keys,
        digests: bytearray,
        cache_bytes: int,
        cache_rule: str,
        codec: Codec,
    ) -> None:
        self.number = number
        self._lanes = lanes
        self._image = image
        self._keys = keys
        self._digests = digests
        self.cache = kernel.PageCache(keys, cache_bytes, cache_rule) if cache_bytes else None
        self._resize: _Resize | None = None
        self._codec = codec
        self.state = LaneState.CLOSED
        self.epoch = 0
        self.sequence = 0
        self.lane_sum = 0
        """What this lane changed the root by, modulo 2**128."""
        self._round = 0
        self._stage = STAGE_BULK
        pages = image.layout.total_pages
        self._pending = DirtyBitmap(pages)
        self._owed = DirtyBitmap(pages)
        self._next_page = 0
        self._unacknowledged: deque[_Unacknowledged] = deque()
        self._batch = bytearray(HEADER_BYTES + MAX_BODY_BYTES)
        self._sent = bytearray(8 * kernel.max_records(keys.page_size))
        self._longest_record = 8 + 1 + MAX_NAME_BYTES + keys.page_size

    @property
    def remaining(self) -> int:
        """Pages that wait to be sent, owed ones included."""
        return self.waiting().count()

    def waiting(self) -> DirtyBitmap:
        """The pages that wait to be sent, owed ones included."""
        waiting = self._pending.copy()
        waiting.union(self._owed)
        return waiting

    @property
    def window_full(self) -> bool:
        """No further batch may be made before one is acknowledged."""
        return len(self._unacknowledged) >= MAX_UNACKNOWLEDGED_BATCHES

    def commit_cache(self) -> None:
        """Have memory behind the cache before the first batch. Raises MemoryError."""
        if self.cache is not None:
            self.cache.commit(COMMITTED_CACHE_BYTES)

    @property
    def resizing(self) -> bool:
        """The destination has not applied a new size of the cache yet, as far as is known."""
        return self._resize is not None

    def resize(self, number: int, cache_bytes: int, cache: kernel.PageCache | None) -> None:
        """Go over to this cache (None: no XBZRLE) as soon as no round is under way; what fits is kept."""
        self._resize = _Resize(number, cache_bytes, cache)

    def open(self, epoch: int) -> None:
        """A new connection: the next batch is the reset batch of this epoch."""
        self._require(LaneState.CLOSED)
        self.state = LaneState.OPENING
        self.epoch = epoch
        self.sequence = 0

    def start_round(self, number: int, stage: int, dirty: DirtyBitmap) -> None:
        """Take this lane's pages out of a harvest and send them from the next batch on.

        Allowed while a round is being sent: the pages add up, and the rest goes out under the new number and
        stage.
        """
        self._require(LaneState.CLOSED, LaneState.OPENING, LaneState.IDLE, LaneState.SENDING)
        self._pending.union(dirty.select(self.number, self._lanes, self._image.layout.stripe_pages))
        self._round = number
        self._stage = stage
        self._next_page = 0
        if self.state is LaneState.IDLE:
            self.state = LaneState.SENDING

    def next_batch(self, limit: int = MAX_BODY_BYTES) -> tuple[memoryview, SentBatch] | None:
        """The next batch of at most `limit` body bytes, or one page; None when the round is out.

        The view has the header too and is valid until the next call. Raises RamError when RAM cannot be read.
        """
        if self.window_full:
            raise ValueError("the window is full: wait for an acknowledgement")
        if self.state is LaneState.OPENING:
            self.state = LaneState.SENDING if self._round else LaneState.IDLE
            body = encode_block_list(
                [(b.name, b.length) for b in self._image.layout.blocks], self._keys.page_size
            )
            return self._without_pages(Kind.RESET, body)
        waits = self._resize is not None and not self._resize.sequence
        if waits and (self.state is LaneState.IDLE or self.sequence == 1):
            return self._without_pages(Kind.CACHE_RESIZE, self._change_cache())
        if self.state is not LaneState.SENDING:
            return None
        fill = self._fill(max(limit, self._longest_record))
        if fill.records:
            return self._with_pages(fill)
        last = self._stage == STAGE_LAST
        self.state = LaneState.FINISHED if last else LaneState.IDLE
        marker = encode_marker(self.cache.digest if self.cache else 0, self.lane_sum)
        view, sent = self._without_pages(Kind.FINAL if last else Kind.ROUND_END, marker)
        return view, replace(sent, fill=fill)

    def acknowledge(self, epoch: int, sequence: int) -> None:
        """The destination applied everything up to this batch. Raises ProtocolError: it was never sent."""
        if epoch != self.epoch:
            return
        if sequence > self.sequence:
            raise ProtocolError(
                f"the destination acknowledged batch {sequence} of lane {self.number},"
                f" sent were {self.sequence}"
            )
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            self._unacknowledged.popleft()
        if self._resize is not None and 0 < self._resize.sequence <= sequence:
            self._resize = None

    def reset(self, applied_epoch: int, applied_sequence: int) -> int:
        """The connection is gone: what was not applied becomes owed, the cache is emptied.

        Returns how many pages are owed now. The round goes on after `open`.
        """
        if applied_epoch == self.epoch:
            self.acknowledge(applied_epoch, applied_sequence)
        for batch in self._unacknowledged:
            kernel.bitmap_set_pages(self._owed.array, batch.pages, batch.count)
        self._unacknowledged.clear()
        if self._resize is not None:
            self._resize.sequence = 0
        if self.cache is not None:
            self.cache.clear()
        if self._stage == STAGE_LAST:
            self._stage = STAGE_ROUND  # a broken lane ends the pause: the guest runs again
        self.state = LaneState.CLOSED
        self._next_page = 0
        return self._owed.count()

    def owe(self, pages: DirtyBitmap) -> None:
        """Pages that the destination turned out not to hold as recorded."""
        self._owed.union(pages.select(self.number, self._lanes, self._image.layout.stripe_pages))

    def _change_cache(self) -> bytes:
        """Use the cache of the new size from here on; the body that says so."""
        resize = self._resize
        assert resize is not None
        if resize.cache is not None and self.cache is not None and resize.cache is not self.cache:
            resize.cache.take_over(self.cache)
        self.cache = resize.cache
        resize.sequence = self.sequence + 1
        return encode_resize(resize.number, resize.cache_bytes)

    def _fill(self, limit: int) -> FillResult:
        unchanged = 0
        while True:
            fill = kernel.fill(
                self._image.kernel_ram,
                self._keys,
                self._digests,
                self.cache,
                self._pending.array,
                self._owed.array,
                self._next_page,
                memoryview(self._batch)[HEADER_BYTES:],
                limit,
                self._sent,
                self._round,
                self._stage,
            )
            self._next_page = fill.next_page
            self.lane_sum = (self.lane_sum + fill.root_delta) % _SUM
            unchanged += fill.unchanged
            if fill.records or fill.finished:
                return fill._replace(unchanged=unchanged)

    def _with_pages(self, fill: FillResult) -> tuple[memoryview, SentBatch]:
        pages = bytes(memoryview(self._sent)[: 8 * fill.records])
        body: bytes | memoryview = memoryview(self._batch)[HEADER_BYTES : HEADER_BYTES + fill.length]
        codec, crc = Codec.NONE, fill.crc
        if self._codec is not Codec.NONE:
            packed = pack_body(self._codec, memoryview(body))
            if len(packed) < fill.length:
                body, codec, crc = packed, self._codec, kernel.crc32c(packed)
        header = self._header(Kind.RECORDS, fill.records, len(body), fill.length, fill.digest_sum, crc, codec)
        self._unacknowledged.append(_Unacknowledged(self.sequence, pages, fill.records))
        return self._assemble(header, body), self._describe(header, fill)

    def _without_pages(self, kind: Kind, body: bytes) -> tuple[memoryview, SentBatch]:
        header = self._header(kind, 0, len(body), len(body), 0, kernel.crc32c(body), Codec.NONE)
        self._unacknowledged.append(_Unacknowledged(self.sequence, b"", 0))
        return self._assemble(header, body), self._describe(header, None)

    def _header(
        self, kind: Kind, records: int, wire: int, plain: int, digest_sum: int, crc: int, codec: Codec
    ) -> BatchHeader:
        self.sequence += 1
        return BatchHeader(
            kind,
            self._stage,
            self.number,
            self.epoch,
            self.sequence,
            self._round,
            records,
            wire,
            plain,
            digest_sum,
            crc,
            codec,
        )

    def _assemble(self, header: BatchHeader, body: bytes | memoryview) -> memoryview:
        view = memoryview(self._batch)
        view[:HEADER_BYTES] = header.encode()
        if isinstance(body, bytes):
            view[HEADER_BYTES : HEADER_BYTES + len(body)] = body
        return view[: HEADER_BYTES + header.wire_length]

    def _describe(self, header: BatchHeader, fill: FillResult | None) -> SentBatch:
        return SentBatch(
            header.kind,
            header.epoch,
            header.sequence,
            header.round,
            header.stage,
            HEADER_BYTES + header.wire_length,
            fill,
        )

    def _require(self, *states: LaneState) -> None:
        if self.state not in states:
            raise ValueError(f"lane {self.number} is {self.state.value}: this call is not for that state")
