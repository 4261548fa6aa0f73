"""The source's image: what is refused before anything moves, the lock, and that nothing is changed."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ram_support import PAGE, Ram, as_nobody

from migrate.errors import RamError, UsageError
from migrate.ram.image import RamImage, RamSpec


def spec(path: Path, name: str = "pc.ram") -> RamSpec:
    return RamSpec(name, path)


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


def test_a_ram_file_is_opened_where_it_is(ram: Ram) -> None:
    ram.fill(3, 1)
    with RamImage.open_source([spec(ram.path)], PAGE) as image:
        (block,) = image.layout.blocks
        assert (block.name, block.pages) == ("pc.ram", 200)
        assert list(image.data_extents(block)) == [(3, 1)]
        assert image.data_bytes() == PAGE
        assert image.paths == {"pc.ram": ram.path}
        assert image.kernel_ram.total_pages == image.layout.total_pages
        assert os.fstat(image.fds["pc.ram"]).st_ino == ram.path.stat().st_ino
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(image.fds["pc.ram"], b"x", 0)


def test_several_blocks_are_numbered_through_page_space(directory: Path) -> None:
    rams = [Ram(directory / name, pages) for name, pages in (("low", 300), ("high", 20))]
    try:
        rams[0].fill(299, 1)
        rams[1].fill(0, 1)
        rams[1].fill(19, 1)
        specs = [spec(rams[0].path, "low"), spec(rams[1].path, "high")]
        with RamImage.open_source(specs, PAGE) as image:
            found = [list(image.data_extents(block)) for block in image.layout.blocks]
            assert found == [[(299, 1)], [(512, 1), (531, 1)]]
            assert image.data_bytes() == 3 * PAGE
    finally:
        for ram in rams:
            os.close(ram.fd)


def test_a_memfd_of_another_process_is_reached_through_proc() -> None:
    script = "import os; fd = os.memfd_create('g'); os.write(fd, b'x' * 8192); print(fd, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        path = Path(f"/proc/{owner.pid}/fd/{int(owner.stdout.readline())}")
        with RamImage.open_source([spec(path)], PAGE) as image:
            assert image.data_bytes() == 2 * PAGE
            image.check_unchanged()
            owner.communicate("\n")
            image.check_unchanged()  # the path is gone with the process, the memory is not
            assert os.pread(image.fds["pc.ram"], 3, 0) == b"xxx"


def make_missing(directory: Path) -> Path:
    return directory / "absent"


def make_directory(directory: Path) -> Path:
    (directory / "folder").mkdir()
    return directory / "folder"


def make_pipe(directory: Path) -> Path:
    os.mkfifo(directory / "pipe")
    return directory / "pipe"


def make_socket(directory: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "socket"))
    return directory / "socket"


def make_device(directory: Path) -> Path:
    del directory
    return Path("/dev/zero")


def make_empty(directory: Path) -> Path:
    (directory / "empty").touch()
    return directory / "empty"


def make_odd(directory: Path) -> Path:
    (directory / "odd").write_bytes(b"x" * (PAGE + 1))
    return directory / "odd"


def make_looped(directory: Path) -> Path:
    (directory / "loop").symlink_to(directory / "loop")
    return directory / "loop"


def make_below_a_file(directory: Path) -> Path:
    (directory / "file").touch()
    return directory / "file" / "ram"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (make_missing, "does not exist"),
        (make_directory, "is a directory"),
        (make_pipe, "is a named pipe"),
        (make_socket, "is a socket"),
        (make_device, "is a character device"),
        (make_empty, "is empty"),
        (make_odd, "has 4097 bytes, which is no multiple of the page size 4096"),
        (make_looped, "cannot be opened: Too many levels"),
        (make_below_a_file, "cannot be opened: Not a directory"),
    ],
)
def test_unfit_files_are_refused_in_words(make: Callable[[Path], Path], what: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(RamError, match=what) as caught:
        RamImage.open_source([spec(path)], PAGE)
    assert str(path) in caught.value.message
    assert caught.value.side == "source"


def test_hugetlbfs_is_refused_by_name() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages on this machine: {error}")
    try:
        os.ftruncate(fd, 2 << 20)
        with pytest.raises(RamError, match="hugetlbfs"):
            RamImage.open_source([spec(Path(f"/proc/self/fd/{fd}"))], PAGE)
    finally:
        os.close(fd)


def test_a_file_of_somebody_else_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are private
        Path(name).chmod(0o755)
        path = Path(name, "ram")
        path.write_bytes(bytes(PAGE))
        path.chmod(0)
        with as_nobody(), pytest.raises(RamError, match="cannot be read: Permission denied"):
            RamImage.open_source([spec(path)], PAGE)


def test_a_file_used_by_another_migration_is_refused_until_that_ends(ram: Ram) -> None:
    first = RamImage.open_source([spec(ram.path)], PAGE)
    with pytest.raises(RamError, match="already used by another migration"):
        RamImage.open_source([spec(ram.path)], PAGE)
    first.close()
    RamImage.open_source([spec(ram.path)], PAGE).close()


def test_a_memfd_is_locked_too(memfd: int) -> None:
    path = Path(f"/proc/self/fd/{memfd}")
    with (
        RamImage.open_source([spec(path)], PAGE),
        pytest.raises(RamError, match="already used by another migration"),
    ):
        RamImage.open_source([spec(path)], PAGE)


def test_one_file_for_two_blocks_is_refused(ram: Ram) -> None:
    link = ram.path.with_name("link")
    link.hardlink_to(ram.path)
    with pytest.raises(RamError, match="are the same file, but blocks 'a' and 'b'"):
        RamImage.open_source([spec(ram.path, "a"), spec(link, "b")], PAGE)
    RamImage.open_source([spec(ram.path)], PAGE).close()  # no lock was left


def test_an_unfinished_copy_is_no_guest(ram: Ram) -> None:
    ram.path.with_name("guest.ram.migrating").touch()
    with pytest.raises(RamError, match="unfinished copy of another migration"):
        RamImage.open_source([spec(ram.path)], PAGE)


def test_names_no_record_can_carry_are_a_usage_error(ram: Ram) -> None:
    with pytest.raises(UsageError, match="256 bytes"):
        RamImage.open_source([spec(ram.path, "n" * 256)], PAGE)
    with pytest.raises(UsageError, match="0 RAM blocks"):
        RamImage.open_source([], PAGE)


def test_truncation_while_running_is_found(ram: Ram) -> None:
    with RamImage.open_source([spec(ram.path)], PAGE) as image:
        image.check_unchanged()
        os.ftruncate(ram.fd, 100 * PAGE)
        what = r"has 409600 bytes now, but block 'pc.ram' has 819200"
        with pytest.raises(RamError, match=what):
            image.check_unchanged()
        with pytest.raises(RamError, match=what):
            image.data_bytes()


def test_another_file_at_the_path_is_found(ram: Ram) -> None:
    with RamImage.open_source([spec(ram.path)], PAGE) as image:
        ram.path.rename(ram.path.with_name("moved"))
        with pytest.raises(RamError, match="is gone"):
            image.check_unchanged()
        ram.path.write_bytes(bytes(ram.pages * PAGE))
        with pytest.raises(RamError, match="is another file now"):
            image.check_unchanged()


def test_looking_changes_nothing(ram: Ram) -> None:
    ram.fill(7, 9)
    before = ram.path.read_bytes(), ram.blocks_allocated(), ram.path.stat().st_mtime_ns
    with RamImage.open_source([spec(ram.path)], PAGE) as image:
        image.data_bytes()
        image.check_unchanged()
        with pytest.raises(RuntimeError):
            image.mark("00")
    assert (ram.path.read_bytes(), ram.blocks_allocated(), ram.path.stat().st_mtime_ns) == before
    assert [path.name for path in ram.path.parent.iterdir()] == ["guest.ram"]
    assert stat.S_IMODE(ram.path.stat().st_mode) == 0o600


def test_a_closed_image_holds_nothing(ram: Ram) -> None:
    image = RamImage.open_source([spec(ram.path)], PAGE)
    fd = image.fds["pc.ram"]
    image.close()
    image.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert image.fds == {}
    with pytest.raises(RuntimeError, match="closed"):
        _ = image.kernel_ram
