"""What goes wrong after the body was found good: a full disk, a cut file, RAM that does not keep a write."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kernel_support import Side, content, page_record, sides, zero_record

from migrate.errors import RamError, VerifyError

ONE = ((b"a", 0, 8),)


@contextmanager
def over(kernel: Any, fd: int, layout: tuple[tuple[bytes, int, int], ...] = ONE) -> Iterator[Side]:
    """A side whose only block is an open descriptor, closed at the end."""
    try:
        with sides(kernel, layout=layout, files=[fd]) as [side]:
            yield side
    finally:
        os.close(fd)


def write_pages(side: Side, *pages: int, readback: bool = True) -> int:
    body = b"".join(page_record(page * 1024, content(page), b"a") for page in pages)
    total = side.terms(*[(page, content(page)) for page in pages])
    written: int = side.apply_body(body, len(pages), total, readback=readback).written
    return written


def assert_nothing_recorded(side: Side) -> None:
    expected = bytearray(len(side.digests))
    side.kernel.set_digests(expected, 0, side.ram.total_pages, side.keys.zero_digest)
    assert side.digests == expected


def test_a_full_disk(kernel: Any) -> None:
    with over(kernel, os.open("/dev/full", os.O_RDWR)) as side:
        with pytest.raises(RamError, match="a"):
            write_pages(side, 1, 2)
        assert_nothing_recorded(side)


@pytest.mark.parametrize("room", [0, 1024, 2 * 1024 + 100, 4 * 1024])
def test_a_file_that_may_not_grow_so_far(kernel: Any, tmp_path: Path, room: int) -> None:
    """The first write of a run is short or refused at the limit on file size."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(8 * 1024))
    with over(kernel, os.open(path, os.O_RDWR)) as side:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(RamError, match="a"):
                write_pages(side, 0, 1, 2, 3, 4, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_nothing_recorded(side)
        assert write_pages(side, 0, 1, 2, 3, 4, 5) == 6
        assert path.read_bytes() == b"".join(map(content, range(6))) + bytes(2048)


def test_a_file_that_cannot_be_written(kernel: Any, tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(8 * 1024))
    with over(kernel, os.open(path, os.O_RDONLY)) as side:
        with pytest.raises(RamError, match="a"):
            write_pages(side, 1)
        assert_nothing_recorded(side)


@pytest.mark.parametrize("size", [0, 1024, 7 * 1024, 8 * 1024 - 1])
def test_a_truncated_file_is_not_lengthened(kernel: Any, size: int) -> None:
    """A write beyond the end would make the file long again, and what was cut off stay lost."""
    with sides(kernel, layout=((b"a", 0, 8), (b"b", 64, 1))) as [side]:
        os.ftruncate(side.files[0], size)
        for pages in ((0,), (7,)):
            with pytest.raises(RamError, match="a"):
                write_pages(side, *pages)
        assert os.fstat(side.files[0]).st_size == size
        assert not any(side.image()[0])
        assert_nothing_recorded(side)
        # Nobody looks at a block that gets nothing.
        assert side.apply_body(zero_record(0, b"a"), 1, side.terms((0, bytes(1024)))).written == 0
        body = page_record(0, content(64), b"b")
        assert side.apply_body(body, 1, side.terms((64, content(64)))).written == 1


def test_readback_sees_that_writes_are_lost(kernel: Any) -> None:
    """/dev/zero takes everything and keeps nothing."""
    with over(kernel, os.open("/dev/zero", os.O_RDWR)) as side:
        with pytest.raises(VerifyError, match="a"):
            write_pages(side, 1, 2)
        assert_nothing_recorded(side)
        assert write_pages(side, 1, 2, readback=False) == 2


def test_readback_sees_that_writes_went_elsewhere(kernel: Any) -> None:
    """pwrite on a descriptor opened for appending writes to the end of the file (Linux, pwrite(2), BUGS)."""
    fd = os.memfd_create("migrate-test")
    os.ftruncate(fd, 8 * 1024)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    with over(kernel, fd) as side:
        with pytest.raises(VerifyError, match="a"):
            write_pages(side, 2, 3)
        assert_nothing_recorded(side)
        assert os.pread(fd, 1024, 8 * 1024) == content(2)


def test_readback_sees_a_file_that_returns_less(kernel: Any) -> None:
    """/dev/null takes everything and is empty."""
    with over(kernel, os.open("/dev/null", os.O_RDWR)) as side:
        with pytest.raises(VerifyError, match="a"):
            write_pages(side, 1)
        assert_nothing_recorded(side)


@pytest.mark.parametrize("wrong", range(5))
def test_readback_sees_one_wrong_page_of_a_run(kernel: Any, wrong: int) -> None:
    """/dev/zero again: pages of zeros come back as they were written, the one with content does not."""
    with over(kernel, os.open("/dev/zero", os.O_RDWR)) as side:
        for pages in ([], [wrong]):
            kernel.set_digests(side.digests, 0, 5, 1)  # not zero so far, so zeros are written too
            before = bytes(side.digests)
            contents = [content(page) if page in pages else bytes(1024) for page in range(5)]
            body = b"".join(page_record(page * 1024, new, b"a") for page, new in enumerate(contents))
            total = side.terms(*enumerate(contents))
            if pages:
                with pytest.raises(VerifyError, match=f"{wrong * 1024:#x}"):
                    side.apply_body(body, 5, total)
                assert side.digests == before
            else:
                assert side.apply_body(body, 5, total).written == 5
