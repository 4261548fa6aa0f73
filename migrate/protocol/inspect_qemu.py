"""What a QEMU stream holds: every rule checked, everything counted, nothing written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from migrate.kernel.results import WALK_ROUND
from migrate.protocol.qemu_container import QemuStreamReader
from migrate.protocol.qemu_ram import ROW_BYTES, ROWS, QemuRam
from migrate.protocol.qemu_wire import Command, Configuration, Section, StreamBlock
from migrate.protocol.record_listing import PageRecord, listed_records

MAX_ROUNDS = 1000
"""Rounds that are told apart; later ones are counted together. A round begins where the scan goes back in
RAM, which is all that a stream shows of it."""

Summary = dict[str, object]


class QemuInspector:
    """Reads one stream in constant memory. Events of the container come to itself.

    Args:
        on_record: gets every page record; None: they are only counted, which is much faster.
    """

    def __init__(self, on_record: Callable[[PageRecord], None] | None = None) -> None:
        self._reader = QemuStreamReader(self, recorded=True)
        self._on_record = on_record
        self._rows = bytearray(ROWS * ROW_BYTES)
        self._listing = self._rows if on_record is not None else None
        self._configuration = Configuration("")
        self._ram: QemuRam | None = None
        self._listed: dict[str, StreamBlock] = {}
        self._sections: Counter[str] = Counter()
        self._commands: list[str] = []
        self._flushes = 0
        self._rounds: list[dict[str, int]] = []
        self._before: dict[str, int] = {}
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
            counts, missing = self._ram.by_block, self._ram.never_sent
            found["blocks"] = [
                {
                    "name": block.name,
                    "length": block.length,
                    "address": self._listed[block.name].address,
                    "never_sent": missing[block.name],
                }
                | counts[block.name]
                | _mapped(self._listed[block.name])
                for block in self._ram.layout.blocks
            ]
            found["totals"] = self._ram.totals
            if self._ram.totals != self._before:
                self._end_round()
            found["rounds"] = self._rounds
        return found

    def _end_round(self) -> None:
        assert self._ram is not None
        totals = self._ram.totals
        row = {name: value - self._before.get(name, 0) for name, value in totals.items()}
        if len(self._rounds) < MAX_ROUNDS:
            self._rounds.append({"round": len(self._rounds) + 1} | row)
        else:
            last = self._rounds[-1]
            last |= {name: last[name] + value for name, value in row.items()}
        self._before = totals

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
        self._listed = {block.name: block for block in blocks}
        self._ram = QemuRam(self._configuration.page_size, blocks, None)

    def records(self, body: memoryview, offset: int, compressed: bool) -> tuple[int, int]:
        assert self._ram is not None
        used = 0
        while True:
            rest = body[used:]
            if compressed:
                walked = self._ram.walk_compressed(rest, self._rows, rounds=True)
            else:
                walked = self._ram.walk(rest, self._listing, rounds=True)
            if self._on_record is not None:
                blocks = self._ram.layout.blocks
                for record in listed_records(self._rows, walked.rows, rest, offset + used, blocks):
                    self._on_record(record)
            used += walked.used
            if walked.stop != WALK_ROUND:
                return used, walked.stop
            self._end_round()

    def multifd_flush(self, offset: int) -> None:
        del offset
        self._flushes += 1


def _mapped(block: StreamBlock) -> dict[str, int]:
    """What a bitmap of mapped-ram says: a page that is not there is zero."""
    return {} if block.mapped is None else {"normal": block.mapped.present, "never_sent": 0}
