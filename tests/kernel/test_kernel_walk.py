"""`walk`: RAM sections of a real QEMU, on both kernels."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kernel_support import LAYOUT

from migrate.errors import RamError, RecordError
from migrate.kernel import _native, reference
from migrate.kernel.results import (
    WALK_COUNTERS,
    WALK_EOS,
    WALK_FLUSH,
    WALK_KIND,
    WALK_LISTED,
    WALK_MORE,
    WALK_ROUND,
    RamBlock,
)

PAGE = 1024
EOS = (0x10).to_bytes(8, "big")


def record(flags: int, offset: int, payload: bytes = b"", name: bytes | None = None) -> bytes:
    """One record; without a name it says CONTINUE."""
    word = offset | flags | (0x20 if name is None else 0)
    return word.to_bytes(8, "big") + (b"" if name is None else bytes([len(name)]) + name) + payload


def zero(offset: int, name: bytes | None = None) -> bytes:
    return record(2, offset, b"\0", name)


def page(offset: int, content: bytes, name: bytes | None = None) -> bytes:
    return record(8, offset, content, name)


def packed(offset: int, content: bytes, name: bytes | None = None) -> bytes:
    return record(0x100, offset, len(content).to_bytes(4, "big") + content, name)


def delta(offset: int, encoded: bytes, name: bytes | None = None) -> bytes:
    return record(0x40, offset, b"\1" + len(encoded).to_bytes(2, "big") + encoded, name)


class Walker:
    """RAM over memory files, and the state between calls."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.fds = [os.memfd_create("migrate-test") for _ in LAYOUT]
        blocks = []
        for fd, (name, first, pages) in zip(self.fds, LAYOUT, strict=True):
            os.ftruncate(fd, pages * PAGE)
            blocks.append(RamBlock(name, fd, first, pages))
        self.ram = kernel.Ram(PAGE, 64, blocks)
        self.content = bytearray(kernel.bitmap_bytes(self.ram.total_pages))
        self.seen = bytearray(len(self.content))
        self.counts = bytearray(8 * len(WALK_COUNTERS) * len(LAYOUT))
        self.block: int | None = None

    def walk(
        self,
        body: bytes,
        *,
        apply: bool = True,
        listing: bytearray | None = None,
        after: int | None = None,
        compressed: bool = False,
    ) -> Any:
        state = self.block, self.content, self.seen, self.counts
        result = self.kernel.walk(self.ram, body, *state, apply, listing, after, compressed)
        self.block = result.block
        return result

    def count(self, name: str) -> int:
        return sum(memoryview(self.counts).cast("Q")[WALK_COUNTERS.index(name) :: len(WALK_COUNTERS)])

    def read(self, block: int, offset: int) -> bytes:
        return os.pread(self.fds[block], PAGE, offset)

    def everything(self) -> tuple[object, ...]:
        rams = [os.pread(fd, 1 << 20, 0) for fd in self.fds]
        return rams, bytes(self.content), bytes(self.seen), bytes(self.counts), self.block


@pytest.fixture
def walker(kernel: Any) -> Iterator[Walker]:
    made = Walker(kernel)
    yield made
    for fd in made.fds:
        os.close(fd)


A, B = bytes([1]) * PAGE, bytes([2]) * PAGE


def test_records_land_in_order_and_deltas_change_what_ram_holds(walker: Walker) -> None:
    body = b"".join(
        [
            page(0, A, b"pc.ram"),
            page(PAGE, B),
            delta(0, b"\2\2\7\7"),
            page(2 * PAGE, A, b"vga.vram"),
            zero(2 * PAGE),
            zero(3 * PAGE),
            delta(4 * PAGE, b"\0\1\5"),
            EOS,
        ]
    )
    result = walker.walk(body + b"rest")
    assert (result.consumed, result.stop, result.block) == (len(body), WALK_EOS, 1)
    assert walker.read(0, 0) == A[:2] + b"\7\7" + A[4:]
    assert walker.read(0, PAGE) == B
    assert walker.read(1, 2 * PAGE) == bytes(PAGE)
    assert walker.read(1, 4 * PAGE) == b"\5" + bytes(PAGE - 1)
    counted = {name: walker.count(name) for name in WALK_COUNTERS}
    assert counted == {
        "zero": 1,
        "zero_again": 1,
        "normal": 3,
        "xbzrle": 2,
        "xbzrle_runs": 2,
        "xbzrle_bytes": 7,
        "named": 2,
        "continued": 5,
        "compressed": 0,
        "compressed_bytes": 0,
    }


def test_a_zero_page_that_is_zero_is_not_touched(walker: Walker) -> None:
    os.ftruncate(walker.fds[0], 0)  # a write to such a file is refused
    assert walker.walk(zero(0, b"pc.ram") + page(PAGE, bytes(PAGE))).written == 0
    with pytest.raises(RamError, match=r"pc\.ram"):
        walker.walk(page(0, A))


def test_a_record_cut_anywhere_waits_for_the_rest(walker: Walker) -> None:
    one = page(0, A, b"pc.ram")
    body = one + delta(0, b"\1\1\7")
    for end in range(len(body) - 1):
        walker.block = None
        result = walker.walk(body[:end])
        assert (result.consumed, result.stop) == (0 if end < len(one) else len(one), WALK_MORE)


def test_flush_stops_the_walk(walker: Walker) -> None:
    result = walker.walk((0x220).to_bytes(8, "big") + EOS)
    assert (result.consumed, result.stop) == (8, WALK_FLUSH)


BAD = {
    "hook": record(0x80, 0),
    "unknown-flags": record(0x0A, 0),
    "no-block": zero(0),
    "unknown-block": zero(0, b"pc.rom"),
    "bad-offset": zero(100 * PAGE, b"pc.ram"),
    "zero-fill": record(2, 0, b"\1", b"pc.ram"),
    "xbzrle-encoding": record(0x40, 0, b"\2\0\0", b"pc.ram"),
    "xbzrle-length": record(0x40, 0, b"\1\4\1", b"pc.ram"),
    "xbzrle-delta": delta(0, b"\5", b"pc.ram"),
}


@pytest.mark.parametrize("rule", BAD)
@pytest.mark.parametrize("apply", [True, False])
def test_an_illegal_record_is_refused_where_it_begins(walker: Walker, rule: str, apply: bool) -> None:
    good = page(0, A, b"pc.ram") if rule != "no-block" else b""
    with pytest.raises(RecordError) as caught:
        walker.walk(good + BAD[rule], apply=apply)
    assert (caught.value.rule, caught.value.offset) == (rule, len(good))
    assert walker.read(0, 0) == (A if apply and good else bytes(PAGE)), "what came before it lands"


def test_the_listing_stops_when_it_is_full(walker: Walker) -> None:
    row = struct.calcsize(WALK_LISTED)
    body = page(0, A, b"pc.ram") + delta(PAGE, b"\0\1\5") + zero(2 * PAGE)
    listing = bytearray(2 * row)
    result = walker.walk(body, apply=False, listing=listing)
    assert (result.listed, result.consumed) == (2, len(body) - 9)
    rows = list(struct.iter_unpack(WALK_LISTED, listing))
    assert rows == [(0, 0, 0, 8, 0), (15 + PAGE, PAGE, 0, 0x60, 3)]
    assert walker.read(0, 0) == bytes(PAGE)


def test_compressed_pages_are_taken_apart_from_others(walker: Walker) -> None:
    row = struct.calcsize(WALK_LISTED)
    before, after = page(0, A, b"pc.ram"), zero(3 * PAGE)
    middle = packed(PAGE, b"abc") + packed(2 * PAGE, bytes(PAGE + 13), b"pc.ram")
    body = before + middle + after + EOS
    result = walker.walk(body)
    assert (result.consumed, result.stop) == (len(before), WALK_KIND)
    listing = bytearray(4 * row)
    body = body[len(before) :]
    result = walker.walk(body, listing=listing, compressed=True)
    assert (result.consumed, result.stop, result.listed) == (len(middle), WALK_KIND, 2)
    rows = list(struct.iter_unpack(WALK_LISTED, listing[: 2 * row]))
    assert rows == [(0, PAGE, 0, 0x120, 3), (15, 2 * PAGE, 0, 0x100, PAGE + 13)]
    assert (walker.count("compressed"), walker.count("compressed_bytes")) == (2, PAGE + 16)
    assert walker.read(0, PAGE) == bytes(PAGE), "that is for land"
    assert walker.walk(body[len(middle) :], compressed=True).stop == WALK_KIND
    assert walker.walk(body[len(middle) :]).stop == WALK_EOS
    assert [number for number in range(64) if walker.seen[number >> 3] >> (number & 7) & 1] == [0, 1, 2, 3]


@pytest.mark.parametrize("length", [0, PAGE + 14, 1 << 31])
def test_a_compressed_page_of_a_length_that_cannot_be(walker: Walker, length: int) -> None:
    good = packed(0, b"abc", b"pc.ram")
    with pytest.raises(RecordError) as caught:
        walker.walk(good + record(0x100, 0, length.to_bytes(4, "big")), compressed=True)
    assert (caught.value.rule, caught.value.offset) == ("compress-length", len(good))


def test_a_record_that_goes_back_begins_a_round(walker: Walker) -> None:
    first = zero(0, b"pc.ram") + page(5 * PAGE, A) + page(0, A, b"vga.vram")
    second = zero(5 * PAGE, b"pc.ram") + EOS
    result = walker.walk(first + second, after=0)
    assert (result.consumed, result.stop, result.after) == (len(first), WALK_ROUND, 129)
    result = walker.walk(second, after=0)
    assert (result.consumed, result.stop, result.after) == (len(second), WALK_EOS, 6)
    assert walker.walk(second, after=6).stop == WALK_ROUND
    assert walker.walk(first + second).stop == WALK_EOS
    pages = [number for number in range(200) if walker.seen[number >> 3] >> (number & 7) & 1]
    assert pages == [0, 5, 128]


def test_arguments_that_do_not_fit(walker: Walker) -> None:
    for change in (
        {"content": bytearray(8)},
        {"seen": bytearray(8)},
        {"counts": bytearray(8)},
        {"block": 3},
        {"listing": bytearray(3)},
    ):
        arguments: dict[str, Any] = {
            "body": b"",
            "block": None,
            "content": walker.content,
            "seen": walker.seen,
            "counts": walker.counts,
            "apply": True,
        }
        with pytest.raises(ValueError):
            walker.kernel.walk(walker.ram, **(arguments | change))


def random_body(rng: random.Random) -> bytes:
    parts = [zero(0, b"pc.ram")]
    for _ in range(rng.randrange(40)):
        name = rng.choice([None, None, b"pc.ram", b"vga.vram"])
        offset = rng.randrange(30) * PAGE
        run = rng.randrange(1, 60)
        parts.append(
            rng.choice(
                [
                    zero(offset, name),
                    page(offset, rng.choice([A, B, bytes(PAGE), rng.randbytes(PAGE)]), name),
                    delta(offset, bytes([rng.randrange(99), run]) + rng.randbytes(run), name),
                    packed(offset, rng.randbytes(run), name),
                ]
            )
        )
    body = bytearray(b"".join(parts) + EOS)
    if rng.random() < 0.3:
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(body)


def test_both_kernels_do_the_same(rng: random.Random) -> None:
    for _ in range(150):
        body = random_body(rng)
        apply = rng.random() < 0.7
        after = rng.choice([None, 0])
        outcomes = []
        for module in (_native, reference):
            walker = Walker(module)
            try:
                outcome, at, compressed = [], 0, False
                while True:
                    result = walker.walk(body[at:], apply=apply, after=after, compressed=compressed)
                    outcome.append(tuple(result))
                    at += result.consumed
                    if result.stop != WALK_KIND:
                        break
                    compressed = not compressed
                outcomes.append((outcome, walker.everything()))
            except RecordError as error:
                outcomes.append(((error.rule, error.offset), walker.everything()))
            finally:
                for fd in walker.fds:
                    os.close(fd)
        assert outcomes[0] == outcomes[1]


def places(*pages: int) -> bytes:
    return b"".join((number * PAGE).to_bytes(8, "big") for number in pages)


def test_the_pages_of_a_multifd_packet_land(walker: Walker) -> None:
    state = walker.content, walker.seen, walker.counts
    assert walker.kernel.land(walker.ram, 1, places(3, 4, 9, 5), 3, A + B + bytes(PAGE), *state) == 2
    assert walker.kernel.land(walker.ram, 1, places(7, 4, 8), 1, B, *state) == 2
    assert walker.read(1, 3 * PAGE) == A
    assert walker.read(1, 4 * PAGE) == bytes(PAGE)
    assert walker.read(1, 7 * PAGE) == B
    assert (walker.count("normal"), walker.count("zero"), walker.count("zero_again")) == (4, 2, 1)
    assert [page for page in range(16) if walker.seen[16 + page // 8] >> page % 8 & 1] == [3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize("bad", [30 * PAGE, PAGE + 1, 1 << 63])
def test_a_packet_with_a_wrong_offset_leaves_ram_alone(walker: Walker, bad: int) -> None:
    offsets = places(3) + bad.to_bytes(8, "big")
    with pytest.raises(RecordError) as caught:
        walker.kernel.land(walker.ram, 1, offsets, 1, A, walker.content, walker.seen, walker.counts)
    assert (caught.value.rule, caught.value.offset) == ("bad-offset", 8)
    assert walker.read(1, 3 * PAGE) == bytes(PAGE)
    with pytest.raises(ValueError):
        walker.kernel.land(walker.ram, 1, offsets, 1, b"", walker.content, walker.seen, walker.counts)


@pytest.mark.parametrize(("kernel", "pages"), [(_native, 1 << 18), (reference, 1 << 10)])
def test_channels_that_land_at_once_lose_no_bit(kernel: Any, pages: int, rng: random.Random) -> None:
    channels = 2
    fd = os.memfd_create("migrate-test")
    os.ftruncate(fd, pages * PAGE)
    ram = kernel.Ram(PAGE, 64, [RamBlock(b"a", fd, 0, pages)])
    content, seen = bytearray(pages // 8), bytearray(pages // 8)
    start = threading.Barrier(channels)
    seeds = [rng.random() for _ in range(channels)]

    def land(channel: int) -> None:
        counts = bytearray(8 * len(WALK_COUNTERS))
        order = list(range(channel, pages, channels))
        random.Random(seeds[channel]).shuffle(order)  # or one would run after the other and never meet it
        mine = places(*order)
        for _ in range(40):
            start.wait()
            kernel.land(ram, 0, mine, 0, b"", content, seen, counts)
            start.wait()
            assert seen == b"\xff" * (pages // 8)
            start.wait()
            seen[:] = bytes(len(seen))

    with ThreadPoolExecutor(channels) as pool:
        for future in [pool.submit(land, channel) for channel in range(channels)]:
            future.result()
    os.close(fd)
