"""Page channels of multifd that were recorded into files, read side by side with the main channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from migrate.errors import StreamError
from migrate.protocol.qemu_multifd import OPENING_BYTES, MultifdChannel, Packet, decode_opening
from migrate.protocol.qemu_ram import PageLander, QemuRam


class RecordedChannels:
    """All channels of one migration (PageChannels)."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files
        self._channels: list[tuple[BinaryIO, MultifdChannel, PageLander]] = []

    @property
    def received(self) -> int:
        """Bytes of all channels together."""
        return sum(channel.offset for _, channel, _ in self._channels)

    def synchronise(self, ram: QemuRam) -> None:
        """Land everything up to the next SYNC of every channel. Raises StreamError, RamError."""
        if not self._channels:
            self._channels = [_opened(file, ram) for file in self._files]
            numbers = sorted(channel.number for _, channel, _ in self._channels)
            if numbers != list(range(len(numbers))):
                raise StreamError("multifd-opening", 0, f"channels {numbers}: one is missing, or twice there")
        for file, channel, lander in self._channels:
            while True:
                packet = _next(file, channel)
                if packet is None:
                    raise channel.error("truncated", "it ends before SYNC")
                lander.land(packet)
                if packet.sync:
                    break

    def finish(self) -> None:
        """No more barriers come. Raises StreamError: a channel has pages behind the last one."""
        for file, channel, _ in self._channels:
            while packet := _next(file, channel):
                if packet.offsets:
                    raise channel.error("multifd-barrier", "pages behind the last barrier")


def _opened(file: BinaryIO, ram: QemuRam) -> tuple[BinaryIO, MultifdChannel, PageLander]:
    opening = bytearray(OPENING_BYTES)
    number = decode_opening(bytes(opening[: _fill(file, memoryview(opening))])).number
    return file, MultifdChannel(ram.layout.page_size, number), ram.page_channel()


def _next(file: BinaryIO, channel: MultifdChannel) -> Packet | None:
    """None: the file ends between two packets. Raises StreamError."""
    while True:
        within = channel.within_packet
        wanted = channel.wanted
        count = _fill(file, wanted)
        if count < len(wanted):
            if count or within:
                raise channel.error("truncated", "it ends inside a packet")
            return None
        packet = channel.filled()
        if packet is not None:
            return packet


def _fill(file: BinaryIO, into: memoryview) -> int:
    """Read until it is full or the file ends."""
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])  # type: ignore[attr-defined]  # BinaryIO leaves it out
        if not count:
            break
        done += count
    return done
