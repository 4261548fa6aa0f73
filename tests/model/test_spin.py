"""The handover a second time: handover.pml, explored by spin to its end, and again with a rule broken.

What may happen, and what holds then, stands in the model's own text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("handover.pml")
SECONDS = 120
"""For one search, on a machine that has much else to do; it takes a few."""
SAFETY = ("-DSAFETY", "-DNOCLAIM")
"""Assertions, and programs that wait for ever; without these: also `ltl heals`."""


class Search:
    """What pan said.

    Args:
        flags: for cc.
        defines: names for the model.
    """

    def __init__(self, directory: Path, flags: tuple[str, ...], *defines: str) -> None:
        if shutil.which("spin") is None:
            pytest.fail("no spin here: the model cannot be explored (Debian package spin)")
        _run(directory, "spin", "-a", *(f"-D{name}" for name in defines), str(MODEL))
        _run(directory, "cc", *flags, "-DMEMLIM=2000", "-o", "pan", "pan.c")
        options = ("-m20000",) if "-DNOCLAIM" in flags else ("-a", "-m20000")
        self.text = _run(directory, "./pan", *options)

    @property
    def found(self) -> str:
        """What is wrong with the model, empty: nothing."""
        found = re.search(r"^pan:\d+: (.*) \(at depth", self.text, re.MULTILINE)
        return "" if found is None else found[1]

    def check_complete(self) -> None:
        """Fail unless every state was seen."""
        for sign in ("Search not completed", "search depth too small", "reached -DMEMLIM", "out of memory"):
            assert sign not in self.text, self.text
        assert re.search(r"errors: 0$", self.text, re.MULTILINE), self.text

    @property
    def states(self) -> int:
        """How many there are."""
        found = re.search(r"^ *(\d+) states, stored", self.text, re.MULTILINE)
        assert found is not None, self.text
        return int(found[1])


def _run(directory: Path, *command: str) -> str:
    ended = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}"
    return ended.stdout


@pytest.mark.parametrize(
    ("flags", "defines"),
    [(SAFETY, ()), ((), ()), ((), ("ARBITER",))],
    ids=["assertions", "heals", "arbiter"],
)
def test_every_state(tmp_path: Path, flags: tuple[str, ...], defines: tuple[str, ...]) -> None:
    search = Search(tmp_path, ("-O1", *flags), *defines)
    assert search.found == "", search.text
    search.check_complete()
    print(f"{search.states} states")
    assert search.states > 500_000, "something keeps the model from going on"


def test_a_destination_that_has_lost_its_journal(tmp_path: Path) -> None:
    """It may stay undecided then, but it never goes wrong."""
    search = Search(tmp_path, SAFETY, "LOST_DISK")
    assert search.found == "", search.text
    search.check_complete()
    print(f"{search.states} states")


@pytest.mark.parametrize(
    ("defines", "found"),
    [
        (("MUTATION_PAUSE_BEFORE_JOURNAL",), "acceptance cycle"),
        (("MUTATION_COMMIT_BEFORE_JOURNAL",), "assertion violated"),
        (("MUTATION_RESUME_AFTER_COMMIT",), "assertion violated"),
        (("MUTATION_RECOVER_RESUMES",), "assertion violated"),
        (("MUTATION_START_BEFORE_JOURNAL",), "assertion violated"),
        (("MUTATION_DECLINE_NOT_JOURNALLED",), "acceptance cycle"),
        (("MUTATION_NO_LOCK",), "assertion violated"),
        (("LOST_DISK", "MUTATION_NO_RECORD_IS_ABORTED"), "assertion violated"),
        (("ARBITER", "MUTATION_ARBITER_NOT_HEEDED"), "assertion violated"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_broken_rule_is_found(tmp_path: Path, defines: tuple[str, ...], found: str) -> None:
    flags = SAFETY if found == "assertion violated" and "ARBITER" not in defines else ()
    search = Search(tmp_path, flags, *defines)
    assert search.found.startswith(found), search.text
