"""Device state behind the RAM of a QEMU stream: kept byte for byte, its end found in the bytes themselves.

Device sections carry no length, and a source that has a return path does not close: it waits to be told
that all is loaded. The stream ends with `7e be32 id, 00, 06 be32 n, n bytes of JSON`, so what looks like this
*and* ends exactly with the last byte that came, *and* is the description of a VM, is the end
(qemu-ram-stream.md 1.7). A search for section footers would find ticks and other numbers that look like one.

A machine may leave the description out (`suppress-vmdesc`): then only silence tells the end, behind a footer
of a section that was seen to begin and `00`.
"""

from __future__ import annotations

import json
import re

from migrate.errors import StreamError

MAX_BYTES = 64 << 20
"""Tens of KiB with usual machines; a source may not fill this host's memory."""
_MAX_ENDS = 1 << 16
_HEAD = re.compile(rb"(?=\x7e.{4}\x00\x06(.{4})\{)", re.DOTALL)
_HEAD_BYTES = 12
_FOOTER = 0x7E
_BEFORE_JSON = 11


class DeviceState:
    """Collects what follows the RAM. `offset` is the place of the first byte in the stream."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._data = bytearray()
        self._scanned = 0
        self._ends: dict[int, int] = {}
        """Where a description would end → where its JSON begins."""
        self.description: bytes | None = None

    @property
    def data(self) -> bytes:
        """Everything from the first device section to the end of the stream."""
        return bytes(self._data)

    def feed(self, data: bytes) -> bool:
        """Take more; True if the stream is seen to end with it.

        Raises:
            StreamError: rule "device-state": more than any device state has.
        """
        self._data += data
        held = len(self._data)
        if held > MAX_BYTES:
            raise self._error(f"more than {MAX_BYTES} bytes follow the RAM")
        for match in _HEAD.finditer(self._data, self._scanned):
            start = match.start() + _BEFORE_JSON
            self._ends[start + int.from_bytes(match[1], "big")] = start
        self._scanned = max(self._scanned, held - _HEAD_BYTES + 1)
        if len(self._ends) > _MAX_ENDS:
            self._ends = {end: start for end, start in self._ends.items() if held <= end <= MAX_BYTES}
            if len(self._ends) > _MAX_ENDS:
                raise self._error("too much of it looks like the end of a stream")
        return self._ends_at(held)

    def is_whole(self) -> bool:
        """Nothing comes any more: whether it ends behind a section, with the description left out."""
        tail = self._data[-6:]
        if len(tail) < 6 or tail[0] != _FOOTER or tail[5] != 0:
            return False
        section = re.escape(bytes(tail[1:5]))
        return any(
            0 < head[1][0] <= len(head[2])
            for head in re.finditer(rb"\x04%b(.)([ -~]*)" % section, self._data, re.S)
        )

    def close(self) -> None:
        """The input ended: find the end among what came, with or without bytes behind it.

        Raises:
            StreamError: rule "truncated": the devices do not end here.
        """
        for end in sorted(self._ends, reverse=True):
            if end <= len(self._data) and self._ends_at(end):
                return
        tail = bytes(self._data[-6:])
        if not (tail == b"\0" or (len(tail) == 6 and tail[0] == 0x7E and tail[5] == 0)):
            raise StreamError(
                "truncated", self._offset + len(self._data), "the stream ends inside the device state"
            )

    def _ends_at(self, end: int) -> bool:
        start = self._ends.get(end)
        if start is None:
            return False
        text = bytes(self._data[start:end])
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        if not isinstance(found, dict) or not {"page_size", "devices"} <= found.keys():
            return False
        self.description = text
        return True

    def _error(self, message: str) -> StreamError:
        return StreamError("device-state", self._offset, message)
