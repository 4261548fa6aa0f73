"""Write protection: every way to write RAM is reported, or found in another way, or refused (LMT 2.4)."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.daemon.guest_memory import GuestMemory
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage, RamSpec
from migrate.ram.reread import Rereader
from migrate.ram.trackers import InjectedWpTracker, WpTracker


def tell(process: subprocess.Popen[str], *words: object) -> str:
    """Have the guest do something, wait until it is done, and return what it answered."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(" ".join(map(str, words)) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline().strip()
    assert answer, "the guest ended"
    return answer


class TrackedGuest:
    """A guest process on the RAM file of a test, and what was sent of it."""

    def __init__(
        self, image: RamImage, table: DigestTable, process: subprocess.Popen[str], inject: bool = False
    ) -> None:
        self.image = image
        self.table = table
        self.process = process
        self.memory = GuestMemory(process.pid, image, inject=inject)
        self.tracker = InjectedWpTracker(self.memory) if inject else WpTracker(self.memory)
        self.pages = image.layout.total_pages

    def __call__(self, *words: object) -> str:
        """Have the guest do something; see `tell`."""
        return tell(self.process, *words)

    def collect(self, *, stopped: bool = False, send: bool = True) -> list[int]:
        """A harvest; its pages are sent, as a round does."""
        bitmap = DirtyBitmap(self.pages)
        self.tracker.collect(bitmap, stopped=stopped)
        pages = [page for page in range(self.pages) if bitmap.next(page) == page]
        for page in pages if send else ():
            self.send(page)
        return pages

    def send(self, page: int) -> None:
        """Record the digest of the copy of this moment."""
        copy = os.pread(self.image.fds["pc.ram"], PAGE, page * PAGE)
        kernel.set_digests(self.table.array, page, 1, self.table.keys.page_digest(copy))

    def start(self) -> None:
        """Track; send what is there, as round 1 does."""
        self.tracker.start(self.image, self.table)
        for page in range(self.pages):
            self.send(page)


class Clock:
    """The tracker's clock, which a test can put forward."""

    def __init__(self) -> None:
        self.passed = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.passed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("migrate.ram.trackers.marking.monotonic", made)
    return made


@contextmanager
def guest_process(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("wp_guest.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(path), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("ready")
            yield process
        finally:
            process.kill()


@contextmanager
def tracked(
    ram: Ram, image: RamImage, table: DigestTable, *before: tuple[object, ...]
) -> Iterator[TrackedGuest]:
    """A guest on this RAM that did some things before it was tracked; everything was sent."""
    with guest_process(ram.path) as process:
        for words in before:
            tell(process, *words)
        made = TrackedGuest(image, table, process)
        try:
            made.start()
            yield made
        finally:
            made.tracker.close()
            made.memory.close()


@pytest.fixture
def guest(small_ram: Ram, image: RamImage, table: DigestTable) -> Iterator[TrackedGuest]:
    """A guest on 200 pages, of which pages 0 to 99 have content; tracked, everything sent."""
    for page in range(100):
        small_ram.fill(page, 1)
    with tracked(small_ram, image, table) as made:
        yield made


@pytest.fixture
def unwitting(small_ram: Ram, image: RamImage, table: DigestTable) -> Iterator[TrackedGuest]:
    """The same, but the guest offers nothing: its userfaultfd is injected."""
    for page in range(100):
        small_ram.fill(page, 1)
    with guest_process(small_ram.path, "none") as process:
        with pytest.raises(OSError, match="offers no userfaultfd"):
            GuestMemory(process.pid, image)
        made = TrackedGuest(image, table, process, inject=True)
        try:
            made.start()
            yield made
        finally:
            made.tracker.close()
            made.memory.close()


def test_an_injected_userfaultfd_reports_the_same(unwitting: TrackedGuest) -> None:
    assert unwitting.collect() == []
    for page in (0, 5, 63, 64, 199):
        unwitting("store", page, 7)
    assert unwitting.collect() == [0, 5, 63, 64, 199]
    unwitting("store", 5, 7)
    assert unwitting.collect(stopped=True) == [5]
    assert unwitting.tracker.fault is None
    assert unwitting.tracker.name == "wp-inject" and unwitting.tracker.describe().startswith("wp-inject:")
    held = [str(path.readlink()) for path in Path(f"/proc/{unwitting.process.pid}/fd").iterdir()]
    assert "anon_inode:[userfaultfd]" not in held


def test_reports_exactly_what_was_stored(guest: TrackedGuest) -> None:
    assert guest.collect() == []
    for page in (0, 5, 63, 64, 199):
        guest("store", page, 7)
    guest("load", 50)
    assert guest.collect() == [0, 5, 63, 64, 199]
    assert guest.collect(stopped=True) == []
    guest("store", 5, 7)
    assert guest.collect() == [5]  # the same content: a write all the same
    assert guest.tracker.fault is None


def test_reading_a_hole_is_no_write(guest: TrackedGuest) -> None:
    guest("load", 150)
    assert guest.collect() == []


def test_harvesting_allocates_no_holes(guest: TrackedGuest, small_ram: Ram) -> None:
    allocated = small_ram.blocks_allocated()
    guest.collect()
    guest.collect(stopped=True)
    assert guest.tracker.differing() == 0
    assert small_ram.blocks_allocated() == allocated


def test_a_punched_hole_is_a_change(guest: TrackedGuest) -> None:
    guest("punch", 20, 30)
    assert guest.collect() == list(range(20, 50))
    assert guest.collect() == []


def test_an_added_mapping_makes_what_it_covers_dirty_and_is_tracked(guest: TrackedGuest) -> None:
    guest("map", 40, 8)
    assert guest.collect() == list(range(40, 48))
    guest("store-there", 3, 5)
    assert guest.collect() == [43]
    guest("store", 45, 6)
    assert guest.collect() == [45]


def test_a_mapping_that_went_makes_what_it_covered_dirty(guest: TrackedGuest) -> None:
    guest("map", 40, 8)
    guest.collect()
    guest("store-there", 1, 5)
    guest("unmap")
    assert guest.collect() == list(range(40, 48))
    assert guest.collect() == []


def test_remapped_at_the_same_addresses_falls_back_to_scan(guest: TrackedGuest) -> None:
    """/proc/PID/maps looks as before; without CHECK_WPASYNC the kernel would say: nothing written."""
    guest("remap")
    guest("store", 7, 3)
    assert guest.collect() == [7]
    assert guest.tracker.fault is not None and "Operation not permitted" in guest.tracker.fault
    guest("store", 8, 3)
    assert guest.collect() == [8]  # by comparison
    assert guest.tracker.differing() is None  # all of RAM is to be read


def test_a_page_that_left_the_page_tables_is_not_forgotten(guest: TrackedGuest) -> None:
    guest("store", 5, 7)
    guest("drop")
    assert 5 in guest.collect()
    assert guest.collect() == []
    guest("punch", 60, 2)  # not in its page tables, so only the file says it
    assert guest.collect() == [60, 61]


def test_dma_that_lands_after_the_copy_is_found_in_the_pause(guest: TrackedGuest) -> None:
    guest("pin", 30, 2)
    assert guest.collect() == [30, 31]  # the pin is reported, and the pages are sent
    guest("fill", 30, 3)
    assert guest.collect() == []  # the data is not
    assert guest.collect(stopped=True) == [30]
    assert guest.tracker.differing() == 0
    guest("fill", 31, 4)  # even after the last copy
    assert guest.tracker.differing() == 1
    assert guest.collect() == [31]  # the pause is given up, and it is not forgotten


def test_dma_that_lands_in_a_long_round_is_found_when_it_is_over(guest: TrackedGuest, clock: Clock) -> None:
    """The pause is far away: its comparison would leave out a page that was reported long ago."""
    guest("pin", 30, 1)
    assert guest.collect() == [30]
    guest("fill", 30, 3)
    clock.passed += 10
    assert guest.collect() == [30]
    assert guest.collect(stopped=True) == []
    assert guest.tracker.differing() == 0


def test_dma_that_was_in_flight_at_the_start_is_found(guest: TrackedGuest, clock: Clock) -> None:
    guest("pin", 30, 2)
    guest.start()
    guest("fill", 30, 3)
    assert guest.collect(stopped=True) == [30]
    guest("fill", 31, 3)
    clock.passed += 10
    assert guest.collect() == [31]


def test_without_the_comparison_it_would_be_lost(
    guest: TrackedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparison is for."""
    monkeypatch.setattr(WpTracker, "settle_seconds", 0.0)
    guest.start()
    guest("pin", 30, 1)
    assert guest.collect() == [30]
    guest("fill", 30, 3)
    assert guest.collect() == []
    assert guest.collect(stopped=True) == []
    assert guest.tracker.differing() == 0
    assert os.pread(guest.image.fds["pc.ram"], 1, 30 * PAGE) == b"\3"


def test_an_ordinary_write_after_the_last_harvest_is_found(guest: TrackedGuest) -> None:
    guest.collect(stopped=True)
    guest("store", 99, 9)
    assert guest.tracker.differing() == 1
    assert guest.collect() == [99]


def test_another_process_that_maps_ram_ends_it(guest: TrackedGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrate.daemon.guest_memory._WRITER_SECONDS", 0.0)
    guest("fork")
    assert guest.collect() == []
    assert guest.tracker.fault is not None and "can write the RAM file as well" in guest.tracker.fault
    guest("end-child")


@pytest.mark.parametrize("how", ["pwrite", "another mapping", "punched and read"])
def test_what_it_is_blind_to_is_found_by_looking_again(
    guest: TrackedGuest, clock: Clock, small_ram: Ram, how: str
) -> None:
    """No harvest reports it: the second look at RAM does, and `scan` goes on from there."""
    clock.passed = 3.0  # what was there at the start has settled
    assert guest.collect() == []
    if how == "pwrite":
        guest("pwrite", 7, 3)
    elif how == "another mapping":
        with mmap.mmap(small_ram.fd, 0) as mapped:
            mapped[7 * PAGE] = 3
    else:
        guest("punch", 7, 1)
        guest("load", 7)
    assert guest.collect(stopped=True) == [], "blind"
    candidates = DirtyBitmap(guest.pages)
    candidates.set_all(guest.image.layout)
    look = Rereader(guest.image, guest.table).look(candidates, 0, 1024)
    assert look.differing is not None and look.differing.count() == 1 and look.differing.next() == 7
    guest.tracker.distrust(7, 1)
    fault = guest.tracker.fault
    assert fault is not None
    for words in ("wp failed: the page at 0x7000 of block 'pc.ram'", "not reported", "write(2)", "scan"):
        assert words in fault
    assert guest.collect() == [7]


def test_a_guest_with_a_second_writer_is_refused(small_ram: Ram, image: RamImage) -> None:
    with (
        guest_process(small_ram.path) as one,
        guest_process(small_ram.path) as two,
        pytest.raises(OSError, match=f"process {two.pid} can write the RAM file as well"),
    ):
        GuestMemory(one.pid, image)


def test_a_guest_that_maps_other_files_is_refused(shm_dir: Path, image: RamImage) -> None:
    other = Ram(shm_dir / "other.ram", 4)
    os.close(other.fd)
    with guest_process(other.path) as process, pytest.raises(OSError, match="none of the RAM files mapped"):
        GuestMemory(process.pid, image)


def test_a_guest_without_a_userfaultfd_is_refused(small_ram: Ram, image: RamImage) -> None:
    code = "import mmap, sys; f = open(sys.argv[1], 'r+'); m = mmap.mmap(f.fileno(), 0); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-uc", code, str(small_ram.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            with pytest.raises(OSError, match="offers no userfaultfd"):
                GuestMemory(process.pid, image)
        finally:
            process.kill()


def test_closing_lets_the_guest_write_on(guest: TrackedGuest) -> None:
    guest.tracker.close()
    guest.tracker.close()
    guest.memory.close()
    guest.memory.close()
    guest("store", 3, 3)


def test_a_dead_guest_is_no_clean_guest(guest: TrackedGuest, small_ram: Ram) -> None:
    guest("store", 12, 2)
    guest.process.kill()
    guest.process.wait()
    assert guest.collect() == [12]
    assert guest.tracker.fault is not None


@contextmanager
def large_guest(
    path: Path, keys: kernel.Keys, pages: int, *before: tuple[object, ...]
) -> Iterator[TrackedGuest]:
    """A guest on a RAM of so many pages, of which pages 0 to 9 have content."""
    ram = Ram(path, pages)
    for page in range(10):
        ram.fill(page, 1)
    with (
        RamImage.open_source([RamSpec("pc.ram", path)], PAGE) as image,
        tracked(ram, image, DigestTable(keys, image.layout), *before) as made,
    ):
        yield made
    os.close(ram.fd)


def test_the_start_splits_huge_pages(shm_dir: Path, keys: kernel.Keys) -> None:
    """Or a byte stored would report 512 pages for ever."""
    with large_guest(shm_dir / "huge.ram", keys, 1024, ("collapse",)) as guest:
        smaps = Path(f"/proc/{guest.process.pid}/smaps").read_text()
        assert "ShmemPmdMapped:        0 kB" in smaps
        guest("store", 700, 2)
        assert guest.collect() == [700]


def test_what_was_never_touched_costs_no_page_tables_and_is_not_missed(
    shm_dir: Path, keys: kernel.Keys
) -> None:
    pages = 1 << 16
    with large_guest(shm_dir / "large.ram", keys, pages) as guest:
        before = int(guest("tables"))
        assert guest.collect() == []
        guest("store", 40000, 7)
        assert guest.collect() == [40000]
        guest("store", 40001, 7)
        guest("store", 40000, 8)
        guest("pwrite", 60000, 8)
        assert guest.collect() == [40000, 40001, 60000]
        assert guest.collect(stopped=True) == []
        assert int(guest("tables")) - before < 8 * pages // 1024 // 2
