"""`migrate-inspect`: read migration streams without migrating, compare, record and replay them, show reports.

Each subcommand is a file of its own, `inspect_NAME.py`, with `add_options` and `run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from migrate.cli import (
    inspect_diff,
    inspect_extract,
    inspect_look,
    inspect_receipt,
    inspect_record,
    inspect_replay,
    inspect_report,
)
from migrate.cli.arguments import ArgumentParser
from migrate.cli.inspect_files import ILLEGAL, UNREADABLE
from migrate.cli.plain_text import printable
from migrate.cli.standard_streams import hold_standard_streams
from migrate.errors import MigrateError, ReportError, StreamError, VerifyError

DESCRIPTION = """Read a migration stream and say what is in it, and whether it is legal.

  migrate-inspect [OPTIONS] FILE|-             look at a stream
  migrate-inspect extract FILE|- DIR [OPTIONS] RAM and device state into files
  migrate-inspect diff FILE FILE               compare two RAM images, or what two streams lead to
  migrate-inspect record DIR [OPTIONS]         a proxy that keeps what goes through it
  migrate-inspect replay DIR|FILE... --to HOST:PORT [OPTIONS]
                                               play what was recorded into a destination
  migrate-inspect report FILE [FILE]           a page with plots of what --report wrote at one side, or both

  migrate-inspect verify-receipt FILE [--tls-dir DIR | --token-file FILE]
                                               whether what --receipt wrote is whole, and whose it is

Streams: the main channel of a QEMU migration (precopy, with or without XBZRLE
and return path; postcopy; files with mapped-ram), and a recorded lane of
migrate-src. A stream is read in pieces: its length does not matter."""

EPILOG = """extract writes DIR/NAME.ram for each RAM block ('/' in a name is %2F),
device-state.bin, vmstate.json (if the source sent it) and migration.json. record
writes N.up (to the destination) and N.down for the Nth connection.

exit codes:
    0  clean: the stream is legal to its end; diff: equal; replay: taken;
       report: the page is written; verify-receipt: whole, and signed by whom
       the given files tell to believe
    1  illegal stream: rule and byte offset are named; diff: not equal; replay:
       not taken; report: malformed, or the two files are not of one migration;
       verify-receipt: changed, unsigned, or signed by somebody else
    2  cannot read: options, a missing file, another kind of stream, a full disk,
       nobody there"""


class Command(NamedTuple):
    """One form of the command line."""

    add_options: Callable[[ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "": Command(inspect_look.add_options, inspect_look.run),
    "extract": Command(inspect_extract.add_options, inspect_extract.run),
    "diff": Command(inspect_diff.add_options, inspect_diff.run),
    "record": Command(inspect_record.add_options, inspect_record.run),
    "replay": Command(inspect_replay.add_options, inspect_replay.run),
    "report": Command(inspect_report.add_options, inspect_report.run),
    "verify-receipt": Command(inspect_receipt.add_options, inspect_receipt.run),
}


def build_parser(command: str) -> ArgumentParser:
    """The parser of one of them; `command` is a key of COMMANDS."""
    parser = ArgumentParser(f"migrate-inspect {command}".strip(), DESCRIPTION)
    parser.epilog = EPILOG
    COMMANDS[command].add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Console script; returns the exit code."""
    hold_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments[0] if arguments and arguments[0] in COMMANDS and arguments[0] else ""
    try:
        options = build_parser(command).parse_args(arguments[1:] if command else arguments)
        return COMMANDS[command].run(options)
    except MigrateError as error:
        sys.stderr.write(f"migrate-inspect: error: {printable(error.message)}\n")
        if error.hint:
            sys.stderr.write(f"  next: {printable(error.hint)}\n")
        return ILLEGAL if isinstance(error, StreamError | ReportError | VerifyError) else UNREADABLE
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return UNREADABLE


if __name__ == "__main__":
    sys.exit(main())
