"""CRC, zero test, page digests, SipHash, terms and roots: check values, and sums written out by hand."""

from __future__ import annotations

import random
import struct
from hashlib import shake_256
from typing import Any

import pytest
from kernel_support import SEED, Side, sides

from migrate.kernel.reference.digest import carryless_nh, siphash24

M64, M128 = 2**64 - 1, 2**128 - 1


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_check_values(kernel: Any, data: bytes, crc: int) -> None:
    assert kernel.crc32c(data) == crc
    for cut in range(len(data) + 1):
        assert kernel.crc32c(memoryview(data)[cut:], kernel.crc32c(bytearray(data[:cut]))) == crc


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 1024, 4096])
def test_is_zero_sees_every_bit_of_every_byte(kernel: Any, size: int) -> None:
    assert kernel.is_zero(bytes(size))
    data = bytearray(size)
    for place in range(size) if size < 100 else (0, 1, size // 2, size - 2, size - 1):
        for bit in range(8):
            data[place] = 1 << bit
            assert not kernel.is_zero(data)
        data[place] = 0
    assert kernel.is_zero(memoryview(data))


def test_siphash_published_vectors() -> None:
    """From the paper's test program: key 00…0f, message 00, 01, … of the length given."""
    key = bytes(range(16))
    vectors = {0: "310e0edd47db6f72", 8: "6224939a79f5f593", 15: "e545be4961ca29a1"}
    for length, expected in vectors.items():
        assert siphash24(key, bytes(range(length))) == int.from_bytes(bytes.fromhex(expected), "little")


def _words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _product(a: int, b: int) -> int:
    """Of two polynomials over GF(2), bit by bit."""
    total = 0
    for bit in range(64):
        if b >> bit & 1:
            total ^= a << bit
    return total


def test_carryless_nh_by_hand() -> None:
    # (x+1)(x+1) = x**2 + 1; (x**2+x)(x+1) = x**3 + x; their sum
    assert carryless_nh(_words(3, 3, 6, 3), bytes(32)) == 0b101 ^ 0b1010
    assert carryless_nh(_words(1, 2, 0, 0), _words(2, 1, 0, 7)) == 0b101
    # all ones, squared: every second bit
    assert carryless_nh(_words(M64, M64), bytes(16)) == int("01" * 64, 2)
    assert carryless_nh(_words(1 << 63, 1 << 63), bytes(16)) == 1 << 126


def test_carryless_nh_against_the_product_bit_by_bit(rng: random.Random) -> None:
    for _ in range(50):
        words, key = ([rng.getrandbits(64) for _ in range(8)] for _ in range(2))
        a = [word ^ mask for word, mask in zip(words, key, strict=True)]
        expected = 0
        for i in range(0, 8, 2):
            expected ^= _product(a[i], a[i + 1])
        assert carryless_nh(_words(*words), _words(*key)) == expected


@pytest.mark.parametrize("page_size", [1024, 4096, 65536])
def test_page_digest_is_carryless_nh_over_the_expanded_key(kernel: Any, page_size: int) -> None:
    keys = kernel.Keys(SEED, page_size)
    key = struct.unpack(f"<{page_size // 8}Q", shake_256(b"migrate page key" + SEED).digest(page_size))
    assert keys.page_size == page_size
    expected = 0
    for i in range(0, len(key), 2):
        expected ^= _product(key[i], key[i + 1])
    assert keys.zero_digest == expected
    assert keys.page_digest(bytes(page_size)) == keys.zero_digest

    page = bytearray(page_size)
    page[0] = 7  # word 0, low byte
    page[-1] = 0x80  # last word, top bit
    first, last = _product(7, key[1]), _product(key[-2], 1 << 63)
    assert keys.page_digest(page) == keys.zero_digest ^ first ^ last
    assert keys.page_digest(memoryview(page)) == keys.page_digest(bytes(page))


def test_each_word_of_the_page_changes_the_digest(kernel: Any) -> None:
    keys = kernel.Keys(SEED, 1024)
    found = {keys.zero_digest}
    for place in range(1024):
        page = bytearray(1024)
        page[place] = 1
        found.add(keys.page_digest(page))
    assert len(found) == 1025


@pytest.mark.parametrize("page", [0, 1, 77, 2**32, 2**48 - 1])
def test_term_is_nh_with_a_siphash_key(kernel: Any, page: int) -> None:
    keys = kernel.Keys(SEED, 1024)
    key = shake_256(b"migrate root key" + SEED).digest(16)
    a = siphash24(key, struct.pack("<Q", 2 * page))
    b = siphash24(key, struct.pack("<Q", 2 * page + 1))
    assert keys.term(page, 0) == a * b & M128
    assert keys.term(page, 5 | 9 << 64) == ((a + 5) & M64) * ((b + 9) & M64) & M128
    assert keys.term(page, M128) == ((a - 1) & M64) * ((b - 1) & M64) & M128


def test_root_is_the_sum_of_terms(kernel: Any) -> None:
    keys = kernel.Keys(SEED, 1024)
    digests = bytearray(16 * 10)
    kernel.set_digests(digests, 2, 3, 1 | 2 << 64)
    assert digests == bytes(32) + struct.pack("<QQ", 1, 2) * 3 + bytes(80)
    terms = [keys.term(p, 1 | 2 << 64 if 2 <= p < 5 else 0) for p in range(10)]
    assert kernel.root(keys, digests, 0, 10) == sum(terms) & M128
    assert kernel.root(keys, digests, 3, 4) == sum(terms[3:7]) & M128
    assert kernel.root(keys, digests, 10, 0) == 0


def test_other_seed_other_digests(kernel: Any) -> None:
    page = bytes(range(256)) * 4
    one, two = kernel.Keys(SEED, 1024), kernel.Keys(bytes(32), 1024)
    assert one.page_digest(page) != two.page_digest(page)
    assert one.term(1, 1) != two.term(1, 1)


@pytest.mark.parametrize(
    ("seed", "page_size"),
    [
        (SEED[:-1], 4096),
        (SEED + b"x", 4096),
        (SEED, 512),
        (SEED, 131072),
        (SEED, 4095),
        (SEED, 3072),
        (SEED, 0),
    ],
)
def test_keys_refuse(kernel: Any, seed: bytes, page_size: int) -> None:
    with pytest.raises(ValueError):
        kernel.Keys(seed, page_size)


def test_a_page_of_another_size_has_no_digest(kernel: Any) -> None:
    keys = kernel.Keys(SEED, 1024)
    for size in (0, 1023, 1025, 4096):
        with pytest.raises(ValueError):
            keys.page_digest(bytes(size))


def test_digest_range_scan_and_zero_range(kernel: Any) -> None:
    with sides(kernel) as [side]:
        content = b"\x05" * 1024
        side.write(130, content, dirty=False)
        out = bytearray(16 * 30)
        kernel.digest_range(side.ram, side.keys, 128, 30, out)
        expected = bytearray(16 * 30)
        kernel.set_digests(expected, 0, 30, side.keys.zero_digest)
        kernel.set_digests(expected, 2, 1, side.keys.page_digest(content))
        assert out == expected

        assert kernel.scan(side.ram, side.keys, side.digests, 128, 30, side.pending) == 1
        assert dirty_pages(side) == [130]
        assert (
            kernel.scan(side.ram, side.keys, side.digests, 128, 30, side.pending) == 1
        )  # set already, differs still
        assert kernel.scan(side.ram, side.keys, side.digests, 0, 100, side.pending) == 0
        assert kernel.digest_range(side.ram, side.keys, 0, 0, bytearray()) is None

        side.pending[:] = bytes(len(side.pending))
        kernel.set_digests(side.digests, 128, 30, side.keys.zero_digest)
        kernel.set_digests(side.digests, 131, 2, 17)
        assert kernel.zero_range(side.keys, side.digests, 128, 30, side.pending) == 2
        assert dirty_pages(side) == [131, 132]
        assert kernel.zero_range(side.keys, side.digests, 0, 100, side.pending) == 0


@pytest.mark.parametrize(
    ("first", "count"), [(0, 101), (99, 2), (100, 1), (127, 2), (192, 6), (-1, 1), (0, -1)]
)
def test_a_range_is_of_one_block(kernel: Any, first: int, count: int) -> None:
    with sides(kernel) as [side]:
        with pytest.raises((ValueError, OverflowError)):
            kernel.scan(side.ram, side.keys, side.digests, first, count, side.pending)
        with pytest.raises((ValueError, OverflowError)):
            kernel.digest_range(side.ram, side.keys, first, count, bytearray(4096))
        assert dirty_pages(side) == []


def dirty_pages(side: Side) -> list[int]:
    return [p for p in range(8 * len(side.pending)) if side.pending[p >> 3] >> (p & 7) & 1]
