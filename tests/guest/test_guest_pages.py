"""What the guest leaves in RAM, against the octet tables."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from guest_support import (
    PAGE,
    assert_whole,
    guest_in_this_process,
    live,
    make_layout,
    page_sum,
    read_ram,
    table_entry,
    words,
)

from migrate.guest import _native, checker
from migrate.guest.layout import FILLS, WORKLOADS
from migrate.guest.ram_files import RamFiles


def test_sum_of_a_page(rng: random.Random) -> None:
    for _ in range(20):
        page = rng.randbytes(PAGE)
        assert _native.page_sum(page) == page_sum(page)
    with pytest.raises(ValueError, match="4096"):
        _native.page_sum(bytes(PAGE - 8))


def test_table_entries(rng: random.Random) -> None:
    for _ in range(200):
        block, page, version = rng.randrange(64), rng.randrange(1 << 32), rng.randrange(1 << 40)
        assert _native.table_entry(block, page, version, 2) == table_entry(block << 32 | page, version, 2)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_page_fits_the_octet_tables(workload: str, fill: str, shm_dir: Path) -> None:
    paths = [shm_dir / "a", shm_dir / "b", shm_dir / "c"]
    layout = make_layout(workload, 16, 33, 17, fill=fill)
    with RamFiles.create(paths, layout) as files:
        assert_whole(paths)  # nothing has run yet
        live(files, layout.fill_writes)
        live(files, 0 if workload == "idle" else 2000)
    ram = assert_whole(paths)
    report = checker.check(paths)
    assert report.clean
    assert (report.beat, report.writes, report.in_flight) == (ram.beat, ram.done, False)
    assert report.pages_checked == len(ram.data_pages()) == 16 + 33 + 17 - 4 - 3
    if workload == "idle":
        assert ram.done == layout.fill_writes


def test_two_table_pages_and_an_odd_size(shm_dir: Path) -> None:
    path = shm_dir / "ram"
    layout = make_layout("thrash", 777)
    with RamFiles.create([path], layout) as files:
        live(files, 2000)
    assert assert_whole([path]).first_data == [4]
    assert checker.check([path]).clean


def test_fills(shm_dir: Path) -> None:
    for fill in ("none", "zero", "random"):
        path = shm_dir / fill
        with RamFiles.create([path], make_layout("idle", 64, fill=fill)) as files:
            live(files, files.layout.fill_writes)
        occupied = path.stat().st_blocks * 512 // PAGE
        assert occupied <= 3 if fill == "none" else occupied == 64
        ram = read_ram([path])
        assert {ram.version(*page) for page in ram.data_pages()} == {int(fill == "random")}


def test_the_fill_of_the_working_set_leaves_the_rest_a_hole(shm_dir: Path) -> None:
    paths = [shm_dir / "a", shm_dir / "b"]
    with RamFiles.create(paths, make_layout("kv", 67, 65, working_set=32, fill="working-set")) as files:
        live(files, files.layout.fill_writes)
        live(files, 500)
    ram = assert_whole(paths)
    assert checker.check(paths).clean
    written = {place for place in ram.data_pages() if ram.version(*place)}
    assert len(written) == 32
    assert written <= {(b, page) for b in (0, 1) for page in range(3 - b, 19)}
    assert sum(path.stat().st_blocks for path in paths) * 512 == (32 + 3 + 2) * PAGE


@pytest.mark.parametrize("workload", WORKLOADS)
def test_whatever_it_writes_is_marked_in_the_log(workload: str, shm_dir: Path) -> None:
    paths = [shm_dir / "a", shm_dir / "b"]
    logs = [bytearray(16), bytearray(16)]
    with RamFiles.create(paths, make_layout(workload, 67, 65, fill="working-set", working_set=20)) as files:
        for writes in (20, 1, 30):
            before = [path.read_bytes() for path in paths]
            for log in logs:
                log[:] = bytes(16)
            live(files, 0 if workload == "idle" and writes != 20 else writes, logs=logs)
            for path, old, log in zip(paths, before, logs, strict=True):
                new, marks = path.read_bytes(), int.from_bytes(log, "little")
                places = range(0, len(new), PAGE)
                changed = {at // PAGE for at in places if new[at : at + PAGE] != old[at : at + PAGE]}
                marked = {n for n in range(128) if marks >> n & 1}
                assert changed <= marked
                assert marked <= set(range(24))  # header, state, table and working set


def test_working_set_is_shared_out_and_never_left(shm_dir: Path) -> None:
    for workload in WORKLOADS[1:]:
        paths = [shm_dir / f"{workload}{number}" for number in range(2)]
        with RamFiles.create(paths, make_layout(workload, 67, 65, working_set=32)) as files:
            live(files, 4000)
        ram = assert_whole(paths)
        written = [(block, page) for block, page in ram.data_pages() if ram.version(block, page) > 1]
        assert set(written) <= {(b, page) for b in (0, 1) for page in range(3 - b, 19)}
        assert {block for block, _ in written} == {0, 1}
        assert len(written) == 32


@pytest.mark.parametrize(("workload", "most"), [("sparse", 3 + 3), ("kv", 64 + 3)])
def test_in_place_workloads_change_few_words(workload: str, most: int, shm_dir: Path) -> None:
    """What makes a delta of two versions short: version twice, sum, and the words that the write is about."""
    path = shm_dir / "ram"
    changed: list[int] = []
    with RamFiles.create([path], make_layout(workload, 515)) as files:
        live(files, 511)
        old = read_ram([path])
        live(files, 300, rate=30_000)  # a few writes each millisecond
        new = read_ram([path])
    for place in new.data_pages():
        if new.version(*place) == old.version(*place) + 1:
            before, after = words(old.page(*place)), words(new.page(*place))
            changed.append(sum(a != b for a, b in zip(before, after, strict=True)))
    assert len(changed) > 20
    assert min(changed) >= 4
    assert max(changed) <= most


def test_log_is_written_in_a_ring(shm_dir: Path) -> None:
    path = shm_dir / "ram"
    with RamFiles.create([path], make_layout("log", 35, fill="none")) as files:
        live(files, 1000)
    ram = assert_whole([path])
    assert {ram.version(*page) for page in ram.data_pages()} <= {ram.done // 32, ram.done // 32 + 1}


def test_zero_pages_come_and_go(shm_dir: Path) -> None:
    path = shm_dir / "ram"
    with RamFiles.create([path], make_layout("zero", 67)) as files:
        live(files, 5000)
    ram = assert_whole([path])
    zero = sum(ram.page(*page) == bytes(PAGE) for page in ram.data_pages())
    assert 0 < zero < 64


def test_rate_is_kept(shm_dir: Path) -> None:
    """Paced writes never exceed what the beats allow: after a pause at most 10 ms are caught up."""
    path = shm_dir / "ram"
    paced = make_layout("sparse", 64, fill="none")
    with RamFiles.create([path], paced) as files, guest_in_this_process(files, rate=20_000) as guest:
        while not guest.writes:
            assert guest.run(time.monotonic_ns() + 5_000_000)
        beat, writes = guest.beat, guest.writes
        time.sleep(0.05)  # as if stopped
        while guest.beat == beat:
            assert guest.run(time.monotonic_ns() + 100_000)
    ram = read_ram([path])
    assert 20 < ram.done - writes <= 200 * (ram.beat - beat)
