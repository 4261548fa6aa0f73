"""Control messages over msgpack: exactly the declared form, and hostile bytes cost nothing."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from typing import Any, get_args, get_origin

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_values import MESSAGE_TYPES, example, fields, largest, messages, split

from migrate.errors import ProtocolError
from migrate.protocol import messages as m
from migrate.protocol.schema import (
    MAX_LIST_ITEMS,
    MAX_LISTS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_BYTES,
    Message,
    decode,
    encode,
)

ANY_TYPE = pytest.mark.parametrize("cls", MESSAGE_TYPES, ids=lambda cls: cls.TYPE)
OTHER_VALUES: list[Any] = [None, True, 0, 1.5, "x", b"x", [], [[]], [0], ["x"], {}]


def _parts(message: Message) -> list[Any]:
    return msgpack.unpackb(encode(message))


def _refused(parts: object) -> None:
    with pytest.raises(ProtocolError):
        decode(msgpack.packb(parts))


def test_bytes() -> None:
    assert encode(m.Ack(1, 2, 3)) == b"\x94\xa3ack\x01\x02\x03"
    assert decode(b"\x94\xa3ack\x01\x02\x03") == m.Ack(1, 2, 3)
    assert encode(m.StateBlob("é", b"\x00")) == b"\x93\xaastate-blob\xa2\xc3\xa9\xc4\x01\x00"
    position = b"\x92\x07\x08"
    prepare = b"\x95\xa7prepare\x01\xc4\x10" + bytes(16) + b"\x91" + position + b"\x90"
    assert encode(m.Prepare(1, bytes(16), [m.LanePosition(7, 8)], [])) == prepare


@ANY_TYPE
def test_every_message_comes_through(cls: type[Message]) -> None:
    @given(messages(cls))
    @settings(max_examples=30)
    def check(message: Message) -> None:
        assert decode(encode(message)) == message

    check()


@ANY_TYPE
def test_the_largest_message_comes_through(cls: type[Message]) -> None:
    message = cls(*(largest(hint) for hint in fields(cls).values()))
    assert decode(encode(message)) == message


@ANY_TYPE
def test_a_field_missing_or_surplus(cls: type[Message]) -> None:
    parts = _parts(example(cls))
    for surplus in OTHER_VALUES:
        _refused([*parts, surplus])
    for count in range(len(parts)):
        _refused(parts[:count])


@ANY_TYPE
def test_a_field_of_another_type(cls: type[Message]) -> None:
    parts = _parts(example(cls))
    for index, hint in enumerate(fields(cls).values(), start=1):
        plain, _ = split(hint)
        wanted = get_origin(plain) or plain
        for other in OTHER_VALUES:
            changed = [*parts[:index], other, *parts[index + 1 :]]
            if type(other) is not wanted:
                _refused(changed)
        if wanted is int:
            _refused([*parts[:index], True, *parts[index + 1 :]])


@ANY_TYPE
def test_a_field_out_of_range(cls: type[Message]) -> None:
    parts = _parts(example(cls))
    for index, hint in enumerate(fields(cls).values(), start=1):
        for value in _beyond(hint):
            _refused([*parts[:index], value, *parts[index + 1 :]])


def _beyond(hint: Any) -> list[Any]:
    """Values just outside a field's range."""
    plain, bounds = split(hint)
    if bounds is None:
        return []
    low, high = bounds.low - 1, bounds.high + 1
    if plain is int:
        return [low, high, -(2**63), 2**64 - 1]
    if plain is bytes:
        return [bytes(size) for size in (low, high) if size >= 0]
    if plain is str:
        too_long = ["x" * high, "é" * (high // 2 + 1)]
        return too_long + ["x" * low for _ in range(1) if low >= 0]
    one = _plain(largest(get_args(plain)[0]))
    return [[one] * size for size in (low, high) if size >= 0]


def _plain(value: Any) -> Any:
    return _fields_of(value) if dataclasses.is_dataclass(value) else value


def _fields_of(value: Any) -> list[Any]:
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


@pytest.mark.parametrize(
    "position", [[], [1], [1, 2, 3], [1, None], ["1", 2], [1, -1], [2**32, 1], 5, None, {}, "12", b"12"]
)
def test_a_nested_field(position: object) -> None:
    _refused(["prepare", 1, bytes(16), [[1, 2], position], []])


@pytest.mark.parametrize(
    "parts",
    [None, 0, "ack", b"ack", {}, {"ack": 1}, [], [None], [b"ack", 1, 2, 3], [["ack"]], ["nack"], [""]],
)
def test_not_a_message(parts: object) -> None:
    _refused(parts)


@ANY_TYPE
def test_cut_at_every_byte_and_trailing_bytes(cls: type[Message]) -> None:
    data = encode(example(cls))
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:end])
    for more in (b"\0", b"\xc0", data):
        with pytest.raises(ProtocolError):
            decode(data + more)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for attempt in (data, b"\x94\xa3ack" + data):
        try:
            message = decode(attempt)
        except ProtocolError:
            continue
        assert decode(encode(message)) == message


def test_changed_bytes(rng: random.Random) -> None:
    """Whatever is made of a good message: refused, or another message that is good in itself."""
    for cls in MESSAGE_TYPES:
        data = encode(example(cls))
        for _ in range(200):
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            try:
                message = decode(bytes(changed))
            except ProtocolError:
                continue
            assert decode(encode(message)) == message


_FULL = MAX_MESSAGE_BYTES - 16


@pytest.mark.parametrize(
    "data",
    [
        bytes(MAX_MESSAGE_BYTES + 1),
        b"\x91" * _FULL,
        b"\x81" * _FULL,
        b"\x81\xa1a" * (_FULL // 3),
        b"\xdd\x00\x0f\x00\x00" + b"\x90" * 0xF0000,
        b"\xdc\x00\x40" * (_FULL // 3),
        b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x90" * 64) * 64,
        b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\xc0" * 64) * 64,
        b"\x92\xa3ack" + b"\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xd4\x01\x00",
        b"\xc7\x00\x05",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x92\xa3ack\xd6\xff\x00\x00\x00\x00",
        b"\x92\xa4ping\xc1",
        b"\x92\xa4ping\xcb" + b"\x7f\xf8" + bytes(6),  # NaN
        b"\x92\xa2\xff\xfe\x01",
    ],
    ids=lambda data: f"{data[:6].hex()}-{len(data)}",
)
def test_bombs(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_MESSAGE_BYTES
    finally:
        tracemalloc.stop()


def test_limits_leave_room_for_every_message() -> None:
    for cls in MESSAGE_TYPES:
        lists, longest = _lists([largest(hint) for hint in fields(cls).values()])
        assert lists <= MAX_LISTS
        assert longest < MAX_LIST_ITEMS + 1


def _lists(value: Any) -> tuple[int, int]:
    """How many lists a value is on the wire, and the length of the longest."""
    value = _plain(value)
    if not isinstance(value, list):
        return 0, 0
    inner = [_lists(item) for item in value]
    return 1 + sum(count for count, _ in inner), max([len(value), *(length for _, length in inner)])


def test_texts_for_people_are_cut_where_they_are_encoded() -> None:
    for text, arrives in [
        ("x" * 5000, "x" * MAX_TEXT_BYTES),
        ("x" + "é" * 3000, "x" + "é" * ((MAX_TEXT_BYTES - 1) // 2)),
        ("file \udcff.ram", "file ?.ram"),
    ]:
        assert decode(encode(m.Failed(9, text))) == m.Failed(9, arrives)


def test_too_large_a_message_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match="beyond the limit"):
        encode(m.StateBlob("x", bytes(MAX_MESSAGE_BYTES)))
