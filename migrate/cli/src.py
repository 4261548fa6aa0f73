"""`migrate-src`: moves the RAM of a running guest to a waiting `migrate-dst`."""

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
    add_source_tls_options,
    seconds,
    typed,
    whole_number,
)
from migrate.cli.client import CLIENTS, run_client
from migrate.cli.plan import run_plan
from migrate.cli.program import Program, run_program
from migrate.cli.standard_streams import hold_standard_streams
from migrate.config import Address, RamSpec, SourceConfig
from migrate.daemon.reporter import Reporter
from migrate.units import parse_rate, parse_size

DESCRIPTION = """Move the RAM of a running guest to the migrate-dst that waits at --to.

All pages go while the guest runs, then what it changed, round after round,
until the rest fits into --downtime-limit. Then the guest is paused, the rest is
sent, both RAMs are proved equal, and the guest goes on at the destination.
Whatever fails before that leaves it running here.

migrate-src migrate|query|watch|set|pause|cancel|quit --control PATH
steers one that runs with --control. migrate-src plan says beforehand how a
migration would go; migrate-src status says from the journals whose the guest is,
migrate-src recover settles what a crash left open. Each has a --help of its own."""


NO_TLS = "no TLS: the guest's RAM goes to whoever answers at --to, readable on the way (see --tls-dir)"


def build_parser() -> ArgumentParser:
    """The parser of `migrate-src`; its destinations are the fields of SourceConfig."""
    parser = ArgumentParser("migrate-src", DESCRIPTION)
    parser.add_argument(
        "--to",
        type=typed(Address.parse),
        metavar="HOST:PORT",
        help="where migrate-dst listens; without it, --control waits for the command `migrate`",
    )
    parser.add_argument(
        "--ram",
        type=typed(RamSpec.parse),
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="file that is the guest's RAM (tmpfs, memfd as /proc/PID/fd/N, or on disk); repeat with names "
        f"for several RAM blocks (default name: {config.DEFAULT_BLOCK_NAME})",
    )
    parser.add_argument(
        "--format",
        choices=config.STREAM_FORMATS,
        default="native",
        help="of the stream: native for a migrate-dst, qemu for a QEMU that waits with -S -incoming "
        "tcp:HOST:PORT (tried with 7.2): no proof, no TLS, no second connection, and `cont` is yours "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="with --format qemu: send what migrate-dst --output-dir DIR has stored; --ram NAME=PATH for "
        "blocks that were moved elsewhere",
    )
    parser.add_argument(
        "--check", action="store_true", help="full pre-flight together with the destination; moves nothing"
    )
    _add_guest_options(parser)
    _add_convergence_options(parser)
    _add_bandwidth_options(parser)
    _add_page_options(parser)
    _add_lane_options(parser)
    add_network_options(parser)
    add_handover_options(parser)
    add_source_tls_options(parser)
    add_control_option(parser)
    add_report_option(add_output_options(parser))
    return parser


def _add_guest_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guest")
    group.add_argument(
        "--guest-pid",
        type=typed(whole_number),
        metavar="PID",
        help="process to stop for the pause (SIGSTOP, until every thread stands); excludes --pause-cmd",
    )
    group.add_argument(
        "--guest-qmp",
        type=Path,
        metavar="SOCKET",
        help="monitor of the QEMU whose guest it is (its -qmp unix:SOCKET,server=on,wait=off): QEMU pauses "
        "the guest and gives its devices; migrate-dst needs --guest-qmp too",
    )
    group.add_argument(
        "--guest-socket",
        type=Path,
        metavar="PATH",
        help="unix socket on which the guest itself offers its RAM (instead of --ram), pauses, and gives its "
        "device state (migrate/guest/contract.md)",
    )
    group.add_argument(
        "--pause-cmd", metavar="CMD", help="pauses the guest; nothing may write its RAM afterwards"
    )
    group.add_argument("--resume-cmd", metavar="CMD", help="resumes the guest here after a failure")
    group.add_argument(
        "--state-cmd",
        metavar="CMD",
        help="writes device state into $MIGRATE_STATE_DIR once the guest is paused",
    )
    group.add_argument(
        "--source-after",
        choices=config.SOURCE_AFTERS,
        default="keep",
        help="what becomes of the paused guest here after the handover: keep it paused, or kill it "
        "(--guest-pid, --guest-qmp, --guest-socket) (default: %(default)s)",
    )


def _add_convergence_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rounds and pause")
    group.add_argument(
        "--downtime-limit",
        dest="downtime_limit_ms",
        type=typed(whole_number),
        default="300",
        metavar="MS",
        help="milliseconds the guest may stand still, proof and handover included (default: %(default)s)",
    )
    group.add_argument(
        "--max-rounds",
        type=typed(whole_number),
        default="30",
        metavar="N",
        help="rounds while the guest runs (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=typed(seconds),
        default="0",
        metavar="S",
        help="seconds the rounds may take; 0: no limit (default: %(default)s)",
    )
    group.add_argument(
        "--timeout-action",
        choices=config.TIMEOUT_ACTIONS,
        default="cancel",
        help="at --timeout or after --max-rounds: cancel (the guest runs on here), or pause it and send "
        "whatever is left, however long that takes (default: %(default)s)",
    )
    group.add_argument(
        "--throttle",
        type=typed(config.parse_throttle),
        default="off",
        metavar="auto|N%",
        help="take N %% of its time from --guest-pid while the rounds are under way; auto: more and more "
        "where they do not converge; lifted for the pause and at every end (default: %(default)s)",
    )
    group.add_argument(
        "--dirty-tracker",
        choices=config.DIRTY_TRACKERS,
        default="auto",
        help="how changed pages are found; auto takes the best of log, wp and scan that is possible and says "
        "why; wp-inject makes a guest that offers nothing for wp create it, by ptrace (default: %(default)s)",
    )
    group.add_argument(
        "--dirty-log",
        type=typed(RamSpec.parse),
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="file or memfd in which the emulator sets a bit for every 4096 bytes that it wrote (u64 words, "
        "little-endian, set atomically after the write); for each --ram one",
    )
    group.add_argument(
        "--warm",
        action="store_true",
        help="the destination's RAM files hold an old copy of this guest (or what an attempt before this one "
        "left): they are read there, and only pages that differ are sent",
    )
    group.add_argument(
        "--verify",
        choices=config.VERIFY_LEVELS,
        default="ram",
        help="proof of equality: stream (what was sent was written), ram (the destination's RAM is read "
        "back), full (both are read again in the pause) (default: %(default)s)",
    )


def _add_bandwidth_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bandwidth")
    group.add_argument(
        "--max-bandwidth",
        type=typed(parse_rate),
        default="0",
        metavar="RATE",
        help="limit while the guest runs; 0: unlimited (default: %(default)s)",
    )
    group.add_argument(
        "--switchover-bandwidth",
        type=typed(parse_rate),
        default="0",
        metavar="RATE",
        help="limit while the guest is paused; 0: unlimited (default: %(default)s)",
    )


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("deltas (XBZRLE) and compression")
    group.add_argument(
        "--xbzrle-cache-size",
        type=typed(parse_size),
        default="64M",
        metavar="SIZE",
        help="memory for the page cache on each side, at most the destination's limit; "
        "0: no XBZRLE (default: %(default)s)",
    )
    group.add_argument(
        "--xbzrle-cache-rule",
        choices=config.CACHE_RULES,
        default="default",
        help="which pages the cache keeps; qemu is QEMU's rule, for comparison (default: %(default)s)",
    )
    group.add_argument(
        "--compression",
        choices=config.COMPRESSIONS,
        default="none",
        help="compress batches on top of that; costs CPU, for slow links (default: %(default)s)",
    )


def _add_lane_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lanes")
    group.add_argument(
        "--lanes",
        type=typed(whole_number),
        default="1",
        metavar="N",
        help="parallel connections, 1 to 16, each with its share of RAM and of the page cache; "
        "useful where one CPU cannot fill the link (default: %(default)s)",
    )


def make_config(arguments: argparse.Namespace) -> SourceConfig:
    """The configuration of parsed arguments. Raises UsageError."""
    fields = vars(arguments)
    return SourceConfig(**{**fields, "ram": tuple(fields["ram"]), "dirty_log": tuple(fields["dirty_log"])})


async def start(config: SourceConfig, reporter: Reporter) -> None:
    """Run the migration."""
    from migrate.api.migration import send  # heavy: the kernel, msgpack, the sockets

    await send(config, reporter=reporter)


def warnings(config: SourceConfig) -> list[str]:
    """What works but is seldom meant."""
    found = []
    if not config.tls:
        found.append(NO_TLS)
    if config.checkpoint is not None:
        return found
    ways = (config.guest_pid, config.guest_qmp, config.guest_socket, config.pause_cmd)
    if all(way is None for way in ways) and not config.check:
        found.append(
            "none of --guest-pid, --guest-qmp, --guest-socket, --pause-cmd: nothing will pause the guest; "
            "whoever writes its RAM must have stopped before the last round"
        )
    return found


PROGRAM = Program("migrate-src", "source", build_parser, make_config, warnings, start)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. `--help` and `--version` raise SystemExit(0)."""
    hold_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] == "plan":
        return run_plan(arguments[1:])
    if arguments and arguments[0] in CLIENTS:
        return run_client(arguments[0], arguments[1:])
    if arguments and arguments[0] in JOURNAL_COMMANDS:
        from migrate.cli.journals import run_journal_command  # heavy: the kernel

        return run_journal_command("source", arguments[0], arguments[1:])
    return run_program(PROGRAM, arguments)


if __name__ == "__main__":
    sys.exit(main())
