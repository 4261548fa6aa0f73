"""Values as text: what may come from a peer made safe to show on a terminal, numbers with their units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from migrate.units import format_count, format_duration, format_rate, format_size

Fields = Mapping[str, object]
"""An event's fields; names with dashes."""


def printable(value: object) -> str:
    """The value as one line of text; what could steer a terminal becomes an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(fields: Fields, name: str) -> float:
    """A numeric field; 0 if it is missing, not a number, or not finite."""
    value = fields.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else 0


def describe(fields: Fields) -> str:
    """All fields as `name value, name value`, with units where the name tells them."""
    return ", ".join(f"{printable(name)} {_value_text(name, value)}" for name, value in fields.items())


def _value_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int | float):
        return _number_text(name, value)
    if isinstance(value, Mapping):
        return f"({describe(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return " ".join(_value_text("", item) for item in value) or "none"
    return printable(value)


def _number_text(name: str, value: float) -> str:
    last = name.replace("_", "-").rsplit("-", 1)[-1]
    if last in {"size", "bytes", "length"}:
        return format_size(value)
    if last == "bandwidth":
        return format_rate(value) if value else "unlimited"
    if last in {"seconds", "timeout", "delay", "downtime"}:
        return format_duration(value)
    if last == "ms":
        return format_duration(value / 1000)
    return f"{value:g}" if isinstance(value, float) else str(value)


def plural(count: float, noun: str) -> str:
    """`1 page`, `12.3k pages`."""
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """`0 %`, `4.2 %`, `92 %`, `100 %`; never rounds to 100 what is not all."""
    value = share * 100
    if 0 < value < 9.95:
        return f"{value:.1f} %"
    return f"{math.floor(value) if value < 100 else value:.0f} %"


def guest_text(clause: object) -> str:
    """Where the guest runs, after the label `guest`: "the guest runs here" says the word twice."""
    return printable(clause).removeprefix("the guest ")
