"""`migrate-inspect replay`: plays what a source said into a destination."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from migrate.cli.arguments import ArgumentParser, typed
from migrate.cli.inspect_files import CLEAN, ILLEGAL
from migrate.config import Address
from migrate.errors import RefusedError, UsageError
from migrate.units import format_duration, format_rate, format_size, parse_rate


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="DIR|FILE",
        help="what `record` made, or a file for each channel of a QEMU",
    )
    parser.add_argument(
        "--to", type=typed(Address.parse), required=True, metavar="HOST:PORT", help="the destination"
    )
    parser.add_argument(
        "--max-bandwidth",
        type=typed(parse_rate),
        default=0,
        metavar="RATE",
        help="all connections together (default: as fast as it is taken)",
    )


def run(options: argparse.Namespace) -> int:
    """Play it. Raises MigrateError."""
    from migrate.daemon.replay import Replay

    paths: list[Path] = []
    for path in options.paths:
        paths += sorted(path.glob("*.up")) if path.is_dir() else [path]
    if not paths:
        raise UsageError(f"{options.paths[0]} holds no recording")
    replay = Replay(paths, options.to, options.max_bandwidth)
    began = time.monotonic()
    try:
        outcome = replay.run()
    except RefusedError as error:
        print(f"not taken: {error.message}")
        return ILLEGAL
    seconds = time.monotonic() - began
    rate = format_rate(replay.sent / seconds) if seconds else ""
    print(f"{outcome}; {format_size(replay.sent)} in {format_duration(seconds)}, {rate}")
    return CLEAN
