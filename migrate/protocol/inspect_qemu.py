"""What a QEMU stream holds: every rule checked, everything counted, nothing written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from migrate.protocol.qemu_container import QemuStreamReader
from migrate.protocol.qemu_ram import QemuRam
from migrate.protocol.qemu_wire import Command, Configuration, Section, StreamBlock
from migrate.protocol.record_listing import ROW_BYTES, ROWS, PageRecord, listed_records

Summary = dict[str, object]


class QemuInspector:
    """Reads one stream in constant memory. Events of the container come to itself.

    Args:
        on_record: gets every page record; None: they are only counted, which is much faster.
    """

    def __init__(self, on_record: Callable[[PageRecord], None] | None = None) -> None:
        self._reader = QemuStreamReader(self, postcopy=True)
        self._on_record = on_record
        self._listing = None if on_record is None else bytearray(ROWS * ROW_BYTES)
        self._configuration = Configuration("")
        self._ram: QemuRam | None = None
        self._addresses: dict[str, int | None] = {}
        self._sections: Counter[str] = Counter()
        self._commands: list[str] = []
        self._flushes = 0
        self._fed = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes. Raises StreamError."""
        self._fed += len(data)
        self._reader.feed(data)

    def close(self) -> None:
        """The input ended. Raises StreamError."""
        self._reader.close()

    def summary(self) -> Summary:
        """What was seen until now; also after an error."""
        found: Summary = {
            "format": "qemu",
            "bytes": self._fed,
            "machine": self._configuration.machine,
            "page_size": self._configuration.page_size,
            "capabilities": list(self._configuration.capabilities),
            "uuid": self._configuration.uuid.hex() if self._configuration.uuid else None,
            "sections": dict(self._sections),
            "commands": self._commands,
            "multifd_flushes": self._flushes,
            "device_state_bytes": len(self._reader.device_state),
            "devices": self._devices(),
        }
        if self._ram is not None:
            counts = self._ram.by_block
            found["blocks"] = [
                {"name": block.name, "length": block.length, "address": self._addresses[block.name]}
                | counts[block.name]
                for block in self._ram.layout.blocks
            ]
            found["totals"] = self._ram.totals
        return found

    def _devices(self) -> list[str]:
        with suppress(ValueError, KeyError, TypeError):
            devices = json.loads(self._reader.description or b"{}").get("devices", [])
            return [str(device["name"]) for device in devices]
        return []

    # --- QemuStreamEvents --------------------------------------------------------------------------------

    def configured(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def command(self, command: Command, payload: bytes) -> None:
        del payload
        if len(self._commands) < 1000:  # a hostile stream may hold nothing but commands
            self._commands.append(command.name)

    def section(self, section: Section, offset: int) -> None:
        del offset
        self._sections[section.name.lower()] += 1

    def blocks(self, blocks: Sequence[StreamBlock]) -> None:
        self._addresses = {block.name: block.address for block in blocks}
        self._ram = QemuRam(self._configuration.page_size, blocks, None)

    def records(self, body: memoryview, offset: int) -> tuple[int, int]:
        assert self._ram is not None
        used, stop, rows = self._ram.walk(body, self._listing)
        if self._listing is not None and self._on_record is not None:
            for record in listed_records(self._listing, rows, body, offset, self._ram.layout.blocks):
                self._on_record(record)
        return used, stop

    def multifd_flush(self, offset: int) -> None:
        del offset
        self._flushes += 1
