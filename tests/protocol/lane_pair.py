"""Lanes of both sides over RAM files, the test in place of threads and sockets."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from protocol_support import MIGRATION, PAGE, SEED, RamFiles, two_images

from migrate import kernel
from migrate.kernel.results import STAGE_BULK, STAGE_LAST, STAGE_ROUND
from migrate.protocol.batch import HEADER_BYTES, BatchHeader, Codec, unpack_body
from migrate.protocol.lane_destination import AppliedBatch, DestinationLane
from migrate.protocol.lane_source import SentBatch, SourceLane
from migrate.protocol.records import RAM_SAVE_FLAG_CONTINUE, RAM_SAVE_FLAG_PAGE, RAM_SAVE_FLAG_XBZRLE
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import ScanTracker, mark_all_data

__all__ = ["MIGRATION", "LanePair", "lane_pair", "record_pages"]


class LanePair:
    """All lanes of one migration at both sides, and the harvests between the rounds."""

    def __init__(
        self,
        files: tuple[RamFiles, RamImage, RamFiles, RamImage],
        lanes: int,
        cache_bytes: int,
        rule: str,
        codec: Codec,
    ) -> None:
        self.here, self.source_image, self.there, self.image = files
        self.keys = kernel.Keys(SEED, self.here.page_size)
        self.sent_digests = DigestTable(self.keys, self.source_image.layout)
        self.digests = DigestTable(self.keys, self.image.layout)
        self.lanes = lanes
        self.cache_bytes, self.rule = cache_bytes, rule
        self.source = [
            SourceLane(
                number,
                lanes,
                self.source_image,
                self.keys,
                self.sent_digests.array,
                cache_bytes,
                rule,
                codec,
            )
            for number in range(lanes)
        ]
        self.destination = [self.new_destination(number) for number in range(lanes)]
        self.tracker = ScanTracker(threads=1)
        self.tracker.start(self.source_image, self.sent_digests)
        self.round = 0

    def new_destination(self, number: int, readback: bool = True) -> DestinationLane:
        """A fresh lane over the same RAM and digests."""
        return DestinationLane(
            number,
            self.lanes,
            self.image,
            self.keys,
            self.digests.array,
            self.cache_bytes,
            self.rule,
            readback,
        )

    def harvest(self, *, first: bool = False) -> DirtyBitmap:
        """What is dirty now."""
        dirty = DirtyBitmap(self.source_image.layout.total_pages)
        if first:
            mark_all_data(self.source_image, dirty)
        else:
            self.tracker.collect(dirty)
        return dirty

    def open(self, number: int) -> None:
        """A new epoch at both ends."""
        self.source[number].open(self.source[number].epoch + 1)
        self.destination[number].open(self.source[number].epoch)

    def reset(self, number: int) -> int:
        """What a lane reset does to both ends; returns how many pages are owed."""
        position = self.destination[number].position
        self.destination[number].close()
        return self.source[number].reset(*position)

    def start_round(self, stage: int = STAGE_ROUND, dirty: DirtyBitmap | None = None) -> None:
        """Harvest, unless `dirty` is given, and begin the next round on every lane."""
        self.round += 1
        if dirty is None:
            dirty = self.harvest(first=stage == STAGE_BULK)
        for lane in self.source:
            lane.start_round(self.round, stage, dirty)

    def make(self, number: int, limit: int = 1 << 20) -> tuple[bytes, SentBatch] | None:
        """The next batch of a lane, kept."""
        made = self.source[number].next_batch(limit)
        return None if made is None else (bytes(made[0]), made[1])

    def deliver(self, number: int, data: bytes) -> AppliedBatch:
        """Hand a batch to the destination."""
        return deliver(self.destination[number], data)

    def run_out(self, number: int, limit: int = 1 << 20) -> list[tuple[bytes, SentBatch]]:
        """Send everything a lane has, each batch acknowledged at once; returns what was sent."""
        sent = []
        while (made := self.make(number, limit)) is not None:
            applied = self.deliver(number, made[0])
            self.source[number].acknowledge(applied.epoch, applied.sequence)
            sent.append(made)
        return sent

    def run_round(self, stage: int = STAGE_ROUND, limit: int = 1 << 20) -> list[SentBatch]:
        """A whole round over all lanes."""
        self.start_round(stage)
        return [sent for number in range(self.lanes) for _, sent in self.run_out(number, limit)]

    def finish(self) -> None:
        """The last round; everything is equal then."""
        self.run_round(STAGE_LAST)
        self.check_equal()

    def check_equal(self) -> None:
        """RAM, digests, caches and sums of both sides."""
        assert self.there.read() == self.here.read(), "RAM differs"
        assert self.digests.array == self.sent_digests.array
        for here, there in zip(self.source, self.destination, strict=True):
            assert here.lane_sum == there.lane_sum
            if here.cache is not None and there.cache is not None:
                assert here.cache.items() == there.cache.items()
                assert here.cache.digest == there.cache.digest
        changed = sum(lane.lane_sum for lane in self.destination)
        root = (self.digests.root + changed) % (1 << 128)
        assert root == sum(self.digests.stripe_sums()) % (1 << 128)


@contextmanager
def lane_pair(
    directory: Path,
    pages: Sequence[int] = (8,),
    lanes: int = 1,
    cache_bytes: int = 1 << 16,
    rule: str = "default",
    codec: Codec = Codec.NONE,
    page_size: int = PAGE,
) -> Iterator[LanePair]:
    """Lanes over RAM files that are all holes; no lane is open."""
    with two_images(directory, pages, page_size) as files:
        pair = LanePair(files, lanes, cache_bytes, rule, codec)
        try:
            yield pair
        finally:
            pair.tracker.close()


def deliver(lane: DestinationLane, data: bytes | bytearray) -> AppliedBatch:
    """Hand a batch to a destination lane as its thread does."""
    length = lane.header(data[:HEADER_BYTES])
    return lane.body(bytearray(data[HEADER_BYTES : HEADER_BYTES + length]))


def record_pages(batch: bytes, page_size: int = PAGE) -> list[tuple[str, int]]:
    """(block, page inside it) of every record of a batch of records, by the layout of QEMU's stream."""
    header = BatchHeader.decode(batch[:HEADER_BYTES])
    body = memoryview(bytes(unpack_body(header, memoryview(batch)[HEADER_BYTES:])))
    found = []
    at, block = 0, ""
    while at < len(body):
        (word,) = struct.unpack_from(">Q", body, at)
        flags = word & (page_size - 1)
        at += 8
        if not flags & RAM_SAVE_FLAG_CONTINUE:
            block = bytes(body[at + 1 : at + 1 + body[at]]).decode()
            at += 1 + body[at]
        found.append((block, word // page_size))
        if flags & RAM_SAVE_FLAG_PAGE:
            at += page_size
        elif flags & RAM_SAVE_FLAG_XBZRLE:
            at += 3 + struct.unpack_from(">H", body, at + 1)[0]
        else:
            at += 1
    return found


class InFlight:
    """Batches of one lane between the two ends."""

    def __init__(self) -> None:
        self.batches: deque[bytes] = deque()
        self.acknowledgements: deque[tuple[int, int]] = deque()

    def clear(self) -> None:
        """The connection broke."""
        self.batches.clear()
        self.acknowledgements.clear()
