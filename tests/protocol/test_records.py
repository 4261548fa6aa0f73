"""The MEM_SIZE list that opens a lane: its bytes, and everything that is none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_support import flipped

from migrate.errors import ProtocolError, RecordError
from migrate.protocol.records import (
    EOS,
    RAM_SAVE_FLAG_CONTINUE,
    RAM_SAVE_FLAG_EOS,
    RAM_SAVE_FLAG_HOOK,
    RAM_SAVE_FLAG_MEM_SIZE,
    RAM_SAVE_FLAG_PAGE,
    RAM_SAVE_FLAG_XBZRLE,
    RAM_SAVE_FLAG_ZERO,
    decode_block_list,
    encode_block_list,
)

PAGE = 4096
BLOCKS = [("pc.ram", 3 * PAGE), ("é", PAGE)]
BYTES = bytes.fromhex(
    "0000000000004004"  # 4 pages | MEM_SIZE
    "06 70632e72616d 0000000000003000"
    "02 c3a9 0000000000001000"
    "0000000000000010"  # EOS
)


_LETTERS = st.characters(codec="utf-8")


def _word(value: int) -> bytes:
    return struct.pack(">Q", value)


def test_flags_are_those_of_qemu() -> None:
    flags = (
        RAM_SAVE_FLAG_ZERO,
        RAM_SAVE_FLAG_MEM_SIZE,
        RAM_SAVE_FLAG_PAGE,
        RAM_SAVE_FLAG_EOS,
        RAM_SAVE_FLAG_CONTINUE,
        RAM_SAVE_FLAG_XBZRLE,
        RAM_SAVE_FLAG_HOOK,
    )
    assert flags == (2, 4, 8, 0x10, 0x20, 0x40, 0x80)
    assert bytes(7) + b"\x10" == EOS


def test_bytes() -> None:
    assert encode_block_list(BLOCKS, PAGE) == BYTES
    assert decode_block_list(memoryview(BYTES), PAGE) == BLOCKS


@given(
    st.lists(
        st.tuples(st.text(_LETTERS, min_size=1, max_size=63), st.integers(1, 1 << 40)),
        min_size=1,
        max_size=64,
    )
)
def test_round_trip(blocks: list[tuple[str, int]]) -> None:
    blocks = [(name, pages * 1024) for name, pages in blocks]
    assert decode_block_list(encode_block_list(blocks, 1024), 1024) == blocks


@pytest.mark.parametrize("name, length", [("", PAGE), ("x" * 256, PAGE), ("é" * 128, PAGE), ("x", PAGE + 1)])
def test_what_cannot_be_listed(name: str, length: int) -> None:
    with pytest.raises(ValueError, match="cannot be listed"):
        encode_block_list([(name, length)], PAGE)


def test_cut_at_every_byte() -> None:
    for end in range(len(BYTES)):
        with pytest.raises(RecordError):
            decode_block_list(BYTES[:end], PAGE)


@pytest.mark.parametrize("more", [b"\0", EOS, BYTES])
def test_trailing_bytes(more: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        decode_block_list(BYTES + more, PAGE)
    assert caught.value.rule == "block-list"


def test_each_bit_flipped_is_refused_or_another_list() -> None:
    other = 0
    for bit in range(8 * len(BYTES)):
        try:
            blocks = decode_block_list(flipped(BYTES, bit), PAGE)
        except RecordError:
            continue
        assert blocks != BLOCKS
        other += 1
    assert 0 < other <= 8 * len("pc.ramé".encode()), "only the letters of a name have no rule of their own"


_HEAD = _word(2 * PAGE | 4)
_ONE = b"\x01a" + _word(PAGE)


@pytest.mark.parametrize(
    "rule, body",
    [
        ("truncated", b""),
        ("truncated", _HEAD),
        ("truncated", _HEAD + _ONE),
        ("truncated", _HEAD + b"\xff" + b"a" * 254),
        ("unknown-flags", _word(2 * PAGE | 4 | 0x20) + _ONE + _ONE + EOS),
        ("unknown-flags", _word(2 * PAGE) + _ONE + _ONE + EOS),
        ("unknown-flags", EOS),
        ("block-list", _HEAD + b"\x00" + _word(PAGE) + _ONE + EOS),  # no name
        ("block-list", _HEAD + b"\x01\xff" + _word(PAGE) + _ONE + EOS),  # no UTF-8
        ("block-list", _HEAD + b"\x01a" + _word(0) + _ONE + _ONE + EOS),
        ("block-list", _HEAD + b"\x01a" + _word(PAGE + 512) + _ONE + EOS),
        ("block-list", _HEAD + b"\x01a" + _word(3 * PAGE) + EOS),  # more than the total
        ("block-list", _HEAD + b"\x01a" + _word(1 << 63) + EOS),
        ("block-list", _HEAD + _ONE + _ONE),  # not closed
        ("block-list", _HEAD + _ONE + _ONE + _word(8)),
    ],
)
def test_rules(rule: str, body: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        decode_block_list(body, PAGE)
    assert caught.value.rule == rule
    assert 0 <= caught.value.offset <= len(body)


@given(st.binary(max_size=300), st.sampled_from([1024, 4096, 65536]))
def test_anything(data: bytes, page: int) -> None:
    for body in (data, _word(page << 20 | 4) + data):
        try:
            blocks = decode_block_list(body, page)
        except ProtocolError:
            continue
        if blocks:
            assert encode_block_list(blocks, page) == body
