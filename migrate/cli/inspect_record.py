"""`migrate-inspect record`: a proxy between two sides that keeps what goes through it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

from migrate.cli.arguments import ArgumentParser, typed
from migrate.cli.inspect_files import CLEAN
from migrate.config import Address
from migrate.errors import UsageError


def add_options(parser: ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="for the recording; empty, or made")
    parser.add_argument(
        "--listen",
        type=typed(Address.parse),
        required=True,
        metavar="HOST:PORT",
        help="where the source goes",
    )
    parser.add_argument(
        "--target", type=typed(Address.parse), required=True, metavar="HOST:PORT", help="the destination"
    )


def run(options: argparse.Namespace) -> int:
    """Record until Ctrl-C or SIGTERM. Raises MigrateError."""
    directory: Path = options.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty")
    except OSError as error:
        raise UsageError(f"{directory} cannot be made: {error.strerror}") from error
    return asyncio.run(_record(options.listen, options.target, directory))


async def _record(listen: Address, target: Address, directory: Path) -> int:
    from migrate.daemon.recorder import Recorder

    def listening(address: Address) -> None:
        print(f"listening on {address}, recording into {directory}", flush=True)

    recorder = Recorder(listen, target, directory, listening)
    recording = asyncio.ensure_future(recorder.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, recording.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await recording
    print(f"{recorder.connections} connections recorded")
    return CLEAN
