"""The commands and events of the control socket: one table with arguments, units, sides and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from migrate.protocol.parameters import PARAMETERS
from migrate.protocol.qmp import QmpError

Side = Literal["source", "destination"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One member of `arguments`."""

    name: str
    type: type[int] | type[str]
    text: str
    unit: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command; names and arguments are QEMU's where it has the command."""

    name: str
    text: str
    arguments: tuple[Argument, ...] = ()
    sides: frozenset[Side] = frozenset({"source", "destination"})


@dataclass(frozen=True, slots=True)
class Event:
    """One event."""

    name: str
    text: str


_SOURCE: frozenset[Side] = frozenset({"source"})

COMMANDS: tuple[Command, ...] = (
    Command(
        "query-status",
        "`running`, `status`: the guest on this host, in QEMU's words (RunState); `assumed`: not looked at",
    ),
    Command("query-migrate", "the statistics, with QEMU's names and units; `error-desc` after a failure"),
    Command("query-version", "what this program is"),
    Command("query-commands", "the names of all commands"),
    Command(
        "migrate",
        "begin to move the guest; refused while a migration is under way and after a handover",
        (Argument("uri", str, "where migrate-dst listens: `tcp:HOST:PORT` or `HOST:PORT`", required=True),),
        _SOURCE,
    ),
    Command("migrate_cancel", "end the migration that is under way; nothing happens if there is none"),
    Command(
        "migrate-pause",
        "pause the guest now and send what is left, however long that takes (in QEMU: postcopy only)",
        sides=_SOURCE,
    ),
    Command(
        "migrate-set-parameters",
        "change limits, at once and for later migrations",
        tuple(Argument(each.name, each.type, each.text, each.unit) for each in PARAMETERS),
        _SOURCE,
    ),
    Command("query-migrate-parameters", "the limits in force", sides=_SOURCE),
    Command("quit", "cancel a migration that is under way, and end the program"),
)

EVENTS: tuple[Event, ...] = (
    Event("MIGRATION", "`status` has changed: setup, active, device, completed, failed, cancelled …"),
    Event("MIGRATION_PASS", "round `pass` begins (source)"),
    Event("MIGRATION_ROUND", "a round has ended: its row of `query-migrate`'s `rounds` (ours)"),
    Event("MIGRATION_THROTTLE", "the guest loses `percent` of its time from here on (ours)"),
    Event("MIGRATION_CACHE", "page caches have another `size`, or (with `reason`) will not have it (ours)"),
)


def commands_of(side: Side) -> dict[str, Command]:
    """The commands that this side knows, by name."""
    return {command.name: command for command in COMMANDS if side in command.sides}


def check_arguments(command: Command, given: Mapping[str, object]) -> None:
    """Refuse what the command does not take, or in another type. Raises QmpError."""
    known = {argument.name: argument for argument in command.arguments}
    for name, value in given.items():
        argument = known.get(name)
        if argument is None:
            raise QmpError(f"parameter {name[:64]!r} is unexpected")
        if not isinstance(value, argument.type) or isinstance(value, bool):
            wanted = "integer" if argument.type is int else "string"
            unit = f" ({argument.unit})" if argument.unit else ""
            raise QmpError(f"invalid parameter type for {name!r}, expected: {wanted}{unit}")
    for argument in command.arguments:
        if argument.required and argument.name not in given:
            raise QmpError(f"parameter {argument.name!r} is missing")
