"""The RAM files of a practice guest: made, opened, locked against a second guest, mapped."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from migrate.errors import RamError, RefusedError
from migrate.guest.layout import (
    PAGE,
    Layout,
    LayoutError,
    is_header,
    new_state,
    pack_header,
    pack_state,
    unpack_header,
)
from migrate.units import format_size

MARKER_SUFFIX = ".migrating"
_ZEROS_CHUNK = 1 << 20

# One byte far beyond any RAM file is locked by the guest that runs on it. An open-file-description lock
# ends with the process; it does not meet the flock(2) that migrations take on the same file.
_LOCK_OFFSET = (1 << 62) - 1
_FLOCK = struct.Struct("hhqqi4x")


class RamFiles:
    """The open RAM files of one guest, in block order. A context manager: leaving it closes and unlocks them.

    Attributes:
        paths: of the files.
        layout: from their headers, or what they were made with.
        mirrors: the beat as each header has it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.layout: Layout
        self.mirrors: tuple[int, ...] = ()
        self._fds: list[int] = []
        self._closing = ExitStack()

    @classmethod
    def create(cls, paths: Sequence[Path], layout: Layout) -> Self:
        """Make the files of a new guest. Data pages are zeros (fill "zero") or holes.

        An existing file is replaced only if it is empty or an old practice guest's RAM on which none runs.

        Raises RamError: a file is unfit, holds something else, or there is no space. RefusedError: a
        guest runs on it, or an unfinished migration has marked it.
        """
        files = cls(paths)
        try:
            for path in files.paths:
                files._refuse_marked(path)
                fd = files._open(path, os.O_RDWR | os.O_CREAT)
                if not is_header(_pread(fd, path, PAGE, 0)) and os.fstat(fd).st_size:
                    raise RamError(
                        f"{path} exists and is no practice guest's RAM; it was left as it is",
                        hint="name another file, or remove this one",
                    )
                files._lock(fd, path)
            for block, (fd, path) in enumerate(zip(files._fds, files.paths, strict=True)):
                files._empty(fd, path, layout, block)
            # Block 0 last: where its header is, everything else is.
            for block in reversed(range(len(paths))):
                if block == 0:
                    _pwrite(files._fds[0], files.paths[0], pack_state(new_state()), PAGE)
                _pwrite(files._fds[block], files.paths[block], pack_header(layout, block, 0), 0)
        except BaseException:
            files.close()
            raise
        files.layout = layout
        files.mirrors = (0,) * len(paths)
        return files

    @classmethod
    def resume(cls, paths: Sequence[Path]) -> Self:
        """Open the RAM of a stopped guest to go on with it.

        Raises RefusedError: `<file>.migrating` exists, or a guest runs on it. RamError: a file is missing or
        unfit, is no guest's RAM, or the files are not the blocks of one guest in their order.
        """
        files = cls(paths)
        try:
            for path in files.paths:
                files._refuse_marked(path)
            for path in files.paths:
                files._lock(files._open(path, os.O_RDWR), path)
            files._read_headers()
        except BaseException:
            files.close()
            raise
        return files

    @classmethod
    def inspect(cls, paths: Sequence[Path]) -> Self:
        """Open for reading only; no lock, no look at markers. Raises RamError as `resume` does."""
        files = cls(paths)
        try:
            for path in files.paths:
                files._open(path, os.O_RDONLY)
            files._read_headers()
        except BaseException:
            files.close()
            raise
        return files

    def map(self) -> list[mmap.mmap]:
        """Map every file, shared and writable. The caller closes the mappings. Raises RamError."""
        maps: list[mmap.mmap] = []
        for fd, path, pages in zip(self._fds, self.paths, self.layout.block_pages, strict=True):
            try:
                maps.append(mmap.mmap(fd, pages * PAGE))
            except (OSError, ValueError) as error:
                raise RamError(f"{path} cannot be mapped: {error}") from error
        return maps

    def read_into(self, block: int, offset: int, buffer: memoryview) -> None:
        """Fill a buffer from a block. Raises RamError: the file ended, or could not be read."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fds[block], [buffer[done:]], offset + done)
            except OSError as error:
                raise RamError(f"{self.paths[block]} cannot be read: {error.strerror}") from error
            if count == 0:
                raise RamError(f"{self.paths[block]} ends at byte {offset + done}: it was truncated")
            done += count

    def read(self, block: int, offset: int, length: int) -> bytes:
        """Bytes of a block. Raises RamError."""
        data = bytearray(length)
        self.read_into(block, offset, memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """Close, and with that unlock, every file."""
        self._closing.close()
        self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, path: Path, flags: int) -> int:
        try:
            # A named pipe would be waited for.
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except FileNotFoundError:
            text = (
                "does not exist" if not flags & os.O_CREAT else "cannot be made: its directory does not exist"
            )
            raise RamError(f"{path} {text}", hint="--ram names the file a guest's RAM is in") from None
        except OSError as error:
            raise RamError(f"{path} cannot be opened: {error.strerror}") from error
        self._closing.callback(os.close, fd)
        self._fds.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RamError(f"{path} is not a regular file")
        for other in self._fds[:-1]:
            if os.path.sameopenfile(fd, other):
                raise RamError(f"{path} is given twice: each block needs a file of its own")
        return fd

    @staticmethod
    def _refuse_marked(path: Path) -> None:
        marker = path.with_name(path.name + MARKER_SUFFIX)
        if marker.exists():
            raise RefusedError(
                f"{path} is marked as the unfinished copy of a migration ({marker} exists)",
                guest="the guest did not start here",
                hint="finish or cancel that migration; remove a copy that stays unfinished, with its marker",
            )

    @staticmethod
    def _lock(fd: int, path: Path) -> None:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCK_OFFSET, 1, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise RamError(f"{path} cannot be locked: {error.strerror}") from error
            raise RefusedError(
                f"a practice guest runs (or is stopped) on {path}",
                guest="that guest was left as it is",
                hint="end it first; two guests on one RAM would destroy it",
            ) from None

    @staticmethod
    def _empty(fd: int, path: Path, layout: Layout, block: int) -> None:
        length = layout.block_pages[block] * PAGE
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, length)
            if layout.fill == "zero":
                for offset in range(0, length, _ZEROS_CHUNK):
                    _pwrite(fd, path, bytes(min(_ZEROS_CHUNK, length - offset)), offset)
        except OSError as error:
            raise RamError(f"{path} cannot be made {format_size(length)} long: {error.strerror}") from error

    def _read_headers(self) -> None:
        guest: Layout | None = None
        mirrors = []
        for number, (fd, path) in enumerate(zip(self._fds, self.paths, strict=True)):
            page = _pread(fd, path, PAGE, 0)
            if len(page) < PAGE:
                raise RamError(f"{path} is too small to be a practice guest's RAM: it has {len(page)} bytes")
            try:
                layout, block, mirror = unpack_header(page)
            except LayoutError as error:
                raise RamError(f"{path}: {error}") from error
            guest = guest or layout
            if layout != guest:
                raise RamError(f"{path} and {self.paths[0]} are not blocks of the same guest")
            if block != number or len(layout.block_pages) != len(self.paths):
                raise RamError(
                    f"{path} is block {block} of the {len(layout.block_pages)} of its guest,"
                    f" but was given as number {number} of {len(self.paths)}",
                    hint="give --ram for every block, in the order the guest was made with",
                )
            length = os.fstat(fd).st_size
            if length != layout.block_pages[block] * PAGE:
                made_with = layout.block_pages[block] * PAGE
                raise RamError(f"{path} has {length} bytes, but its guest was made with {made_with}")
            mirrors.append(mirror)
        assert guest is not None  # the command line demands at least one file
        self.layout = guest
        self.mirrors = tuple(mirrors)


def _pread(fd: int, path: Path, length: int, offset: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise RamError(f"{path} cannot be read: {error.strerror}") from error


def _pwrite(fd: int, path: Path, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        try:
            count = os.pwrite(fd, view, offset)
        except OSError as error:
            raise RamError(f"{path} cannot be written: {error.strerror}") from error
        view, offset = view[count:], offset + count
