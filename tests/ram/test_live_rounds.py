"""Rounds over RAM that a process writes all the time: image, digests, bitmap, tracker and pause together.

Every byte is compared in the end (LMT section 5, invariants 1, 3, 4, 7 and 11). Sockets and machines are
left out.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.daemon.guest_control import ProcessGuest
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable, read_digests
from migrate.ram.image import RamImage, RamSpec
from migrate.ram.trackers import ScanTracker, StopTracker, mark_all_data

PAGES = 600
BATCH_BYTES = 64 << 10
CACHE_BYTES = 100 * PAGE


@pytest.fixture
def guest_ram(directory: Path) -> Iterator[Ram]:
    ram = Ram(directory / "guest.ram", PAGES)
    yield ram
    os.close(ram.fd)


@pytest.fixture
def writer(guest_ram: Ram) -> Iterator[int]:
    """Process id of a guest that writes into `guest_ram`."""
    script = Path(__file__).with_name("live_writer.py")
    process = subprocess.Popen([sys.executable, script, guest_ram.path], stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


class Wire:
    """A source and a destination that are joined by function calls."""

    def __init__(self, source: RamImage, destination: RamImage) -> None:
        self.keys = kernel.Keys(os.urandom(32), PAGE)
        self.source, self.destination = source, destination
        self.sent = DigestTable(self.keys, source.layout)
        self.applied = DigestTable(self.keys, destination.layout)
        self._caches = [kernel.PageCache(self.keys, CACHE_BYTES, "default") for _ in range(2)]
        self._owed = DirtyBitmap(source.layout.total_pages)
        self._out = bytearray(BATCH_BYTES)
        self._numbers = bytearray(8 * kernel.max_records(PAGE))

    def send(self, dirty: DirtyBitmap, number: int, stage: int) -> int:
        """One round: the pages that are dirty, batch by batch. Returns how many records it took."""
        pending = dirty.take()
        records = start = 0
        while True:
            filled = kernel.fill(
                self.source.kernel_ram, self.keys, self.sent.array, self._caches[0], pending.array,
                self._owed.array, start, self._out, BATCH_BYTES, self._numbers, number, stage,
            )  # fmt: skip
            self.sent.add(filled.root_delta)
            body = memoryview(self._out)[: filled.length]
            applied = kernel.apply(
                self.destination.kernel_ram, self.keys, self.applied.array, self._caches[1], body,
                filled.records, filled.digest_sum, 0, 1, number, stage, True,
            )  # fmt: skip
            self.applied.add(applied.root_delta)
            records += filled.records
            start = filled.next_page
            if filled.finished:
                assert pending.count() == 0
                return records


def beat(ram: Ram) -> int:
    return int(struct.unpack("<Q", os.pread(ram.fd, 8, 0))[0])


def wait_for_beats(ram: Ram, beats: int) -> None:
    """Until the guest's beat has grown by so many."""
    target = beat(ram) + beats
    end = time.monotonic() + 30
    while beat(ram) < target:
        assert time.monotonic() < end, "the guest does not run"


def open_both(ram: Ram) -> tuple[RamImage, RamImage]:
    source = RamImage.open_source([RamSpec("pc.ram", ram.path)], PAGE)
    destination = RamImage.open_destination(
        [RamSpec("pc.ram", ram.path.with_name("copy.ram"))], {"pc.ram": PAGES * PAGE}, PAGE
    )
    destination.mark("c0ffee")
    return source, destination


async def test_a_guest_that_never_rests_arrives_whole(guest_ram: Ram, writer: int) -> None:
    source, destination = open_both(guest_ram)
    with source, destination, closing(ProcessGuest(writer)) as guest, closing(ScanTracker()) as tracker:
        wire = Wire(source, destination)
        dirty = DirtyBitmap(source.layout.total_pages)
        tracker.start(source, wire.sent)
        mark_all_data(source, dirty)
        assert wire.send(dirty, 1, kernel.STAGE_BULK) > 0
        for number in range(2, 7):
            wait_for_beats(guest_ram, 20)
            await asyncio.to_thread(tracker.collect, dirty)
            assert wire.send(dirty, number, kernel.STAGE_ROUND) > 0
        wait_for_beats(guest_ram, 20)

        await guest.pause(10.0)
        stopped_at = beat(guest_ram)
        tracker.collect(dirty, stopped=True)
        assert wire.send(dirty, 7, kernel.STAGE_LAST) > 0
        assert tracker.collect(dirty, stopped=True).dirty_pages == 0
        assert await guest.still_paused()

        assert destination_bytes(destination) == guest_ram.path.read_bytes()
        assert wire.sent.root == wire.applied.root == wire.sent.recompute_root()
        assert wire.sent.array == wire.applied.array == read_digests(source, wire.keys, 2)
        assert read_digests(destination, wire.keys, 2) == wire.sent.array
        assert beat(guest_ram) == stopped_at
        await guest.resume()
        wait_for_beats(guest_ram, 1)


async def test_without_live_rounds_everything_goes_in_the_pause(guest_ram: Ram, writer: int) -> None:
    source, destination = open_both(guest_ram)
    with source, destination, closing(ProcessGuest(writer)) as guest, closing(StopTracker()) as tracker:
        wire = Wire(source, destination)
        dirty = DirtyBitmap(source.layout.total_pages)
        tracker.start(source, wire.sent)
        assert tracker.collect(dirty).dirty_pages == 0
        for number in (1, 2):  # the second after a pause that was given up
            await guest.pause(10.0)
            tracker.collect(dirty, stopped=True)
            wire.send(dirty, number, kernel.STAGE_LAST)
            assert destination_bytes(destination) == guest_ram.path.read_bytes()
            await guest.resume()
            wait_for_beats(guest_ram, 20)


def destination_bytes(image: RamImage) -> bytes:
    return image.paths["pc.ram"].read_bytes()
