"""What a recorded lane of the native protocol holds: batches one by one, with all that can be checked alone.

Digests need the keys of the migration, which travel on the control connection, so they are not checked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from migrate.errors import ProtocolError, RecordError, StreamError
from migrate.kernel.results import WALK_EOS, WALK_FLUSH, WALK_MORE
from migrate.protocol.batch import (
    HEADER_BYTES,
    MAGIC,
    BatchHeader,
    Kind,
    decode_marker,
    decode_resize,
    unpack_body,
)
from migrate.protocol.frames import HEADER_BYTES as FRAME_HEADER_BYTES
from migrate.protocol.frames import PREFACE_LANE
from migrate.protocol.qemu_ram import ROW_BYTES, ROWS, QemuRam
from migrate.protocol.qemu_wire import StreamBlock
from migrate.protocol.record_listing import PageRecord, listed_records
from migrate.protocol.records import decode_block_list

MAX_OPENING_BYTES = 512
_WORD = 8
MAX_ROUNDS = 1000
"""Rounds that are told apart; later ones are counted together."""

Summary = dict[str, object]


class LaneInspector:
    """Reads what one lane connection sent, with or without its opening, in bounded memory.

    Args:
        page_size: of the migration; the lane itself does not say it.
        on_record: gets every page record.
    """

    def __init__(self, page_size: int, on_record: Callable[[PageRecord], None] | None = None) -> None:
        self._page_size = page_size
        self._on_record = on_record
        self._listing = bytearray(ROWS * ROW_BYTES)
        self._buffer = bytearray()
        self._offset = 0
        self._opened = False
        self._ram: QemuRam | None = None
        self._epoch: tuple[int, int] | None = None
        """Lane and epoch."""
        self._sequence = 0
        self._final = False
        self._kinds: Counter[str] = Counter()
        self._rounds: dict[int, Counter[str]] = {}

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises StreamError."""
        self._buffer += data
        at = 0
        while used := self._take(at):
            at += used
        del self._buffer[:at]
        self._offset += at

    def close(self) -> None:
        """The input ended. Raises StreamError: rule "truncated"."""
        if self._buffer or not self._kinds:
            end = self._offset + len(self._buffer)
            raise StreamError("truncated", end, "the lane ends inside a batch, or has none")

    def summary(self) -> Summary:
        """What was seen until now; also after an error."""
        found: Summary = {
            "format": "lane",
            "bytes": self._offset + len(self._buffer),
            "page_size": self._page_size,
            "lane": self._epoch[0] if self._epoch else None,
            "batches": dict(self._kinds),
            "final": self._final,
            "rounds": [{"round": number} | dict(counts) for number, counts in self._rounds.items()],
        }
        if self._ram is not None:
            counts = self._ram.by_block
            found["blocks"] = [
                {"name": block.name, "length": block.length} | counts[block.name]
                for block in self._ram.layout.blocks
            ]
            found["totals"] = self._ram.totals
        return found

    def _take(self, at: int) -> int:
        """The next thing in the buffer; returns its bytes, 0 if it is not all there."""
        left = len(self._buffer) - at
        if not self._opened:
            return self._take_opening(left)
        if left < HEADER_BYTES:
            return 0
        start = self._offset + at
        try:
            header = BatchHeader.decode(self._buffer[at : at + HEADER_BYTES])
            end = at + HEADER_BYTES + header.wire_length
            if len(self._buffer) < end:
                return 0
            body = memoryview(unpack_body(header, memoryview(bytes(self._buffer[at + HEADER_BYTES : end]))))
            self._check_order(header, start)
            self._read(header, body, start + HEADER_BYTES)
        except (StreamError, RecordError) as error:
            if isinstance(error, StreamError):
                raise
            message = error.message.partition(" (rule ")[0]
            raise StreamError(error.rule, start + HEADER_BYTES + error.offset, message) from error
        except (ProtocolError, ValueError) as error:
            raise StreamError("batch", start, str(error)) from error
        return HEADER_BYTES + header.wire_length

    def _take_opening(self, left: int) -> int:
        length = 0
        if left < len(PREFACE_LANE) + FRAME_HEADER_BYTES:
            return 0
        if self._buffer.startswith(PREFACE_LANE):
            head = len(PREFACE_LANE)
            payload = int.from_bytes(self._buffer[head : head + 4], "big")
            if payload > MAX_OPENING_BYTES:
                raise StreamError("lane-open", head, f"a lane opens with a frame of {payload} bytes")
            length = head + FRAME_HEADER_BYTES + payload
            if left < length:
                return 0
        elif not self._buffer.startswith(MAGIC):
            raise StreamError("magic", 0, "neither a lane's opening nor a batch")
        self._opened = True
        return length or self._take(0)

    def _check_order(self, header: BatchHeader, start: int) -> None:
        epoch = (header.lane, header.epoch)
        fresh = epoch != self._epoch
        if fresh and (header.kind is not Kind.RESET or header.sequence != 1):
            raise StreamError(
                "epoch", start, f"lane {header.lane}, epoch {header.epoch} begins without reset"
            )
        if not fresh and header.sequence != self._sequence + 1:
            raise StreamError("sequence", start, f"batch {header.sequence} follows {self._sequence}")
        if self._final and not fresh:
            raise StreamError("final", start, "a batch follows the final one")
        self._epoch, self._sequence = epoch, header.sequence
        self._final = header.kind is Kind.FINAL
        self._kinds[header.kind.name.lower()] += 1

    def _read(self, header: BatchHeader, body: memoryview, start: int) -> None:
        counts = self._rounds.setdefault(min(header.round, MAX_ROUNDS), Counter())
        counts["batches"] += 1
        counts["wire_bytes"] += HEADER_BYTES + header.wire_length
        if header.kind is Kind.RESET:
            blocks = [StreamBlock(*block) for block in decode_block_list(body, self._page_size)]
            if self._ram is None:
                self._ram = QemuRam(self._page_size, blocks, None)
        elif header.kind is Kind.CACHE_RESIZE:
            decode_resize(body)
        elif header.kind is not Kind.RECORDS:
            decode_marker(body)
        else:
            self._read_records(header, body, start, counts)

    def _read_records(self, header: BatchHeader, body: memoryview, start: int, counts: Counter[str]) -> None:
        ram = self._ram
        assert ram is not None  # a reset came first
        before = ram.totals
        at = found = 0
        ram.forget_block()
        while at < len(body):
            used, stop, rows = ram.walk(body[at:], self._listing)
            if stop != WALK_MORE or not used:
                rule = "truncated" if stop == WALK_MORE else "unknown-flags"
                at += used - (_WORD if stop in (WALK_EOS, WALK_FLUSH) else 0)
                raise StreamError(rule, start + at, "the batch holds more or less than whole page records")
            if self._on_record is not None:
                for record in listed_records(self._listing, rows, body[at:], start + at, ram.layout.blocks):
                    self._on_record(record)
            at += used
            found += rows
        if found != header.records:
            raise StreamError("record-count", start, f"{found} records, the header says {header.records}")
        counts.update({name: value - before[name] for name, value in ram.totals.items()})
