"""The batch: the unit in which a lane carries records, and in which the destination accepts or refuses them.

    octets  field            meaning
    0       4s magic         "MIGB"
    4       u8 kind          1 records, 2 round-end, 3 cache-resize, 4 reset, 5 final
    5       u8 stage         1 bulk, 2 round, 3 last (guest stopped)
    6       u8 codec         0 none, 1 zlib
    7       u8               0
    8       be16 lane
    10      be16             0
    12      be32 epoch       counts the lane's connections; everything of an older epoch is dropped
    16      be64 sequence    1, 2, 3 … inside an epoch
    24      be32 round
    28      be32 records     page records in the body
    32      be32 wire length bytes that follow this header
    36      be32 plain length of the body once the codec is undone; bounds decompression
    40      16s digest sum   sum of the terms of the pages *after* apply (kernel contract), big-endian
    56      be32 body CRC    CRC-32C of the bytes that follow
    60      be32 header CRC  CRC-32C of octets 0-59

Bodies: *records* = page records, the first naming its block. *reset* = MEM_SIZE list and EOS; it opens an
epoch: caches are empty from here. *round-end* and *final* = EOS, cache digest (16 bytes), lane sum
(16 bytes: what the lane changed the root by since the migration began); nothing follows *final*.
*cache-resize* = be32 number of the agreement, be64 bytes of this lane's cache from here on (0: none); only
where no round is under way on the lane: after every kind but *records*.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.kernel.results import STAGE_BULK, STAGE_LAST
from migrate.protocol.records import EOS

MAGIC = b"MIGB"
HEADER_BYTES = 64
MAX_BODY_BYTES = 1 << 20

_HEADER = struct.Struct(">4sBBBxH2xIQIIII16sI")
_CRC = struct.Struct(">I")
_RESIZE = struct.Struct(">IQ")


class Kind(IntEnum):
    """What a batch is for."""

    RECORDS = 1
    ROUND_END = 2
    CACHE_RESIZE = 3
    RESET = 4
    FINAL = 5


class Codec(IntEnum):
    """How the body is packed on the wire."""

    NONE = 0
    ZLIB = 1


CODECS = {codec.name.lower(): codec for codec in Codec}


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """The fields of a batch header; see the module's table."""

    kind: Kind
    stage: int
    lane: int
    epoch: int
    sequence: int
    round: int
    records: int
    wire_length: int
    plain_length: int
    digest_sum: int
    body_crc: int
    codec: Codec = Codec.NONE

    def encode(self) -> bytes:
        head = _HEADER.pack(
            MAGIC,
            self.kind,
            self.stage,
            self.codec,
            self.lane,
            self.epoch,
            self.sequence,
            self.round,
            self.records,
            self.wire_length,
            self.plain_length,
            self.digest_sum.to_bytes(16, "big"),
            self.body_crc,
        )
        return head + _CRC.pack(kernel.crc32c(head))

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> BatchHeader:
        """Parse and check 64 bytes. All lengths are bounded afterwards.

        Raises:
            ProtocolError: wrong magic or CRC, unknown kind, stage or codec, lengths beyond the limits.
        """
        raw = bytes(data)
        if len(raw) != HEADER_BYTES:
            raise ProtocolError(f"a batch header has {HEADER_BYTES} bytes, not {len(raw)}")
        if raw[:4] != MAGIC:
            raise ProtocolError("this is not a batch: wrong magic")
        if _CRC.unpack_from(raw, 60)[0] != kernel.crc32c(raw[:60]):
            raise ProtocolError("a batch header was damaged on the way: its CRC is wrong")
        (_, kind, stage, codec, lane, epoch, sequence, round_, records, wire, plain, total, crc) = (
            _HEADER.unpack_from(raw)
        )
        if raw[7] or raw[10] or raw[11]:
            raise ProtocolError("a batch header has reserved octets that are not 0")
        try:
            kind, codec = Kind(kind), Codec(codec)
        except ValueError as error:
            raise ProtocolError(f"a batch has an unknown kind or codec: {error}") from error
        if not STAGE_BULK <= stage <= STAGE_LAST:
            raise ProtocolError(f"a batch has the unknown stage {stage}")
        if plain > MAX_BODY_BYTES or wire > MAX_BODY_BYTES or (codec is Codec.NONE and wire != plain):
            raise ProtocolError(f"a batch of {wire} bytes ({plain} unpacked) is beyond {MAX_BODY_BYTES}")
        return cls(
            kind,
            stage,
            lane,
            epoch,
            sequence,
            round_,
            records,
            wire,
            plain,
            int.from_bytes(total, "big"),
            crc,
            codec,
        )


def pack_body(codec: Codec, body: memoryview) -> bytes | memoryview:
    """Pack a body for the wire; whether the packed form is the shorter one is for the caller to see."""
    return body if codec is Codec.NONE else zlib.compress(body, 1)


def unpack_body(header: BatchHeader, body: memoryview) -> bytes | memoryview:
    """Check the CRC of a received body and undo the codec, never beyond the announced plain length.

    Raises:
        ProtocolError: wrong CRC, undecodable, longer or shorter than announced.
    """
    if kernel.crc32c(body) != header.body_crc:
        raise ProtocolError("a batch was damaged on the way: the CRC of its body is wrong")
    if header.codec is Codec.NONE:
        return body
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, header.plain_length + 1)
    except zlib.error as error:
        raise ProtocolError(f"a compressed batch cannot be unpacked: {error}") from error
    if len(plain) != header.plain_length or not unpacker.eof or unpacker.unused_data:
        raise ProtocolError("a compressed batch does not unpack to its announced length")
    return plain


def encode_marker(cache_digest: int, lane_sum: int) -> bytes:
    """Body of a round-end or final batch."""
    return EOS + cache_digest.to_bytes(16, "big") + lane_sum.to_bytes(16, "big")


def decode_marker(body: bytes | memoryview) -> tuple[int, int]:
    """(cache digest, lane sum) of a round-end or final batch. Raises ProtocolError."""
    raw = bytes(body)
    if len(raw) != len(EOS) + 32 or raw[:8] != EOS:
        raise ProtocolError("the end of a round is malformed")
    return int.from_bytes(raw[8:24], "big"), int.from_bytes(raw[24:], "big")


def encode_resize(number: int, cache_bytes: int) -> bytes:
    """Body of a cache-resize batch."""
    return _RESIZE.pack(number, cache_bytes)


def decode_resize(body: bytes | memoryview) -> tuple[int, int]:
    """(number of the agreement, bytes of the lane's cache) of a cache-resize batch. Raises ProtocolError."""
    if len(body) != _RESIZE.size:
        raise ProtocolError("the resize of a page cache is malformed")
    number, cache_bytes = _RESIZE.unpack(body)
    return number, cache_bytes
