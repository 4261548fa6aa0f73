"""Disks that are full, folders and files that do not fit: rows of the README's table of failures."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_failures import port_of, slow

from bench.lab import Lab, Program
from tests.failure_table import FailureRow


class SmallDisk(Lab):
    """A destination whose RAM files are on a file system of its own, in a mount namespace of its own."""

    def __init__(self, directory: Path, size: str) -> None:
        self.disk = directory / "small"
        self.disk.mkdir()
        super().__init__(directory, self.disk)
        self._size = size

    def command(self, name: str) -> list[str]:
        """migrate-dst in its namespace."""
        words = super().command(name)
        if name != "migrate-dst":
            return words
        mount = f'mount -t tmpfs -o size={self._size} none {self.disk} && exec "$@"'
        return ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", mount, "sh", *words]

    def fill(self, destination: Program) -> None:
        """Take all the room that is left there."""
        there = Path(f"/proc/{destination.pid}/root{self.disk}/filler")
        with there.open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(bytes(4096))


@pytest.fixture
def small_disk(shm_dir: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with SmallDisk(shm_dir, request.param) as made:
        yield made


@pytest.mark.failure_row("no room")
@pytest.mark.parametrize("small_disk", ["1M"], indirect=True)
def test_a_destination_without_room(small_disk: SmallDisk, row: FailureRow) -> None:
    guest = small_disk.start_guest("--fill=random")
    source = small_disk.start_source(port_of(small_disk.start_destination("--once")), guest)
    source.wait()
    row.check(small_disk, guest, source)


@pytest.mark.failure_row("disk full")
@pytest.mark.parametrize("small_disk", ["20M"], indirect=True)
def test_a_disk_that_fills_up(small_disk: SmallDisk, row: FailureRow) -> None:
    guest = small_disk.start_guest("--fill=random")
    destination = small_disk.start_destination("--once")
    source = small_disk.start_source(port_of(destination), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    small_disk.fill(destination)
    source.wait()
    assert destination.wait() == 9, destination.story()
    row.check(small_disk, guest, source, destination)


@pytest.mark.failure_row("file missing")
def test_no_such_ram_file(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    lab.source_ram["pc.ram"] = lab.source_ram["pc.ram"].with_name("other.ram")
    source = lab.start_source(1, guest)
    source.wait()
    row.check(lab, guest, source)


@pytest.mark.failure_row("state directory unfit")
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_state_directory_that_is_none(lab: Lab, row: FailureRow, side: str) -> None:
    guest = lab.start_guest("--rate=100")
    directory = lab.source_state if side == "source" else lab.destination_state
    directory.write_text("a file")
    destination = lab.start_destination("--once")
    source = lab.start_source(port_of(destination), guest)
    source.wait()
    row.check(lab, guest, source)
    assert destination.process.poll() is None or side == "destination"


FULL = "prlimit --pid $PPID --fsize=0"
"""From here on no file takes another byte of the daemon."""


@pytest.mark.failure_row("journal of the pause not written")
def test_a_journal_that_cannot_be_written_before_the_pause(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    source = lab.start_source(port_of(lab.start_destination("--once")), guest, *slow())
    source.wait_event("status", lambda event: event["new"] == "active")
    resource.prlimit(source.pid, resource.RLIMIT_FSIZE, (0, 0))
    source.wait()
    row.check(lab, guest, source)


@pytest.mark.failure_row("journal of the destination not written")
def test_a_destination_that_cannot_write_what_it_promises(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", f"--on-prepare={FULL}")
    source = lab.start_source(port_of(destination), guest)
    source.wait()
    row.check(lab, guest, source)
    assert destination.wait() == 9, destination.story()


@pytest.mark.failure_row("commit not written")
def test_a_commit_that_cannot_be_written(lab: Lab, row: FailureRow) -> None:
    """It may be on disk all the same: only who reads it, after the daemon, can tell."""
    guest = lab.start_guest("--rate=100")
    source = lab.start_source(port_of(lab.start_destination()), guest, f"--state-cmd={FULL}")
    source.wait()
    row.check(lab, guest, source)
    recover = lab.run("migrate-src", "recover", f"--state-dir={lab.source_state}")
    assert recover.wait() == 0, recover.story()
    assert not lab.is_stopped(guest), "it was not"


@pytest.mark.failure_row("journal not written after the commit")
def test_a_journal_that_cannot_be_written_after_the_commit(lab: Lab, row: FailureRow) -> None:
    guest = lab.start_guest("--rate=100")
    pid = lab.witness.with_name("source.pid")
    full = f"prlimit --pid $(cat {pid}) --fsize=0"
    destination = lab.start_destination(f"--on-commit={full}; {lab.resume_command}", resume=False)
    source = lab.start_source(port_of(destination), guest, f"--state-cmd=echo $PPID > {pid}")
    source.wait()
    row.check(lab, guest, source)
    recover = lab.run("migrate-src", "recover", f"--state-dir={lab.source_state}")
    assert recover.wait() == 0, recover.story()
    lab.end_arrived_guest()
