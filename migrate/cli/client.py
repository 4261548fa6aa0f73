"""`migrate-src migrate|query|watch|set|pause|cancel|quit`: small clients of the control socket.

Each asks the daemon that runs with --control PATH, prints the answer and ends: 0, or the exit code of the
error; `watch` ends with 0 after a completed migration and with 1 after another end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migrate.cli.arguments import ArgumentParser, typed, whole_number
from migrate.cli.choose_reporter import report_usage_error
from migrate.cli.error_text import error_block
from migrate.cli.plain_text import printable
from migrate.config import parse_throttle
from migrate.errors import MigrateError, NetworkError, UsageError
from migrate.units import format_duration, format_size, parse_rate, parse_size

WATCH_SECONDS = 0.5
REPLY_SECONDS = 10.0
OVER = ("completed", "failed", "cancelled")


class Connection:
    """A client that waits for each answer. Raises NetworkError where the daemon cannot be talked to."""

    def __init__(self, path: Path) -> None:
        self.status = ""
        """Of the last event MIGRATION."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(REPLY_SECONDS)
        self._lines = self._socket.makefile("rb")
        try:
            self._socket.connect(str(path))
            self._read()
            self.ask("qmp_capabilities")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._error(error.strerror or str(error)) from None
            raise

    def close(self) -> None:
        """End the connection."""
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> dict[str, object]:
        """The value of the reply. Raises MigrateError: the daemon refused."""
        request = {"execute": command, "arguments": arguments or {}}
        with contextlib.suppress(OSError):  # what it said before it closed is read all the same
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read()
            if "error" in answer:
                raise MigrateError(f"the daemon refused: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]
            if "event" in answer and str(answer["event"]) == "MIGRATION":
                self.status = str(answer["data"].get("status"))

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise self._error(error.strerror or "no answer") from None
        if not line:
            raise self._error("it has closed the connection")
        value: dict[str, dict[str, object]] = json.loads(line)
        return value

    def _error(self, text: str) -> NetworkError:
        hint = f"does migrate-src run with --control {self._path}?"
        return NetworkError(f"cannot talk to the daemon at {self._path}: {text}", hint=hint)


def report_line(report: Mapping[str, object]) -> str:
    """`query-migrate` on one line."""
    ram = report.get("ram")
    parts = [printable(report.get("status"))]
    if isinstance(ram, Mapping):
        parts.append(f"round {ram.get('dirty-sync-count')}")
        if "remaining" in ram:
            parts.append(f"{format_size(float(ram['remaining']))} remaining")
        parts.append(f"{float(ram['mbps']):.0f} Mbit/s")
    for name in ("expected-downtime", "downtime"):
        milliseconds = report.get(name)
        if isinstance(milliseconds, int):
            parts.append(f"{name.replace('-', ' ')} {format_duration(milliseconds / 1000)}")
    if "error-desc" in report:
        parts.append(printable(report["error-desc"]))
    return ", ".join(parts)


def _migrate(connection: Connection, arguments: argparse.Namespace) -> int:
    connection.ask("migrate", {"uri": arguments.to})
    return 0


def _query(connection: Connection, arguments: argparse.Namespace) -> int:
    report = connection.ask("query-migrate")
    print(json.dumps(report) if arguments.json else report_line(report))
    return 0


def _watch(connection: Connection, arguments: argparse.Namespace) -> int:
    status = ""
    while status not in OVER:
        try:
            report = connection.ask("query-migrate")
        except NetworkError:
            if connection.status not in OVER:
                raise
            report = {"status": connection.status}  # the daemon has ended with its migration
        print(json.dumps(report) if arguments.json else report_line(report), flush=True)
        status = str(report["status"])
        if status not in OVER:
            time.sleep(WATCH_SECONDS)
    return 0 if status == "completed" else 1


def _set(connection: Connection, arguments: argparse.Namespace) -> int:
    fields = vars(arguments)
    values = {name: fields[name] for name in _PARAMETERS if fields[name] is not None}
    if not values:
        raise UsageError("nothing to set: name at least one parameter")
    connection.ask("migrate-set-parameters", values)
    return 0


def _command(name: str) -> Callable[[Connection, argparse.Namespace], int]:
    def run(connection: Connection, _: argparse.Namespace) -> int:
        connection.ask(name)
        return 0

    return run


def _add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="where migrate-dst listens")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the daemon's answer as a line of JSON")


def _throttle(text: str) -> str:
    """Checked here, sent as it is. Raises ValueError."""
    parse_throttle(text)
    return text


_PARAMETERS: dict[str, tuple[str, Callable[[str], int | str], str, str]] = {
    "downtime-limit": ("--downtime-limit", whole_number, "MS", "milliseconds the guest may stand still"),
    "max-bandwidth": ("--max-bandwidth", parse_rate, "RATE", "limit while the guest runs; 0: unlimited"),
    "avail-switchover-bandwidth": (
        "--switchover-bandwidth",
        parse_rate,
        "RATE",
        "limit while the guest is paused; 0: unlimited",
    ),
    "xbzrle-cache-size": (
        "--xbzrle-cache-size",
        parse_size,
        "SIZE",
        "page cache of each side, from the end of the round on; what fits is kept; 0: no XBZRLE",
    ),
    "max-rounds": ("--max-rounds", whole_number, "N", "rounds while the guest runs"),
    "throttle": ("--throttle", _throttle, "auto|N%|off", "what the guest loses of its time in the rounds"),
    "cpu-throttle-initial": ("--cpu-throttle-initial", whole_number, "N", "auto: per cent of the first step"),
    "cpu-throttle-increment": (
        "--cpu-throttle-increment",
        whole_number,
        "N",
        "auto: per cent of each further step",
    ),
    "max-cpu-throttle": ("--max-cpu-throttle", whole_number, "N", "auto: per cent at which the steps end"),
}


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    for name, (option, parse, metavar, text) in _PARAMETERS.items():
        parser.add_argument(option, dest=name, type=typed(parse), metavar=metavar, help=text)


@dataclass(frozen=True, slots=True)
class Client:
    """One subcommand."""

    text: str
    run: Callable[[Connection, argparse.Namespace], int]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None


CLIENTS: dict[str, Client] = {
    "migrate": Client("Begin to move the guest of a waiting migrate-src.", _migrate, _add_to),
    "query": Client("Say how the migration stands.", _query, _add_json),
    "watch": Client("Say so twice a second, until it ends.", _watch, _add_json),
    "set": Client("Change limits while it runs.", _set, _add_parameters),
    "pause": Client(
        "Pause the guest now and send what is left, however long that takes.", _command("migrate-pause")
    ),
    "cancel": Client("End the migration; the guest runs on here.", _command("migrate_cancel")),
    "quit": Client("End the migration, if there is one, and the program.", _command("quit")),
}


def run_client(name: str, argv: Sequence[str]) -> int:
    """Run the subcommand `name` of CLIENTS; returns the exit code."""
    client = CLIENTS[name]
    program = f"migrate-src {name}"
    parser = ArgumentParser(program, client.text)
    parser.add_argument(
        "--control", type=Path, required=True, metavar="PATH", help="the daemon's control socket"
    )
    client.add_options(parser)
    try:
        arguments = parser.parse_args(argv)
        with contextlib.closing(Connection(arguments.control)) as connection:
            return client.run(connection, arguments)
    except UsageError as error:
        report_usage_error(error, program, json=False)
        return error.exit_code
    except MigrateError as error:
        sys.stderr.write(error_block(program, error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
