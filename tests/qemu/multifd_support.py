"""Page channels of captured migrations taken apart, and put together again with other methods and numbers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backports import zstd
from qemu_oracle import packets
from qemu_support import channels

P = 4096
ROOM = 128
METHODS = {"none": 0, "zlib": 2, "zstd": 4}


class Pages(NamedTuple):
    """Some pages of a block that travel together."""

    block: bytes
    normal: tuple[tuple[int, bytes], ...]
    zero: tuple[int, ...]


def rounds(name: str) -> list[list[Pages]]:
    """What all channels of a capture carry, from barrier to barrier; the last one is behind the last SYNC."""
    found: list[list[Pages]] = []
    for data in channels(name):
        at = 0
        for packet in packets(data):
            if at == len(found):
                found.append([])
            if packet.normal or packet.zero:
                found[at].append(Pages(packet.block, tuple(packet.normal), tuple(packet.zero)))
            at += packet.sync
    return found


def packer(method: str) -> Callable[[bytes], bytes]:
    """The state of one channel: pages into the data of the next packet."""
    if method == "zlib":
        deflate = zlib.compressobj(1)
        return lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)
    if method == "zstd":
        compressor = zstd.ZstdCompressor(level=1)
        return lambda data: compressor.compress(data, mode=zstd.ZstdCompressor.FLUSH_BLOCK)
    return lambda data: data


def packet(
    flags: int, pages: Pages | None, pack: Callable[[bytes], bytes], *, allocated: int = ROOM
) -> bytes:
    """One packet; None: no pages."""
    pages = pages or Pages(b"", (), ())
    data = pack(b"".join(content for _, content in pages.normal)) if pages.normal else b""
    offsets = [offset for offset, _ in pages.normal] + list(pages.zero)
    head = struct.pack(
        ">IIIIIIQI28x256s",
        *(0x11223344, 1, flags, allocated, len(pages.normal), len(data), 0, len(pages.zero)),
        pages.block,
    )
    return head + struct.pack(f">{ROOM}Q", *offsets, *([0] * (ROOM - len(offsets)))) + data


def opening(number: int, uuid: bytes = bytes(16)) -> bytes:
    """What a channel says first."""
    return struct.pack(">II16sB39x", 0x11223344, 1, uuid, number)


def make_channels(content: Sequence[Sequence[Pages]], count: int, method: str) -> list[bytes]:
    """Page channels that carry it, spread over `count` of them."""
    made = [bytearray(opening(number)) for number in range(count)]
    packs = [packer(method) for _ in range(count)]
    flags = METHODS[method]
    for each in content:
        for at, pages in enumerate(each):
            made[at % count] += packet(flags, pages, packs[at % count])
        for at in range(count):
            made[at] += packet(1, None, bytes, allocated=0)
    return [bytes(channel) for channel in made]
