"""`fill` alone: which record a page becomes, byte for byte, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_support import (
    BULK,
    LAST,
    LAYOUT,
    ROUND,
    RULES,
    content,
    counters,
    delta_record,
    edited,
    page_record,
    sides,
    zero_record,
)

from migrate.kernel.results import FillResult

QEMU_RAM = ((b"pc.ram", 0, 256),)


def changed(page: bytes, *places: int) -> bytes:
    new = bytearray(page)
    for place in places:
        new[place] ^= 0x55
    return bytes(new)


# qemu-ram-stream.md 13.3, 4 KiB pages


def test_records_as_qemu_writes_them(kernel: Any) -> None:
    with sides(kernel, page_size=4096, layout=QEMU_RAM, slots=8) as [side]:
        side.mark(0, 1, owed=True)
        batch = side.fill(2, ROUND)
        assert batch.body.hex() == (
            "0000000000000002" "06" "70632e72616d" "00"  # ZERO, pc.ram offset 0
            "0000000000001022" "00"  # ZERO, same block, 0x1000
        )  # fmt: skip
        assert batch.pages == (0, 1)

        old = b"\xaa" * 4096
        side.write(0x50, old)
        batch = side.fill(2, ROUND)
        assert batch.body == bytes.fromhex("00000000000500080670632e72616d") + old

        side.mark(0x4F, owed=True)
        side.write(0x50, b"\x01" + old[1:])
        batch = side.fill(3, ROUND)
        assert batch.body[-14:] == bytes.fromhex("0000000000050060010003000101")
        assert batch.body[:-14] == bytes.fromhex("000000000004f0020670632e72616d00")


def test_blocks_are_named_when_they_change(kernel: Any) -> None:
    with sides(kernel) as [side]:
        for page in (5, 6, 128, 129, 192):
            side.write(page, content(page))
        batch = side.fill(1, BULK)
        assert batch.body == b"".join(
            [
                page_record(5 * 1024, content(5), b"pc.ram"),
                page_record(6 * 1024, content(6)),
                page_record(0, content(128), b"vga.vram"),
                page_record(1024, content(129)),
                page_record(0, content(192), b"n" * 255),
            ]
        )
        assert batch.pages == (5, 6, 128, 129, 192)
        assert batch.result.finished
        assert batch.result.next_page == side.ram.total_pages == 197
        assert counters(batch.result) == {"normal": 5}
        assert batch.result.crc == kernel.crc32c(batch.body)
        assert batch.result.digest_sum == side.terms(*[(p, content(p)) for p in batch.pages])
        assert side.root == kernel.root(side.keys, side.digests, 0, 197)
        assert not any(side.pending)
        assert side.fill(1, BULK).result == FillResult(0, 0, 197, True, *[0] * 11)  # nothing is left


def test_blocks_in_any_order_go_out_by_page_number(kernel: Any) -> None:
    with sides(kernel, layout=tuple(reversed(LAYOUT))) as [side]:
        for page in (192, 128, 0):
            side.write(page, content(page))
        assert side.fill(1, BULK).pages == (0, 128, 192)


# unchanged


def test_unchanged_pages_are_left_out(kernel: Any) -> None:
    with sides(kernel, slots=8) as [side]:
        side.write(3, content(3))
        side.fill(1, BULK)
        held = side.held()
        side.mark(3, 4, 5)
        batch = side.fill(2, ROUND)
        assert (batch.body, batch.pages) == (b"", ())
        assert counters(batch.result) == {"unchanged": 3}
        assert batch.result.root_delta == batch.result.digest_sum == 0
        assert side.held() == held
        assert not any(side.pending)


def test_owed_pages_are_sent_though_unchanged(kernel: Any) -> None:
    with sides(kernel) as [side]:
        side.write(3, content(3))
        side.fill(1, BULK)
        side.mark(3, 4, owed=True)
        side.mark(4, 5)
        batch = side.fill(2, ROUND)
        assert batch.body == page_record(3072, content(3), b"pc.ram") + zero_record(4096)
        assert counters(batch.result) == {"normal": 1, "zero": 1, "unchanged": 1}
        assert batch.result.root_delta == 0
        assert batch.result.digest_sum == side.terms((3, content(3)), (4, bytes(1024)))
        assert not any(side.pending)
        assert not any(side.owed)


@pytest.mark.parametrize("rule", RULES)
def test_an_owed_page_that_the_cache_has_becomes_a_delta_that_writes_it(kernel: Any, rule: str) -> None:
    with sides(kernel, slots=8, rule=rule) as [side]:
        side.write(3, content(3))
        side.fill(2, ROUND)
        side.mark(3, owed=True)
        batch = side.fill(3, ROUND)
        assert batch.body == delta_record(3072, bytes([0, 1, content(3)[0]]), b"pc.ram")
        assert counters(batch.result) == {"xbzrle": 1, "cache_hit": 1, "xbzrle_bytes": 7 + 3 + 3}
        assert side.held() == [(3, 3, content(3))]


# rule "default"


def test_default_rule_through_the_stages(kernel: Any) -> None:
    with sides(kernel, slots=8) as [side]:
        side.write(3, content(3))
        side.write(4, content(4))
        batch = side.fill(1, BULK)
        assert counters(batch.result) == {"normal": 2}  # no miss is counted in the first round
        assert side.held() == [(3, 0, content(3)), (4, 0, content(4))]

        side.write(3, changed(content(3), 10, 12))
        side.write(4, bytes(1024))
        side.write(5, content(5))
        batch = side.fill(2, ROUND)
        assert batch.body == b"".join(
            [
                delta_record(3072, bytes([10, 3]) + changed(content(3), 10, 12)[10:13], b"pc.ram"),
                zero_record(4096),
                page_record(5120, content(5)),
            ]
        )
        assert counters(batch.result) == {
            "xbzrle": 1, "zero": 1, "normal": 1, "cache_hit": 1, "cache_miss": 1,
            "xbzrle_bytes": 7 + 3 + 5,
        }  # fmt: skip
        assert side.held() == [
            (3, 2, changed(content(3), 10, 12)),
            (4, 2, bytes(1024)),
            (5, 2, content(5)),
        ]

        side.write(4, content(44))  # a whole new page: the delta does not pay
        side.write(6, content(6))  # not held, and never stored in the last round
        side.write(5, changed(content(5), 1023))
        batch = side.fill(3, LAST)
        assert batch.body == b"".join(
            [
                page_record(4096, content(44), b"pc.ram"),
                delta_record(5120, b"\xff\x07\x01" + changed(content(5), 1023)[-1:]),
                page_record(6144, content(6)),
            ]
        )
        assert counters(batch.result) == {
            "xbzrle": 1, "normal": 2, "cache_hit": 2, "overflow": 1, "cache_miss": 1,
            "xbzrle_bytes": 7 + 1024,
        }  # fmt: skip
        assert [entry[:2] for entry in side.held()] == [(3, 2), (4, 3), (5, 3)]


def test_a_gap_of_one_byte_stays_inside_the_run(kernel: Any) -> None:
    old = b"\1" * 1024
    for second, delta in ((12, "0a03020102"), (13, "0a0102 020102"), (14, "0a0102 030102")):
        with sides(kernel, slots=8) as [side]:
            side.write(3, old)
            side.fill(2, ROUND)
            side.write(3, edited(edited(old, 10, b"\2"), second, b"\2"))
            assert side.fill(3, ROUND).body == delta_record(3072, bytes.fromhex(delta), b"pc.ram")


def test_default_rule_reads_the_cache_in_the_first_round_too(kernel: Any) -> None:
    with sides(kernel, slots=8) as [side]:
        side.write(3, content(3))
        side.fill(1, BULK)
        side.write(3, changed(content(3), 0))
        batch = side.fill(1, BULK)
        assert batch.body == delta_record(3072, b"\0\1" + changed(content(3), 0)[:1], b"pc.ram")


def test_a_delta_may_have_four_bytes_less_than_the_page(kernel: Any) -> None:
    """1017 new bytes at the end make a delta of 1020; one more, and its record is no shorter than a page."""
    for length, is_delta in ((1017, True), (1018, False)):
        with sides(kernel, slots=8) as [side]:
            side.write(3, b"\1" * 1024)
            side.fill(2, ROUND)
            side.write(3, b"\1" * (1024 - length) + b"\2" * length)
            batch = side.fill(3, ROUND)
            assert counters(batch.result) == (
                {"xbzrle": 1, "cache_hit": 1, "xbzrle_bytes": 7 + 3 + 3 + length}
                if is_delta
                else {"normal": 1, "cache_hit": 1, "overflow": 1, "xbzrle_bytes": 1024}
            )


@pytest.mark.parametrize("rule", RULES)
def test_a_cache_without_slots_only_misses(kernel: Any, rule: str) -> None:
    with sides(kernel, slots=0, rule=rule) as [side]:
        side.write(3, content(3))
        assert counters(side.fill(1, BULK).result) == {"normal": 1}
        side.write(3, content(4))
        assert counters(side.fill(2, ROUND).result) == {"normal": 1, "cache_miss": 1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("page_size", [16384, 65536])
def test_large_pages_ignore_the_cache(kernel: Any, rule: str, page_size: int) -> None:
    with sides(kernel, slots=8, rule=rule, page_size=page_size, layout=((b"m", 0, 3),)) as [side]:
        for round in (2, 3):
            side.write(1, content(round, page_size))
            batch = side.fill(round, ROUND)
            assert batch.body == page_record(page_size, content(round, page_size), b"m")
            assert counters(batch.result) == {"normal": 1}
            assert side.held() == []
        side.mark(1)
        assert counters(side.fill(4, ROUND).result) == {"unchanged": 1}


# rule "qemu"


def test_qemu_rule_through_the_stages(kernel: Any) -> None:
    with sides(kernel, slots=8, rule="qemu") as [side]:
        side.write(3, content(3))
        assert counters(side.fill(1, BULK).result) == {"normal": 1}
        assert side.held() == []
        side.mark(3, 4)  # unchanged, not held: sent in the normal way
        batch = side.fill(2, ROUND)
        assert batch.body == page_record(3072, content(3), b"pc.ram") + zero_record(4096)
        assert counters(batch.result) == {"normal": 1, "cache_miss": 1, "zero": 1}
        assert batch.result.root_delta == 0
        assert side.held() == [(3, 2, content(3)), (4, 2, bytes(1024))]

        side.mark(3, 4)  # unchanged and held: a record of length 0, and the age is new
        batch = side.fill(3, ROUND)
        assert batch.body == delta_record(3072, b"", b"pc.ram") + delta_record(4096, b"")
        assert counters(batch.result) == {"unchanged": 2, "cache_hit": 2}
        assert (batch.result.records, batch.pages) == (2, (3, 4))
        assert batch.result.digest_sum == side.terms((3, content(3)), (4, bytes(1024)))
        assert side.held() == [(3, 3, content(3)), (4, 3, bytes(1024))]

        side.write(3, changed(content(3), 7))  # the last round reads the cache and keeps its contents
        side.write(5, content(5))
        side.mark(4)
        batch = side.fill(4, LAST)
        assert batch.body == b"".join(
            [
                delta_record(3072, b"\7\1" + changed(content(3), 7)[7:8], b"pc.ram"),
                delta_record(4096, b""),
                page_record(5120, content(5)),
            ]
        )
        assert counters(batch.result) == {
            "xbzrle": 1, "unchanged": 1, "normal": 1, "cache_hit": 2, "cache_miss": 1,
            "xbzrle_bytes": 7 + 6,
        }  # fmt: skip
        assert side.held() == [(3, 3, content(3)), (4, 4, bytes(1024))]

        side.write(3, content(3))  # back to what the stale copy says: RAM over there is not that
        batch = side.fill(5, ROUND)
        assert batch.body == delta_record(3072, bytes([0, 1, content(3)[0]]), b"pc.ram")


def test_qemu_rule_does_not_look_in_the_first_round(kernel: Any) -> None:
    with sides(kernel, slots=8, rule="qemu") as [side]:
        side.write(3, content(3))
        side.fill(2, ROUND)
        side.write(3, changed(content(3), 1))
        batch = side.fill(3, BULK)
        assert batch.body == page_record(3072, changed(content(3), 1), b"pc.ram")
        assert counters(batch.result) == {"normal": 1}
        side.mark(3)
        side.mark(4)
        # What the peer holds from a warm start is not sent; zeros are, as QEMU does.
        batch = side.fill(3, BULK)
        assert batch.body == zero_record(4096, b"pc.ram")
        assert counters(batch.result) == {"unchanged": 1, "zero": 1}
        assert side.held() == [(3, 2, content(3))]
