"""Keyed page digests, their sum over a RAM, CRC-32C and the zero test."""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import shake_256

from migrate.kernel.reference.arguments import check_page, check_page_size

MASK64 = 2**64 - 1
MASK128 = 2**128 - 1

_SEED_BYTES = 32


# A bit in a byte of its own: in the product of two words spread like this no sum reaches the next byte, so
# the lowest bit of each byte is what a product without carries has there.
_SPREAD = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]
_BIT_OF_BYTE = bytes(ord("0") + (byte & 1) for byte in range(256))


def carryless_nh(data: bytes, key: bytes) -> int:
    """NH without carries: the exclusive or of (m[2i] ^ k[2i]) * (m[2i+1] ^ k[2i+1]) over GF(2).

    64-bit little-endian words, an even number of them; data and key have the same length.
    """
    mixed = (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(len(data), "little")
    spread = b"".join([_SPREAD[byte] for byte in mixed])
    total = 0
    for at in range(0, len(spread), 128):
        even = int.from_bytes(spread[at : at + 64], "little")
        odd = int.from_bytes(spread[at + 64 : at + 128], "little")
        total ^= even * odd
    return int(total.to_bytes(128, "big").translate(_BIT_OF_BYTE), 2)


@lru_cache(maxsize=1 << 16)  # the same page numbers come again and again
def siphash24(key: bytes, data: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein, 2012) of `data` under a 16-byte key, as a 64-bit number."""
    k0, k1 = struct.unpack("<QQ", key)
    state = (
        k0 ^ 0x736F6D6570736575,
        k1 ^ 0x646F72616E646F6D,
        k0 ^ 0x6C7967656E657261,
        k1 ^ 0x7465646279746573,
    )
    # The last word has the length's low byte at its top, above the bytes left over.
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _sip_rounds(2, v0, v1, v2, v3 ^ word)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _sip_rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _sip_rounds(count: int, v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        v0 = (v0 + v1) & MASK64
        v2 = (v2 + v3) & MASK64
        v1 = _rotate(v1, 13) ^ v0
        v3 = _rotate(v3, 16) ^ v2
        v0 = _rotate(v0, 32)
        v2 = (v2 + v1) & MASK64
        v0 = (v0 + v3) & MASK64
        v1 = _rotate(v1, 17) ^ v2
        v3 = _rotate(v3, 21) ^ v0
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & MASK64


class Keys:
    """Digest keys of one migration, expanded from its 32-byte seed.

    Page digest: `carryless_nh` of the page under `shake_256(b"migrate page key" + seed)`.
    Term: `(lo + a) * (hi + b)` modulo 2**128, additions modulo 2**64, where a and b are SipHash-2-4 of
    2*page and 2*page + 1 under `shake_256(b"migrate root key" + seed)`: NH over the digests, with a key
    that is made where it is needed.
    """

    def __init__(self, seed: bytes, page_size: int) -> None:
        """Raises ValueError: seed not 32 bytes; page_size not a power of two in 1024…65536."""
        if len(seed) != _SEED_BYTES:
            raise ValueError(f"the seed has {len(seed)} bytes instead of {_SEED_BYTES}")
        check_page_size(page_size)
        self._page_size = page_size
        self._page_key = shake_256(b"migrate page key" + seed).digest(page_size)
        self._root_key = shake_256(b"migrate root key" + seed).digest(16)
        self._zero_digest = self.page_digest(bytes(page_size))

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._page_size

    @property
    def zero_digest(self) -> int:
        """Digest of a page of zeros."""
        return self._zero_digest

    def page_digest(self, page: bytes | bytearray | memoryview) -> int:
        """Digest of one page. Raises ValueError: not page_size bytes."""
        if len(page) != self._page_size:
            raise ValueError(f"a page has {self._page_size} bytes, not {len(page)}")
        return carryless_nh(bytes(page), self._page_key)

    def term(self, page: int, digest: int) -> int:
        """What the page number `page` with that digest adds to the root."""
        check_page(page)
        if not 0 <= digest <= MASK128:
            raise ValueError("a digest is a number of 128 bits")
        low = (digest & MASK64) + siphash24(self._root_key, struct.pack("<Q", 2 * page))
        high = (digest >> 64) + siphash24(self._root_key, struct.pack("<Q", 2 * page + 1))
        return (low & MASK64) * (high & MASK64) & MASK128


def get_digest(digests: bytearray, page: int) -> int:
    """Digest of one page in an array of 16 bytes a page, low half first."""
    return int.from_bytes(digests[16 * page : 16 * page + 16], "little")


def put_digest(digests: bytearray | memoryview, page: int, digest: int) -> None:
    """Write the digest of one page into an array of 16 bytes a page."""
    digests[16 * page : 16 * page + 16] = digest.to_bytes(16, "little")


def is_zero(data: bytes | bytearray | memoryview) -> bool:
    """Whether every byte is 0 (true for no bytes)."""
    return not bytes(data).strip(b"\0")


def _crc_step(crc: int) -> int:
    """Push one zero byte through the register."""
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_CRC_OF_BYTE = [_crc_step(byte) for byte in range(256)]
# Two bytes at a time: the CRC of a body is most of the time that this kernel needs.
_CRC_OF_PAIR = [
    _CRC_OF_BYTE[(_CRC_OF_BYTE[low] ^ high) & 0xFF] ^ _CRC_OF_BYTE[low] >> 8
    for high in range(256)
    for low in range(256)
]


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """CRC-32C (Castagnoli, reflected; RFC 3720 appendix B.4); `value` is the CRC of what came before."""
    if not 0 <= value < 2**32:
        raise ValueError("a CRC is a number of 32 bits")
    source = bytes(data)
    crc = value ^ 0xFFFFFFFF
    for pair in struct.unpack_from(f"<{len(source) // 2}H", source):
        crc = _CRC_OF_PAIR[(crc ^ pair) & 0xFFFF] ^ crc >> 16
    if len(source) % 2:
        crc = _CRC_OF_BYTE[(crc ^ source[-1]) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
