"""A decoder of whole QEMU streams written from qemu-ram-stream.md alone: what a stream means, if it is legal.

It shares no code with the product, holds everything in memory and goes page by page.
"""

from __future__ import annotations

import json

P = 4096


class IllegalError(Exception):
    """The stream breaks a rule."""


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def raw(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise IllegalError("truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.raw(count), "big")

    def name(self) -> bytes:
        name = self.raw(self.number(1))
        need(len(name) > 0)
        utf8(name)
        return name


def need(condition: bool) -> None:
    if not condition:
        raise IllegalError


def utf8(name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError:
        raise IllegalError from None


def decode(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """RAM by block and the device state of a precopy stream. Raises IllegalError."""
    stream = _Bytes(data)
    need(stream.raw(8) == b"QEVM\0\0\0\3")
    ignore_shared = _configuration(stream)
    ram: dict[bytes, bytearray] = {}
    ram_id: int | None = None
    last: list[bytes] = []
    ended = return_path = False
    while True:
        kind = stream.number(1)
        if kind == 8:
            command, payload = stream.number(2), stream.raw(stream.number(2))
            need((command, len(payload)) in {(1, 0), (2, 4), (3, 0), (3, 16), (11, 0)})
            need(command != 2 or return_path)
            return_path |= command == 1
            need(command != 3 or ram_id is not None or payload[:8] in (b"", (P).to_bytes(8, "big")))
        elif kind == 1:
            section = stream.number(4)
            need(stream.name() == b"ram" and stream.raw(8) == b"\0\0\0\0\0\0\0\4")
            need(ram_id is None and section != 0)
            ram_id = section
            ram = _blocks(stream, ignore_shared)
            _records(stream, ram, last)
            need(stream.number(1) == 0x7E and stream.number(4) == section)
        elif kind in (2, 3):
            need(stream.number(4) == ram_id)
            _records(stream, ram, last)
            need(stream.number(1) == 0x7E and stream.number(4) == ram_id)
            ended |= kind == 3
        else:
            need(kind in (0, 4) and ended)
            state = data[stream.at - 1 :]
            need(_ends(state))
            return {name.decode(): bytes(content) for name, content in ram.items()}, state


def _configuration(stream: _Bytes) -> bool:
    need(stream.number(1) == 7)
    length = stream.number(4)
    need(length <= 1024)
    utf8(stream.raw(length))
    ignore_shared = False
    while stream.data[stream.at : stream.at + 1] == b"\5":
        stream.at += 1
        name, version = stream.name(), stream.number(4)
        need(version == 1)
        if name == b"configuration/capabilities":
            count = stream.number(4)
            names = [stream.name() for _ in range(count)]
            need(set(names) <= {b"x-ignore-shared"})
            ignore_shared |= bool(names)
        elif name == b"configuration/uuid":
            stream.raw(16)
        else:
            raise IllegalError
    return ignore_shared


def _blocks(stream: _Bytes, ignore_shared: bool) -> dict[bytes, bytearray]:
    word = stream.number(8)
    need(word % P == 4)
    rest = word - 4
    need(rest > 0)
    lengths: dict[bytes, int] = {}
    while rest:
        name, length = stream.name(), stream.number(8)
        if ignore_shared:
            stream.raw(8)
        need(0 < length <= rest and length % P == 0 and name not in lengths)
        lengths[name] = length
        rest -= length
    need(sum(lengths.values()) < 1 << 30)
    return {name: bytearray(length) for name, length in lengths.items()}


def _records(stream: _Bytes, ram: dict[bytes, bytearray], last: list[bytes]) -> None:
    while True:
        word = stream.number(8)
        flags, offset = word % P & ~0x20, word // P * P
        if flags == 0x10:
            return
        if flags == 0x200:
            continue
        need(flags in (2, 8, 0x40))
        if not word & 0x20:
            name = stream.raw(stream.number(1))
            need(name in ram)
            last[:] = [name]
        need(bool(last))
        block = ram[last[0]]
        need(offset < len(block))
        if flags == 2:
            need(stream.number(1) == 0)
            block[offset : offset + P] = bytes(P)
        elif flags == 8:
            block[offset : offset + P] = stream.raw(P)
        else:
            need(stream.number(1) == 1)
            length = stream.number(2)
            need(length <= P)
            block[offset : offset + P] = apply_delta(stream.raw(length), block[offset : offset + P])


def apply_delta(delta: bytes, page: bytes | bytearray) -> bytes:
    """The page after the delta (3.4). Raises IllegalError."""
    new = bytearray(page)
    at = done = 0
    while at < len(delta):
        for changed in (False, True):
            need(len(delta) - at >= 2)
            run = delta[at] & 0x7F
            if delta[at] & 0x80:
                need(delta[at + 1] < 0x80)
                run += delta[at + 1] * 128
                at += 1
            at += 1
            need(run > 0 or (not changed and done == 0 and at <= 2))
            need(done + run <= len(page))
            if changed:
                need(at + run <= len(delta))
                new[done : done + run] = delta[at : at + run]
                at += run
            done += run
    return bytes(new)


def _ends(state: bytes) -> bool:
    """Whether device state ends as 1.7 (4) says, with or without a description."""
    at = state.rfind(b"\0\6")
    while at > 4:
        size = int.from_bytes(state[at + 2 : at + 6], "big")
        if state[at - 5] == 0x7E and at + 6 + size <= len(state) and state[at + 6 : at + 7] == b"{":
            try:
                found = json.loads(state[at + 6 : at + 6 + size])
            except ValueError:
                found = {}
            if {"page_size", "devices"} <= set(found):
                return True
        at = state.rfind(b"\0\6", 0, at)
    return state == b"\0" or (len(state) > 5 and state[-6] == 0x7E and state[-1] == 0)
