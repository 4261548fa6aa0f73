"""Write protection: every way to write RAM is reported, or found in another way, or refused (LMT 2.4)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.daemon.guest_memory import GuestMemory
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import InjectedWpTracker, WpTracker

PAGES = 200


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

    def __call__(self, *words: object) -> None:
        """Have the guest do something, and wait until it is done."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def collect(self, *, stopped: bool = False, send: bool = True) -> list[int]:
        """A harvest; its pages are sent, as a round does."""
        bitmap = DirtyBitmap(PAGES)
        self.tracker.collect(bitmap, stopped=stopped)
        pages = [page for page in range(PAGES) if bitmap.next(page) == page]
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
        for page in range(PAGES):
            self.send(page)


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


@pytest.fixture
def guest(small_ram: Ram, image: RamImage, table: DigestTable) -> Iterator[TrackedGuest]:
    """A guest on 200 pages, of which pages 0 to 99 have content; tracked, everything sent."""
    for page in range(100):
        small_ram.fill(page, 1)
    with guest_process(small_ram.path) as process:
        tracked = TrackedGuest(image, table, process)
        try:
            tracked.start()
            yield tracked
        finally:
            tracked.tracker.close()
            tracked.memory.close()


@pytest.fixture
def unwitting(small_ram: Ram, image: RamImage, table: DigestTable) -> Iterator[TrackedGuest]:
    """The same, but the guest offers nothing: its userfaultfd is injected."""
    for page in range(100):
        small_ram.fill(page, 1)
    with guest_process(small_ram.path, "none") as process:
        with pytest.raises(OSError, match="offers no userfaultfd"):
            GuestMemory(process.pid, image)
        tracked = TrackedGuest(image, table, process, inject=True)
        try:
            tracked.start()
            yield tracked
        finally:
            tracked.tracker.close()
            tracked.memory.close()


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


def test_reading_a_hole_is_no_write_but_shows_as_data(guest: TrackedGuest) -> None:
    guest("load", 150)
    assert guest.collect() == [150]  # it has become data; it costs one comparison
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


def test_data_that_appears_in_a_hole_is_a_change(guest: TrackedGuest) -> None:
    guest("pwrite", 160, 9)
    assert guest.collect() == [160]


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


def test_a_write_into_the_file_shortly_after_a_report_is_found_in_the_pause(guest: TrackedGuest) -> None:
    """As a device fills a page that it pinned before: the pin is reported, the data is not."""
    guest("store", 30, 2)
    assert guest.collect() == [30]  # reported and sent
    guest("pwrite", 30, 3)  # and filled without a word
    assert guest.collect() == []
    assert guest.collect(stopped=True) == [30]
    assert guest.tracker.differing() == 0
    guest("pwrite", 30, 4)  # even after the last copy
    assert guest.tracker.differing() == 1
    assert guest.collect() == [30]  # the pause is given up, and it is not forgotten


def test_without_the_recent_harvests_that_write_would_be_lost(
    guest: TrackedGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparison is for."""
    monkeypatch.setattr(WpTracker, "settle_seconds", 0.0)
    guest.start()
    guest("store", 30, 2)
    assert guest.collect() == [30]
    guest("pwrite", 30, 3)
    assert guest.collect(stopped=True) == []
    assert guest.tracker.differing() == 0


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
