"""The log that an emulator sets: no mark is lost, and a log that is damaged is not believed."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.daemon.guest_memory import GuestPages
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import LogTracker
from migrate.ram.trackers.log import log_bytes


@pytest.fixture
def log_fd(shm_dir: Path) -> Iterator[int]:
    """An empty log for 200 pages."""
    fd = os.open(shm_dir / "guest.log", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, log_bytes(200 * PAGE))
    yield fd
    os.close(fd)


@pytest.fixture
def tracker(log_fd: int, image: RamImage, table: DigestTable) -> Iterator[LogTracker]:
    made = LogTracker({"pc.ram": log_fd})
    made.start(image, table)
    yield made
    made.close()


def mark(fd: int, page: int) -> None:
    """As an emulator that is alone does."""
    byte = os.pread(fd, 1, page >> 3)[0] | 1 << (page & 7)
    os.pwrite(fd, bytes([byte]), page >> 3)


def collect(tracker: LogTracker, *, stopped: bool = False) -> list[int]:
    bitmap = DirtyBitmap(200)
    assert tracker.collect(bitmap, stopped=stopped).dirty_pages == bitmap.count()
    return [page for page in range(200) if bitmap.next(page) == page]


def test_reports_what_was_marked_once(tracker: LogTracker, log_fd: int) -> None:
    for page in (0, 63, 64, 199):
        mark(log_fd, page)
    assert collect(tracker) == [0, 63, 64, 199]
    assert collect(tracker, stopped=True) == []
    assert os.pread(log_fd, 64, 0) == bytes(log_bytes(200 * PAGE))


def test_what_was_reported_can_be_looked_at_without_comparing(
    tracker: LogTracker, log_fd: int, small_ram: Ram
) -> None:
    """For who sends nothing: RAM is nowhere what was sent, and that is nobody's business."""
    small_ram.fill(100, 4)
    mark(log_fd, 10)
    found = tracker.reported()
    assert found is not None
    assert [page for page in range(200) if found.next(page) == page] == [10]
    again = tracker.reported()
    assert again is not None and again.count() == 0


def test_marks_beyond_the_block_mean_nothing(tracker: LogTracker, log_fd: int) -> None:
    mark(log_fd, 201)
    assert collect(tracker) == []


def test_a_mark_after_the_last_copy_is_compared(
    tracker: LogTracker, log_fd: int, small_ram: Ram, table: DigestTable
) -> None:
    collect(tracker, stopped=True)
    mark(log_fd, 10)
    assert tracker.differing() == 0  # zeros were sent, zeros are there
    small_ram.fill(10, 4)
    assert tracker.differing() == 1
    assert collect(tracker) == [10]


def test_distrusted_it_compares(tracker: LogTracker, log_fd: int, small_ram: Ram) -> None:
    """The emulator did not mark what it wrote, and the background re-read found one of two pages."""
    small_ram.fill(10, 4)
    small_ram.fill(12, 4)
    assert collect(tracker) == []
    tracker.distrust(10, 1)
    assert tracker.fault is not None and "the emulator does not mark all" in tracker.fault
    assert collect(tracker) == [10, 12]


def test_a_punched_hole_is_found_without_a_mark(
    log_fd: int, small_ram: Ram, image: RamImage, table: DigestTable
) -> None:
    for page in range(20, 40):
        small_ram.fill(page, 1)
    tracker = LogTracker({"pc.ram": log_fd})
    tracker.start(image, table)
    small_ram.punch(25, 5)
    assert collect(tracker) == [25, 26, 27, 28, 29]
    tracker.close()


def test_in_the_page_tables_of_the_guest_it_is_found_faster(
    log_fd: int, small_ram: Ram, image: RamImage, table: DigestTable
) -> None:
    """This process is the guest: what it has mapped and read is no hole, whatever the file is asked."""
    for page in range(20, 40):
        small_ram.fill(page, 1)
    with mmap.mmap(small_ram.fd, 0) as mapped, closing(GuestPages(os.getpid())) as pages:
        assert mapped[20 * PAGE : 38 * PAGE] == b"\1" * 18 * PAGE
        with closing(LogTracker({"pc.ram": log_fd}, pages)) as tracker:
            tracker.start(image, table)
            small_ram.punch(25, 5)
            small_ram.punch(39, 1)  # was never mapped
            assert collect(tracker) == [25, 26, 27, 28, 29, 39]
            assert collect(tracker) == []


def test_marks_in_holes_are_reported_once(tracker: LogTracker, log_fd: int, small_ram: Ram) -> None:
    mark(log_fd, 50)
    small_ram.fill(51, 1)
    mark(log_fd, 51)
    assert collect(tracker) == [50, 51]
    small_ram.punch(51)  # data came up there, and went again
    assert collect(tracker) == [51]
    assert collect(tracker) == []


def test_a_log_that_was_cut_off_falls_back_to_scan(tracker: LogTracker, log_fd: int, small_ram: Ram) -> None:
    small_ram.fill(77, 1)
    os.ftruncate(log_fd, 8)
    assert collect(tracker) == [77]
    assert tracker.fault is not None and "32 are needed" in tracker.fault
    assert tracker.differing() is None


def test_a_log_that_is_too_short_from_the_start_falls_back_too(
    log_fd: int, image: RamImage, table: DigestTable, small_ram: Ram
) -> None:
    os.ftruncate(log_fd, 16)
    tracker = LogTracker({"pc.ram": log_fd})
    tracker.start(image, table)
    assert tracker.fault is not None
    small_ram.fill(3, 1)
    assert collect(tracker) == [3]
    tracker.close()


def test_no_mark_is_lost_to_a_fetch_at_the_same_time(shm_dir: Path, tmp_path: Path) -> None:
    """Every mark that changed a bit from 0 to 1 is fetched exactly once, however the fetches fall."""
    program = tmp_path / "log_writer"
    subprocess.run(["cc", "-O2", "-o", program, Path(__file__).with_name("log_writer.c")], check=True)
    path, pages, found = shm_dir / "marks.log", 4096, 0
    path.write_bytes(bytes(pages // 8))
    bitmap = bytearray(pages // 8)
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as log,
        subprocess.Popen(
            [program, path, str(pages), "20000000"], stdout=subprocess.PIPE, text=True
        ) as writer,
    ):
        while writer.poll() is None:
            for _ in range(1000):
                found += kernel.take_log(log, pages * PAGE, PAGE, 0, bitmap)
        found += kernel.take_log(log, pages * PAGE, PAGE, 0, bitmap)
        assert writer.stdout is not None
        assert found == int(writer.stdout.read()) > pages


def test_only_the_native_kernel_can_fetch_and_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "IMPLEMENTATION", "reference")
    with pytest.raises(Exception, match="native kernel"):
        LogTracker({})
