"""A decoder of whole QEMU streams written from qemu-ram-stream.md alone: what a stream means, if it is legal.

It shares no code with the product, holds everything in memory and goes page by page.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from backports import zstd

P = 4096
MOST_PACKED = 1 << 20


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


class Packet(NamedTuple):
    """One packet of a page channel."""

    block: bytes
    normal: list[tuple[int, bytes]]
    zero: list[int]
    sync: bool


def packets(data: bytes) -> Iterator[Packet]:
    """A page channel's (8.1-8.3), to its end. Raises IllegalError."""
    stream = _Bytes(data)
    need(stream.raw(8) == b"\x11\x22\x33\x44\0\0\0\1")
    stream.raw(56)
    inflate, frame = zlib.decompressobj(), zstd.ZstdDecompressor()
    methods = set()
    while stream.at < len(data):
        need(stream.raw(8) == b"\x11\x22\x33\x44\0\0\0\1")
        flags, allocated, normal, size = (stream.number(4) for _ in range(4))
        stream.number(8)
        zero = stream.number(4)
        stream.raw(28)
        name = stream.raw(256).split(b"\0")[0]
        utf8(name)
        offsets = [stream.number(8) for _ in range(128)]
        method = flags & 0x3E
        need(flags & ~0x3F == 0 and method in (0, 2, 4))
        need(allocated <= 128 and normal + zero <= allocated)
        pages = b""
        if normal:
            methods.add(method)
            need(len(methods) == 1)
            need(0 < size <= MOST_PACKED)
            pages = stream.raw(size)
            most = normal * P + 1
            try:
                if method == 2:
                    pages = inflate.decompress(pages, most)
                    need(not inflate.unconsumed_tail and not inflate.eof)
                elif method == 4:
                    pages = frame.decompress(pages, most)
                    need(frame.needs_input and not frame.eof)
            except (zlib.error, zstd.ZstdError):
                raise IllegalError from None
            need(len(pages) == normal * P)
        contents = [(offsets[i], pages[i * P : i * P + P]) for i in range(normal)]
        yield Packet(name, contents, offsets[normal : normal + zero], bool(flags & 1))


class _Channels:
    """Page channels, read from barrier to barrier."""

    def __init__(self, channels: Sequence[bytes]) -> None:
        if all(len(data) >= 64 for data in channels):
            need(sorted(data[24] for data in channels) == list(range(len(channels))))
        self._packets = [packets(data) for data in channels]
        self.flushes = False

    def barrier(self, ram: dict[bytes, bytearray]) -> None:
        for channel in self._packets:
            for packet in channel:
                _land(packet, ram)
                if packet.sync:
                    break
            else:
                raise IllegalError

    def finish(self) -> None:
        for channel in self._packets:
            need(not any(packet.normal or packet.zero for packet in channel))


def _land(packet: Packet, ram: dict[bytes, bytearray]) -> None:
    pages = packet.normal + [(offset, bytes(P)) for offset in packet.zero]
    if pages:
        need(packet.block in ram)
        block = ram[packet.block]
        for offset, content in pages:
            need(offset % P == 0 and offset < len(block))
            block[offset : offset + P] = content


OnDelta = Callable[[bytes, bytes, bytes], None]


def decode(
    data: bytes, channels: Sequence[bytes] = (), on_delta: OnDelta | None = None
) -> tuple[dict[str, bytes], bytes]:
    """RAM by block and the device state of a precopy stream, with multifd or without. Raises IllegalError.

    `on_delta` gets the page before, every delta, and the page behind it.
    """
    stream = _Bytes(data)
    multifd = _Channels(channels)
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
            _records(stream, ram, last, multifd, on_delta)
            need(stream.number(1) == 0x7E and stream.number(4) == section)
        elif kind in (2, 3):
            need(stream.number(4) == ram_id)
            _records(stream, ram, last, multifd, on_delta)
            need(stream.number(1) == 0x7E and stream.number(4) == ram_id)
            ended |= kind == 3
        else:
            need(kind in (0, 4) and ended)
            state = data[stream.at - 1 :]
            need(_ends(state))
            multifd.finish()
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


def _records(
    stream: _Bytes,
    ram: dict[bytes, bytearray],
    last: list[bytes],
    multifd: _Channels,
    on_delta: OnDelta | None,
) -> None:
    while True:
        word = stream.number(8)
        flags, offset = word % P & ~0x20, word // P * P
        if flags == 0x10:
            if not multifd.flushes:
                multifd.barrier(ram)
            return
        if flags == 0x200:
            multifd.flushes = True
            multifd.barrier(ram)
            continue
        need(flags in (2, 8, 0x40, 0x100))
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
        elif flags == 0x100:
            length = stream.number(4)
            need(0 < length <= P + 14)
            block[offset : offset + P] = _inflated(stream.raw(length))
        else:
            need(stream.number(1) == 1)
            length = stream.number(2)
            need(length <= P)
            old, delta = bytes(block[offset : offset + P]), stream.raw(length)
            new = apply_delta(delta, old)
            if on_delta is not None:
                on_delta(old, delta, new)
            block[offset : offset + P] = new


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, P + 1)
    except zlib.error:
        raise IllegalError from None
    need(len(content) == P and stream.eof and not stream.unused_data)
    return content


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
