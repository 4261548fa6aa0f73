"""The stream in which a QEMU moves its devices while we move its RAM (capability x-ignore-shared).

It is an ordinary migration stream. RAM that both sides have in shared files is in it by name and address
only; ROM and other small blocks come as pages; then the devices. The source holds all of it back until the
destination is to load it, so it must end where it ends, and be small.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrate.errors import GuestError, ProtocolError
from migrate.protocol.messages import MAX_BLOB_BYTES
from migrate.protocol.qemu_container import QemuStreamReader
from migrate.protocol.qemu_ram import QemuRam
from migrate.protocol.qemu_wire import (
    CAP_IGNORE_SHARED,
    Command,
    Configuration,
    Section,
    StreamBlock,
)

STATE_NAME = "qemu.stream"
"""What the stream is called among the pieces of device state."""


class DeviceStream:
    """Collects such a stream as QEMU sends it, and sees where it ends.

    Attributes:
        data: all of it so far.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._reader = QemuStreamReader(self)
        self._page_size = 0
        self._ram: QemuRam | None = None

    def feed(self, data: bytes) -> bool:
        """Take more; True if it ends with it.

        Raises:
            GuestError: it is larger than device state may be.
            StreamError: it is none, or one with RAM in it.
        """
        self.data += data
        if len(self.data) > MAX_BLOB_BYTES:
            raise GuestError(
                f"QEMU sends more than {MAX_BLOB_BYTES >> 20} MiB beside the shared RAM",
                side="source",
                hint="move large blocks with --ram too: -object memory-backend-file,share=on; or use a"
                " smaller video memory",
            )
        self._reader.feed(data)
        return self._reader.finished

    # --- QemuStreamEvents --------------------------------------------------------------------------------

    def configured(self, configuration: Configuration) -> None:
        if CAP_IGNORE_SHARED not in configuration.capabilities:
            raise ProtocolError(f"the QEMU here sends its RAM as well: {CAP_IGNORE_SHARED} is off")
        self._page_size = configuration.page_size

    def command(self, command: Command, payload: bytes) -> None:
        """Answers are optional in precopy; only the end has to be told."""

    def section(self, section: Section, offset: int) -> None:
        """Nothing depends on it."""

    def blocks(self, blocks: Sequence[StreamBlock]) -> None:
        self._ram = QemuRam(self._page_size, blocks, None)

    def records(self, body: memoryview, offset: int, compressed: bool) -> tuple[int, int]:
        assert self._ram is not None  # the container gives the list of blocks first
        if compressed:
            raise ProtocolError("the QEMU here compresses pages: switch compress off")
        used, stop, _ = self._ram.walk(body)
        return used, stop

    def multifd_flush(self, offset: int) -> None:
        raise ProtocolError("the QEMU here sends in multifd channels")
