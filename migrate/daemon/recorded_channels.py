"""Page channels of multifd that were recorded into files, read side by side with the main channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from migrate.errors import StreamError
from migrate.protocol.qemu_multifd import MultifdChannel, Packet
from migrate.protocol.qemu_ram import QemuRam

_CHUNK = 1 << 20


class RecordedChannels:
    """All channels of one migration (PageChannels)."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files
        self._channels: list[MultifdChannel] = []

    def synchronise(self, ram: QemuRam) -> None:
        """Land everything up to the next SYNC of every channel. Raises StreamError, RamError."""
        if not self._channels:
            self._channels = [MultifdChannel(ram.layout.page_size) for _ in self._files]
        for channel, file in zip(self._channels, self._files, strict=True):
            while True:
                packet = self._next(channel, file)
                ram.land(packet)
                if packet.sync:
                    break

    def _next(self, channel: MultifdChannel, file: BinaryIO) -> Packet:
        while (packet := channel.take()) is None:
            data = file.read(_CHUNK)
            if not data:
                raise StreamError(
                    "truncated", file.tell(), f"multifd channel {channel.number} ends before SYNC"
                )
            channel.feed(data)
        return packet
