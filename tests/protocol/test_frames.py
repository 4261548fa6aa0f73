"""Frames of the control connection: any cut of the bytes gives the same messages, no other bytes give any."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from message_values import MESSAGE_TYPES, example
from protocol_support import flipped, make_hello

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.schema import MAX_MESSAGE_BYTES

ALL = [example(cls) for cls in MESSAGE_TYPES]
STREAM = b"".join(map(frames.encode_frame, ALL))


def test_bytes() -> None:
    payload = b"\x94\xa3ack\x01\x02\x03"
    frame = struct.pack(">II", 8, kernel.crc32c(payload)) + payload
    assert frames.encode_frame(m.Ack(1, 2, 3)) == frame
    assert (frames.PREFACE_CONTROL, frames.PREFACE_LANE) == (b"MIGRATE\x01", b"MIGRATE\x02")
    assert len(frames.PREFACE_CONTROL) == frames.PREFACE_BYTES


def test_whole() -> None:
    assert list(frames.FrameReader().feed(STREAM)) == ALL


def test_byte_by_byte() -> None:
    reader = frames.FrameReader()
    assert [message for at in range(len(STREAM)) for message in reader.feed(STREAM[at : at + 1])] == ALL


def test_in_random_pieces(rng: random.Random) -> None:
    for _ in range(50):
        reader, found, at = frames.FrameReader(), [], 0
        while at < len(STREAM):
            end = at + rng.choice([1, 3, 8, 9, 50, 1000])
            found += reader.feed(memoryview(STREAM)[at:end])
            at = end
        assert found == ALL


def test_cut_at_every_byte() -> None:
    frame = frames.encode_frame(make_hello())
    for end in range(len(frame)):
        reader = frames.FrameReader()
        assert list(reader.feed(frame[:end])) == []
        assert list(reader.feed(frame[end:])) == [make_hello()]


def test_each_bit_flipped() -> None:
    """An error at once, or nothing until more has come than a frame may have: never a message."""
    frame = frames.encode_frame(m.Prepare(3, bytes(16), [m.LanePosition(1, 2)], []))
    waiting = 0
    for bit in range(8 * len(frame)):
        reader = frames.FrameReader()
        try:
            assert list(reader.feed(flipped(frame, bit))) == []
        except ProtocolError:
            continue
        waiting += 1
        with pytest.raises(ProtocolError):
            list(reader.feed(bytes(MAX_MESSAGE_BYTES)))
    assert waiting <= 20, "only a length that grew can wait"


def test_what_came_before_an_error_counts_and_nothing_after() -> None:
    reader, found = frames.FrameReader(), []
    broken = bytearray(frames.encode_frame(m.Ping(2)))
    broken[-1] ^= 1
    with pytest.raises(ProtocolError, match="CRC") as first:
        for message in reader.feed(frames.encode_frame(m.Ping(1)) + broken + frames.encode_frame(m.Ping(3))):
            found.append(message)
    assert found == [m.Ping(1)]
    with pytest.raises(ProtocolError) as again:
        list(reader.feed(frames.encode_frame(m.Ping(4))))
    assert again.value is first.value


@pytest.mark.parametrize("length", [MAX_MESSAGE_BYTES + 1, 1 << 31, (1 << 32) - 1])
def test_a_giant_is_refused_by_its_length(length: int) -> None:
    with pytest.raises(ProtocolError, match="announces"):
        list(frames.FrameReader().feed(struct.pack(">II", length, 0)))


@pytest.mark.parametrize("payload", [b"", b"\xc0", b"\x90", b"\x91\xa4nope", bytes(MAX_MESSAGE_BYTES)])
def test_a_frame_that_holds_no_message(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(frames.FrameReader().feed(struct.pack(">II", len(payload), kernel.crc32c(payload)) + payload))


def test_memory_is_bounded() -> None:
    blob = frames.encode_frame(m.StateBlob("x", bytes(m.CHUNK_BYTES)))
    reader = frames.FrameReader()
    tracemalloc.start()
    try:
        for _ in range(40):
            for at in range(0, len(blob), 1 << 16):
                for message in reader.feed(memoryview(blob)[at : at + (1 << 16)]):
                    assert isinstance(message, m.StateBlob)
        assert tracemalloc.get_traced_memory()[1] < 6 * MAX_MESSAGE_BYTES
    finally:
        tracemalloc.stop()
