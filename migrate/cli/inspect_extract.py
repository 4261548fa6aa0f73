"""`migrate-inspect extract`: RAM and device state of a QEMU's stream into files."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from migrate.cli.arguments import ArgumentParser, typed
from migrate.cli.inspect_files import CLEAN, open_input, read_input
from migrate.config import RamSpec
from migrate.units import format_size


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("stream", metavar="FILE|-", help="a recorded stream; -: standard input")
    parser.add_argument("directory", type=Path, metavar="DIR", help="is made if need be")
    parser.add_argument(
        "--ram",
        type=typed(RamSpec.parse),
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="another file for that RAM block",
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="FILE",
        help="a page channel of multifd; repeat it for each",
    )


def run(options: argparse.Namespace) -> int:
    """Write everything. Raises MigrateError."""
    result = extract(options.stream, options.directory, options.ram, options.channel)
    blocks = result["blocks"]
    assert isinstance(blocks, list)
    for block in blocks:
        print(f"{block['file']}  {format_size(block['length'])}  sha256 {block['sha256']}")
    print(f"{options.directory / 'device-state.bin'}  {result['device_state_bytes']} bytes")
    return CLEAN


def extract(stream: str, directory: Path, ram: list[RamSpec], page_channels: list[str]) -> dict[str, object]:
    """Read a stream into a folder; returns what is known of it. Raises MigrateError."""
    from migrate.daemon.qemu_receiver import QemuReceiver
    from migrate.daemon.recorded_channels import RecordedChannels

    with ExitStack() as stack:
        file = open_input(stream, stack)
        channels = RecordedChannels([open_input(name, stack) for name in page_channels])
        receiver = QemuReceiver(
            tuple(ram), directory, channels=channels if page_channels else None, recorded=file
        )
        stack.callback(receiver.close)
        while data := read_input(file, stream):
            receiver.feed(data)
        receiver.end_of_input()
        result = receiver.complete()
        receiver.add_digests(result)
        return result
