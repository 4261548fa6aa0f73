"""The captured streams with their ground truth, and a reader of our own on top of them."""

from __future__ import annotations

import functools
import io
import json
import lzma
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migrate import kernel
from migrate.daemon.recorded_channels import RecordedChannels
from migrate.kernel.results import WALK_EOS
from migrate.protocol.qemu_container import QemuStreamReader
from migrate.protocol.qemu_ram import ROW_BYTES, ROWS, QemuRam, kernel_ram
from migrate.protocol.qemu_wire import Command, Configuration, Section, StreamBlock
from migrate.ram.layout import PageLayout

SHARED = Path(os.environ.get("MIGRATE_SHARED", Path(__file__).parents[2].parent / "shared"))
STREAMS = SHARED / "qemu-streams"

PRECOPY = [
    f"{name}-q{version}"
    for name in (
        "kvm-xbzrle",
        "pc-xbzrle",
        "return-path",
        "rounds",
        "stopped",
        "throttled",
        "xbzrle-edges",
        "xbzrle-large-cache",
        "xbzrle-small-cache",
    )
    for version in ("7.2", "10.0")
] + ["no-zero-detection-q10.0", "one-block-q7.2"]
IGNORE_SHARED = ["ignore-shared-q7.2", "ignore-shared-q10.0"]
POSTCOPY = ["postcopy-q7.2", "postcopy-q10.0"]
MULTIFD = ["multifd-q7.2", "multifd-q10.0", "multifd-pc-q10.0"]


@functools.cache
def stream(name: str) -> bytes:
    """The main channel."""
    return lzma.decompress((STREAMS / name / "stream.xz").read_bytes())


@functools.cache
def channels(name: str) -> list[bytes]:
    """The other channels, in the order of their numbers."""
    return [lzma.decompress(path.read_bytes()) for path in sorted((STREAMS / name).glob("extra-*.xz"))]


@functools.cache
def meta(name: str) -> dict[str, Any]:
    """What is known about a capture."""
    found: dict[str, Any] = json.loads((STREAMS / name / "meta.json").read_text())
    return found


@functools.cache
def truth(name: str) -> dict[str, bytes]:
    """What each RAM block must hold afterwards."""
    folder = STREAMS / name
    found = {"mem": lzma.decompress((folder / "ram.xz").read_bytes())}
    for path in folder.glob("block-*.xz"):
        found[path.name.removeprefix("block-").removesuffix(".xz")] = lzma.decompress(path.read_bytes())
    return found


class Receiver:
    """Takes a stream into memfds; a context manager."""

    def __init__(self, *, apply: bool = True, recorded: bool = False, channels: Sequence[bytes] = ()) -> None:
        self.reader = QemuStreamReader(self, recorded=recorded)
        self.configuration: Configuration | None = None
        self.commands: list[tuple[Command, bytes]] = []
        self.counts: Counter[str] = Counter()
        self.flushes = 0
        self.ram: QemuRam | None = None
        self.files: dict[str, int] = {}
        self._apply = apply
        self._channels = RecordedChannels([io.BytesIO(data) for data in channels]) if channels else None

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *args: object) -> None:
        for fd in self.files.values():
            os.close(fd)

    def configured(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def command(self, command: Command, payload: bytes) -> None:
        self.commands.append((command, payload))

    def section(self, section: Section, offset: int) -> None:
        del offset
        self.counts[section.name.lower()] += 1

    def blocks(self, blocks: Sequence[StreamBlock]) -> None:
        assert self.configuration is not None
        layout = PageLayout(self.configuration.page_size, [(block.name, block.length) for block in blocks])
        ram: kernel.Ram | None = None
        if self._apply:
            for block in blocks:
                self.files[block.name] = fd = os.memfd_create("migrate-test")
                os.truncate(fd, block.length)
            ram = kernel_ram(layout, self.files)
        self.ram = QemuRam(layout.page_size, blocks, ram)

    def records(self, body: memoryview, offset: int, compressed: bool) -> tuple[int, int]:
        del offset
        assert self.ram is not None
        if compressed:
            used, stop, _ = self.ram.walk_compressed(body, bytearray(ROWS * ROW_BYTES))
            return used, stop
        used, stop, _ = self.ram.walk(body)
        self.counts["eos"] += stop == WALK_EOS
        if stop == WALK_EOS and self._channels is not None and not self.flushes:
            self._channels.synchronise(self.ram)
        return used, stop

    def multifd_flush(self, offset: int) -> None:
        del offset
        self.flushes += 1
        if self._channels is not None:
            assert self.ram is not None
            self._channels.synchronise(self.ram)

    def take(self, data: bytes, pieces: Sequence[int] = ()) -> Mapping[str, bytes]:
        """Feed it, cut at `pieces`, to its end; returns what RAM holds then."""
        at = 0
        for end in (*pieces, len(data)):
            self.reader.feed(data[at:end])
            at = end
        self.reader.close()
        if self._channels is not None:
            self._channels.finish()
        return self.content()

    def content(self) -> dict[str, bytes]:
        return {name: os.pread(fd, os.fstat(fd).st_size, 0) for name, fd in self.files.items()}
