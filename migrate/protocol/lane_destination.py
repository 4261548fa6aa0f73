"""The destination's half of a lane: batches in, pages into RAM, positions out.

    closed ──open(epoch)──→ opening ──reset batch──→ receiving ──final──→ finished
       ↑                                                │
       └──────────── close(), from anywhere ────────────┘

Three calls drive it: `open` begins an epoch, `header` takes 64 bytes and says how many follow, `body` takes
those and applies them. The first error finishes the epoch: the object then refuses everything until `close`
and the next `open`. What was applied before stays applied, and `position` says how far that was.

A cache of another size is laid ready in `prepared`, also while the lane's thread runs: the source announces
it only after it was told so. It outlives `close`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_LAST, ApplyResult
from migrate.protocol.batch import HEADER_BYTES, BatchHeader, Kind, decode_marker, decode_resize, unpack_body
from migrate.protocol.records import decode_block_list
from migrate.ram.image import RamImage

COMMITTED_CACHE_BYTES = 256 << 20
"""Of a lane's share, at most so much gets its memory when the lane opens; more would hold the opening up."""

_SUM = 1 << 128


class ReceiverState(Enum):
    """Where a destination lane stands; see the diagram above."""

    CLOSED = "closed"
    OPENING = "opening"
    RECEIVING = "receiving"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class AppliedBatch:
    """One batch that is in RAM now, as the machine counts and acknowledges it."""

    kind: Kind
    epoch: int
    sequence: int
    round: int
    stage: int
    wire_bytes: int
    record_bytes: int
    """Plain length of the body."""
    apply: ApplyResult | None
    """None for batches without page records."""


@dataclass(frozen=True, slots=True)
class PreparedCache:
    """A page cache that waits for the batch that announces it."""

    number: int
    cache_bytes: int
    cache: kernel.PageCache | None
    """None: no XBZRLE any more."""


class DestinationLane:
    """One lane's share of RAM, cache and order at the destination.

    Args:
        image: the RAM, open for writing.
        digests: the table of all lanes; this lane touches only its own pages.
        cache_bytes: this lane's share of the agreed cache, 0 for no XBZRLE.
        readback: read every run back after it was written and compare its digests (proof level `ram`).
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
        readback: bool,
    ) -> None:
        self.number = number
        self._lanes = lanes
        self._image = image
        self._keys = keys
        self._digests = digests
        self.cache = kernel.PageCache(keys, cache_bytes, cache_rule) if cache_bytes else None
        self.prepared: PreparedCache | None = None
        self._readback = readback
        self.state = ReceiverState.CLOSED
        self.epoch = 0
        self.sequence = 0
        self.lane_sum = 0
        self._round = 0
        self._in_round = False
        self._header: BatchHeader | None = None
        self._error: Exception | None = None

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, sequence) of the last batch applied."""
        return self.epoch, self.sequence

    def commit_cache(self) -> None:
        """Have memory behind the cache before the first batch. Raises MemoryError."""
        if self.cache is not None:
            self.cache.commit(COMMITTED_CACHE_BYTES)

    def open(self, epoch: int) -> None:
        """A new connection. Raises ProtocolError: the epoch is not newer than the last."""
        if self.state is not ReceiverState.CLOSED:
            raise ValueError(f"lane {self.number} is {self.state.value}, close it first")
        if epoch <= self.epoch:
            raise ProtocolError(f"lane {self.number} was opened with the old epoch {epoch}")
        self.epoch = epoch
        self.sequence = 0
        self.state = ReceiverState.OPENING
        self._in_round = False

    def close(self) -> None:
        """The connection is gone: empty the cache, forget what was half received."""
        self.state = ReceiverState.CLOSED
        self._header = None
        self._error = None
        if self.cache is not None:
            self.cache.clear()

    def header(self, data: bytes | bytearray | memoryview) -> int:
        """Take a batch header of 64 bytes; returns how many bytes of body follow.

        Raises:
            ProtocolError: malformed, damaged, or not the batch that is due.
        """
        try:
            return self._checked_header(BatchHeader.decode(self._usable(data)))
        except ProtocolError as error:
            self._error = error
            raise

    def body(self, data: bytearray | memoryview) -> AppliedBatch:
        """Take the body that the header announced, check it and apply it to RAM.

        Raises:
            ProtocolError: damaged or illegal; RAM is as before.
            RamError: writing failed.
            VerifyError: something else was read back than was written.
        """
        self._usable(b"")
        header = self._header
        if header is None:
            raise ValueError("no header was taken")
        self._header = None
        try:
            applied = self._apply(header, unpack_body(header, memoryview(data)))
        except Exception as error:
            self._error = error
            raise
        self.sequence = header.sequence
        self._round = header.round
        self._in_round = header.kind is Kind.RECORDS
        return applied

    def _usable(self, data: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        if self._error is not None:
            raise self._error
        if self.state not in (ReceiverState.OPENING, ReceiverState.RECEIVING):
            raise ProtocolError(f"lane {self.number} got a batch while it is {self.state.value}")
        return data

    def _checked_header(self, header: BatchHeader) -> int:
        due = self.sequence + 1
        if (header.lane, header.epoch, header.sequence) != (self.number, self.epoch, due):
            raise ProtocolError(
                f"batch {header.sequence} of lane {header.lane}, epoch {header.epoch} came where batch {due}"
                f" of lane {self.number}, epoch {self.epoch} was due"
            )
        if (header.kind is Kind.RESET) != (self.state is ReceiverState.OPENING):
            raise ProtocolError("a lane begins with its reset batch, and only there")
        if header.round < self._round:
            raise ProtocolError(f"a batch of round {header.round} came after round {self._round}")
        if header.kind is Kind.CACHE_RESIZE and self._in_round:
            raise ProtocolError("the page cache changes its size in the middle of a round")
        if (header.kind is Kind.FINAL) and header.stage != STAGE_LAST:
            raise ProtocolError("a final batch came while the guest runs")
        if header.kind is not Kind.RECORDS and (header.records or header.digest_sum):
            raise ProtocolError("only a batch of records has records")
        self._header = header
        return header.wire_length

    def _apply(self, header: BatchHeader, plain: bytes | memoryview) -> AppliedBatch:
        result: ApplyResult | None = None
        if header.kind is Kind.RECORDS:
            self._image.check_unchanged()  # a write would silently make a truncated file longer again
            result = kernel.apply(
                self._image.kernel_ram,
                self._keys,
                self._digests,
                self.cache,
                plain,
                header.records,
                header.digest_sum,
                self.number,
                self._lanes,
                header.round,
                header.stage,
                self._readback,
            )
            self.lane_sum = (self.lane_sum + result.root_delta) % _SUM
        elif header.kind is Kind.RESET:
            self._check_blocks(plain)
            self.state = ReceiverState.RECEIVING
        elif header.kind is Kind.CACHE_RESIZE:
            self._change_cache(plain)
        else:
            self._check_marker(plain)
            if header.kind is Kind.FINAL:
                self.state = ReceiverState.FINISHED
        return AppliedBatch(
            header.kind,
            header.epoch,
            header.sequence,
            header.round,
            header.stage,
            HEADER_BYTES + header.wire_length,
            header.plain_length,
            result,
        )

    def _change_cache(self, plain: bytes | memoryview) -> None:
        announced = decode_resize(plain)
        prepared = self.prepared
        if prepared is None or announced != (prepared.number, prepared.cache_bytes):
            raise ProtocolError(f"a page cache of {announced[1]} bytes was not agreed on")
        if prepared.cache is not None and self.cache is not None:
            prepared.cache.take_over(self.cache)
        self.cache = prepared.cache
        self.prepared = None

    def _check_blocks(self, plain: bytes | memoryview) -> None:
        listed = decode_block_list(plain, self._keys.page_size)
        agreed = [(block.name, block.length) for block in self._image.layout.blocks]
        if listed != agreed:
            raise ProtocolError("a lane lists other RAM blocks than the handshake agreed on")

    def _check_marker(self, plain: bytes | memoryview) -> None:
        cache_digest, lane_sum = decode_marker(plain)
        if cache_digest != (self.cache.digest if self.cache else 0):
            raise ProtocolError("the page caches of the two sides differ")
        if lane_sum != self.lane_sum:
            raise ProtocolError("the digests of the two sides differ at the end of a round")
