"""The table of exit codes is complete, and `--help` shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import migrate.protocol.stats  # noqa: F401 - a layer may define subclasses of its own
from migrate.cli import dst, src
from migrate.cli.exit_codes import EXIT_CODES, exit_code_name
from migrate.errors import MigrateError


def _classes(root: type[MigrateError]) -> Iterator[type[MigrateError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


def test_the_table_has_exactly_the_codes_of_the_error_classes() -> None:
    codes = [code for code, _, _ in EXIT_CODES]
    assert codes == sorted(set(codes))
    assert set(codes) == {0} | {error.exit_code for error in _classes(MigrateError)}


def test_a_subclass_has_the_code_of_its_parent_or_one_of_its_own() -> None:
    own = [error for error in _classes(MigrateError) if "exit_code" in vars(error)]
    assert len({error.exit_code for error in own}) == len(own)


@pytest.mark.parametrize("build", [src.build_parser, dst.build_parser])
def test_help_shows_every_code(build: object) -> None:
    assert callable(build)
    text = build().format_help()
    for code, name, meaning in EXIT_CODES:
        assert f"{code:>3}  {name}" in text
        assert meaning in text


def test_an_unknown_code_has_no_name() -> None:
    assert exit_code_name(10) == "undecided"
    with pytest.raises(KeyError):
        exit_code_name(99)
