"""`migrate-inspect diff`: two RAM images, or the RAM that two QEMU streams lead to."""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from migrate.cli.arguments import ArgumentParser
from migrate.cli.inspect_extract import extract
from migrate.cli.inspect_files import CHUNK, CLEAN, ILLEGAL, add_page_size, open_input
from migrate.cli.plain_text import printable
from migrate.errors import RamError, UsageError

MOST_RANGES = 1000
_QEMU = b"QEVM"
DEVICE_STATE = "device-state.bin"


class Difference(NamedTuple):
    """Where two images differ."""

    pages: int
    ranges: list[list[int]]
    """First byte and length of each stretch, the first MOST_RANGES of them."""


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("images", nargs=2, metavar="FILE", help="two RAM images, or two streams of QEMUs")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_page_size(parser)


def run(options: argparse.Namespace) -> int:
    """Compare, print. Raises MigrateError."""
    size = options.page_size
    if size < 1 or CHUNK % size:
        raise UsageError(f"--page-size {size}: a power of two up to {CHUNK}")
    streams = [_begins_as_stream(name) for name in options.images]
    if streams[0] != streams[1]:
        raise UsageError("one of the two is a stream, the other is not")
    if streams[0]:
        return _compare_streams(options.images[0], options.images[1], size, as_json=options.json)
    found = compare_images(options.images[0], options.images[1], size)
    if options.json:
        print(json.dumps({"equal": not found.pages, "differing_pages": found.pages, "ranges": found.ranges}))
    else:
        _print_ranges("", found, size)
        print(f"{found.pages} pages differ" if found.pages else "equal")
    return ILLEGAL if found.pages else CLEAN


def compare_images(left: str, right: str, page_size: int) -> Difference:
    """Compare two files page by page, a longer one with nothing. Raises RamError, UsageError."""
    ranges: list[list[int]] = []
    pages = at = 0
    with ExitStack() as stack:
        files = open_input(left, stack), open_input(right, stack)
        while True:
            a, b = _exactly(files[0], left), _exactly(files[1], right)
            if not a and not b:
                return Difference(pages, ranges)
            for start in range(0, max(len(a), len(b)), page_size) if a != b else ():
                if a[start : start + page_size] != b[start : start + page_size]:
                    pages += 1
                    if ranges and sum(ranges[-1]) == at + start:
                        ranges[-1][1] += page_size
                    elif len(ranges) < MOST_RANGES:
                        ranges.append([at + start, page_size])
            at += max(len(a), len(b))


def _compare_streams(left: str, right: str, page_size: int, *, as_json: bool) -> int:
    """What they lead to, not how: the same RAM may come in other records."""
    with tempfile.TemporaryDirectory(prefix="migrate-inspect-") as scratch:
        folders = [Path(scratch, side) for side in ("left", "right")]
        blocks = []
        for name, folder in zip((left, right), folders, strict=True):
            listed = extract(name, folder, [], [])["blocks"]
            assert isinstance(listed, list)
            blocks.append({block["name"]: block["file"] for block in listed})
        both = [name for name in blocks[0] if name in blocks[1]]
        found = {name: compare_images(blocks[0][name], blocks[1][name], page_size) for name in both}
        states = [(folder / DEVICE_STATE).read_bytes() for folder in folders]
    alone = sorted(blocks[0].keys() ^ blocks[1].keys())
    equal = not alone and states[0] == states[1] and not any(each.pages for each in found.values())
    if as_json:
        rows = {name: {"differing_pages": each.pages, "ranges": each.ranges} for name, each in found.items()}
        same = states[0] == states[1]
        report = {"equal": equal, "blocks": rows, "only_in_one": alone, "device_state_equal": same}
        print(json.dumps(report))
        return CLEAN if equal else ILLEGAL
    for name, each in found.items():
        _print_ranges(f"{printable(name)}  ", each, page_size)
    for name in alone:
        print(f"{printable(name)}  only in one of them")
    if states[0] != states[1]:
        print(f"device state  {len(states[0])} and {len(states[1])} bytes differ")
    pages = sum(each.pages for each in found.values())
    print("equal" if equal else f"{pages} pages differ")
    return CLEAN if equal else ILLEGAL


def _print_ranges(before: str, found: Difference, page_size: int) -> None:
    for start, length in found.ranges:
        print(f"{before}{start:#x}  {length // page_size} pages")


def _begins_as_stream(name: str) -> bool:
    with ExitStack() as stack:
        return name != "-" and open_input(name, stack).read(len(_QEMU)) == _QEMU


def _exactly(file: BinaryIO, name: str) -> bytes:
    """A whole chunk, or what is left."""
    data = bytearray()
    while len(data) < CHUNK:
        try:
            part = file.read(CHUNK - len(data))
        except OSError as error:
            raise RamError(f"{name} cannot be read: {error.strerror}") from error
        if not part:
            break
        data += part
    return bytes(data)
