"""A QEMU migration stream around its RAM records, read as it comes: in pieces of any size, in bounded memory.

    header, configuration, { command | ram START/PART/END }, device sections to the end

Everything is handed to `QemuStreamEvents` in the order of the stream; page records go on as ranges of bytes
to who walks them (`kernel.walk`). What is legal but not read here is refused by name: other sections than
`ram`, devices before the end of RAM, huge pages with postcopy; postcopy and mapped-ram, but not in a file.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Protocol

from migrate.errors import RecordError, StreamError
from migrate.kernel.results import WALK_EOS, WALK_FLUSH, WALK_KIND
from migrate.protocol import qemu_wire as wire
from migrate.protocol.mapped_ram import HEADER_BYTES, MappedPages, check_bitmap, decode_header
from migrate.protocol.qemu_device_state import MAX_BYTES, DeviceState
from migrate.protocol.qemu_wire import COMMAND_LENGTHS, Command, Configuration, Section, StreamBlock
from migrate.protocol.records import RAM_SAVE_FLAG_CONTINUE, RAM_SAVE_FLAG_EOS, RAM_SAVE_FLAG_MEM_SIZE

MAX_MACHINE_NAME = 1024
MAX_CAPABILITIES = 64
MAX_BLOCKS = 64
MEMORY_BYTES = 256 << 10
"""Fits a cache of the CPU, where the kernel writes from."""
_BASE_PAGE = 4096

Parser = Generator[None, None, None]


class QemuStreamEvents(Protocol):
    """Who takes what a stream holds. An error that one of these raises ends the reader."""

    def configured(self, configuration: Configuration) -> None:
        """The configuration section, always first."""

    def command(self, command: Command, payload: bytes) -> None:
        """A command of legal length."""

    def section(self, section: Section, offset: int) -> None:
        """A section of RAM begins at that byte."""

    def blocks(self, blocks: Sequence[StreamBlock]) -> None:
        """The block list, once, before any record. Raises ValueError: no guest has such RAM."""

    def records(self, body: memoryview, offset: int, compressed: bool) -> tuple[int, int]:
        """Records from that byte on; returns how many bytes were used and WALK_*. Raises RecordError.

        `compressed`: records COMPRESS_PAGE only, else none of these; WALK_KIND: it is the others' turn.
        """

    def multifd_flush(self, offset: int) -> None:
        """A record MULTIFD_FLUSH: pages travel in other channels."""


class QemuStreamReader:
    """Reads one stream. After an error it must not be used again.

    It lends the memory that the next bytes go to, so that pages are not copied on their way: put some into
    `wanted`, then call `filled`.

    Args:
        recorded: this is a file: mapped-ram may be in it, and postcopy, as nobody waits for pages.

    Attributes:
        finished: the end of the stream was seen; bytes behind it are ignored.
        device_state: what followed the RAM, byte for byte; in postcopy the package.
        description: the JSON at the end, if the source sent it.
    """

    def __init__(self, events: QemuStreamEvents, *, recorded: bool = False) -> None:
        self._events = events
        self._recorded = recorded
        self._memory = memoryview(bytearray(MEMORY_BYTES))
        self._at = self._end = 0
        """What is read next, and where what came ends."""
        self._offset = 0
        """Place in the stream of the first byte of the memory."""
        self._closed = False
        self._return_path = False
        self._host_pages = _BASE_PAGE
        self._configuration = Configuration("")
        self._ram_id: int | None = None
        self._ram_ended = False
        self._packaged = False
        self._mapped = False
        self._in_device_state = False
        self._is_silent = False
        self._parser = self._stream()
        self.finished = False
        self.device_state = b""
        self.description: bytes | None = None

    @property
    def offset(self) -> int:
        """How many bytes of the stream were used."""
        return self._offset + self._at

    @property
    def wanted(self) -> memoryview:
        """Where the next bytes go, never empty."""
        rest = self._end - self._at  # less than a record
        self._memory[:rest] = bytes(self._memory[self._at : self._end])
        self._offset += self._at
        self._at, self._end = 0, rest
        return self._memory[rest:]

    def filled(self, count: int) -> None:
        """So many bytes of what was wanted are here. Raises StreamError, and what the events raise."""
        self._end += count
        if not self.finished:
            self._go_on()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, copied. Raises StreamError, and what the events raise."""
        view = memoryview(data)
        while view and not self.finished:
            wanted = self.wanted
            count = min(len(view), len(wanted))
            wanted[:count] = view[:count]
            self.filled(count)
            view = view[count:]

    @property
    def in_device_state(self) -> bool:
        """All of RAM is here; what comes now has no length."""
        return self._in_device_state

    def silent(self) -> bool:
        """Nothing came for long, within device state; True: this is the end, the description is left out."""
        self._is_silent = True
        self._go_on()
        self._is_silent = False
        return self.finished

    def close(self) -> None:
        """The input ended. Raises StreamError: rule "truncated"."""
        if not self.finished:
            self._closed = True
            self._go_on()

    def _go_on(self) -> None:
        with suppress(StopIteration):
            next(self._parser)
            return
        self.finished = True

    # --- the grammar -------------------------------------------------------------------------------------

    def _stream(self) -> Parser:
        magic = yield from self._take(4)
        if magic != wire.MAGIC:
            raise StreamError("magic", 0, f"a QEMU stream begins with {wire.MAGIC!r}, not {magic!r}")
        version = yield from self._be32()
        if version != wire.VERSION:
            raise StreamError("version", 4, f"stream version {version}, only {wire.VERSION} is known")
        yield from self._read_configuration()
        while True:
            start = self.offset
            kind = yield from self._u8()
            if kind == wire.COMMAND:
                yield from self._read_command(start)
            elif kind == Section.START:
                yield from self._read_start(start)
            elif kind in (Section.PART, Section.END):
                yield from self._read_part(Section(kind), start)
            elif kind in (Section.FULL, wire.EOF):
                if not self._ram_ended:
                    yield from self._refuse_early(kind, start)
                if not (kind == wire.EOF and self._packaged):
                    self._at -= 1
                    yield from self._read_device_state()
                return
            else:
                raise StreamError("section", start, f"no section begins with {kind:#04x}")

    def _read_configuration(self) -> Parser:
        start = self.offset
        if (yield from self._u8()) != wire.CONFIGURATION:
            raise StreamError("configuration", start, "the configuration section is missing")
        length = yield from self._be32()
        if length > MAX_MACHINE_NAME:
            raise StreamError("configuration", start, f"a machine name of {length} bytes")
        machine = yield from self._text(length)
        page_size, capabilities, uuid = _BASE_PAGE, list[str](), None
        while (yield from self._peek()) == wire.SUBSECTION:
            start = self.offset
            self._at += 1
            name = yield from self._str8()
            version = yield from self._be32()
            if version != 1:
                raise StreamError("configuration", start, f"version {version} of {name}")
            if name == "configuration/target-page-bits":
                bits = yield from self._be32()
                if not 10 <= bits <= 16:
                    raise StreamError("configuration", start, f"pages of 2**{bits} bytes")
                page_size = 1 << bits
            elif name == "configuration/capabilities":
                count = yield from self._be32()
                if count > MAX_CAPABILITIES:
                    raise StreamError("configuration", start, f"{count} capabilities")
                for _ in range(count):
                    capabilities.append((yield from self._str8()))
            elif name == "configuration/uuid":
                uuid = yield from self._take(16)
            else:
                raise StreamError("configuration", start, f"the subsection {name!r} is unknown")
        self._mapped = wire.CAP_MAPPED_RAM in capabilities
        if self._mapped and not (self._recorded and wire.CAP_IGNORE_SHARED not in capabilities):
            message = "mapped-ram is for files (migrate-inspect extract), and not with x-ignore-shared"
            raise StreamError("mapped-ram", start, message)
        unknown = set(capabilities) - {wire.CAP_IGNORE_SHARED, wire.CAP_MAPPED_RAM}
        if unknown:
            raise StreamError("configuration", start, f"unknown capabilities: {', '.join(sorted(unknown))}")
        self._configuration = Configuration(machine, page_size, tuple(capabilities), uuid)
        self._events.configured(self._configuration)

    def _read_command(self, start: int) -> Parser:
        number, length = struct.unpack(">HH", (yield from self._take(4)))
        payload = yield from self._take(length)
        try:
            command = Command(number)
        except ValueError:
            raise StreamError("command", start, f"the command {number} is unknown") from None
        if command in (Command.POSTCOPY_RAM_DISCARD, Command.PACKAGED) and not self._recorded:
            raise StreamError("postcopy", start, "the source switches to postcopy, which is not taken here")
        if command is Command.POSTCOPY_RAM_DISCARD:
            try:
                wire.check_discard(payload)
            except ValueError as error:
                raise StreamError("command", start, f"a malformed {command.name}: {error}") from error
        elif command not in COMMAND_LENGTHS:
            raise StreamError("command", start, f"{command.name} has no place here")
        elif length not in COMMAND_LENGTHS[command]:
            raise StreamError("command", start, f"{command.name} with {length} bytes")
        if command is Command.OPEN_RETURN_PATH:
            self._return_path = True
        elif command is Command.PING and not self._return_path:
            raise StreamError("command", start, "PING, but no return path was opened")
        elif command is Command.POSTCOPY_ADVISE and length:
            self._host_pages = int.from_bytes(payload[:8], "big")
        self._events.command(command, payload)
        if command is Command.PACKAGED:
            size = int.from_bytes(payload, "big")
            if size > MAX_BYTES or self._packaged:
                raise StreamError("command", start, f"a second package, or one of {size} bytes")
            self._packaged = True
            self.device_state = yield from self._take(size)

    def _read_start(self, start: int) -> Parser:
        section_id = yield from self._be32()
        name, instance, version = yield from self._identity()
        if name != "ram":
            raise StreamError("section-name", start, f"sections {name!r} are not read here, only 'ram'")
        if instance != 0 or version != wire.RAM_VERSION:
            raise StreamError("section-version", start, f"ram instance {instance}, version {version}")
        if self._ram_id is not None or section_id == 0:
            raise StreamError("section-id", start, f"a second START of ram, or the id {section_id}")
        self._ram_id = section_id
        self._events.section(Section.START, start)
        yield from self._read_block_list()
        yield from self._read_records()
        yield from self._read_footer(section_id)

    def _read_part(self, section: Section, start: int) -> Parser:
        section_id = yield from self._be32()
        if section_id != self._ram_id:
            raise StreamError("section-id", start, f"no section with the id {section_id} was started")
        self._events.section(section, start)
        yield from self._read_records()
        yield from self._read_footer(section_id)
        self._ram_ended |= section is Section.END

    def _read_block_list(self) -> Parser:
        page_size = self._configuration.page_size
        addresses = wire.CAP_IGNORE_SHARED in self._configuration.capabilities
        if self._host_pages != _BASE_PAGE:
            raise StreamError("huge-pages", self.offset, "huge pages with postcopy-ram are not read here")
        start = self.offset
        word = yield from self._be64()
        if word & (page_size - 1) != RAM_SAVE_FLAG_MEM_SIZE:
            raise StreamError(
                "mem-size", start, f"expected MEM_SIZE, found flags {word & (page_size - 1):#x}"
            )
        rest = word & ~(page_size - 1)
        blocks: list[StreamBlock] = []
        while rest:
            start = self.offset
            name = yield from self._str8()
            length = yield from self._be64()
            if not length or length % page_size or length > rest or len(blocks) == MAX_BLOCKS:
                raise StreamError(
                    "mem-size", start, f"block {name!r} of {length} bytes does not fit the list"
                )
            if name in {block.name for block in blocks}:
                raise StreamError("mem-size", start, f"block {name!r} is listed twice")
            address = (yield from self._be64()) if addresses else None
            mapped = (yield from self._read_mapped(length // page_size)) if self._mapped else None
            blocks.append(StreamBlock(name, length, address, mapped))
            rest -= length
        if not blocks:
            raise StreamError("mem-size", start, "a guest without RAM")
        try:
            self._events.blocks(blocks)
        except ValueError as error:
            raise StreamError("mem-size", start, str(error)) from error

    def _read_mapped(self, pages: int) -> Generator[None, None, MappedPages]:
        page_size = self._configuration.page_size
        start = self.offset
        header = decode_header((yield from self._take(HEADER_BYTES)), start, page_size, pages)
        start = self.offset
        bitmap = bytearray((yield from self._take(header.bitmap_bytes)))
        check_bitmap(bitmap, start, pages)
        yield from self._skip(header.padding + pages * page_size)
        return MappedPages(bitmap, header.pages_offset)

    def _read_end_of_records(self) -> Parser:
        start = self.offset
        flags = (yield from self._be64()) & (self._configuration.page_size - 1)
        if flags & ~RAM_SAVE_FLAG_CONTINUE != RAM_SAVE_FLAG_EOS:
            raise StreamError("mapped-ram", start, f"a record with flags {flags:#x}, but pages are mapped")

    def _read_records(self) -> Parser:
        if self._mapped:
            yield from self._read_end_of_records()
            return
        compressed = False
        while True:
            start = self.offset
            view = self._memory[self._at : self._end]
            try:
                used, stop = self._events.records(view, start, compressed)
            except RecordError as error:
                message = error.message.partition(" (rule ")[0]
                raise StreamError(error.rule, start + error.offset, message) from error
            self._at += used
            if stop == WALK_EOS:
                return
            if stop == WALK_FLUSH:
                self._events.multifd_flush(self.offset - 8)
            elif stop == WALK_KIND:
                compressed = not compressed
            elif not used:
                yield from self._more()

    def _read_footer(self, section_id: int) -> Parser:
        start = self.offset
        mark = yield from self._u8()
        found = yield from self._be32()
        if mark != wire.FOOTER or found != section_id:
            raise StreamError("footer", start, f"section {section_id} ends with {mark:#04x} and id {found}")

    def _refuse_early(self, kind: int, start: int) -> Parser:
        if kind == wire.EOF:
            raise StreamError("no-ram-end", start, "the stream ends before its RAM does")
        yield from self._be32()
        name, _, _ = yield from self._identity()
        raise StreamError("early-device", start, f"the device {name!r} comes before the end of RAM")

    def _read_device_state(self) -> Parser:
        state = DeviceState(self.offset)
        self._in_device_state = True
        while True:
            data = bytes(self._memory[self._at : self._end])
            self._at += len(data)
            ended = state.feed(data) or (self._is_silent and state.is_whole())
            if self._closed and not ended:
                state.close()
                ended = True
            if ended:
                self.device_state, self.description = state.data, state.description
                return
            yield

    # --- pieces ------------------------------------------------------------------------------------------

    def _more(self) -> Parser:
        if self._closed:
            end = self._offset + self._end
            raise StreamError("truncated", end, "the stream ends in the middle")
        yield

    def _take(self, count: int) -> Generator[None, None, bytes]:
        data = bytearray()
        while True:
            end = min(self._at + count - len(data), self._end)
            data += self._memory[self._at : end]
            self._at = end
            if len(data) == count:
                return bytes(data)
            yield from self._more()

    def _skip(self, count: int) -> Parser:
        while count:
            there = min(count, self._end - self._at)
            self._at += there
            count -= there
            if count:
                yield from self._more()

    def _peek(self) -> Generator[None, None, int]:
        value = yield from self._u8()
        self._at -= 1
        return value

    def _u8(self) -> Generator[None, None, int]:
        return (yield from self._take(1))[0]

    def _be32(self) -> Generator[None, None, int]:
        return int.from_bytes((yield from self._take(4)), "big")

    def _be64(self) -> Generator[None, None, int]:
        return int.from_bytes((yield from self._take(8)), "big")

    def _text(self, length: int) -> Generator[None, None, str]:
        start = self.offset
        raw = yield from self._take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise StreamError("name", start, f"the name {raw!r} is not UTF-8") from None

    def _str8(self) -> Generator[None, None, str]:
        start = self.offset
        length = yield from self._u8()
        if not length:
            raise StreamError("name", start, "an empty name")
        return (yield from self._text(length))

    def _identity(self) -> Generator[None, None, tuple[str, int, int]]:
        name = yield from self._str8()
        instance, version = struct.unpack(">II", (yield from self._take(8)))
        return name, instance, version
