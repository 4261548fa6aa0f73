"""`fill` alone: where a batch ends, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel_support import BULK, ROUND, Side, content, counters, page_record, sides

from migrate.errors import RamError
from migrate.kernel.results import RamBlock

# where a batch ends


def test_the_record_that_does_not_fit_has_not_happened(kernel: Any) -> None:
    with sides(kernel, slots=8) as [side]:
        side.write(0, content(0))
        side.mark(1)
        side.write(2, content(2))
        room = 8 + 1 + 255 + 1024
        one = len(page_record(0, content(0), b"pc.ram"))
        assert one + 8 + 1024 > room
        before = side.root
        batch = side.fill(2, ROUND, limit=room)
        assert (batch.pages, batch.result.finished, batch.result.next_page) == ((0,), False, 2)
        assert counters(batch.result) == {"normal": 1, "cache_miss": 1, "unchanged": 1}
        assert [entry[0] for entry in side.held()] == [0]
        assert kernel.bitmap_next(side.pending, 0) == 2
        assert side.root != before
        assert kernel.root(side.keys, side.digests, 2, 1) == side.keys.term(2, side.keys.zero_digest)
        batch = side.fill(2, ROUND, start=2, limit=room)
        assert batch.body == page_record(2048, content(2), b"pc.ram")
        assert batch.result.finished


def test_the_limit_is_exact(kernel: Any) -> None:
    with sides(kernel, layout=((b"a", 0, 60),)) as [side]:
        side.write(0, content(0))
        side.write(50, content(50))
        side.mark(*range(1, 50), owed=True)
        size = 10 + 1024 + 49 * 9 + 8 + 1024
        for limit in range(size - 10, size + 2):
            with sides(kernel, layout=((b"a", 0, 60),), files=side.files) as [reader]:
                reader.mark(0, 50)
                reader.mark(*range(1, 50), owed=True)
                batch = reader.fill(1, BULK, limit=limit)
                assert batch.result.finished is (limit >= size)
                assert batch.result.records == 50 + (limit >= size)
                assert len(batch.body) == batch.result.length <= limit


def test_start_is_where_the_walk_begins(kernel: Any) -> None:
    with sides(kernel) as [side]:
        side.mark(3, 99, 128, 196, owed=True)
        assert side.fill(1, BULK, start=100).pages == (128, 196)
        assert side.fill(1, BULK, start=99).pages == (99,)
        assert side.fill(1, BULK, start=197).result.finished
        assert kernel.bitmap_count(side.owed) == 1
        assert side.fill(1, BULK).pages == (3,)


def test_bits_in_gaps_are_ignored_and_stay(kernel: Any) -> None:
    with sides(kernel) as [side]:
        kernel.bitmap_set_range(side.pending, 0, 197)
        kernel.bitmap_set_range(side.owed, 99, 30)
        batch = side.fill(1, BULK)
        assert batch.pages == (99, 128)
        assert batch.result.finished
        assert kernel.bitmap_count(side.pending) == 28 + 34
        assert kernel.bitmap_count(side.owed) == 28


def test_at_most_max_records(kernel: Any) -> None:
    most = kernel.max_records(65536)
    with sides(kernel, page_size=65536, layout=((b"a", 0, most + 70),)) as [side]:
        kernel.bitmap_set_range(side.owed, 0, most)
        kernel.bitmap_set_range(side.pending, most, 10)  # these are unchanged: taken all the same
        batch = side.fill(1, BULK)
        assert (batch.result.records, batch.result.finished) == (most, True)
        assert batch.result.unchanged == 10
        kernel.bitmap_set_range(side.owed, 0, most)
        kernel.bitmap_set_range(side.pending, most, 10)
        kernel.bitmap_set_range(side.owed, most + 10, 1)
        batch = side.fill(1, BULK)
        assert (batch.result.records, batch.result.finished, batch.result.next_page) == (
            most,
            False,
            most + 10,
        )
        assert batch.result.unchanged == 10
        assert side.fill(1, BULK, start=most + 10).pages == (most + 10,)


def test_one_call_looks_at_a_bounded_number_of_pages(kernel: Any) -> None:
    most = 16 * kernel.max_records(1024)
    with sides(kernel, layout=((b"a", 0, most + 70), (b"b", most + 128, 1))) as [side]:
        kernel.bitmap_set_range(side.pending, 1, most)
        kernel.bitmap_set_range(side.pending, most + 128, 1)
        batch = side.fill(1, BULK)
        assert (batch.body, batch.result.finished, batch.result.next_page) == (b"", False, most + 128)
        assert batch.result.unchanged == most
        batch = side.fill(1, BULK, start=most + 128)
        assert (batch.result.unchanged, batch.result.finished) == (1, True)


# errors


def test_a_truncated_file_names_block_and_offset(kernel: Any) -> None:
    with sides(kernel) as [side]:
        side.write(128, content(128))
        side.mark(129, 131)
        os.ftruncate(side.files[1], 3 * 1024 + 5)
        with pytest.raises(RamError, match=r"vga\.vram.*0xc0[05]"):
            side.fill(1, BULK)
        with pytest.raises(RamError, match=r"vga\.vram"):
            kernel.scan(side.ram, side.keys, side.digests, 128, 30, side.pending)
        with pytest.raises(RamError, match=r"vga\.vram"):
            kernel.digest_range(side.ram, side.keys, 131, 1, bytearray(16))
        assert kernel.scan(side.ram, side.keys, side.digests, 128, 3, side.pending) >= 0


def test_a_file_that_cannot_be_read(kernel: Any, tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(3 * 1024))
    fd = os.open(path, os.O_WRONLY)
    try:
        with sides(kernel, layout=((b"a", 0, 3),), files=[fd]) as [side]:
            side.mark(0)
            with pytest.raises(RamError, match="a"):
                side.fill(1, BULK)
    finally:
        os.close(fd)


def bad_arguments(side: Side) -> list[Callable[[], object]]:
    k, total = side.kernel, side.ram.total_pages
    out, sent = bytearray(4096), bytearray(8 * k.max_records(1024))

    def call(**change: Any) -> Callable[[], object]:
        arguments = {
            "ram": side.ram, "keys": side.keys, "digests": side.digests, "cache": side.cache,
            "pending": side.pending, "owed": side.owed, "start": 0, "out": out, "limit": 4096,
            "sent": sent, "round": 1, "stage": ROUND,
        }  # fmt: skip
        return lambda: k.fill(*(arguments | change).values())

    return [
        call(digests=bytearray(16 * total - 1)),
        call(pending=bytearray(len(side.pending) - 8)),
        call(owed=bytearray(len(side.owed) - 8)),
        call(limit=8 + 1 + 255 + 1023),
        call(limit=4097),
        call(out=bytearray(100)),
        call(sent=bytearray(len(sent) - 1)),
        call(round=-1),
        call(round=2**32),
        call(stage=0),
        call(stage=4),
        call(start=-1),
        call(keys=k.Keys(bytes(32), 4096)),
        call(cache=k.PageCache(k.Keys(bytes(32), 4096), 1 << 20, "default")),
    ]


def test_bad_arguments(kernel: Any) -> None:
    with sides(kernel, slots=2) as [side]:
        side.mark(1, owed=True)
        for call in bad_arguments(side):
            with pytest.raises((ValueError, OverflowError)):
                call()
        assert kernel.bitmap_count(side.owed) == 1
        assert side.fill(1, ROUND, limit=8 + 1 + 255 + 1024).pages == (1,)


@pytest.mark.parametrize(
    ("stripe", "blocks"),
    [
        (0, []), (63, []), (100, []), (-64, []),
        (64, [(b"", 0, 1)]), (64, [(b"x" * 256, 0, 1)]), (64, [(b"a", 1, 1)]), (64, [(b"a", 0, 0)]),
        (64, [(b"a", 0, 65), (b"b", 64, 1)]), (64, [(b"b", 64, 1), (b"a", 0, 65)]),
        (64, [(b"a", 0, 1), (b"a", 64, 1)]), (128, [(b"a", 64, 1)]), (64, [(b"a", -64, 1)]),
    ],
)  # fmt: skip
def test_ram_refuses(kernel: Any, stripe: int, blocks: list[tuple[bytes, int, int]]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        kernel.Ram(4096, stripe, [RamBlock(name, 0, first, pages) for name, first, pages in blocks])


def test_ram_of_no_blocks_and_of_a_bad_descriptor(kernel: Any) -> None:
    assert kernel.Ram(4096, 64, []).total_pages == 0
    assert kernel.Ram(4096, 64, [RamBlock(b"b", 0, 128, 3), RamBlock(b"a", 0, 0, 64)]).total_pages == 131
    for page_size in (512, 5000, 131072):
        with pytest.raises(ValueError):
            kernel.Ram(page_size, 64, [])
    with pytest.raises((ValueError, OverflowError)):
        kernel.Ram(4096, 64, [RamBlock(b"a", -1, 0, 1)])
