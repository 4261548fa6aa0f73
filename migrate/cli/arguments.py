"""Pieces both command lines share: a parser that raises, types with clear messages, common options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from migrate import __version__
from migrate.cli.exit_codes import exit_code_help
from migrate.config import Address, parse_fingerprint
from migrate.errors import UsageError

T = TypeVar("T")

JOURNAL_COMMANDS = ("status", "recover")
"""Of both programs: `migrate.cli.journals`."""

UNITS_HELP = """units:
  SIZE   bytes; K M G T are binary: 4096, 64M (= 64 MiB), 1.5G
  RATE   bytes a second as SIZE: 200M (= 200 MiB/s); or decimal bits: 100Mbit
  S, MS  seconds (fractions allowed), whole milliseconds
  CMD    is run as /bin/sh -c CMD with MIGRATE_* in its environment"""


class ArgumentParser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of printing and exiting."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"{UNITS_HELP}\n\n{exit_code_help()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an abbreviation that works today is ambiguous with the next option
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the message, which names the option."""
        raise UsageError(message.removeprefix("argument "), hint=f"{self.prog} --help lists all options")


def typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """An argparse type whose ValueError message reaches the person who typed the value."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole_number(text: str) -> int:
    """Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def seconds(text: str) -> float:
    """Raises ValueError."""
    try:
        return float(text.removesuffix("s"))
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds") from None


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """The options of the connection, the same on both sides."""
    group = parser.add_argument_group("network")
    group.add_argument(
        "--keepalive-timeout",
        type=typed(seconds),
        default="10",
        metavar="S",
        help="seconds without a sign of life until a connection counts as broken (default: %(default)s)",
    )
    group.add_argument(
        "--reconnect-timeout",
        type=typed(seconds),
        default="60",
        metavar="S",
        help="seconds a broken connection may take to come back before the migration fails; "
        "0: not at all (default: %(default)s)",
    )


def add_state_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Where the journals are, the same everywhere."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="folder of the journals that say whose the guest is, on a disk that survives a crash; the same "
        "for all migrations of this host (default: $STATE_DIRECTORY, as systemd sets it; else "
        "/var/lib/migrate for root, ~/.local/state/migrate for others)",
    )


def add_handover_options(parser: argparse.ArgumentParser) -> None:
    """Where it stands whose the guest is, the same on both sides."""
    group = parser.add_argument_group("handover")
    add_state_option(group)
    group.add_argument(
        "--arbiter",
        type=Path,
        metavar="DIR",
        help="folder on storage that both hosts see and both daemons may write, to be given at both sides: "
        "there it is decided once which of them may run the guest; with it `migrate-src recover` takes a "
        "guest back although the destination cannot be reached",
    )


def add_tls_options(parser: argparse.ArgumentParser, files: str, token: str) -> argparse._ArgumentGroup:
    """The options of TLS that both sides have; returns their group for the others.

    Args:
        files: what --tls-dir holds here.
        token: what the token is for here.
    """
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--tls-dir", type=Path, metavar="DIR", help=f"every connection over TLS 1.3, with {files}"
    )
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"{token}; a file of at least 16 bytes that only its owner may read",
    )
    return group


def add_source_tls_options(parser: argparse.ArgumentParser) -> None:
    """TLS as a source has it, which `recover` has to have too."""
    group = add_tls_options(
        parser,
        "ca-cert.pem (who may have signed the destination's certificate), client-cert.pem, client-key.pem",
        "secret that replaces the client's certificate",
    )
    group.add_argument(
        "--tls-fingerprint",
        type=typed(parse_fingerprint),
        metavar="SHA256",
        help="accept exactly this certificate of the destination, whoever signed it and whatever its name",
    )
    group.add_argument(
        "--tls-hostname",
        metavar="NAME",
        help="name or address that the destination's certificate must have (default: the HOST of --to)",
    )


def add_control_option(parser: argparse.ArgumentParser) -> None:
    """How it can be steered and watched, the same on both sides."""
    group = parser.add_argument_group("control")
    group.add_argument(
        "--control",
        type=Path,
        metavar="PATH",
        help="unix socket (mode 0600) on which the program takes commands in QMP's shape while it runs",
    )
    group.add_argument(
        "--metrics",
        type=typed(Address.parse),
        metavar="HOST:PORT",
        help="where Prometheus may scrape http://HOST:PORT/metrics; port 0 takes any free one and says which",
    )


def add_output_options(
    parser: argparse.ArgumentParser, ending: str = ", a summary with QEMU's statistic names at the end"
) -> argparse._ArgumentGroup:
    """The options of what is printed; `ending` ends the description of --json."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        action="store_true",
        help=f"one JSON object an event on standard output{ending}",
    )
    return group


def add_report_option(group: argparse._ArgumentGroup) -> None:
    """What is written about a migration, the same on both sides."""
    group.add_argument(
        "--report",
        type=Path,
        metavar="PATH",
        help="JSON report of the run, also of one that fails or is cancelled; a directory gets a file for "
        "each migration; `migrate-inspect report` makes a page with plots of both sides' reports",
    )
    group.add_argument(
        "--receipt",
        type=Path,
        metavar="PATH",
        help="after a completed move, what was proved, signed by the key in --tls-dir, else by the token; a "
        "directory gets a file for each migration; checked by `migrate-inspect verify-receipt`",
    )
