"""Reports of runs, read back: whatever is in the file becomes checked values or one ReportError.

The format is that of `migrate.protocol.run_report`. Members that are not known are passed over; a number is
finite, a text at most MOST_TEXT characters, a list or object as long as a report can have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from migrate.errors import ReportError
from migrate.protocol.run_report import MOST_EVENTS, MOST_ROUNDS, MOST_SAMPLES, SCHEMA, VERSION

MOST_BYTES = 16 << 20
MOST_TEXT = 1 << 16
MOST_MEMBERS = 4096
MOST_DEPTH = 5
_LARGEST = 1e18

Numbers = Mapping[str, float]
Pairs = tuple[tuple[str, str], ...]
"""Names and values as text, for tables."""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event; `at` is seconds since the migration began."""

    at: float
    name: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SideReport:
    """One side's report."""

    name: str
    """Of the file, for people."""
    side: str
    migration: str
    attempt: int
    started_at: float
    """Seconds since the epoch."""
    software: Pairs
    configuration: Mapping[str, object]
    agreed: Mapping[str, object]
    blocks: tuple[tuple[str, int], ...]
    tracker: str
    tracker_reasons: tuple[str, ...]
    outcome: str
    guest: str
    error: Pairs
    totals: Numbers
    """Numbers of `statistics` by name; those of its objects as `ram.total` or `downtime-parts.copy`."""
    rounds: tuple[Numbers, ...]
    samples: tuple[Numbers, ...]
    """Rows of the timeline; what is null is left out of its row."""
    events: tuple[Happened, ...]
    events_left_out: int

    def total(self, name: str) -> float | None:
        """A number of `totals`, if it is there."""
        return self.totals.get(name)

    def event(self, name: str) -> Happened | None:
        """The first event of that name."""
        return next((event for event in self.events if event.name == name), None)


def read_report(data: bytes, name: str) -> SideReport:
    """Check one report.

    Args:
        name: of the file, for the error.

    Raises:
        ReportError: it is none, or not one of this version.
    """
    if len(data) > MOST_BYTES:
        raise ReportError(f"{name} is no report: it has more than {MOST_BYTES >> 20} MiB")
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{name} is no report: it is not JSON ({error})") from None
    top = _Node(name, "", value).members()
    if top.get("schema").text() != SCHEMA:
        raise ReportError(f'{name} is no report: "schema" is not "{SCHEMA}"')
    version = top.get("version").whole()
    if version != VERSION:
        raise ReportError(
            f"{name} is a report of version {version}, version {VERSION} is read here",
            hint="use the migrate-inspect that belongs to the program that wrote it",
        )
    return _side_report(name, top)


def check_pair(first: SideReport, second: SideReport) -> tuple[SideReport, SideReport]:
    """The source's and the destination's report of one migration, in that order.

    Raises:
        ReportError: they do not belong together.
    """
    if first.side == second.side:
        raise ReportError(
            f"{first.name} and {second.name} are both the {first.side}'s",
            hint="give the report of migrate-src and that of migrate-dst",
        )
    source, destination = (first, second) if first.side == "source" else (second, first)
    if source.migration != destination.migration:
        raise ReportError(
            f"{source.name} is of migration {source.migration or '(none)'}, "
            f"{destination.name} of {destination.migration or '(none)'}",
            hint="the two reports of one migration have the same id",
        )
    both = {source.outcome, destination.outcome} == {"completed"}
    if destination.attempt > source.attempt or (both and destination.attempt != source.attempt):
        raise ReportError(
            f"{source.name} ends with attempt {source.attempt}, {destination.name} with attempt"
            f" {destination.attempt} of that migration",
            hint="one of the two was written by another run",
        )
    return source, destination


class _Node:
    """A value of the file and the path to it."""

    def __init__(self, file: str, path: str, value: object) -> None:
        self._file = file
        self._path = path
        self._value = value

    def members(self) -> _Node:
        """This node, an object."""
        if not isinstance(self._value, dict) or len(self._value) > MOST_MEMBERS:
            self.fail("an object")
        return self

    def get(self, name: str) -> _Node:
        """A member; null if it is not there."""
        assert isinstance(self._value, dict)
        path = f"{self._path}.{name}" if self._path else name
        return _Node(self._file, path, self._value.get(name))

    def items(self) -> Iterator[tuple[str, _Node]]:
        """All members."""
        self.members()
        assert isinstance(self._value, dict)
        for name in self._value:
            yield name, self.get(name)

    def list(self, most: int) -> list[_Node]:
        """The items of a list."""
        if not isinstance(self._value, list) or len(self._value) > most:
            self.fail(f"a list of at most {most}")
        return [_Node(self._file, f"{self._path}[{i}]", item) for i, item in enumerate(self._value)]

    def text(self) -> str:
        if not isinstance(self._value, str) or len(self._value) > MOST_TEXT:
            self.fail("a text")
        return self._value

    def optional_text(self) -> str:
        """Empty where it is null."""
        return "" if self._value is None else self.text()

    def number(self) -> float:
        value = self._value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -_LARGEST <= value <= _LARGEST
        ):
            self.fail("a number of this world")
        return value

    def whole(self) -> int:
        number = self.number()
        if number != int(number) or number < 0:
            self.fail("a whole number")
        return int(number)

    def plain(self, depth: int = MOST_DEPTH) -> object:
        """Anything of checked texts and numbers that is not nested deeper than MOST_DEPTH."""
        if depth == 0:
            self.fail(f"nested at most {MOST_DEPTH} deep")
        if self.is_number:
            return self.number()
        if isinstance(self._value, str):
            return self.text()
        if isinstance(self._value, list):
            return [item.plain(depth - 1) for item in self.list(MOST_MEMBERS)]
        if isinstance(self._value, dict):
            return {name: value.plain(depth - 1) for name, value in self.items()}
        return self._value

    @property
    def is_null(self) -> bool:
        return self._value is None

    @property
    def is_number(self) -> bool:
        return isinstance(self._value, int | float) and not isinstance(self._value, bool)

    @property
    def is_object(self) -> bool:
        return isinstance(self._value, dict)

    def fail(self, wanted: str) -> NoReturn:
        """Raise ReportError: it is something else."""
        raise ReportError(f"{self._file} is no report: {self._path or 'the whole'} is not {wanted}")


def _side_report(name: str, top: _Node) -> SideReport:
    side = top.get("side").text()
    if side not in ("source", "destination"):
        raise ReportError(f"{name} is no report: side is neither source nor destination")
    tracker, error, statistics = top.get("tracker"), top.get("error"), top.get("statistics")
    rounds: tuple[Numbers, ...] = ()
    if not statistics.is_null:
        rows = statistics.members().get("rounds").list(MOST_ROUNDS)
        rounds = tuple(_numbers(row, ("round", "start", "time", "bytes")) for row in rows)
    reasons = [] if tracker.is_null else tracker.members().get("reasons").list(64)
    return SideReport(
        name=name,
        side=side,
        migration=top.get("migration").text(),
        attempt=top.get("attempt").whole(),
        started_at=top.get("started-at").number(),
        software=tuple((key, value.text()) for key, value in top.get("software").items()),
        configuration=_plain(top.get("configuration")),
        agreed=_plain(top.get("agreed")),
        blocks=tuple(
            (row.members().get("name").text(), row.get("length").whole())
            for row in top.get("blocks").list(4096)
        ),
        tracker="" if tracker.is_null else tracker.get("name").text(),
        tracker_reasons=tuple(reason.text() for reason in reasons),
        outcome=top.get("outcome").text(),
        guest=top.get("guest").optional_text(),
        error=() if error.is_null else _error(error),
        totals=dict(_totals(statistics)),
        rounds=rounds,
        samples=_samples(top.get("timeline")),
        events=tuple(map(_happened, top.get("events").list(MOST_EVENTS))),
        events_left_out=top.get("events-left-out").whole(),
    )


def _plain(node: _Node) -> dict[str, object]:
    return {key: value.plain() for key, value in node.items()}


def _error(error: _Node) -> Pairs:
    error.members()
    names = ("class", "message", "side", "guest", "hint")
    texts = [(name, error.get(name).optional_text()) for name in names]
    texts.append(("exit-code", str(error.get("exit-code").whole())))
    return tuple(texts)


def _totals(statistics: _Node) -> Iterator[tuple[str, float]]:
    """Every number in the statistics, however deep, but for the rounds."""
    if statistics.is_null:
        return
    for name, value in statistics.items():
        if value.is_number:
            yield name, value.number()
        elif value.is_object:
            for inner, number in value.items():
                if number.is_number:
                    yield f"{name}.{inner}", number.number()


def _numbers(row: _Node, required: tuple[str, ...]) -> Numbers:
    """The numbers of an object; nulls are left out."""
    row.members()
    for name in required:
        row.get(name).number()
    return {name: value.number() for name, value in row.items() if not value.is_null}


def _samples(timeline: _Node) -> tuple[Numbers, ...]:
    columns = [column.text() for column in timeline.members().get("columns").list(64)]
    found = []
    last = -math.inf
    for row in timeline.get("rows").list(MOST_SAMPLES + 1):
        cells = row.list(len(columns))
        sample = {name: cell.number() for name, cell in zip(columns, cells, strict=False) if not cell.is_null}
        if "time" not in sample or "transferred" not in sample or sample["time"] < last:
            row.fail("a sample with a time that is not before the one of the row above")
        last = sample["time"]
        found.append(sample)
    return tuple(found)


def _happened(node: _Node) -> Happened:
    fields = {key: value.plain() for key, value in node.items() if key not in ("at", "event")}
    return Happened(node.get("at").number(), node.get("event").text(), fields)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
