"""Every row of the README's table of failures has a test, and no test is about a row that is not there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failure_table import HEADER, HEADING, read_table

TESTS = Path(__file__).parent
SEPARATOR = "|---|---|---|---|"
GOOD = "| **disk full** at the destination | **9** `No … left` | source | `make room` |"


def _marked() -> Iterator[tuple[str, str]]:
    """Names of rows that tests are marked with, and where."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr == "failure_row":
                name = ast.literal_eval(node.args[0])
                assert isinstance(name, str)
                yield name, f"{path.relative_to(TESTS)}:{node.lineno}"


def test_each_row_has_a_test_and_each_test_its_row() -> None:
    rows, marked = set(read_table()), list(_marked())
    tested = {name for name, _ in marked}
    assert not rows - tested, "rows without a test"
    assert not [f"{where}: {name}" for name, where in marked if name not in rows], "tests without a row"


def test_a_row_in_pieces() -> None:
    row = read_table(f"{HEADING}\n\n{HEADER}\n{SEPARATOR}\n{GOOD}\n")["disk full"]
    assert (row.codes, row.words, row.guest) == ([9], ["No", "left", "make room"], "source")


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.replace("| `make", "`make"),
        GOOD.replace("**disk full**", "disk full"),
        GOOD.replace("**9**", "9"),
        GOOD.replace("| source |", "| somewhere |"),
        f"{GOOD}\n{GOOD}",
    ],
    ids=["a cell less", "no name", "no exit code", "nowhere known", "twice"],
)
def test_a_table_that_is_not_as_it_should_be(bad: str) -> None:
    with pytest.raises(AssertionError):
        read_table(f"{HEADING}\n\n{HEADER}\n{SEPARATOR}\n{bad}\n")
