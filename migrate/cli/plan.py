"""`migrate-src plan`: how a migration would go, said before it is begun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrate import config
from migrate.cli.arguments import ArgumentParser, add_source_tls_options, seconds, typed, whole_number
from migrate.cli.choose_reporter import choose_reporter, report_usage_error
from migrate.config import Address, RamSpec, SourceConfig
from migrate.errors import UsageError
from migrate.units import parse_rate, parse_size

if TYPE_CHECKING:  # heavy: the kernel, which --help can do without
    from migrate.daemon.reporter import Reporter
    from migrate.protocol.forecast import Limits
    from migrate.protocol.plan import PlannedLink
    from migrate.protocol.plan_workload import Workload

PROGRAM = "migrate-src plan"
DESCRIPTION = """Say how a migration would go: whether it converges, how long it takes, how many
bytes it sends, what downtime, which page cache is worth it; or what it would need.

The running guest is sampled for --duration with the tracker that a migration would
use. It is neither changed nor stopped, and nothing is sent but what measures the
link to --to, about a second long."""

LINKS = ("100Mbit", "1Gbit", "10Gbit")
"""Where no link is named."""
LEAST_SECONDS = 1.0
PAYLOAD_SHARE = 0.955
"""Of what a link carries: 1448 bytes of each packet of 1500, and 14 of Ethernet around it."""
ROUND_TRIP = 0.0005
"""Seconds, of a link that is not measured."""


def build_parser() -> ArgumentParser:
    """The parser; what a migration has too is called as there."""
    parser = ArgumentParser(PROGRAM, DESCRIPTION)
    parser.add_argument(
        "--ram",
        type=typed(RamSpec.parse),
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="file that is the guest's RAM; repeat with names for several RAM blocks",
    )
    parser.add_argument("--guest-pid", type=typed(whole_number), metavar="PID", help="the guest's process")
    link = parser.add_mutually_exclusive_group()
    link.add_argument(
        "--to",
        type=typed(Address.parse),
        metavar="HOST:PORT",
        help="measure the link to the migrate-dst there",
    )
    link.add_argument(
        "--bandwidth",
        type=typed(parse_rate),
        action="append",
        metavar="RATE",
        help="what the link carries, packet headers included; repeat it to compare links "
        f"(default: {', '.join(LINKS)})",
    )
    parser.add_argument(
        "--downtime-limit",
        type=typed(whole_number),
        nargs="+",
        default=[300],
        metavar="MS",
        help="milliseconds the guest may stand still; several to compare them (default: 300)",
    )
    parser.add_argument(
        "--max-rounds",
        type=typed(whole_number),
        default="30",
        metavar="N",
        help="as in a migration (default: 30)",
    )
    parser.add_argument(
        "--xbzrle-cache-size",
        type=typed(parse_size),
        default="64M",
        metavar="SIZE",
        help="page cache that is reckoned with (default: %(default)s)",
    )
    parser.add_argument(
        "--dirty-tracker",
        choices=config.DIRTY_TRACKERS,
        default="auto",
        help="as in a migration (default: %(default)s)",
    )
    parser.add_argument(
        "--dirty-log", type=typed(RamSpec.parse), action="append", default=[], metavar="[NAME=]PATH",
        help="as in a migration",
    )  # fmt: skip
    parser.add_argument(
        "--duration",
        type=typed(seconds),
        default="5",
        metavar="S",
        help="seconds to look at the guest; the longer, the surer for slow links (default: %(default)s)",
    )
    add_source_tls_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object an event; `plan` is the last one"
    )
    return parser


def run_plan(argv: Sequence[str]) -> int:
    """Run the subcommand; returns the exit code."""
    try:
        options = build_parser().parse_args(argv)
        source = _source_config(options)
        if options.duration < LEAST_SECONDS:
            raise UsageError(f"--duration {options.duration:g}: at least {LEAST_SECONDS:g} s")
        if any(not rate for rate in options.bandwidth or []):
            raise UsageError("--bandwidth 0: say what the link carries")
    except UsageError as error:
        error.with_context(hint=f"{PROGRAM} --help lists all options")
        report_usage_error(error, PROGRAM, json="--json" in argv)
        return error.exit_code
    from migrate.cli.plan_output import plan_lines, plan_object
    from migrate.cli.run_daemon import run_daemon

    found: list[tuple[Workload, list[PlannedLink]]] = []

    async def sample(reporter: Reporter) -> None:
        from migrate.daemon.link_probe import measure_link
        from migrate.daemon.plan import sample_guest
        from migrate.daemon.tls_client import TlsClient
        from migrate.protocol.plan import PlannedLink

        rates = options.bandwidth or [parse_rate(rate) for rate in LINKS]
        links = [PlannedLink(rate * PAYLOAD_SHARE, ROUND_TRIP) for rate in rates]
        if options.to is not None:
            links = [await measure_link(options.to, TlsClient(source) if source.tls else None)]
        found.append((await sample_guest(source, options.duration, reporter), links))

    with choose_reporter(PROGRAM, "source", json=options.json) as reporter:
        code = run_daemon(lambda: sample(reporter), reporter, "source")
        if code == 0:
            workload, links = found[0]
            limits = _limits(options)
            if options.json:
                reporter.event("plan", **plan_object(workload, links, limits))
    if code == 0 and not options.json:
        sys.stdout.write("".join(f"{line}\n" for line in plan_lines(workload, links, limits)))
    return code


def _source_config(options: argparse.Namespace) -> SourceConfig:
    """What the tracker is chosen by. Raises UsageError."""
    return SourceConfig(
        to=options.to or Address("localhost", 1),  # nobody connects there
        ram=tuple(options.ram),
        guest_pid=options.guest_pid,
        dirty_tracker=options.dirty_tracker,
        dirty_log=tuple(options.dirty_log),
        downtime_limit_ms=max(options.downtime_limit),
        max_rounds=options.max_rounds,
        xbzrle_cache_size=options.xbzrle_cache_size,
        tls_dir=options.tls_dir,
        tls_fingerprint=options.tls_fingerprint,
        tls_hostname=options.tls_hostname,
        token_file=options.token_file,
    )


def _limits(options: argparse.Namespace) -> list[Limits]:
    from migrate.protocol.forecast import Limits

    return [
        Limits(
            downtime_limit=limit / 1000,
            max_rounds=options.max_rounds,
            timeout=0.0,
            timeout_action="cancel",
            max_bandwidth=0.0,
            switchover_bandwidth=0.0,
            xbzrle_cache_size=options.xbzrle_cache_size,
        )
        for limit in options.downtime_limit
    ]
