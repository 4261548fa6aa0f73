"""Helpers of the practice guest's tests: a checker written from the octet tables alone, and a guest process.

The checker (up to `assert_whole`) shares no code with the product: it reads what `migrate/guest/layout.py`
documents, in plain Python.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migrate.guest._native import Guest
from migrate.guest.checker import native_model
from migrate.guest.layout import Layout
from migrate.guest.ram_files import RamFiles

PAGE = 4096
GUEST_ID = 0x1122334455667788
MASK = (1 << 64) - 1
PATIENCE = 20.0
"""Seconds until a wait for another process counts as failed."""


def mix(x: int) -> int:
    """splitmix64's step."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


WEIGHTS = [0 if i == 3 else mix(i) | 1 for i in range(512)]


def words(page: bytes) -> tuple[int, ...]:
    return struct.unpack("<512Q", page)


def page_sum(page: bytes) -> int:
    return sum(map(operator.mul, words(page), WEIGHTS)) & MASK


def table_entry(place: int, version: int, kind: int) -> int:
    body = version << 24 | kind << 16
    return body | mix(mix(place) ^ body) & 0xFFFF


@dataclass(slots=True)
class GuestRam:
    """The RAM of a stopped guest, taken apart by the octet tables."""

    blocks: list[bytes]
    guest_id: int = 0
    beat: int = 0
    started: int = 0
    done: int = 0
    slot_place: int = 0
    slot_operation: int = 0
    slot_entry: int = 0
    first_data: list[int] = field(default_factory=list)

    @property
    def in_flight(self) -> bool:
        return self.started != self.done

    def page(self, block: int, page: int) -> bytes:
        return self.blocks[block][page * PAGE : (page + 1) * PAGE]

    def entry_offset(self, block: int, page: int) -> int:
        """Byte offset of a page's table entry in its file."""
        return (2 if block == 0 else 1) * PAGE + 8 * page

    def entry(self, block: int, page: int) -> int:
        offset = self.entry_offset(block, page)
        return int.from_bytes(self.blocks[block][offset : offset + 8], "little")

    def version(self, block: int, page: int) -> int:
        return self.entry(block, page) >> 24

    def data_pages(self) -> list[tuple[int, int]]:
        return [
            (block, page)
            for block, first in enumerate(self.first_data)
            for page in range(first, len(self.blocks[block]) // PAGE)
        ]


def read_ram(paths: Sequence[Path]) -> GuestRam:
    """Take the files apart; headers and state page are verified here."""
    ram = GuestRam([path.read_bytes() for path in paths])
    headers = [struct.unpack_from("<8sIIQQIIQQ64Q", block) for block in ram.blocks]
    for number, (block, header) in enumerate(zip(ram.blocks, headers, strict=True)):
        assert header[0] == b"MGGUEST1"
        assert header[1:3] == (number, len(ram.blocks))
        assert header[3:] == headers[0][3:]
        assert header[9 + number] == len(block) // PAGE
        assert int.from_bytes(block[568:572], "little") == zlib.crc32(block[:568])
        assert not any(block[572:2048])
        assert not any(block[2056:PAGE])
        table = 2 if number == 0 else 1
        ram.first_data.append(table + (len(block) // PAGE * 8 + PAGE - 1) // PAGE)
    ram.guest_id = headers[0][3]
    magic, beat, check, ram.started, ram.done, place, operation, entry, _ = struct.unpack_from(
        "<8s8Q", ram.blocks[0], PAGE
    )
    assert magic == b"MGSTATE1"
    assert not any(ram.blocks[0][PAGE + 72 : 2 * PAGE])
    ram.beat, ram.slot_place, ram.slot_operation, ram.slot_entry = beat, place, operation, entry
    assert check ^ MASK in (beat, beat - 1)
    assert ram.started - ram.done in (0, 1)
    for block in ram.blocks:
        assert int.from_bytes(block[2048:2056], "little") in (beat, beat - 1)
    return ram


def assert_whole(paths: Sequence[Path]) -> GuestRam:
    """Every page is what its table entry says, no write is missing; only the page in flight may be torn."""
    ram = read_ram(paths)
    total = 0
    for block, page in ram.data_pages():
        place, entry, content = block << 32 | page, ram.entry(block, page), ram.page(block, page)
        version, kind = entry >> 24, entry >> 16 & 0xFF
        assert entry == (table_entry(place, version, kind) if entry else 0)
        if ram.in_flight and place == ram.slot_place:
            total += (ram.slot_entry >> 24) - 1
            assert version - (ram.slot_entry >> 24) in (-1, 0)
            if entry != ram.slot_entry:
                continue
        else:
            total += version
        if kind != 1:
            assert content == bytes(PAGE), f"page {page} of block {block} is not zero"
            continue
        tag = int.from_bytes(b"PAGE", "little") | (ram.guest_id & 0xFFFFFFFF) << 32
        first = words(content)
        assert (first[0], first[1], first[2], first[511]) == (tag, place, version, version), f"page {page}"
        assert first[3] == page_sum(content), f"page {page} of block {block}"
    assert total == ram.done
    return ram


def make_layout(
    workload: str, *block_pages: int, fill: str = "random", working_set: int = 0, guest_id: int = GUEST_ID
) -> Layout:
    """A layout with so many pages, or all data pages, in the working set."""
    data_pages = Layout(guest_id, 42, workload, fill, 0, 0, block_pages).data_pages
    return Layout(guest_id, 42, workload, fill, 0, working_set or data_pages, block_pages)


@contextlib.contextmanager
def guest_in_this_process(files: RamFiles, rate: int = 0, logs: Sequence[bytearray] = ()) -> Iterator[Guest]:
    """The compiled guest on these files, without a witness; not recovered yet."""
    maps = files.map()
    guest = Guest(native_model(files.layout), maps, rate=rate, witness=-1, witness_prefix=b"", logs=logs)
    try:
        yield guest
    finally:
        guest.close()
        for mapping in maps:
            mapping.close()


def live(files: RamFiles, writes: int, rate: int = 0, logs: Sequence[bytearray] = ()) -> None:
    """Let the guest on these files live for so many more page writes, and for two beats at least."""
    with guest_in_this_process(files, rate, logs) as guest:
        assert guest.recover() >= 0
        goal, last_beat = guest.writes + writes, guest.beat + 2
        while guest.writes < goal or guest.beat < last_beat:
            assert guest.run(time.monotonic_ns() + 1_000_000), guest.fault


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "migrate.cli.guest", *map(str, arguments)]


def run_guest(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`migrate-guest` to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE, check=False)


def json_of(result: subprocess.CompletedProcess[str], event: str) -> dict[str, object]:
    """The event of that name on the standard output of a run with --json."""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return next(found for found in events if found["event"] == event)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.001)


class GuestProcess:
    """A running `migrate-guest`, ready when made."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.ready_file = directory / f"ready-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            command(*arguments, "--ready-file", self.ready_file),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: self.ready_file.exists() or self.process.poll() is not None, "the guest is ready")
        if self.process.poll() is not None:
            _, errors = self.process.communicate()
            raise AssertionError(f"the guest ended with {self.process.returncode}: {errors}")

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: int = signal.SIGSTOP) -> None:
        """Signal it, and wait until it is stopped."""
        os.kill(self.pid, number)
        pid, status = os.waitpid(self.pid, os.WUNTRACED)
        assert (pid, os.WIFSTOPPED(status)) == (self.pid, True)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM) -> subprocess.CompletedProcess[str]:
        """Signal it (whether it runs or is stopped) and wait for its end."""
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)
        return self.wait()

    def wait(self) -> subprocess.CompletedProcess[str]:
        output, errors = self.process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, output, errors)

    def destroy(self) -> None:
        """For the clean-up of a test that failed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
