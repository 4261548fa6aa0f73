"""One page channel of QEMU's multifd: packets of pages, read as they come (qemu-ram-stream.md 8.1-8.5).

    opening   magic 11223344, be32 1, 16 bytes UUID, u8 channel, 39 bytes
    packet    magic, be32 1, be32 flags, be32 allocated, be32 normal pages, be32 bytes of data, be64 number,
              be32 zero pages, 28 bytes, name[256], be64 offset of each page (room for 512 KiB of them); data

Packets of one channel are in order, channels among each other are not; a packet with SYNC ends what may land
before the main channel's next marker.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from migrate.errors import StreamError
from migrate.protocol.qemu_wire import MULTIFD_MAGIC

OPENING_BYTES = 64
_OPENING = struct.Struct(">4sI16sB39x")
_HEADER = struct.Struct(">4sIIIIIQI28x256s")
_PACKET_BYTES = 512 << 10
_MOST_PACKED_BYTES = 1 << 20

SYNC = 0x01
_ZLIB = 0x02
_DEVICE_STATE = 0x40
_OTHER_METHODS = {0x04: "zstd", 0x08: "qpl", 0x10: "uadk", 0x20: "qatzip"}


class Packet(NamedTuple):
    """What one packet brings."""

    block: str
    normal: int
    """How many of the offsets are pages with content."""
    offsets: bytes
    """be64 each: the normal pages, then those that are zero."""
    data: bytes | memoryview
    sync: bool


class MultifdChannel:
    """Reads one channel. After an error it must not be used again.

    Args:
        page_size: bytes of a target page.

    Attributes:
        number: of the channel, once its opening is here.
    """

    def __init__(self, page_size: int) -> None:
        self.number: int | None = None
        self._page_size = page_size
        self._room = _PACKET_BYTES // page_size
        self._packet_bytes = _HEADER.size + 8 * self._room
        self._buffer = bytearray()
        self._offset = 0
        self._inflate = zlib.decompressobj()

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes; what they hold is fetched with `take`."""
        self._buffer += data

    def take(self) -> Packet | None:
        """The next packet, None if it is not all here.

        Raises:
            StreamError: illegal, or a method of compression that is not known here.
        """
        if self.number is None and not self._open():
            return None
        if len(self._buffer) < self._packet_bytes:
            return None
        _, _, flags, _, normal, size, _, zero, raw_name = self._header()
        size = size if normal else 0  # some send a stale number with nothing behind it
        end = self._packet_bytes + size
        if len(self._buffer) < end:
            return None
        offsets = bytes(self._buffer[_HEADER.size : _HEADER.size + 8 * (normal + zero)])
        data = bytes(self._buffer[self._packet_bytes : end])
        if flags & _ZLIB and normal:
            data = self._unpacked(data, normal)
        try:
            name = raw_name.split(b"\0")[0].decode() if offsets else ""
        except UnicodeDecodeError:
            raise self._error("multifd-packet", "the name of a block is not UTF-8") from None
        del self._buffer[:end]
        self._offset += end
        return Packet(name, normal, offsets, data, bool(flags & SYNC))

    def _open(self) -> bool:
        if len(self._buffer) < OPENING_BYTES:
            return False
        magic, version, _, self.number = _OPENING.unpack_from(self._buffer)
        if magic != MULTIFD_MAGIC or version != 1:
            raise self._error("multifd-opening", "this is no page channel")
        del self._buffer[:OPENING_BYTES]
        self._offset += OPENING_BYTES
        return True

    def _header(self) -> tuple[bytes, int, int, int, int, int, int, int, bytes]:
        header: tuple[bytes, int, int, int, int, int, int, int, bytes] = _HEADER.unpack_from(self._buffer)
        magic, version, flags, allocated, normal, size, _, zero, _ = header
        if magic != MULTIFD_MAGIC or version != 1:
            raise self._error("multifd-packet", "a packet does not begin as one")
        for flag, method in _OTHER_METHODS.items():
            if flags & flag:
                raise self._error("multifd-method", f"pages packed with {method}, which is not read here")
        if flags & _DEVICE_STATE:
            raise self._error("multifd-device", "device state in a page channel is not read here")
        if flags & ~(SYNC | _ZLIB) or allocated > self._room or normal + zero > allocated:
            raise self._error("multifd-packet", f"flags {flags:#x}, {normal} + {zero} of {allocated} pages")
        if normal and (size > _MOST_PACKED_BYTES if flags & _ZLIB else size != normal * self._page_size):
            raise self._error("multifd-packet", f"{size} bytes for {normal} pages")
        return header

    def _unpacked(self, data: bytes, normal: int) -> bytes:
        """One stream goes through all packets of a channel; each ends with a flush."""
        most = normal * self._page_size
        try:
            pages = self._inflate.decompress(data, most + 1)
        except zlib.error as error:
            raise self._error("multifd-packet", f"pages cannot be unpacked: {error}") from error
        if len(pages) != most or self._inflate.unconsumed_tail:
            raise self._error("multifd-packet", f"{normal} pages do not unpack to their size")
        return pages

    def _error(self, rule: str, message: str) -> StreamError:
        return StreamError(rule, self._offset, f"multifd channel {self.number}: {message}")
