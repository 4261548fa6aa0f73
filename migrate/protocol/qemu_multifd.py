"""One page channel of QEMU's multifd: packets of pages, read as they come (qemu-ram-stream.md 8.1-8.5).

    opening   magic 11223344, be32 1, 16 bytes UUID, u8 channel, 39 bytes
    packet    magic, be32 1, be32 flags, be32 allocated, be32 normal pages, be32 bytes of data, be64 number,
              be32 zero pages, 28 bytes, name[256], be64 offset of each page (room for 512 KiB of them); data

Packets of one channel are in order, channels among each other are not; a packet with SYNC ends what may land
before the main channel's next marker.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from migrate.errors import StreamError
from migrate.protocol.multifd_methods import METHODS, Unpacker
from migrate.protocol.qemu_wire import MULTIFD_MAGIC

OPENING_BYTES = 64
_OPENING = struct.Struct(">4sI16sB39x")
_HEADER = struct.Struct(">4sIIIIIQI28x256s")
_PACKET_BYTES = 512 << 10
_MOST_PACKED_BYTES = 1 << 20

SYNC = 0x01
_METHOD_BITS = 0x3E
_DEVICE_STATE = 0x40
_OTHER_METHODS = {0x08: "qpl", 0x10: "uadk", 0x20: "qatzip"}


class Opening(NamedTuple):
    """What a page channel says first."""

    uuid: bytes
    """Of the source's machine; zeros if it has none."""
    number: int


def decode_opening(data: bytes) -> Opening:
    """Read the first 64 bytes of a page channel. Raises StreamError: rule "multifd-opening"."""
    if len(data) < OPENING_BYTES:
        raise StreamError("truncated", len(data), "a page channel ends inside its opening")
    magic, version, uuid, number = _OPENING.unpack_from(data)
    if magic != MULTIFD_MAGIC or version != 1:
        raise StreamError("multifd-opening", 0, "this is no page channel")
    return Opening(uuid, number)


class Packet(NamedTuple):
    """What one packet brings."""

    block: str
    normal: int
    """How many of the offsets are pages with content."""
    offsets: bytes
    """be64 each: the normal pages, then those that are zero."""
    data: bytes | memoryview
    """The normal pages; good until the channel takes more bytes."""
    sync: bool


class _Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    allocated: int
    normal: int
    size: int
    number: int
    zero: int
    name: bytes


class MultifdChannel:
    """Reads one channel, behind its opening. After an error it must not be used again.

    It lends the memory that the next bytes go to, so that pages are not copied on their way: fill `wanted`
    to its end, then call `filled`.

    Args:
        page_size: bytes of a target page.
        number: of the channel.

    Attributes:
        offset: bytes of the channel that were used.
    """

    def __init__(self, page_size: int, number: int) -> None:
        self.number = number
        self._page_size = page_size
        self._room = _PACKET_BYTES // page_size
        self._head = memoryview(bytearray(_HEADER.size + 8 * self._room))
        self._data = memoryview(bytearray(_MOST_PACKED_BYTES))
        self._header: _Header | None = None
        self.offset = OPENING_BYTES
        self._method: int | None = None
        self._raw_name, self._name = b"", ""
        self._unpacker: Unpacker | None = None

    @property
    def wanted(self) -> memoryview:
        """Where the next bytes go, never empty."""
        return self._head if self._header is None else self._data[: self._header.size]

    @property
    def within_packet(self) -> bool:
        """The header of a packet is here, its data is not."""
        return self._header is not None

    def filled(self) -> Packet | None:
        """All that was wanted is here; returns a packet once it is complete.

        Raises:
            StreamError: illegal, or a method of compression that is not known here.
        """
        if self._header is None:
            header = self._read_header()
            if header.normal:
                self._header = header
                return None
            data: bytes | memoryview = b""  # `size` may be a stale number with nothing behind it
        else:
            header = self._header
            data = self._unpacked(header)
        if header.name != self._raw_name:
            self._name = self._read_name(header.name)
            self._raw_name = header.name
        pages = header.normal + header.zero
        offsets = bytes(self._head[_HEADER.size : _HEADER.size + 8 * pages])
        self.offset += len(self._head) + (header.size if header.normal else 0)
        self._header = None
        return Packet(self._name, header.normal, offsets, data, bool(header.flags & SYNC))

    def _read_name(self, raw: bytes) -> str:
        try:
            return raw.split(b"\0")[0].decode()
        except UnicodeDecodeError:
            raise self.error("multifd-packet", "the name of a block is not UTF-8") from None

    def _read_header(self) -> _Header:
        header = _Header(*_HEADER.unpack_from(self._head))
        if header.magic != MULTIFD_MAGIC or header.version != 1:
            raise self.error("multifd-packet", "a packet does not begin as one")
        method = header.flags & _METHOD_BITS
        if method in _OTHER_METHODS:
            raise self.error(
                "multifd-method", f"pages packed with {_OTHER_METHODS[method]}, which is not read here"
            )
        if header.flags & _DEVICE_STATE:
            raise self.error("multifd-device", "device state in a page channel is not read here")
        pages = f"{header.normal} + {header.zero} of {header.allocated} pages"
        if (
            header.flags & ~(SYNC | _METHOD_BITS)
            or (method and method not in METHODS)
            or header.allocated > self._room
            or header.normal + header.zero > header.allocated
        ):
            raise self.error("multifd-packet", f"flags {header.flags:#x}, {pages}")
        if header.normal:
            self._check_data(header, method)
        return header

    def _check_data(self, header: _Header, method: int) -> None:
        if self._method is None:
            self._method = method
            self._unpacker = METHODS[method]() if method else None
        if method != self._method:
            raise self.error("multifd-method", f"method {method:#x} after {self._method:#x}")
        plain = header.normal * self._page_size
        if not 0 < header.size <= _MOST_PACKED_BYTES if method else header.size != plain:
            raise self.error("multifd-packet", f"{header.size} bytes for {header.normal} pages")

    def _unpacked(self, header: _Header) -> bytes | memoryview:
        data = self._data[: header.size]
        if self._unpacker is None:
            return data
        try:
            return self._unpacker.unpack(data, header.normal * self._page_size)
        except ValueError as error:
            message = f"{header.normal} pages do not unpack to their size: {error}"
            raise self.error("multifd-data", message) from error

    def error(self, rule: str, message: str) -> StreamError:
        """What to raise for something that is wrong at this place of the channel."""
        return StreamError(rule, self.offset, f"multifd channel {self.number}: {message}")
