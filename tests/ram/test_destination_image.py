"""The destination's image: checks before anything changes, the mark of an unfinished copy, empty files."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ram_support import PAGE, as_nobody

from migrate.errors import RamError
from migrate.ram.image import RamImage, RamSpec

LENGTH = 64 * PAGE
LENGTHS = {"pc.ram": LENGTH}


def specs(directory: Path) -> list[RamSpec]:
    return [RamSpec("pc.ram", directory / "dst.ram")]


def listing(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_missing_file_is_made_private_and_all_hole(directory: Path) -> None:
    with RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image:
        path = directory / "dst.ram"
        assert (path.stat().st_size, mode(path)) == (0, 0o600)
        image.mark("c0ffee")
        assert path.stat().st_size == LENGTH
        assert image.data_bytes() == 0
        assert image.kernel_ram.total_pages == 64
        assert os.pwrite(image.fds["pc.ram"], b"x", 0) == 1


def test_the_mark_stands_from_the_first_change_to_the_commit(directory: Path) -> None:
    marker = directory / "dst.ram.migrating"
    with RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image:
        assert not marker.exists()
        image.mark("c0ffee")
        assert json.loads(marker.read_text()) == {
            "migration": "c0ffee",
            "state": "incoming",
            "pid": os.getpid(),
            "block": "pc.ram",
        }
        assert mode(marker) == 0o600
        image.unmark()
        assert not marker.exists()
    assert [path.name for path in directory.iterdir()] == ["dst.ram"]


def test_closing_an_unfinished_copy_leaves_its_mark(directory: Path) -> None:
    image = RamImage.open_destination(specs(directory), LENGTHS, PAGE)
    image.mark("c0ffee")
    image.close()
    image.close()
    assert sorted(listing(directory)) == ["dst.ram", "dst.ram.migrating"]


def test_a_killed_daemon_leaves_the_mark(directory: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from migrate.ram.image import RamImage, RamSpec\n"
        "spec = RamSpec('pc.ram', pathlib.Path(sys.argv[1]))\n"
        f"image = RamImage.open_destination([spec], {LENGTHS}, {PAGE})\n"
        "image.mark('c0ffee')\n"
        "os.pwrite(image.fds['pc.ram'], b'half', 0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = directory / "dst.ram"
    killed = subprocess.run([sys.executable, "-c", script, path], check=False)
    assert killed.returncode == -9
    assert json.loads((directory / "dst.ram.migrating").read_text())["state"] == "incoming"
    # The next attempt takes over: the lock went with the process, the half copy goes now.
    with RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image:
        image.mark("beef")
        assert image.data_bytes() == 0
        assert json.loads((directory / "dst.ram.migrating").read_text())["migration"] == "beef"


def test_a_migration_given_up_before_the_first_change_leaves_nothing(directory: Path) -> None:
    RamImage.open_destination(specs(directory), LENGTHS, PAGE).close()
    assert listing(directory) == {}
    (directory / "dst.ram").write_bytes(b"x" * LENGTH)
    RamImage.open_destination(specs(directory), LENGTHS, PAGE).close()
    assert listing(directory) == {"dst.ram": b"x" * LENGTH}


def test_old_content_goes_when_the_mark_stands(directory: Path) -> None:
    path = directory / "dst.ram"
    path.write_bytes(b"x" * LENGTH)
    inode = path.stat().st_ino
    with RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image:
        assert path.read_bytes() == b"x" * LENGTH
        image.mark("c0ffee")
        assert path.read_bytes() == bytes(LENGTH)
        assert image.data_bytes() == 0
        assert path.stat().st_ino == inode


def test_marking_again_renews_the_mark_and_keeps_the_pages(directory: Path) -> None:
    with RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image:
        image.mark("one")
        os.pwrite(image.fds["pc.ram"], b"x" * PAGE, PAGE)
        image.mark("two")
        assert image.data_bytes() == PAGE
        assert json.loads((directory / "dst.ram.migrating").read_text())["migration"] == "two"


def test_nothing_can_be_written_through_the_kernel_before_the_mark(directory: Path) -> None:
    with (
        RamImage.open_destination(specs(directory), LENGTHS, PAGE) as image,
        pytest.raises(RuntimeError, match="not marked"),
    ):
        _ = image.kernel_ram


def test_a_mark_that_cannot_be_written_changes_no_file(directory: Path) -> None:
    blocks = [RamSpec("a", directory / "a"), RamSpec("b", directory / "b")]
    for name in "ab":
        (directory / name).write_bytes(name.encode() * PAGE)
    (directory / "b.migrating").mkdir()  # in the way
    with RamImage.open_destination(blocks, {"a": PAGE, "b": PAGE}, PAGE) as image:
        with pytest.raises(RamError, match=r"the mark .*b\.migrating cannot be written"):
            image.mark("c0ffee")
        assert (directory / "a").read_bytes() == b"a" * PAGE
    assert sorted(path.name for path in directory.iterdir()) == ["a", "b", "b.migrating"]


def test_the_order_of_the_blocks_is_the_sources(directory: Path) -> None:
    blocks = [RamSpec("vga", directory / "v"), RamSpec("pc.ram", directory / "r")]
    with RamImage.open_destination(blocks, {"pc.ram": 300 * PAGE, "vga": PAGE}, PAGE) as image:
        image.mark("c0ffee")
        assert [(b.name, b.first_page) for b in image.layout.blocks] == [("pc.ram", 0), ("vga", 512)]
        assert image.paths == {"pc.ram": directory / "r", "vga": directory / "v"}
        assert (directory / "r").stat().st_size == 300 * PAGE
        assert (directory / "v").stat().st_size == PAGE


class TestRefused:
    """Each refusal leaves the directory as it was, in the pre-flight and in earnest."""

    @pytest.fixture(params=[True, False], ids=["pre-flight", "earnest"])
    def dry_run(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    def refused(
        self,
        directory: Path,
        what: str,
        dry_run: bool,
        blocks: list[RamSpec] | None = None,
        lengths: dict[str, int] | None = None,
        needed_bytes: int = 0,
    ) -> RamError:
        before = listing(directory)
        with pytest.raises(RamError, match=what) as caught:
            RamImage.open_destination(
                blocks or specs(directory),
                lengths or LENGTHS,
                PAGE,
                needed_bytes=needed_bytes,
                dry_run=dry_run,
            )
        assert listing(directory) == before
        assert caught.value.side == "destination"
        return caught.value

    def test_a_file_of_another_length(self, directory: Path, dry_run: bool) -> None:
        path = directory / "dst.ram"
        path.write_bytes(b"x" * PAGE)
        error = self.refused(
            directory, f"has {PAGE} bytes, but the source's block 'pc.ram' has {LENGTH}", dry_run
        )
        assert error.hint is not None
        assert f"rm {path}" in error.hint

    def test_a_block_without_a_file(self, directory: Path, dry_run: bool) -> None:
        lengths = {**LENGTHS, "vga": PAGE}
        what = "a RAM block 'vga' that has no file here"
        error = self.refused(directory, what, dry_run, lengths=lengths)
        assert error.hint == "start migrate-dst with --ram vga=PATH"

    def test_a_file_without_a_block(self, directory: Path, dry_run: bool) -> None:
        blocks = [*specs(directory), RamSpec("rom", directory / "rom")]
        self.refused(
            directory, r"--ram rom=.*: the source sends no block of that name, but 'pc.ram'", dry_run, blocks
        )

    def test_no_space(self, directory: Path, dry_run: bool) -> None:
        statistics = os.statvfs(directory)
        size = statistics.f_blocks * statistics.f_frsize  # more than is free, whatever that is now
        length = (size // PAGE + 1) * PAGE
        self.refused(
            directory,
            "bytes of RAM are to come, but only",
            dry_run,
            lengths={"pc.ram": length},
            needed_bytes=length,
        )

    def test_no_directory(self, directory: Path, dry_run: bool) -> None:
        blocks = [RamSpec("pc.ram", directory / "absent" / "ram")]
        self.refused(directory, "there is no directory", dry_run, blocks)

    def test_a_directory_in_place_of_the_file(self, tmp_path: Path, dry_run: bool) -> None:
        blocks = [RamSpec("pc.ram", tmp_path)]
        with pytest.raises(RamError, match="is a directory, not a RAM file"):
            RamImage.open_destination(blocks, LENGTHS, PAGE, dry_run=dry_run)

    def test_a_memfd(self, directory: Path, dry_run: bool) -> None:
        fd = os.memfd_create("guest")
        try:
            blocks = [RamSpec("pc.ram", Path(f"/proc/self/fd/{fd}"))]
            self.refused(directory, "no name in a directory", dry_run, blocks)
        finally:
            os.close(fd)

    def test_one_file_for_two_blocks(self, directory: Path, dry_run: bool) -> None:
        (directory / "a").write_bytes(b"x" * PAGE)
        (directory / "b").hardlink_to(directory / "a")
        blocks = [RamSpec("a", directory / "a"), RamSpec("b", directory / "b")]
        self.refused(directory, "are the same file", dry_run, blocks, {"a": PAGE, "b": PAGE})

    def test_a_file_in_use(self, directory: Path, dry_run: bool) -> None:
        (directory / "dst.ram").write_bytes(b"x" * LENGTH)
        with RamImage.open_source(specs(directory), PAGE):
            self.refused(directory, "already used by another migration", dry_run)

    def test_a_bad_second_block_leaves_no_first_file(self, directory: Path, dry_run: bool) -> None:
        (directory / "b").write_bytes(b"x")
        blocks = [RamSpec("a", directory / "a"), RamSpec("b", directory / "b")]
        self.refused(directory, "has 1 bytes", dry_run, blocks, {"a": PAGE, "b": PAGE})

    @pytest.mark.parametrize("locked_up", ["file", "directory"])
    def test_no_right_to_write(self, locked_up: str, dry_run: bool) -> None:
        with tempfile.TemporaryDirectory() as name:
            directory, path = Path(name), Path(name, "dst.ram")
            path.write_bytes(b"x" * LENGTH)
            path.chmod(0o444 if locked_up == "file" else 0o666)
            directory.chmod(0o777 if locked_up == "file" else 0o555)
            what = "cannot be written: Permission" if locked_up == "file" else "cannot be written to"
            with as_nobody():
                self.refused(directory, what, dry_run)
            directory.chmod(0o700)


def test_the_pre_flight_changes_nothing(directory: Path) -> None:
    image = RamImage.open_destination(specs(directory), LENGTHS, PAGE, dry_run=True)
    assert listing(directory) == {}
    assert image.layout.total_pages == 64
    assert image.available_bytes == LENGTH
    (directory / "dst.ram").write_bytes(b"x" * LENGTH)
    before = (directory / "dst.ram").stat().st_mtime_ns
    image = RamImage.open_destination(specs(directory), LENGTHS, PAGE, dry_run=True)
    assert listing(directory) == {"dst.ram": b"x" * LENGTH}
    assert (directory / "dst.ram").stat().st_mtime_ns == before
    with pytest.raises(RuntimeError):
        image.mark("c0ffee")
    RamImage.open_destination(specs(directory), LENGTHS, PAGE).close()  # no lock was left


def test_room_is_what_is_free_and_what_the_old_files_give_back(tmp_path: Path) -> None:
    """On a file system of 64 pages, with an old file of 100 in it, 40 of them data; a mark takes a page."""
    script = f"""
import os, pathlib
from migrate.errors import RamError
from migrate.ram.image import RamImage, RamSpec
old, new = (RamSpec(name, pathlib.Path("{tmp_path}", name)) for name in ("old", "new"))
old.path.write_bytes(b"x" * 40 * {PAGE})
os.truncate(old.path, 100 * {PAGE})
for specs, pages in (([old], 63), ([old, new], 62), ([old], 64), ([old, new], 63)):
    try:
        image = RamImage.open_destination(specs, {{spec.name: 100 * {PAGE} for spec in specs}}, {PAGE},
            needed_bytes=pages * {PAGE}, dry_run=True)
        print(len(specs), pages, "fit into", image.available_bytes // {PAGE})
    except RamError as error:
        print(len(specs), pages, "do not")
"""
    mount = f"mount -t tmpfs -o size={64 * PAGE} none {tmp_path}"
    shell = f"{mount} || exit 77; exec {sys.executable} -c '{script}'"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", shell]
    ran = subprocess.run(namespace, check=False, capture_output=True, text=True)
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip(f"no small file system can be made here: {ran.stderr}")
    assert ran.stdout.splitlines() == [
        "1 63 fit into 63",
        "2 62 fit into 62",
        "1 64 do not",
        "2 63 do not",
    ], ran.stderr


def test_an_impossible_block_list_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no positive multiple"):
        RamImage.open_destination(specs(tmp_path), {"pc.ram": 5}, PAGE)
    assert listing(tmp_path) == {}


class TestHeldByAGuest:
    """A memfd that a guest of ours has mapped already, and forbidden that it shrinks, as QEMU does."""

    @pytest.fixture
    def memfd(self) -> Iterator[int]:
        fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        os.truncate(fd, LENGTH)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield fd
        os.close(fd)

    def test_it_becomes_all_hole_under_the_mapping(self, memfd: int) -> None:
        with mmap.mmap(memfd, LENGTH) as mapped:
            mapped[5 * PAGE] = 7
            blocks = [RamSpec.of_descriptor("pc.ram", memfd)]
            with RamImage.open_destination(blocks, LENGTHS, PAGE) as image:
                assert mapped[5 * PAGE] == 7  # nothing changes before the mark
                image.mark("c0ffee")
                assert image.data_bytes() == 0
                os.pwrite(image.fds["pc.ram"], b"x", PAGE)
                image.mark("c0ffee")  # a second time changes nothing
                image.check_unchanged()
                image.unmark()
            assert (mapped[5 * PAGE], mapped[PAGE]) == (0, ord("x"))

    def test_it_is_locked_against_another_migration(self, memfd: int) -> None:
        blocks = [RamSpec.of_descriptor("pc.ram", memfd)]
        with (
            RamImage.open_destination(blocks, LENGTHS, PAGE),
            pytest.raises(RamError, match="already used by another migration"),
        ):
            RamImage.open_source(blocks, PAGE)
        RamImage.open_source(blocks, PAGE).close()

    def test_another_length_is_refused_as_it_is(self, memfd: int) -> None:
        blocks = [RamSpec.of_descriptor("pc.ram", memfd)]
        with pytest.raises(RamError, match="has 262144 bytes, but the source's block"):
            RamImage.open_destination(blocks, {"pc.ram": 2 * LENGTH}, PAGE)
