"""Batch headers, markers and packed bodies: exact bytes, and nothing else is accepted."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from protocol_support import flipped

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol.batch import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    BatchHeader,
    Codec,
    Kind,
    decode_marker,
    encode_marker,
    pack_body,
    unpack_body,
)

HEADER = BatchHeader(
    kind=Kind.RECORDS,
    stage=2,
    codec=Codec.ZLIB,
    lane=0x0102,
    epoch=0x03040506,
    sequence=0x0708090A0B0C0D0E,
    round=0x0F101112,
    records=0x13141516,
    wire_length=0x00017181,
    plain_length=0x00019202,
    digest_sum=0x2122232425262728292A2B2C2D2E2F30,
    body_crc=0x31323334,
)
BYTES = bytes.fromhex(
    "4d494742 01 02 01 00 0102 0000 03040506 0708090a0b0c0d0e 0f101112 13141516 00017181 00019202"
    "2122232425262728292a2b2c2d2e2f30 31323334"
)


def _sealed(head: bytes | bytearray) -> bytes:
    """The 60 octets with the CRC that makes them a header again."""
    return bytes(head) + struct.pack(">I", kernel.crc32c(bytes(head)))


def test_bytes() -> None:
    assert len(BYTES) == HEADER_BYTES - 4
    assert HEADER.encode() == _sealed(BYTES)
    assert BatchHeader.decode(memoryview(_sealed(BYTES))) == HEADER


def test_every_kind_stage_and_codec_comes_through() -> None:
    for kind in Kind:
        for stage in (1, 2, 3):
            for codec in Codec:
                header = replace(HEADER, kind=kind, stage=stage, codec=codec, wire_length=7, plain_length=7)
                assert BatchHeader.decode(header.encode()) == header


def test_each_bit_flipped() -> None:
    data = HEADER.encode()
    for bit in range(8 * HEADER_BYTES):
        with pytest.raises(ProtocolError):
            BatchHeader.decode(flipped(data, bit))


@pytest.mark.parametrize("length", [*range(HEADER_BYTES), HEADER_BYTES + 1])
def test_wrong_length(length: int) -> None:
    with pytest.raises(ProtocolError):
        BatchHeader.decode((HEADER.encode() + b"\0")[:length])


@pytest.mark.parametrize(
    "offset, value, word",
    [
        (0, b"MIGA", "magic"),
        (4, b"\x00", "kind"),
        (4, b"\x06", "kind"),
        (4, b"\xff", "kind"),
        (5, b"\x00", "stage"),
        (5, b"\x04", "stage"),
        (6, b"\x02", "codec"),
        (6, b"\xff", "codec"),
        (7, b"\x01", "reserved"),
        (10, b"\x80", "reserved"),
        (11, b"\x01", "reserved"),
        (32, struct.pack(">I", MAX_BODY_BYTES + 1), "beyond"),
        (36, struct.pack(">I", MAX_BODY_BYTES + 1), "beyond"),
        (36, b"\xff\xff\xff\xff", "beyond"),
        (6, b"\x00", "beyond"),  # not packed, but two lengths
    ],
)
def test_with_a_correct_crc(offset: int, value: bytes, word: str) -> None:
    head = bytearray(BYTES)
    head[offset : offset + len(value)] = value
    with pytest.raises(ProtocolError, match=word):
        BatchHeader.decode(_sealed(head))


# --- bodies ---------------------------------------------------------------------------------------


def _header_for(wire: bytes, plain_length: int, codec: Codec = Codec.ZLIB) -> BatchHeader:
    return replace(
        HEADER,
        wire_length=len(wire),
        plain_length=plain_length,
        body_crc=kernel.crc32c(wire),
        codec=codec,
    )


def _packed(plain: bytes) -> bytes:
    return bytes(pack_body(Codec.ZLIB, memoryview(plain)))


def test_bodies_come_through(rng: random.Random) -> None:
    for plain in (b"", b"x", bytes(MAX_BODY_BYTES), rng.randbytes(5000) * 3):
        packed = _packed(plain)
        assert unpack_body(_header_for(packed, len(plain)), memoryview(packed)) == plain
        assert pack_body(Codec.NONE, memoryview(plain)) == plain
        assert unpack_body(_header_for(plain, len(plain), Codec.NONE), memoryview(plain)) == plain


@pytest.mark.parametrize("codec", list(Codec))
def test_each_bit_of_a_body_flipped(codec: Codec) -> None:
    wire = bytes(pack_body(codec, memoryview(b"some records " * 4)))
    header = _header_for(wire, 52, codec)
    for bit in range(8 * len(wire)):
        with pytest.raises(ProtocolError, match="CRC"):
            unpack_body(header, memoryview(flipped(wire, bit)))


@pytest.mark.parametrize("announced", [0, 1, 51, 53, MAX_BODY_BYTES])
def test_another_length_than_announced(announced: int) -> None:
    wire = _packed(b"some records " * 4)
    with pytest.raises(ProtocolError, match="announced length"):
        unpack_body(_header_for(wire, announced), memoryview(wire))


def test_packed_bytes_that_are_none() -> None:
    good = _packed(b"some records " * 4)
    raw_deflate = zlib.compressobj(wbits=-15)
    for wire in (
        b"",
        b"x",
        good + b"\0",
        good + good,
        raw_deflate.compress(b"some records " * 4) + raw_deflate.flush(),
        *(good[:end] for end in range(len(good))),
    ):
        with pytest.raises(ProtocolError):
            unpack_body(_header_for(wire, 52), memoryview(wire))


def test_a_bomb_is_not_unpacked() -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < MAX_BODY_BYTES
    tracemalloc.start()
    try:
        for announced in (1, 52, MAX_BODY_BYTES):
            with pytest.raises(ProtocolError, match="announced length"):
                unpack_body(_header_for(bomb, announced), memoryview(bomb))
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BODY_BYTES
    finally:
        tracemalloc.stop()


# --- markers --------------------------------------------------------------------------------------


def test_marker_bytes() -> None:
    body = encode_marker(0x0102, 1 << 127)
    assert body.hex() == "0000000000000010" + "00" * 14 + "0102" + "80" + "00" * 15
    assert decode_marker(memoryview(body)) == (0x0102, 1 << 127)


def test_markers_that_are_none() -> None:
    body = encode_marker(1, 2)
    for bad in (
        *(body[:end] for end in range(len(body))),
        body + b"\0",
        *(flipped(body, b) for b in range(64)),
    ):
        with pytest.raises(ProtocolError, match="malformed"):
            decode_marker(bad)
