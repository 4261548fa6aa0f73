"""`apply` alone: bodies by hand, and every rule they can break."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from kernel_support import (
    BULK,
    CONTINUE,
    HELD,
    HOOK,
    LAST,
    LAYOUT,
    PAGE,
    RAM,
    ROUND,
    RULES,
    XBZRLE,
    ZERO,
    Side,
    content,
    delta_record,
    edited,
    page_record,
    prepare,
    record,
    sides,
    zero_record,
)

from migrate.errors import RecordError
from migrate.kernel.results import ApplyResult

# what good bodies do


def test_records_as_qemu_writes_them(kernel: Any) -> None:
    """qemu-ram-stream.md 13.3: ZERO named and continued, PAGE named, XBZRLE continued."""
    with sides(kernel, page_size=4096, layout=((b"pc.ram", 0, 256),), slots=8) as [side]:
        page = b"\xaa" * 4096
        for number in (0, 1):
            side.write(number, page)
        kernel.set_digests(side.digests, 0, 2, side.keys.page_digest(page))
        zeros = bytes.fromhex("00000000000000020670632e72616d00000000000000102200")
        result = side.apply_body(zeros, 2, side.terms((0, bytes(4096)), (1, bytes(4096))))
        assert result[2:] == (2, 0, 0, 2)
        assert side.read(0) == side.read(1) == bytes(4096)

        whole = bytes.fromhex("00000000000500080670632e72616d") + page
        new = b"\x01" + page[1:]
        delta = bytes.fromhex("0000000000050060010003000101")
        result = side.apply_body(whole + delta, 2, side.terms((0x50, page), (0x50, new)))
        assert result[2:] == (0, 1, 1, 1)
        assert side.read(0x50) == new
        assert side.held() == [(0x50, 2, new)]


@pytest.mark.parametrize("rule", [None, *RULES])
def test_an_empty_body(kernel: Any, rule: str | None) -> None:
    with sides(kernel, slots=None if rule is None else 4, rule=rule or "") as [side]:
        assert side.apply_body(b"", 0, 0) == ApplyResult(0, 0, 0, 0, 0, 0)


def test_runs_and_blocks_in_any_order(kernel: Any) -> None:
    with sides(kernel) as [side]:
        pages = [99, 5, 6, 7, 4, 128, 129, 157, 192, 0, 3]
        body = b""
        for page in pages:
            name, first, _ = next(block for block in reversed(LAYOUT) if block[1] <= page)
            body += page_record((page - first) * 1024, content(page), name)
        before = side.root
        result = side.apply_body(body, len(pages), side.terms(*[(p, content(p)) for p in pages]))
        assert result[2:] == (0, len(pages), 0, len(pages))
        for page in side.pages:
            assert side.read(page) == (content(page) if page in pages else bytes(1024))
        assert side.root == kernel.root(side.keys, side.digests, 0, 197) != before


def test_of_a_repeated_page_the_last_content_stays(kernel: Any) -> None:
    """The cache and the digest sum see all records in order, RAM gets one page."""
    delta = b"\x05\x01\xee"
    steps = [
        (page_record(HELD * 1024, content(1), RAM), content(1)),
        (delta_record(HELD * 1024, delta), edited(content(1), 5, b"\xee")),
        (zero_record(HELD * 1024), bytes(1024)),
        (delta_record(HELD * 1024, delta), edited(bytes(1024), 5, b"\xee")),
    ]
    for count in range(1, 5):
        with sides(kernel, slots=4) as [side]:
            prepare(side)
            side.root = kernel.root(side.keys, side.digests, 0, 197)
            body = b"".join(part for part, _ in steps[:count])
            total = side.terms(*[(HELD, new) for _, new in steps[:count]])
            assert side.apply_body(body, count, total, 3).written == 1
            assert side.read(HELD) == steps[count - 1][1]
            assert side.held() == [(HELD, 3, steps[count - 1][1])]
            assert side.root == kernel.root(side.keys, side.digests, 0, 197)


def test_a_page_that_ends_as_zero_and_was_zero_is_not_written(kernel: Any) -> None:
    with sides(kernel) as [side]:
        body = page_record(0, content(1), RAM) + zero_record(0) + page_record(1024, bytes(1024))
        total = side.terms((0, content(1)), (0, bytes(1024)), (1, bytes(1024)))
        assert side.apply_body(body, 3, total)[2:] == (1, 2, 0, 0)
        body = zero_record(0, RAM) + page_record(0, content(1))
        assert side.apply_body(body, 2, side.terms((0, bytes(1024)), (0, content(1))))[2:] == (1, 1, 0, 1)
        assert side.read(0) == content(1)


def test_the_record_of_length_0_is_a_touch(kernel: Any) -> None:
    """RAM keeps what it has, also where the cache has something else; the digest is RAM's."""
    with sides(kernel, slots=4, rule="qemu") as [side]:
        prepare(side)
        side.write(HELD, content(77), dirty=False)
        kernel.set_digests(side.digests, HELD, 1, side.keys.page_digest(content(77)))
        body = delta_record(HELD * 1024, b"", RAM)
        for stage, round in ((ROUND, 5), (LAST, 6)):
            result = side.apply_body(body, 1, side.terms((HELD, content(77))), round, stage)
            assert result == ApplyResult(1, 0, 0, 0, 0, 0)
            assert side.held() == [(HELD, round, content(HELD))]
        assert side.read(HELD) == content(77)

        body = page_record(HELD * 1024, content(78), RAM) + delta_record(HELD * 1024, b"")
        result = side.apply_body(body, 2, side.terms((HELD, content(78)), (HELD, content(78))), 7)
        assert result[2:] == (0, 1, 0, 1)
        assert side.held() == [(HELD, 7, content(78))]
        assert side.read(HELD) == content(78)


def test_the_base_of_a_delta_is_the_cache_never_ram(kernel: Any) -> None:
    with sides(kernel, slots=4) as [side]:
        prepare(side)
        side.write(HELD, bytes(1024), dirty=False)
        new = edited(content(HELD), 0, b"\x11")
        body = delta_record(HELD * 1024, b"\0\1\x11", RAM)
        side.apply_body(body, 1, side.terms((HELD, new)))
        assert side.read(HELD) == new


def test_other_buffers_are_taken_too(kernel: Any) -> None:
    with sides(kernel) as [side]:
        body = page_record(0, content(1), RAM)
        for kind in (bytearray, memoryview, lambda data: memoryview(bytearray(b"x" + data))[1:]):
            side.apply_body(kind(body), 1, side.terms((0, content(1))))


# every rule

Case = tuple[str, bytes, int]  # rule, body, offset of the offending record

GOOD = zero_record(9 * 1024, RAM)  # 16 bytes in front of the bad record, so that offsets mean something
AFTER = len(GOOD)


def bad_records() -> dict[str, Case]:
    name = bytes([6]) + RAM
    held = HELD * 1024

    def after(rule: str, bad: bytes) -> Case:
        return rule, GOOD + bad, AFTER

    return {
        "cut word": after("truncated", struct.pack(">Q", held | PAGE | CONTINUE)[:7]),
        "cut before the name": after("truncated", struct.pack(">Q", held | PAGE)),
        "cut name": after("truncated", struct.pack(">Q", held | PAGE) + name[:-1]),
        "cut page": after("truncated", page_record(held, content(1))[:-1]),
        "cut fill byte": after("truncated", zero_record(held)[:-1]),
        "cut delta header": after("truncated", delta_record(held, b"")[:-1]),
        "cut delta": after("truncated", delta_record(held, b"\0\1\1")[:-1]),
        "no flags": after("unknown-flags", struct.pack(">Q", held)),
        "only continue": after("unknown-flags", struct.pack(">Q", held | CONTINUE)),
        **{
            f"flags {flags:#x}": after("unknown-flags", record(flags, held, None, content(1)))
            for flags in (
                0x001,
                0x004,
                0x010,
                0x100,
                0x200,
                PAGE | ZERO,
                XBZRLE | PAGE,
                HOOK | PAGE,
                0x00A,
                0x208,
            )
        },
        "hook": after("hook", struct.pack(">Q", held | HOOK)),
        "hook, continued": after("hook", struct.pack(">Q", HOOK | CONTINUE) + b"xyz"),
        "no block": ("no-block", zero_record(held), 0),
        "other block": after("unknown-block", zero_record(held, b"pc.rom")),
        "longer name": after("unknown-block", zero_record(held, b"pc.ramx")),
        "shorter name": after("unknown-block", zero_record(held, b"pc.ra")),
        "empty name": after("unknown-block", zero_record(held, b"")),
        "longest name": after("unknown-block", zero_record(0, b"n" * 254 + b"m")),
        "first offset beyond": after("bad-offset", zero_record(100 * 1024)),
        "huge offset": after("bad-offset", zero_record(2**64 - 1024)),
        "offset beyond a small block": after("bad-offset", page_record(30 * 1024, content(1), b"vga.vram")),
        "offset in a gap": after("bad-offset", zero_record(110 * 1024)),
        "fill": after("zero-fill", zero_record(held)[:-1] + b"\1"),
        "encoding 0": after("xbzrle-encoding", record(XBZRLE, held, None, b"\0\0\3\0\1\1")),
        "encoding 2": after("xbzrle-encoding", record(XBZRLE, held, None, b"\2\xff\xff")),
        "delta above a page": after("xbzrle-length", record(XBZRLE, held, None, b"\1\4\1")),
        "delta of 65535": after("xbzrle-length", record(XBZRLE, held, None, b"\1\xff\xff" + bytes(65535))),
        "empty delta": after("xbzrle-length", delta_record(held, b"")),
        "page not held": after("xbzrle-not-held", delta_record(9 * 1024, b"\0\1\1")),
        "bad delta of a page not held": after("xbzrle-not-held", delta_record(9 * 1024, b"\0")),
        "delta of one byte": after("xbzrle-delta", delta_record(held, b"\5")),
        "delta beyond the page": after("xbzrle-delta", delta_record(held, b"\xff\x07\x02\1\1")),
    }


@pytest.mark.parametrize("name", bad_records())
def test_each_rule(kernel: Any, name: str) -> None:
    rule, body, offset = bad_records()[name]
    with sides(kernel, slots=4) as [side]:
        prepare(side)
        assert_refused(side, body, 2, 0, rule, offset)


def assert_refused(
    side: Side, body: bytes, records: int, digest_sum: int, rule: str, offset: int, **options: Any
) -> None:
    image, digests = side.image(), bytes(side.digests)
    with pytest.raises(RecordError) as caught:
        side.apply_body(body, records, digest_sum, **options)
    assert (caught.value.rule, caught.value.offset) == (rule, offset)
    assert side.image() == image
    assert side.digests == digests


@pytest.mark.parametrize(
    ("rule", "stage", "body", "expected"),
    [
        (None, ROUND, delta_record(HELD * 1024, b"\0\1\1", RAM), "xbzrle-disabled"),
        (None, ROUND, delta_record(HELD * 1024, b"", RAM), "xbzrle-disabled"),
        (None, ROUND, delta_record(HELD * 1024, b"\0", RAM), "xbzrle-disabled"),
        (None, ROUND, record(XBZRLE, HELD * 1024, RAM, b"\1\4\1"), "xbzrle-length"),
        ("qemu", BULK, delta_record(HELD * 1024, b"\0\1\1", RAM), "xbzrle-disabled"),
        ("qemu", BULK, delta_record(HELD * 1024, b"", RAM), "xbzrle-disabled"),
        ("qemu", ROUND, delta_record(9 * 1024, b"", RAM), "xbzrle-not-held"),
        ("qemu", LAST, delta_record(9 * 1024, b"", RAM), "xbzrle-not-held"),
        ("default", ROUND, delta_record(9 * 1024, b"", RAM), "xbzrle-length"),
        ("default", BULK, delta_record(9 * 1024, b"\0\1\1", RAM), "xbzrle-not-held"),
    ],
)
def test_rules_that_depend_on_the_cache(
    kernel: Any, rule: str | None, stage: int, body: bytes, expected: str
) -> None:
    with sides(kernel, slots=None if rule is None else 4, rule=rule or "") as [side]:
        prepare(side)
        assert_refused(side, body, 1, 0, expected, 0, stage=stage)


@pytest.mark.parametrize("page_size", [16384, 65536])
def test_no_delta_for_large_pages(kernel: Any, page_size: int) -> None:
    with sides(kernel, page_size=page_size, layout=((RAM, 0, 3),), slots=2) as [side]:
        body = page_record(0, content(1, page_size), RAM)
        side.apply_body(body, 1, side.terms((0, content(1, page_size))))
        assert side.held() == []
        assert_refused(side, delta_record(0, b"\0\1\1", RAM), 1, 0, "xbzrle-disabled", 0)


def test_wrong_lane(kernel: Any) -> None:
    with sides(kernel, layout=((b"a", 0, 300),)) as [side]:
        for page in (0, 63, 64, 127, 128, 299):
            body = page_record(page * 1024, content(page), b"a")
            for lane in range(3):
                if page // 64 % 3 == lane:
                    side.apply_body(body, 1, side.terms((page, content(page))), lane=lane, lanes=3)
                else:
                    assert_refused(side, body, 1, 0, "wrong-lane", 0, lane=lane, lanes=3)


def test_wrong_lane_counts_in_page_space(kernel: Any) -> None:
    with sides(kernel) as [side]:  # vga.vram begins at page 128: stripe 2
        assert_refused(side, zero_record(0, b"vga.vram"), 1, 0, "wrong-lane", 0, lane=1, lanes=2)
        assert (
            side.apply_body(zero_record(0, b"vga.vram"), 1, side.terms((128, bytes(1024))), lanes=2).zero == 1
        )


@pytest.mark.parametrize("page_size", [8192, 65536])
def test_too_many_records(kernel: Any, page_size: int) -> None:
    most = kernel.max_records(page_size)
    with sides(kernel, page_size=page_size, layout=((b"a", 0, 1),)) as [side]:
        body = zero_record(0, b"a") + zero_record(0) * (most - 1)
        term = side.keys.term(0, side.keys.zero_digest)
        assert side.apply_body(body, most, most * term % 2**128).records == most
        assert_refused(side, body + zero_record(0), most + 1, 0, "too-many-records", len(body))
        assert_refused(side, body + b"x", most, most * term % 2**128, "too-many-records", len(body))


@pytest.mark.parametrize("records", [0, 1, 3, 2**31])
def test_record_count(kernel: Any, records: int) -> None:
    with sides(kernel) as [side]:
        body = zero_record(0, RAM) + zero_record(1024)
        total = side.terms((0, bytes(1024)), (1, bytes(1024)))
        assert_refused(side, body, records, total, "record-count", len(body))
        assert side.apply_body(body, 2, total).records == 2


def test_digest(kernel: Any) -> None:
    with sides(kernel) as [side]:
        body = page_record(0, content(1), RAM) + page_record(1024, content(2))
        total = side.terms((0, content(1)), (1, content(2)))
        swapped = side.terms((0, content(2)), (1, content(1)))  # the same pages at each other's place
        for wrong in (total ^ 1, total ^ 1 << 127, 0, swapped, side.terms((0, content(1)))):
            assert_refused(side, body, 2, wrong, "digest", len(body))
        assert side.apply_body(body, 2, total).written == 2
