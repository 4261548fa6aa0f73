"""What the subcommands of `migrate-inspect` share: exit codes, files to read."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import BinaryIO

from migrate.cli.arguments import ArgumentParser, typed, whole_number
from migrate.errors import UsageError

CLEAN, ILLEGAL, UNREADABLE = 0, 1, 2
CHUNK = 1 << 20


def add_page_size(parser: ArgumentParser) -> None:
    """`--page-size`."""
    parser.add_argument(
        "--page-size",
        type=typed(whole_number),
        default=4096,
        metavar="BYTES",
        help="of images and lanes; QEMU's streams say it themselves (default: %(default)s)",
    )


def open_input(name: str, stack: ExitStack) -> BinaryIO:
    """A file, or standard input for "-". Raises UsageError."""
    if name == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(name, "rb", buffering=0))
    except OSError as error:
        raise UsageError(f"{name} cannot be opened: {error.strerror}") from error


def read_input(file: BinaryIO, name: str) -> bytes:
    """Some more of it, nothing at its end. Raises UsageError."""
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
