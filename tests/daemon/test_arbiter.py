"""The arbiter's folder: one winner, whoever asks and how often, and no answer rather than a wrong one."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from migrate.daemon import arbiter
from migrate.daemon.arbiter import FileArbiter, Side, ask, remove_arbiter, won_by
from migrate.errors import ArbiterError

MIGRATION = "ab" * 16


@pytest.fixture
def opened(tmp_path: Path) -> FileArbiter:
    one = FileArbiter(tmp_path, MIGRATION)
    one.open()
    return one


def test_the_first_claim_decides_for_ever(tmp_path: Path, opened: FileArbiter) -> None:
    there = FileArbiter(tmp_path, MIGRATION)
    there.look()
    for _ in range(2):
        assert there.claim("destination") == "destination"
        assert opened.claim("source") == "destination"
    assert [path.name for path in tmp_path.iterdir()] == [f"{MIGRATION}.destination"]


def test_of_two_at_once_one_wins(tmp_path: Path, rng: random.Random) -> None:
    for number in range(200):
        FileArbiter(tmp_path, f"{number}").open()
        told: list[Side] = []

        def claim(side: Side, number: int = number, told: list[Side] = told) -> None:
            told.append(FileArbiter(tmp_path, f"{number}").claim(side))

        sides: list[Side] = ["source", "destination", "destination"]
        rng.shuffle(sides)
        threads = [threading.Thread(target=claim, args=[side]) for side in sides]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(told) == 3 and len(set(told)) == 1


def test_a_second_one_of_that_name_is_refused(opened: FileArbiter) -> None:
    with pytest.raises(ArbiterError, match="cannot be made: File exists"):
        opened.open()


def test_another_folder_is_noticed(tmp_path: Path, opened: FileArbiter) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ArbiterError, match="cannot be found"):
        FileArbiter(other, MIGRATION).look()


@pytest.mark.parametrize("side", ["source", "destination"])
def test_what_is_gone_gives_no_answer(tmp_path: Path, opened: FileArbiter, side: Side) -> None:
    remove_arbiter(tmp_path, MIGRATION)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArbiterError, match="it is gone"):
        opened.claim(side)
    tmp_path.rmdir()
    with pytest.raises(ArbiterError, match="No such file"):
        opened.claim(side)


def test_a_decision_that_may_not_be_on_disk_is_none(
    tmp_path: Path, opened: FileArbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one who asks makes sure of it first."""

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        for side in ("destination", "source"):
            with pytest.raises(ArbiterError, match="Input/output error"):
                FileArbiter(tmp_path, MIGRATION).claim(side)  # type: ignore[arg-type]
    assert opened.claim("source") == "destination"


async def test_storage_that_hangs_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "ANSWER_SECONDS", 0.01)
    released = threading.Event()
    with pytest.raises(ArbiterError, match="does not answer"):
        await ask(released.wait)
    released.set()


async def test_who_won_is_told_in_one_word(tmp_path: Path, opened: FileArbiter) -> None:
    assert await won_by("source", opened) == (True, None)
    assert await won_by("destination", opened) == (False, None)
    opened.remove()
    won, error = await won_by("destination", opened)
    assert won is None and isinstance(error, ArbiterError)
