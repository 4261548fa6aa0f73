"""How a toxic and a partition are written on the command line of `migrate-faults`.

NAME[:KEY=VALUE[,KEY=VALUE]…]          latency:latency=20ms,jitter=5ms,direction=both
AFTER+FOR[:reset|silent|close]         2s+5s:silent
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from migrate.daemon.toxics import (
    Bandwidth,
    Corrupt,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
    every,
)
from migrate.units import parse_rate, parse_size

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def parse_duration(text: str) -> float:
    """Seconds of `20ms`, `1.5s`, `2m`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time; write for instance 20ms, 1.5s or 2m")
    return float(match[1]) * _SECONDS[match[2]]


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a probability, 0 to 1")
    return value


def _bit(text: str) -> int:
    if text not in set("01234567"):
        raise ValueError(f"{text!r} is not a bit, 0 (the lowest) to 7")
    return int(text)


def _offsets(text: str) -> tuple[int, ...]:
    return tuple(parse_size(part) for part in text.split("+"))


def _shared(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError(f"{text!r} is not yes or no")
    return text == "yes"


def _direction(text: str) -> str:
    if text not in {"upstream", "downstream", "both"}:
        raise ValueError(f"{text!r} is not upstream (towards the target), downstream or both")
    return text


def _connections(text: str) -> Callable[[int], bool]:
    if text == "all":
        return every
    if text == "lanes":
        return lambda index: index > 0
    if not re.fullmatch(r"\d+(\+\d+)*", text, re.ASCII):
        raise ValueError(f"{text!r} does not name connections: all, lanes (all but 0), or numbers as in 0+2")
    wanted = {int(part) for part in text.split("+")}
    return lambda index: index in wanted


Parser = Callable[[str], object]
_COMMON: Mapping[str, Parser] = {
    "direction": _direction,
    "connections": _connections,
    "after": parse_size,
}
_TOXICS: Mapping[str, tuple[type[Toxic], Mapping[str, Parser], frozenset[str]]] = {
    "latency": (Latency, {"latency": parse_duration, "jitter": parse_duration}, frozenset({"latency"})),
    "bandwidth": (Bandwidth, {"rate": parse_rate, "shared": _shared}, frozenset({"rate"})),
    "timeout": (Timeout, {"timeout": parse_duration}, frozenset()),
    "reset_peer": (ResetPeer, {"timeout": parse_duration}, frozenset()),
    "limit_data": (LimitData, {"bytes": parse_size}, frozenset({"bytes"})),
    "slow_close": (SlowClose, {"delay": parse_duration}, frozenset({"delay"})),
    "slicer": (
        Slicer,
        {"average_size": parse_size, "size_variation": parse_size, "delay": parse_duration},
        frozenset({"average_size"}),
    ),
    "corrupt": (
        Corrupt,
        {"offsets": _offsets, "probability": _probability, "bit": _bit},
        frozenset(),
    ),
}
"""Name, class, its own keys, those of them it needs."""


def toxic_help() -> str:
    """A line for each toxic: its name and keys."""
    return "\n".join(
        f"  {name:<11} " + ", ".join(key + (" (needed)" if key in needed else "") for key in keys)
        for name, (_, keys, needed) in _TOXICS.items()
    )


def parse_toxic(text: str) -> Toxic:
    """The toxic of `NAME[:KEY=VALUE,…]`. Raises ValueError with a message for the person who typed it."""
    name, _, rest = text.partition(":")
    if name not in _TOXICS:
        raise ValueError(f"{name!r} is no toxic: choose from {', '.join(_TOXICS)}")
    kind, own, needed = _TOXICS[name]
    keys = {**own, **_COMMON}
    values: dict[str, object] = {}
    for pair in rest.split(",") if rest else ():
        key, equals, value = pair.partition("=")
        if key not in keys or not equals:
            raise ValueError(f"{name}: {pair!r} is not KEY=VALUE with a key of {', '.join(keys)}")
        if key in values:
            raise ValueError(f"{name}: {key} is given twice")
        values[key] = keys[key](value)
    if missing := needed - set(values):
        raise ValueError(f"{name}: {' and '.join(sorted(missing))} must be given")
    if values.get("rate") == 0:
        raise ValueError(f"{name}: a rate of 0 would carry nothing; that is timeout")
    if values.get("average_size") == 0:
        raise ValueError(f"{name}: slices of 0 bytes would carry nothing")
    return kind(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class StepCommand:
    """A command that is run when a control message goes past.

    Attributes:
        message: its name, `Message.TYPE`.
        command: for /bin/sh.
    """

    message: str
    command: str


def parse_step_command(text: str) -> StepCommand:
    """That of `MESSAGE:COMMAND`. Raises ValueError."""
    from migrate.protocol import messages  # noqa: F401 - the catalogue; it loads the kernel
    from migrate.protocol.schema import known_types

    message, colon, command = text.partition(":")
    if not colon or not command.strip():
        raise ValueError(f"{text!r} is not MESSAGE:COMMAND, as in commit:'kill -9 4711'")
    if message not in known_types():
        names = ", ".join(sorted(known_types()))
        raise ValueError(f"{message!r} is no control message: choose from {names}")
    return StepCommand(message, command)


@dataclass(frozen=True, slots=True)
class Partition:
    """The network is away for some time.

    Attributes:
        after: seconds from the first connection to its beginning.
        length: seconds it lasts.
        how: how it ends the connections there are (`FaultProxy.cut`).
    """

    after: float
    length: float
    how: Literal["reset", "silent", "close"]


def parse_partition(text: str) -> Partition:
    """The partition of `AFTER+FOR[:HOW]`. Raises ValueError."""
    times, _, how = text.partition(":")
    after, plus, length = times.partition("+")
    if not plus:
        raise ValueError(f"{text!r} is not AFTER+FOR[:HOW], as in 2s+5s:silent")
    how = how or "reset"
    if how not in {"reset", "silent", "close"}:
        raise ValueError(f"{text!r}: a partition ends connections by reset, silent or close")
    return Partition(
        parse_duration(after), parse_duration(length), cast(Literal["reset", "silent", "close"], how)
    )
