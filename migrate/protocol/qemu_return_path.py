"""What a QEMU that loads a stream answers (qemu-ram-stream.md 6.1)."""

from __future__ import annotations

import struct

from migrate.errors import ProtocolError
from migrate.protocol.qemu_wire import ANSWER_BYTES, ANSWER_PONG, ANSWER_SHUT, MAX_ANSWER_BYTES


class ReturnPath:
    """Reads the answers; after an error it must not be used again.

    Attributes:
        shut: status of the last message, once it came; 0: loaded.
        pongs: values of the answers to PING.
    """

    def __init__(self) -> None:
        self.shut: int | None = None
        self.pongs: set[int] = set()
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take what it sent. Raises ProtocolError: no answer looks so."""
        self._buffer += data
        while self.shut is None and len(self._buffer) >= ANSWER_BYTES:
            kind, length = struct.unpack_from(">HH", self._buffer)
            if length > MAX_ANSWER_BYTES or (kind in (ANSWER_SHUT, ANSWER_PONG) and length != 4):
                raise ProtocolError(f"the QEMU answers its stream with {length} bytes of kind {kind}")
            end = ANSWER_BYTES + length
            if len(self._buffer) < end:
                return
            value = int.from_bytes(self._buffer[ANSWER_BYTES:end], "big")
            if kind == ANSWER_SHUT:
                self.shut = value
            elif kind == ANSWER_PONG:
                self.pongs.add(value)
            del self._buffer[:end]
