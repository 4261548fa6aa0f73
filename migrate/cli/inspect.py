"""`migrate-inspect`: read migration streams without migrating, compare RAM images, show reports of runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from migrate.cli.arguments import ArgumentParser, typed, whole_number
from migrate.cli.inspect_output import print_record, print_summary
from migrate.cli.wording import printable
from migrate.config import RamSpec
from migrate.errors import MigrateError, RamError, ReportError, StreamError, UsageError
from migrate.units import format_size

CLEAN, ILLEGAL, UNREADABLE = 0, 1, 2
CHUNK = 1 << 20
MOST_RANGES = 1000

DESCRIPTION = """Read a migration stream and say what is in it, and whether it is legal.

  migrate-inspect [OPTIONS] FILE|-             look at a stream
  migrate-inspect extract FILE|- DIR [OPTIONS] RAM and device state into files
  migrate-inspect diff IMAGE IMAGE             compare two RAM images
  migrate-inspect report FILE [FILE]           a page with plots of what --report wrote at one side, or both

Streams: the main channel of a QEMU migration (precopy, with or without XBZRLE
and return path; postcopy), and a recorded lane of migrate-src. A stream is
read in pieces: its length does not matter."""

EPILOG = """extract writes DIR/NAME.ram for each RAM block ('/' in a name is %2F),
device-state.bin, vmstate.json (if the source sent it) and migration.json.

exit codes:
    0  clean: the stream is legal to its end; diff: equal; report: the page is written
    1  illegal stream: rule and byte offset are named; diff: not equal;
       report: malformed, or the two files are not of one migration
    2  cannot read: options, a missing file, another kind of stream, a full disk"""


def build_parser(command: str) -> ArgumentParser:
    """The parser of one of the four forms; `command` is "", "extract", "diff" or "report"."""
    parser = ArgumentParser(f"migrate-inspect {command}".strip(), DESCRIPTION)
    parser.epilog = EPILOG
    if command == "diff":
        parser.add_argument("images", type=Path, nargs=2, metavar="IMAGE")
        parser.add_argument("--json", action="store_true", help="one JSON object")
        _add_page_size(parser)
        return parser
    if command == "report":
        parser.add_argument("reports", type=Path, nargs="+", metavar="FILE", help="what --report wrote")
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="where the page goes (default: standard output)"
        )
        return parser
    parser.add_argument("stream", metavar="FILE|-", help="a recorded stream; -: standard input")
    if command == "extract":
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
        return parser
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--summary", action="store_true", help="statistics and lint (the default)")
    what.add_argument("--pages", action="store_true", help="every page record too, XBZRLE decoded into runs")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line; the summary comes last")
    _add_page_size(parser)
    return parser


def _add_page_size(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--page-size",
        type=typed(whole_number),
        default=4096,
        metavar="BYTES",
        help="of images and lanes; QEMU's streams say it themselves (default: %(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments[0] if arguments and arguments[0] in ("extract", "diff", "report") else ""
    try:
        options = build_parser(command).parse_args(arguments[1:] if command else arguments)
        run: dict[str, Callable[[argparse.Namespace], int]] = {
            "": _inspect,
            "extract": _extract,
            "diff": _diff,
            "report": _report,
        }
        return run[command](options)
    except MigrateError as error:
        sys.stderr.write(f"migrate-inspect: error: {printable(error.message)}\n")
        if error.hint:
            sys.stderr.write(f"  next: {printable(error.hint)}\n")
        return ILLEGAL if isinstance(error, StreamError | ReportError) else UNREADABLE
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return UNREADABLE


def _open(name: str, stack: ExitStack) -> BinaryIO:
    if name == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(name, "rb", buffering=0))
    except OSError as error:
        raise UsageError(f"{name} cannot be opened: {error.strerror}") from error


def _read(file: BinaryIO, name: str) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error


def _inspect(options: argparse.Namespace) -> int:
    from migrate.protocol.inspect_stream import open_inspector  # the kernel, which --help can do without

    on_record = None
    if options.pages:
        on_record = print_record(json=options.json)
    with ExitStack() as stack:
        file = _open(options.stream, stack)
        data = _read(file, options.stream)
        inspector = open_inspector(data, options.page_size, on_record)
        error: StreamError | None = None
        try:
            while data:
                inspector.feed(data)
                data = _read(file, options.stream)
            inspector.close()
        except StreamError as caught:
            error = caught
    print_summary(inspector.summary(), error, json=options.json)
    if error is not None and not options.json:
        raise error
    return CLEAN if error is None else ILLEGAL


def _extract(options: argparse.Namespace) -> int:
    from migrate.daemon.qemu_receiver import QemuReceiver
    from migrate.daemon.recorded_channels import RecordedChannels

    with ExitStack() as stack:
        file = _open(options.stream, stack)
        channels = RecordedChannels([_open(name, stack) for name in options.channel])
        receiver = QemuReceiver(
            tuple(options.ram),
            options.directory,
            channels=channels if options.channel else None,
            recorded=file,
        )
        stack.callback(receiver.close)
        while data := _read(file, options.stream):
            receiver.feed(data)
        receiver.end_of_input()
        result = receiver.complete()
        receiver.add_digests(result)
    blocks = result["blocks"]
    assert isinstance(blocks, list)
    for block in blocks:
        print(f"{block['file']}  {format_size(block['length'])}  sha256 {block['sha256']}")
    print(f"{options.directory / 'device-state.bin'}  {result['device_state_bytes']} bytes")
    return CLEAN


def _diff(options: argparse.Namespace) -> int:
    size = options.page_size
    if size < 1 or CHUNK % size:
        raise UsageError(f"--page-size {size}: a power of two up to {CHUNK}")
    ranges: list[list[int]] = []
    pages = at = 0
    with ExitStack() as stack:
        left, right = (_open(str(path), stack) for path in options.images)
        while True:
            a, b = _exactly(left, str(options.images[0])), _exactly(right, str(options.images[1]))
            if not a and not b:
                break
            for start in range(0, max(len(a), len(b)), size) if a != b else ():
                if a[start : start + size] != b[start : start + size]:
                    pages += 1
                    if ranges and sum(ranges[-1]) == at + start:
                        ranges[-1][1] += size
                    elif len(ranges) < MOST_RANGES:
                        ranges.append([at + start, size])
            at += max(len(a), len(b))
    if options.json:
        print(json.dumps({"equal": not pages, "differing_pages": pages, "ranges": ranges}))
    else:
        for start, length in ranges:
            print(f"{start:#x}  {length // size} pages")
        print(f"{pages} pages differ" if pages else "equal")
    return ILLEGAL if pages else CLEAN


def _report(options: argparse.Namespace) -> int:
    from migrate.cli.inspect_report import write_page  # the kernel, which --help can do without

    write_page(options.reports, options.output)
    return CLEAN


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


if __name__ == "__main__":
    sys.exit(main())
