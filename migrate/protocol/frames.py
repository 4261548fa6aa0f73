"""The opening of a connection, and the frames of the control messages on it.

connection = "MIGRATE" u8 (1 control, 2 lane, 3 probe), then frames; a lane carries one, lane-open, and then
             batches; a probe carries no frames (daemon/link_probe.py)
frame      = be32 length, be32 CRC-32C of the payload, payload (msgpack, see schema.py; at most 1 MiB)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol import messages  # noqa: F401 - the catalogue by which payloads are decoded
from migrate.protocol.schema import MAX_MESSAGE_BYTES, Message, decode, encode

PREFACE_CONTROL = b"MIGRATE\x01"
PREFACE_LANE = b"MIGRATE\x02"
PREFACE_PROBE = b"MIGRATE\x03"
PREFACE_BYTES = 8
HEADER_BYTES = 8

_HEADER = struct.Struct(">II")


def encode_frame(value: Message) -> bytes:
    """A message as it goes over the wire."""
    payload = encode(value)
    return _HEADER.pack(len(payload), kernel.crc32c(payload)) + payload


class FrameReader:
    """Turns received bytes into messages; holds at most one frame's worth beyond what was fed.

    After the first error it is finished: every later call raises the same error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._error: ProtocolError | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Messages completed by these bytes, in order; a generator, so that what came before an error counts.

        Raises:
            ProtocolError: too long, damaged, or not a message.
        """
        if self._error is not None:
            raise self._error
        self._buffer += data
        try:
            while len(self._buffer) >= HEADER_BYTES:
                length, crc = _HEADER.unpack_from(self._buffer)
                if length > MAX_MESSAGE_BYTES:
                    raise ProtocolError(f"a control message announces {length} bytes")
                end = HEADER_BYTES + length
                if len(self._buffer) < end:
                    return
                payload = bytes(self._buffer[HEADER_BYTES:end])
                if kernel.crc32c(payload) != crc:
                    raise ProtocolError("a control message was damaged on the way: its CRC is wrong")
                del self._buffer[:end]
                yield decode(payload)
        except ProtocolError as error:
            self._error = error
            raise
