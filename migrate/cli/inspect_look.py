"""`migrate-inspect FILE`: what is in a stream, and whether it is legal."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from migrate.cli.arguments import ArgumentParser
from migrate.cli.inspect_files import CLEAN, ILLEGAL, add_page_size, open_input, read_input
from migrate.cli.inspect_output import print_record, print_summary
from migrate.errors import StreamError


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("stream", metavar="FILE|-", help="a recorded stream; -: standard input")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--summary", action="store_true", help="statistics and lint (the default)")
    what.add_argument("--pages", action="store_true", help="every page record too, XBZRLE decoded into runs")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line; the summary comes last")
    add_page_size(parser)


def run(options: argparse.Namespace) -> int:
    """Read it to its end, or to what is illegal. Raises MigrateError."""
    from migrate.protocol.inspect_stream import open_inspector  # the kernel, which --help can do without

    on_record = print_record(json=options.json) if options.pages else None
    with ExitStack() as stack:
        file = open_input(options.stream, stack)
        data = read_input(file, options.stream)
        inspector = open_inspector(data, options.page_size, on_record)
        error: StreamError | None = None
        try:
            while data:
                inspector.feed(data)
                data = read_input(file, options.stream)
            inspector.close()
        except StreamError as caught:
            error = caught
    print_summary(inspector.summary(), error, json=options.json)
    if error is not None and not options.json:
        raise error
    return CLEAN if error is None else ILLEGAL
