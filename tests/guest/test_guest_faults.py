"""Damage done on purpose to the RAM of a stopped guest: each kind is found, named and placed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from guest_support import (
    PAGE,
    assert_whole,
    guest_in_this_process,
    json_of,
    live,
    make_layout,
    read_ram,
    run_guest,
    table_entry,
)

from migrate.guest import checker
from migrate.guest.checker import CheckReport
from migrate.guest.ram_files import RamFiles

OldAndNew = Callable[..., tuple[list[Path], list[bytearray]]]
BLOCKS = (40, 1100)
"""Block 1 has three table pages: its data pages begin at page 4."""


def counts(report: CheckReport) -> dict[str, int]:
    found = {
        "torn": report.torn,
        "lost": report.lost,
        "stale": report.stale,
        "damaged": report.damaged,
        "lost-writes": report.lost_writes,
    }
    assert report.clean == (not any(found.values()))
    return {kind: number for kind, number in found.items() if number}


def put(path: Path, offset: int, data: bytes | bytearray) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def place_of(report: CheckReport) -> tuple[str, str, int]:
    (fault,) = report.faults
    return fault.kind, Path(fault.file).name, fault.page


def test_torn_page(old_and_new: OldAndNew, rng: random.Random) -> None:
    paths, old = old_and_new("thrash", *BLOCKS)
    page, cut = rng.randrange(4, 1100), rng.randrange(24, PAGE - 8, 8)
    put(paths[1], page * PAGE, old[1][page * PAGE : page * PAGE + cut])
    report = checker.check(paths)
    assert counts(report) == {"torn": 1}
    assert place_of(report) == ("torn", "block1", page)


@pytest.mark.parametrize("becomes_zero", [True, False])
def test_torn_between_zero_and_filled(becomes_zero: bool, old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("zero", 200)
    ram, zero = read_ram(paths), bytes(PAGE)
    for _, page in ram.data_pages():
        before, after = bytes(old[0][page * PAGE : (page + 1) * PAGE]), ram.page(0, page)
        if (before == zero, after == zero) == (not becomes_zero, becomes_zero):
            break
    put(paths[0], page * PAGE, before[: PAGE // 2])
    report = checker.check(paths)
    assert counts(report) == {"torn": 1}
    assert place_of(report) == ("torn", "block0", page)


def test_stale_page(old_and_new: OldAndNew, rng: random.Random) -> None:
    paths, old = old_and_new("sparse", *BLOCKS)
    page = rng.randrange(4, 1100)
    put(paths[1], page * PAGE, old[1][page * PAGE : (page + 1) * PAGE])
    report = checker.check(paths)
    assert counts(report) == {"stale": 1}
    assert place_of(report) == ("stale", "block1", page)


def test_lost_page(old_and_new: OldAndNew) -> None:
    paths, _ = old_and_new("kv", *BLOCKS)
    put(paths[0], 39 * PAGE, bytes(PAGE))
    report = checker.check(paths)
    assert counts(report) == {"lost": 1}
    assert place_of(report) == ("lost", "block0", 39)


def test_stale_where_a_zero_page_should_be(old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("zero", 200)
    ram, zero = read_ram(paths), bytes(PAGE)
    for _, page in ram.data_pages():
        before = bytes(old[0][page * PAGE : (page + 1) * PAGE])
        if ram.page(0, page) == zero != before:
            break
    put(paths[0], page * PAGE, before)
    assert counts(checker.check(paths)) == {"stale": 1}


def test_lost_writes(old_and_new: OldAndNew) -> None:
    """Page and table entry both old, and fitting each other: only the total tells."""
    paths, old = old_and_new("thrash", *BLOCKS)
    after = read_ram(paths)
    for page in (300, 700):
        entry = after.entry_offset(1, page)
        put(paths[1], entry, old[1][entry : entry + 8])
        put(paths[1], page * PAGE, old[1][page * PAGE : (page + 1) * PAGE])
    before = read_ram(paths)
    missing = sum(after.version(1, page) - before.version(1, page) for page in (300, 700))
    report = checker.check(paths)
    assert missing > 1
    assert counts(report) == {"lost-writes": missing}
    assert place_of(report) == ("lost-writes", "block0", -1)


def test_stale_table_page(old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("thrash", *BLOCKS)
    put(paths[1], 2 * PAGE, old[1][2 * PAGE : 3 * PAGE])  # the entries of pages 512 to 1023
    report = checker.check(paths)
    assert counts(report) == {"stale": 1}
    assert {(fault.kind, fault.file) for fault in report.faults} == {("stale", str(paths[1]))}
    assert all(512 <= fault.page < 1024 and "table" in fault.text for fault in report.faults)


def test_lost_table_page(old_and_new: OldAndNew) -> None:
    paths, _ = old_and_new("thrash", *BLOCKS)
    put(paths[1], 2 * PAGE, bytes(PAGE))
    assert counts(checker.check(paths)) == {"stale": 1}


def test_stale_state_page(old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("thrash", *BLOCKS)
    put(paths[0], PAGE, old[0][PAGE : 2 * PAGE])
    report = checker.check(paths)
    assert set(counts(report)) == {"stale"}
    assert {(fault.kind, Path(fault.file).name, fault.page) for fault in report.faults} == {
        ("stale", "block0", 1)
    }
    result = run_guest("--resume", "--ram", paths[0], "--ram", paths[1], "--duration", 1)
    assert result.returncode == 9
    assert "cannot be resumed" in result.stderr


def test_counters_older_than_the_pages(old_and_new: OldAndNew) -> None:
    """A state page a few writes old, of the same beat: only the total of the versions tells."""
    paths, _ = old_and_new("thrash", *BLOCKS)
    done = read_ram(paths).done - 3
    put(paths[0], PAGE + 24, 2 * done.to_bytes(8, "little"))  # started and done
    report = checker.check(paths)
    assert counts(report) == {"stale": 1}
    assert place_of(report) == ("stale", "block0", 1)


def test_stale_header(old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("thrash", *BLOCKS)
    put(paths[1], 0, old[1][:PAGE])
    report = checker.check(paths)
    assert counts(report) == {"stale": 1}
    assert place_of(report) == ("stale", "block1", 0)


def test_page_at_another_place(old_and_new: OldAndNew) -> None:
    paths, _ = old_and_new("thrash", *BLOCKS)
    ram = read_ram(paths)
    put(paths[1], 600 * PAGE, ram.page(1, 601))
    assert counts(checker.check(paths)) == {"damaged": 1}


def test_page_of_another_guest(old_and_new: OldAndNew, shm_dir: Path) -> None:
    paths, _ = old_and_new("log", *BLOCKS)
    stranger = shm_dir / "stranger"
    with RamFiles.create([stranger], make_layout("idle", 40, guest_id=1)) as files:
        live(files, files.layout.fill_writes)
    put(paths[0], 20 * PAGE, read_ram([stranger]).page(0, 20))
    assert counts(checker.check(paths)) == {"damaged": 1}


@pytest.mark.parametrize("workload", ["kv", "zero", "mixed"])
def test_flipped_bits(workload: str, old_and_new: OldAndNew, rng: random.Random) -> None:
    """Any single bit of RAM, except what cannot matter (see below), is missed by no check."""
    paths, _ = old_and_new(workload, 24, 20)
    contents = [path.read_bytes() for path in paths]
    assert checker.check(paths).clean
    ram = read_ram(paths)
    # A beat and its copies may be one apart; the slot means nothing while no write is in flight.
    may_be_one_off = {(0, 2048), (1, 2048), (0, PAGE + 8), (0, PAGE + 16)}
    assert not ram.in_flight
    unused = range(PAGE + 40, PAGE + 72)
    spots = [(0, rng.randrange(PAGE * 3)) for _ in range(300)] + [
        (1, rng.randrange(PAGE * 2)) for _ in range(150)
    ]
    spots += [(block, rng.randrange(len(contents[block]))) for block in (0, 1) for _ in range(200)]
    for block, offset in spots:
        bit = rng.randrange(8)
        if ((block, offset) in may_be_one_off and bit == 0) or (block == 0 and offset in unused):
            continue
        flipped = bytes([contents[block][offset] ^ 1 << bit])
        put(paths[block], offset, flipped)
        result = run_check(paths)
        assert result, f"bit {bit} of byte {offset} of block {block}"
        if offset >= 3 * PAGE:  # a data page
            page, word = offset // PAGE, offset % PAGE // 8
            zero = ram.page(block, page) == bytes(PAGE)
            # A flipped version may look like a page of two versions.
            assert set(result) <= ({"torn", "damaged"} if word in (2, 511) or zero else {"damaged"})
        put(paths[block], offset, contents[block][offset : offset + 1])
    assert checker.check(paths).clean


def run_check(paths: list[Path]) -> dict[str, int]:
    """Counts of the check; a header that is no longer one counts as damaged."""
    try:
        return counts(checker.check(paths))
    except checker.RamError:
        return {"damaged": 1}


def test_swapped_words_and_balanced_changes(old_and_new: OldAndNew, rng: random.Random) -> None:
    """What a plain sum of words would not see."""
    paths, _ = old_and_new("thrash", 40)
    ram = read_ram(paths)
    for _ in range(50):
        page = bytearray(ram.page(0, 20))
        a, b = (8 * word for word in rng.sample(range(4, 511), 2))
        one, other = (int.from_bytes(page[at : at + 8], "little") for at in (a, b))
        if rng.random() < 0.5:
            one, other = other, one
        else:
            one, other = (one + 1) % 2**64, (other - 1) % 2**64
        page[a : a + 8], page[b : b + 8] = one.to_bytes(8, "little"), other.to_bytes(8, "little")
        put(paths[0], 20 * PAGE, page)
        assert counts(checker.check(paths)) == {"damaged": 1}


def test_more_faults_than_are_described(old_and_new: OldAndNew) -> None:
    paths, _ = old_and_new("thrash", *BLOCKS)
    put(paths[1], 500 * PAGE, bytes(100 * PAGE))
    report = checker.check(paths)
    assert counts(report) == {"lost": 100}
    assert len(report.faults) == 32
    assert report.faults[0].page == 500


def test_page_in_flight_may_be_torn_but_not_damaged(shm_dir: Path) -> None:
    path, copy = shm_dir / "ram", shm_dir / "copy"
    with RamFiles.create([path], make_layout("sparse", 40)) as files:
        live(files, 500)
    ram = read_ram([path])
    # The last write once more in flight: its page is stored, its table entry and its count are not.
    page, version = ram.slot_place, ram.slot_entry >> 24
    assert (ram.slot_operation, ram.version(0, page)) == (2, version)
    put(path, ram.entry_offset(0, page), table_entry(page, version - 1, 1).to_bytes(8, "little"))
    put(path, PAGE + 32, (ram.done - 1).to_bytes(8, "little"))
    content = ram.page(0, page)
    # Front and back may have the version before: that is what "torn" is.
    for torn in (content[:16] + (version - 1).to_bytes(8, "little") + content[24:], content[:-8] + bytes(8)):
        put(path, page * PAGE, torn)
        assert checker.check([path]).in_flight
        assert checker.check([path]).clean
        copy.write_bytes(path.read_bytes())
        with RamFiles.resume([copy]) as files, guest_in_this_process(files) as guest:
            assert guest.recover() == 1
        assert assert_whole([copy]).page(0, page) == content
    flipped = [bytearray(content) for _ in range(4)]
    for broken, offset in zip(flipped, (0, 8, 2000, 4080), strict=True):
        broken[offset] ^= 1
    for broken, kind in [*((page_bytes, "damaged") for page_bytes in flipped), (bytearray(PAGE), "lost")]:
        put(path, page * PAGE, broken)
        assert counts(checker.check([path])) == {kind: 1}
        copy.write_bytes(path.read_bytes())
        result = run_guest("--resume", "--ram", copy, "--duration", 1)
        assert result.returncode == 8
        assert "in flight" in result.stderr
        assert copy.read_bytes() == path.read_bytes()  # nothing was stored on top


def test_running_guest_stops_at_a_page_that_changed(old_and_new: OldAndNew) -> None:
    paths, old = old_and_new("thrash", *BLOCKS)
    put(paths[1], 4 * PAGE, old[1][4 * PAGE :])
    before = [path.read_bytes() for path in paths]
    result = run_guest("--resume", "--ram", paths[0], "--ram", paths[1], "--duration", 5, "--json")
    assert result.returncode == 8
    error = json_of(result, "error")
    assert error["class"] == "VerifyError"
    assert "stale" in str(error["message"])
    assert before != [path.read_bytes() for path in paths]
    assert checker.check(paths).stale


def test_check_command(old_and_new: OldAndNew) -> None:
    paths, _ = old_and_new("kv", 40)
    clean = run_guest("--check", "--ram", paths[0])
    assert (clean.returncode, clean.stderr) == (0, "")
    assert clean.stdout.startswith("clean: 37 pages checked\n")
    put(paths[0], 30 * PAGE, bytes(PAGE))
    faulty = run_guest("--check", "--ram", paths[0], "--json")
    assert faulty.returncode == 8
    report = json_of(faulty, "check")
    assert (report["clean"], report["lost"], report["torn"]) == (False, 1, 0)
    assert {"pages-checked", "torn", "lost", "stale", "damaged", "lost-writes", "beat", "writes"} <= set(
        report
    )
    assert "page 30" in run_guest("--check", "--ram", paths[0]).stdout
