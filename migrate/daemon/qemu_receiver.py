"""Takes a QEMU stream into RAM files and a folder; where its bytes come from is the caller's business."""

from __future__ import annotations

import os
import secrets
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from migrate.config import RamSpec
from migrate.errors import RamError, StreamError
from migrate.kernel.results import WALK_EOS
from migrate.protocol.mapped_ram import MappedPages
from migrate.protocol.qemu_container import QemuStreamReader
from migrate.protocol.qemu_multifd import Packet
from migrate.protocol.qemu_ram import ROW_BYTES, ROWS, QemuRam
from migrate.protocol.qemu_wire import (
    CAP_IGNORE_SHARED,
    CAP_MAPPED_RAM,
    Command,
    Configuration,
    Section,
    StreamBlock,
)
from migrate.ram import checkpoint
from migrate.ram.image import RamImage
from migrate.ram.windows import cpu_count

MOST_UNPACKERS = 8
MAPPED_RUN_BYTES = 1 << 20
OnCommand = Callable[[Command, bytes], None]


class PageChannels(Protocol):
    """The other channels of a migration with multifd."""

    def synchronise(self, ram: QemuRam) -> None:
        """Land everything up to the next SYNC of every channel. Raises MigrateError, OSError."""

    @property
    def received(self) -> int:
        """Bytes of all channels together."""

    def finish(self) -> None:
        """No more barriers come. Raises StreamError: a channel has pages behind the last one."""


class QemuReceiver:
    """One stream on its way into files. `close` must be called, whatever happens.

    Args:
        specs: where blocks go by name.
        directory: where the others go, and device state and statistics; None: nowhere.
        on_command: gets every command of the stream.
        channels: of multifd; None: multifd is refused.
        recorded: the file that the stream comes from; it may go on into postcopy, or hold mapped-ram.

    Attributes:
        migration: an id made here; QEMU has none.
    """

    def __init__(
        self,
        specs: Sequence[RamSpec],
        directory: Path | None,
        *,
        on_command: OnCommand | None = None,
        channels: PageChannels | None = None,
        recorded: BinaryIO | None = None,
    ) -> None:
        self.migration = secrets.token_hex(16)
        self._reader = QemuStreamReader(self, recorded=recorded is not None)
        self._recorded = recorded
        self._specs = specs
        self._directory = directory
        self._on_command = on_command
        self._channels = channels
        self._flushes = False
        """Markers are records of their own; before QEMU 8.1, and with old machine types, every EOS is one."""
        self._configuration = Configuration("")
        self._mapped: dict[str, MappedPages] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._listing = bytearray()
        self._image: RamImage | None = None
        self._ram: QemuRam | None = None
        self._sections: Counter[str] = Counter()
        if directory is not None:
            checkpoint.make_directory(directory)

    @property
    def finished(self) -> bool:
        """All of the stream is here."""
        return self._reader.finished

    @property
    def started(self) -> bool:
        """The list of blocks is here."""
        return self._ram is not None

    @property
    def paths(self) -> list[Path]:
        """The RAM files, while they are open."""
        return list(self._image.paths.values()) if self._image is not None else []

    @property
    def in_device_state(self) -> bool:
        """All of RAM is here; what comes now has no length."""
        return self._reader.in_device_state

    def silent(self) -> bool:
        """Nothing came for long, within device state; True: this is the end of the stream."""
        return self._reader.silent()

    @property
    def wanted(self) -> memoryview:
        """Where the next bytes go, never empty; then call `filled`."""
        return self._reader.wanted

    def filled(self, count: int) -> None:
        """So many bytes of what was wanted are here. Raises as `feed`."""
        self._reader.filled(count)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, RAM straight into its files. Raises StreamError, RamError."""
        self._reader.feed(data)

    def end_of_input(self) -> None:
        """No more bytes come. Raises StreamError: the stream is not whole."""
        self._reader.close()

    def complete(self) -> dict[str, object]:
        """The stream is whole: write what is not RAM, take the marks off; returns the statistics.

        They have no digests yet: a guest may stand still until this is told.

        Raises:
            StreamError: rule "pages-missing", or "multifd-barrier".
            RamError: something cannot be written.
        """
        assert self._image is not None and self._ram is not None and self.finished
        if self._channels is not None:
            self._channels.finish()
        if CAP_MAPPED_RAM in self._configuration.capabilities:
            self._land_mapped()
        else:
            self._check_all_sent()
        counts = self._ram.by_block
        paths = self._image.paths
        result: dict[str, object] = {
            "format": "qemu",
            "migration": self.migration,
            "machine": self._configuration.machine,
            "page_size": self._configuration.page_size,
            "capabilities": list(self._configuration.capabilities),
            "uuid": self._configuration.uuid.hex() if self._configuration.uuid else None,
            "bytes": self._reader.offset,
            "multifd_bytes": self._channels.received if self._channels is not None else 0,
            "sections": dict(self._sections),
            "device_state_bytes": len(self._reader.device_state),
            "totals": self._ram.totals | {"written": self._ram.written},
            "blocks": [
                {
                    "name": block.name,
                    "length": block.length,
                    "file": str(paths[block.name]),
                    "sha256": None,
                }
                | counts[block.name]
                for block in self._ram.layout.blocks
            ],
        }
        if self._directory is not None:
            checkpoint.write_state(self._directory, self._reader.device_state, self._reader.description)
            checkpoint.write_migration(self._directory, result)
        self._image.unmark()
        return result

    def add_digests(self, result: dict[str, object]) -> None:
        """Read the RAM files and complete the statistics, there and in the folder. Raises RamError."""
        blocks = result["blocks"]
        assert isinstance(blocks, list)
        for block in blocks:
            block["sha256"] = checkpoint.digest(Path(block["file"]))
        if self._directory is not None:
            checkpoint.write_migration(self._directory, result)

    def _land_mapped(self) -> None:
        """The list of blocks said where the pages are."""
        assert self._ram is not None and self._recorded is not None
        page_size = self._configuration.page_size
        lander = self._ram.page_channel()
        buffer = memoryview(bytearray(MAPPED_RUN_BYTES))
        for name, mapped in self._mapped.items():
            for first, count in mapped.runs(MAPPED_RUN_BYTES // page_size):
                data = buffer[: count * page_size]
                read_fully(self._recorded, mapped.offset + first * page_size, data)
                offsets = range(first * page_size, (first + count) * page_size, page_size)
                packed = struct.pack(f">{count}Q", *offsets)
                lander.land(Packet(name, count, packed, data, sync=False))

    def _check_all_sent(self) -> None:
        """Old machine types leave no mark of multifd in the main channel but what is missing there."""
        assert self._ram is not None
        missing = self._ram.never_sent
        for block in self._ram.layout.blocks:
            ignored = CAP_IGNORE_SHARED in self._configuration.capabilities
            if missing[block.name] and not (ignored and missing[block.name] == block.pages):
                raise StreamError(
                    "pages-missing",
                    self._reader.offset,
                    f"{missing[block.name]} pages of RAM block {block.name} never came; do they travel in"
                    " multifd channels, or does the source leave free pages out?",
                )

    def close(self) -> None:
        """Let go of the files. What is not complete keeps its marks."""
        if self._pool is not None:
            self._pool.shutdown()
        if self._image is not None:
            self._image.close()

    # --- QemuStreamEvents --------------------------------------------------------------------------------

    def configured(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def command(self, command: Command, payload: bytes) -> None:
        if self._on_command is not None:
            self._on_command(command, payload)

    def section(self, section: Section, offset: int) -> None:
        del offset
        self._sections[section.name.lower()] += 1

    def blocks(self, blocks: Sequence[StreamBlock]) -> None:
        page_size = self._configuration.page_size
        lengths = {block.name: block.length for block in blocks}
        specs = checkpoint.places(self._directory, self._specs, list(lengths))
        self._image = RamImage.open_destination(specs, lengths, page_size)
        self._image.mark(self.migration)
        self._ram = QemuRam(page_size, blocks, self._image.kernel_ram)
        self._mapped = {block.name: block.mapped for block in blocks if block.mapped is not None}

    def records(self, body: memoryview, offset: int, compressed: bool) -> tuple[int, int]:
        del offset
        assert self._ram is not None  # the container gives the list of blocks first
        if compressed:
            return self._compressed_records(self._ram, body)
        used, stop, _ = self._ram.walk(body)
        if stop == WALK_EOS and self._channels is not None and not self._flushes:
            self._channels.synchronise(self._ram)
        return used, stop

    def _compressed_records(self, ram: QemuRam, body: memoryview) -> tuple[int, int]:
        """From old QEMUs; several threads unpack them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(cpu_count(), MOST_UNPACKERS), "unpack")
            self._listing = bytearray(ROWS * ROW_BYTES)
        used, stop, _ = ram.walk_compressed(body, self._listing, spread=self._pool.map)
        return used, stop

    def multifd_flush(self, offset: int) -> None:
        if self._channels is None:
            raise StreamError("multifd", offset, "pages travel in multifd channels, and none is taken here")
        assert self._ram is not None
        self._flushes = True
        self._channels.synchronise(self._ram)


def read_fully(file: BinaryIO, offset: int, into: memoryview) -> None:
    """Fill it from that place of a file. Raises RamError: it cannot be searched; StreamError: it ends."""
    try:
        done = os.preadv(file.fileno(), [into], offset)
    except OSError as error:
        raise RamError(f"mapped-ram needs a file that can be searched: {error.strerror}") from error
    if done < len(into):
        raise StreamError("truncated", offset + done, "the file ends within its pages")
