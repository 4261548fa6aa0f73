"""Journals on disk: alternating slots, locks, and what a failed or torn write leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.daemon import journal as module
from migrate.daemon.journal import Journal, JournalBusyError, boot_id, find_journals
from migrate.errors import JournalError
from migrate.protocol.journal_record import FILE_BYTES, SLOT_BYTES, JournalRecord, Step

RECORD = JournalRecord("source", Step.MOVING, "5a" * 16, boot_id(), (), peer="192.0.2.7:4444")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)


def _written(journal: Journal, step: Step) -> None:
    journal.write(replace(journal.record, step=step))


def test_made_with_tight_modes_and_room_for_everything(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "migrate"
    journal = Journal.create(directory, RECORD)
    status = journal.path.stat()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == FILE_BYTES and status.st_blocks * 512 >= FILE_BYTES
    assert journal.path.name == f"source-{'5a' * 16}.journal"
    journal.close()


def test_records_alternate_between_the_slots(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RECORD)
    seen = []
    for step in (Step.PAUSING, Step.COMMITTED, Step.DONE):
        before = journal.path.read_bytes()
        _written(journal, step)
        after = journal.path.read_bytes()
        changed = [at for at in (0, SLOT_BYTES) if before[at:][:SLOT_BYTES] != after[at:][:SLOT_BYTES]]
        seen.append(changed)
    assert seen == [[SLOT_BYTES], [0], [SLOT_BYTES]]
    journal.close()
    again = Journal.open(journal.path)
    assert again.record.step is Step.DONE
    _written(again, Step.MOVING)
    again.close()
    [found] = find_journals(tmp_path, "source")
    assert found.record is not None and found.record.step is Step.MOVING


def test_only_one_may_write(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RECORD)
    with pytest.raises(JournalBusyError, match="in use"):
        Journal.open(journal.path)
    assert find_journals(tmp_path, "source")[0].in_use
    with pytest.raises(JournalError, match="File exists"):
        Journal.create(tmp_path, RECORD)
    assert journal.path.exists(), "the other one's journal stays"
    journal.close()
    Journal.open(journal.path).close()
    assert not find_journals(tmp_path, "source")[0].in_use


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from migrate.daemon.journal import Journal;"
        "journal = Journal.open(Path(sys.argv[1])); print('locked', flush=True); signal.pause()"
    )
    journal = Journal.create(tmp_path, RECORD)
    journal.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(journal.path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(JournalBusyError):
            Journal.open(journal.path)
        holder.kill()
        holder.wait()
        Journal.open(journal.path).close()


def test_no_child_of_the_daemon_inherits_the_lock(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RECORD)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        journal.close()
        Journal.open(journal.path).close()
    finally:
        child.kill()
        child.wait()


def test_a_failed_write_leaves_the_record_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create(tmp_path, RECORD)
    _written(journal, Step.PAUSING)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    for _ in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fail)
            with pytest.raises(JournalError, match="Input/output error"):
                _written(journal, Step.COMMITTED)
        assert journal.record.step is Step.PAUSING
        slots = journal.path.read_bytes()
        assert b'"pausing"' in slots[SLOT_BYTES:], "what is known to be on disk is not written over"
    _written(journal, Step.DONE)
    assert journal.record.step is Step.DONE
    journal.close()
    assert Journal.open(journal.path).record.step is Step.DONE


def test_a_torn_write_leaves_the_record_before_it(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RECORD)
    _written(journal, Step.PAUSING)
    _written(journal, Step.COMMITTED)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[100] ^= 1  # slot 0, which holds the last record
    journal.path.write_bytes(data)
    again = Journal.open(journal.path)
    assert again.record.step is Step.PAUSING
    _written(again, Step.MOVING)
    assert find_journals(tmp_path, "source")[0].record == again.record
    again.close()


def test_a_damaged_journal_is_shown_and_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / f"source-{'00' * 16}.journal"
    path.write_bytes(b"x" * FILE_BYTES)
    with pytest.raises(JournalError, match="damaged"):
        Journal.open(path)
    [found] = find_journals(tmp_path, "source")
    assert found.record is None and "damaged" in found.problem


def test_a_removed_journal_is_not_taken_over(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RECORD)
    journal.remove()
    assert not journal.path.exists()
    journal.remove()
    with pytest.raises(JournalError, match="No such file"):
        Journal.open(journal.path)
    assert find_journals(tmp_path, "source") == []


def test_sides_do_not_mix(tmp_path: Path) -> None:
    Journal.create(tmp_path, RECORD).close()
    Journal.create(tmp_path, replace(RECORD, side="destination", step=Step.RECEIVING)).close()
    assert [found.record.side for side in ("source", "destination") for found in find_journals(tmp_path, side)
            if found.record] == ["source", "destination"]  # fmt: skip
    assert find_journals(tmp_path / "nowhere", "source") == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be made") as caught:
        Journal.create(tmp_path / "file" / "state", RECORD)
    assert caught.value.hint is not None and "--state-dir" in caught.value.hint


def test_what_broke_off_while_it_was_made_is_no_journal(tmp_path: Path) -> None:
    """Nothing was done on the strength of it: not even its first record was on disk for certain."""
    path = tmp_path / f"source-{'00' * 16}.journal"
    for begun in (bytes(FILE_BYTES), b"", b"torn".ljust(FILE_BYTES, b"\0")):
        path.write_bytes(begun)
        assert find_journals(tmp_path, "source") == []
    path.write_bytes(bytes(SLOT_BYTES) + b"x" * SLOT_BYTES)
    assert len(find_journals(tmp_path, "source")) == 1
