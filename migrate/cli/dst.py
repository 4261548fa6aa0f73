"""`migrate-dst`: waits for a `migrate-src`, takes the RAM, and starts the guest when it owns it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from migrate import config
from migrate.cli.arguments import (
    JOURNAL_COMMANDS,
    ArgumentParser,
    add_control_option,
    add_handover_options,
    add_network_options,
    add_output_options,
    add_report_option,
    add_tls_options,
    typed,
    whole_number,
)
from migrate.cli.program import Program, run_program
from migrate.cli.standard_streams import hold_standard_streams
from migrate.config import Address, DestinationConfig, RamSpec
from migrate.daemon.reporter import Reporter
from migrate.units import parse_size

DESCRIPTION = """Wait for a migrate-src and take over its guest's RAM.

The RAM files are written while the guest still runs at the source. Until the
handover each has a marker PATH.migrating beside it: no guest may run on it.
--on-prepare gets the guest ready, paused. --on-commit lets it go, once both
RAMs are proved equal and the source has given it up.

migrate-dst status says from the journals whose the guest is, migrate-dst recover
settles what a crash left open; each has a --help of its own."""


NO_TLS = "no TLS: whoever reaches the port can write the RAM files, and read them on the way (see --tls-dir)"


def build_parser() -> ArgumentParser:
    """The parser of `migrate-dst`; its destinations are the fields of DestinationConfig."""
    parser = ArgumentParser("migrate-dst", DESCRIPTION)
    parser.add_argument(
        "--listen",
        type=typed(Address.parse),
        required=True,
        metavar="HOST:PORT",
        help="address to listen on, as 0.0.0.0:4444 or [::]:4444; port 0 takes any free one and says which",
    )
    parser.add_argument(
        "--ram",
        type=typed(RamSpec.parse),
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="file that becomes the guest's RAM; repeat it with names for several RAM blocks; a block of the "
        f"source without a file here is refused (default name: {config.DEFAULT_BLOCK_NAME})",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="end after one migration, whether it succeeds or not; refused ones do not count",
    )
    qemu = parser.add_argument_group("from a real QEMU (`migrate tcp:HOST:PORT` in its monitor)")
    qemu.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="take a QEMU's stream; its RAM blocks that have no --ram go there as NAME.ram ('/' in a name is "
        "%%2F), with device-state.bin, vmstate.json and migration.json; the guest stays QEMU's (there: cont)",
    )
    qemu.add_argument(
        "--multifd-channels",
        type=typed(whole_number),
        default=0,
        metavar="N",
        help="the source's multifd-channels, if multifd is on there, plain or with zlib or zstd; 0: off",
    )
    qemu.add_argument(
        "--switchover-ack",
        action="store_true",
        help="the capability of that name is set at the source (QEMU 8.1 or newer; older ones fail on it)",
    )
    guest = parser.add_argument_group("guest")
    guest.add_argument(
        "--guest-socket",
        type=Path,
        metavar="PATH",
        help="unix socket on which the guest to be waits: it offers its RAM (instead of --ram), takes its "
        "device state, and is let go (migrate/guest/contract.md)",
    )
    guest.add_argument(
        "--on-prepare",
        metavar="CMD",
        help="builds the guest here, paused, on the finished RAM; if it fails, the source keeps the guest",
    )
    guest.add_argument(
        "--on-commit",
        metavar="CMD",
        help="lets the prepared guest go; may be called again for the same MIGRATE_ID",
    )
    guest.add_argument(
        "--guest-qmp",
        type=Path,
        metavar="SOCKET",
        help="monitor of a QEMU that waits with -S -incoming defer on the --ram files: it loads the devices "
        "of the source's QEMU, and `cont` lets the guest go",
    )
    guest.add_argument(
        "--is-running",
        metavar="CMD",
        help="status 0: the guest that --on-commit let go runs; asked after a crash in the middle of that",
    )
    delta = parser.add_argument_group("deltas (XBZRLE)")
    delta.add_argument(
        "--xbzrle-cache-limit",
        type=typed(parse_size),
        default="256M",
        metavar="SIZE",
        help="memory a source may have for its page cache here; 0: no XBZRLE (default: %(default)s)",
    )
    add_network_options(parser)
    add_handover_options(parser)
    _add_tls_options(parser)
    add_control_option(parser)
    add_report_option(add_output_options(parser))
    return parser


def _add_tls_options(parser: argparse.ArgumentParser) -> None:
    group = add_tls_options(
        parser,
        "server-cert.pem, server-key.pem, and ca-cert.pem (who may have signed the sources' certificates)",
        "secret that a source must know, instead of showing a certificate",
    )
    group.add_argument(
        "--tls-allow",
        action="append",
        default=[],
        metavar="NAME",
        help="take only sources whose certificate has this common or alternative name; repeat it for several "
        "(default: all that the CA signed)",
    )
    group.add_argument(
        "--allow-qemu",
        action="store_true",
        help="with --output-dir: also take the stream of a QEMU that shows no certificate",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="listen on more than loopback without TLS: whoever reaches the port can write the RAM files",
    )


def make_config(arguments: argparse.Namespace) -> DestinationConfig:
    """The configuration of parsed arguments. Raises UsageError."""
    fields = vars(arguments)
    return DestinationConfig(
        **{**fields, "ram": tuple(fields["ram"]), "tls_allow": tuple(fields["tls_allow"])}
    )


async def start(config: DestinationConfig, reporter: Reporter) -> None:
    """Run the service."""
    from migrate.api.receiver import Receiver  # heavy: the kernel, msgpack, the sockets

    await Receiver(config, reporter=reporter)


def warnings(config: DestinationConfig) -> list[str]:
    """What works but is seldom meant."""
    if config.guest_socket is not None:
        return []
    found = []
    if config.tls_dir is None:
        found.append(NO_TLS)
    if not config.ram and config.output_dir is None:
        found.append("no --ram: every RAM block of every source will be refused")
    elif not config.ram:
        found.append("no --ram: only a QEMU's stream will be taken")
    elif config.on_commit is None and config.guest_qmp is None:
        found.append(
            "no --on-commit: after the handover the guest belongs to this host, but nothing starts it here"
        )
    return found


PROGRAM = Program("migrate-dst", "destination", build_parser, make_config, warnings, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. `--help` and `--version` raise SystemExit(0)."""
    hold_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in JOURNAL_COMMANDS:
        from migrate.cli.journals import run_journal_command  # heavy: the kernel

        return run_journal_command("destination", arguments[0], arguments[1:])
    return run_program(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
