"""The README's table of failures, read so that each of its rows can be tested.

A row: | **name**: what breaks | **exit code** `what is said` | where the guest is | `what to type` |

* Exit codes are those of the program that the row is about: `migrate-src` where it names no other.
* What stands in `code` is said to a person, word for word; `…` stands for what differs from case to case.
* Where the guest is: one of PLACES. The test looks at its process, and at what the program says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab import Lab, Program
from migrate.cli.error_text import error_block
from migrate.cli.wording import event_text
from migrate.errors import MigrateError

README = Path(__file__).parents[1] / "README.md"
HEADING = "## What happens on each failure"
HEADER = "| what breaks | what is said | the guest | what to type |"
PLACES: dict[str, tuple[str, ...]] = {
    "source, never paused": ("runs at the source", "is where it was"),
    "source": ("runs at the source",),
    "destination": ("runs at the destination",),
    "stopped at the source": ("stopped at the source", "stopped here", "where that migration left it"),
    "nowhere": ("runs nowhere",),
}
"""Where the guest is → one of these is in what an error says about it."""


@dataclass
class FailureRow:
    """One row."""

    name: str
    what: str
    said: str
    guest: str
    typed: str
    compared: bool = False
    """`check` was called."""

    @property
    def codes(self) -> list[int]:
        """Exit codes that `said` names."""
        return [int(code) for code in re.findall(r"\*\*(-?\d+)\*\*", self.said)]

    @property
    def words(self) -> list[str]:
        """What a person must have been told, in pieces."""
        spans = re.findall(r"`([^`]+)`", f"{self.said} {self.typed}")
        return [piece.strip() for span in spans for piece in span.split("…") if piece.strip()]

    def check(self, lab: Lab, guest: Program, program: Program, *others: Program) -> None:
        """Compare the row with what came of it.

        Args:
            guest: the source's, to look at.
            program: whose exit code the row names; it has ended.
            others: whose words count, too.
        """
        self.compare(where(lab, guest, program), program, *others)

    def compare(self, place: str, program: Program, *others: Program) -> None:
        """`check`, where it was seen otherwise where the guest is: one of PLACES."""
        self.compared = True
        told = shown(program, *others)
        assert program.wait() in self.codes, f"{self.name}: {program.wait()} is none of {self.codes}\n{told}"
        for words in self.words:
            assert words in told, f"{self.name}: nobody said {words!r}\n{told}"
        for error in program.found("error"):
            said = str(error["guest"])
            assert any(clause in said for clause in PLACES[self.guest]), f"{self.name}: {said!r}\n{told}"
        assert self.guest == place, f"{self.name}: the guest is {place!r}\n{told}"


def where(lab: Lab, guest: Program, source: Program) -> str:
    """One of PLACES, by looking at processes."""
    if guest.process.poll() is not None:
        return "nowhere"
    if not lab.is_stopped(guest):
        return "source" if source.found("pausing") else "source, never paused"
    if source.found("running") or lab.has_arrived:
        return "destination"
    return "stopped at the source"


def shown(*programs: Program) -> str:
    """What they would have told a person without --json."""
    lines: list[str] = []
    for program in programs:
        name = Path(program.arguments[0]).name
        side = "source" if name == "migrate-src" else "destination"
        for event in program.events:
            fields = {key: value for key, value in event.items() if key not in ("event", "timestamp")}
            if "event" not in event:  # of `status` and `recover`
                lines += [str(value) for value in fields.values()]
            elif event["event"] == "error":
                error = MigrateError(
                    fields["message"], side=fields["side"], guest=fields["guest"], hint=fields["hint"]
                )
                error.exit_code = fields["exit-code"]
                lines.append(error_block(name, error))
            else:
                lines.append(event_text(event["event"], fields, side))
        lines.append(program.stderr)
    return "\n".join(lines)


def read_table(text: str | None = None) -> dict[str, FailureRow]:
    """All rows, by name. Raises AssertionError: the table is not as it should be."""
    text = README.read_text(encoding="utf-8") if text is None else text
    section = text.split(f"{HEADING}\n", 1)[1].split("\n## ", 1)[0]
    rows: dict[str, FailureRow] = {}
    for line in _rows(section):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert len(cells) == 4, f"not four cells: {line}"
        match = re.fullmatch(r"\*\*(.+?)\*\*:? ?(.*)", cells[0])
        assert match, f"a row begins with its name: {line}"
        row = FailureRow(match[1], match[2], *cells[1:])
        assert row.name not in rows, f"two rows are called {row.name}"
        assert row.codes, f"no exit code: {line}"
        assert row.guest in PLACES, f"{row.guest!r} is none of {list(PLACES)}"
        rows[row.name] = row
    return rows


def _rows(section: str) -> Sequence[str]:
    found: list[str] = []
    within = False
    for line in section.splitlines():
        if line == HEADER:
            within = True
        elif not line.startswith("|"):
            within = False
        elif within and not line.startswith("|---"):
            found.append(line)
    return found
