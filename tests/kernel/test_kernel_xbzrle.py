"""XBZRLE: every vector of qemu-ram-stream.md sections 3.5 and 13.1, and the limits between them."""

from __future__ import annotations

from typing import Any

import pytest

Z = bytes(4096)


def with_bytes(*changes: tuple[int, bytes]) -> bytes:
    page = bytearray(4096)
    for place, content in changes:
        page[place : place + len(content)] = content
    return bytes(page)


def every_second(count: int) -> bytes:
    """01 at 1, 3, 5, …"""
    return with_bytes(*[(2 * i + 1, b"\1") for i in range(count)])


OLD_3_5 = with_bytes(
    (1001, bytes.fromhex("05060708090a0b0c0d0e0f1011121368")), (1019, b"\x6b"), (1021, b"\x6d")
)
NEW_3_5 = with_bytes(
    (1001, bytes.fromhex("0102030405060708090a0b0c0d0e0f68")), (1019, b"\x67"), (1021, b"\x69")
)
ONE_RUN = {  # how long, where: the delta
    (127, 0): "007f",
    (128, 0): "008001",
    (4091, 0): "00fb1f",
    (4092, 4): "04fc1f",
    (4093, 3): "03fd1f",
}
VECTORS = [
    (Z, Z, "", 0),
    (Z, with_bytes((0, b"\1")), "000101", 1),
    (Z, with_bytes((1, b"\1")), "010101", 2),
    (Z, with_bytes((127, b"\xaa")), "7f01aa", 128),
    (Z, with_bytes((128, b"\xaa")), "800101aa", 129),
    (Z, with_bytes((4095, b"\1")), "ff1f0101", 4096),
    (Z, with_bytes((0, b"\1"), (2, b"\2")), "000101010102", 3),
    *[
        (Z, with_bytes((start, b"\x22" * length)), head + "22" * length, start + length)
        for (length, start), head in ONE_RUN.items()
    ],
    (Z, every_second(1364), "010101" * 1364, 2728),
    (OLD_3_5, NEW_3_5, "e9070f0102030405060708090a0b0c0d0e0f03016701 0169".replace(" ", ""), 1022),
    (
        with_bytes((0x123, b"\x5c"), (0xFFF, b"\xa1")),
        with_bytes((0x123, b"\x5d"), (0xFFF, b"\xa2")),
        "a302015ddb1d01a2",
        4096,
    ),
]


@pytest.mark.parametrize(("old", "new", "delta", "end"), VECTORS)
def test_vectors_both_ways(kernel: Any, old: bytes, new: bytes, delta: str, end: int) -> None:
    assert kernel.xbzrle_encode(old, new, 4096, 0) == bytes.fromhex(delta)
    page = bytearray(old)
    assert kernel.xbzrle_decode(bytes.fromhex(delta), page) == end
    assert page == new


@pytest.mark.parametrize(
    "new",
    [
        with_bytes((0, b"\x22" * 4092)),  # rule A: an unchanged tail is left
        with_bytes((0, b"\x22" * 4093)),
        with_bytes((2, b"\x22" * 4094)),  # rule C
        b"\x22" * 4096,
        every_second(1365),
    ],
)
def test_overflow(kernel: Any, new: bytes) -> None:
    assert kernel.xbzrle_encode(Z, new, 4096, 0) is None


@pytest.mark.parametrize(("old", "new", "delta", "end"), VECTORS)
def test_the_limit_is_exact(kernel: Any, old: bytes, new: bytes, delta: str, end: int) -> None:
    """The smallest capacity by rules A, B and C: the length, and two bytes more before an unchanged tail."""
    smallest = len(bytes.fromhex(delta)) + (2 if end < 4096 else 0)
    smallest = max(smallest, 2)  # rule A comes first even where nothing changed
    assert kernel.xbzrle_encode(old, new, smallest - 1, 0) is None
    assert kernel.xbzrle_encode(old, new, smallest, 0) == bytes.fromhex(delta)
    assert kernel.xbzrle_encode(old, new, 1 << 20, 0) == bytes.fromhex(delta)


@pytest.mark.parametrize(
    ("changed", "gap", "delta"),
    [
        ((0, 2), 0, "000101 010101"),
        ((0, 2), 1, "0003010001"),
        ((0, 3), 1, "000101 020101"),
        ((0, 3), 2, "000401000001"),
        ((0, 4), 2, "000101 030101"),
        ((5, 7, 10, 14), 2, "0506010001000001 030101"),
        ((5, 4094), 2, "050101 f81f0101"),
        ((4092, 4095), 2, "fc1f0401000001"),
    ],
)
def test_gaps_stay_inside_the_run(kernel: Any, changed: tuple[int, ...], gap: int, delta: str) -> None:
    new = with_bytes(*[(place, b"\1") for place in changed])
    found = kernel.xbzrle_encode(Z, new, 4092, gap)
    assert found == bytes.fromhex(delta)
    page = bytearray(Z)
    assert kernel.xbzrle_decode(found, page) == changed[-1] + 1
    assert page == new


def test_unchanged_bytes_of_a_gap_are_the_pages_own(kernel: Any) -> None:
    old = bytes(range(256)) * 16
    new = bytearray(old)
    new[100] ^= 0xFF
    new[103] ^= 0xFF
    assert kernel.xbzrle_encode(old, bytes(new), 4096, 2) == bytes([100, 4]) + new[100:104]


REFUSED = (
    "05", "0500", "0001", "0501aa10", "0501aa9001", "0501aa0001bb", "05000501aa", "85800001aa", "ff1f02aabb",
    "0504aabb", "802001aa",
)  # fmt: skip


@pytest.mark.parametrize(
    "delta", [*REFUSED, "80", "8080", "00", "0000", "000101ff", "ff7f01aa", "00ff7f" + "aa" * 99]
)
def test_decoder_refuses_and_leaves_the_page(kernel: Any, delta: str) -> None:
    page = bytearray(b"\x5a" * 4096)
    with pytest.raises(ValueError):
        kernel.xbzrle_decode(bytes.fromhex(delta), page)
    assert page == b"\x5a" * 4096


def test_a_bad_end_undoes_a_good_beginning(kernel: Any) -> None:
    page = bytearray(4096)
    with pytest.raises(ValueError):
        kernel.xbzrle_decode(bytes.fromhex("0001010102aabb05"), page)
    assert page == Z


@pytest.mark.parametrize(
    ("delta", "end", "changes"),
    [
        ("", 0, {}),
        ("0502aabb850001cc", 13, {5: 0xAA, 6: 0xBB, 12: 0xCC}),
        ("80008100aa", 1, {0: 0xAA}),  # both lengths longer than need be, the first of them 0
    ],
)
def test_decoder_accepts(kernel: Any, delta: str, end: int, changes: dict[int, int]) -> None:
    page = bytearray(4096)
    assert kernel.xbzrle_decode(bytes.fromhex(delta), page) == end
    assert {place: value for place, value in enumerate(page) if value} == changes


def test_pages_up_to_16383_bytes(kernel: Any) -> None:
    old, new = bytes(16383), b"\1" * 16383
    assert kernel.xbzrle_encode(old, new, 1 << 16, 0) == b"\x00\xff\x7f" + new
    assert kernel.xbzrle_encode(old, bytes(16382) + b"\1", 5, 0) == b"\xfe\x7f\x01\x01"
    with pytest.raises(ValueError):
        kernel.xbzrle_encode(bytes(16384), bytes(16384), 1 << 16, 0)
    with pytest.raises(ValueError):
        kernel.xbzrle_encode(bytes(4096), bytes(4095), 4096, 0)
