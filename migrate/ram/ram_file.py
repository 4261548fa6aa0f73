"""One RAM file: opened, looked at, locked.

The lock is flock(2) on the file itself, exclusive, held for as long as the file is open: two migrations
never use one file, on whichever side. It goes with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from migrate.config import RamSpec
from migrate.errors import RamError
from migrate.ram.filesystem import is_hugetlbfs, punch
from migrate.ram.marker import marker_path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@dataclass(slots=True)
class RamFile:
    """An open RAM file."""

    spec: RamSpec
    side: str
    """"source" or "destination"."""
    fd: int
    identity: tuple[int, int]
    """Device and inode."""
    nameless: bool
    """No directory has it (memfd, or deleted), or somebody holds it: its path leads nowhere lasting."""
    created: bool = False
    """Made by this open."""
    locked: bool = False

    @property
    def length(self) -> int:
        """Bytes, as the file is now. Raises OSError."""
        return os.fstat(self.fd).st_size

    @property
    def occupied_bytes(self) -> int:
        """What it takes on its file system. Raises OSError."""
        return os.fstat(self.fd).st_blocks * 512

    def lock(self) -> None:
        """Take the lock. Raises RamError: another migration holds it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RamError(
                f"{self.spec.path} is already used by another migration",
                side=self.side,
                hint="wait for it or cancel it; `fuser -v FILE` shows who has the file open",
            ) from None
        except OSError as error:
            raise RamError(f"{self.spec.path} cannot be locked: {error.strerror}", side=self.side) from error
        self.locked = True

    def check_unchanged(self, length: int) -> None:
        """Raise RamError unless the file still has that length and is still the one at its path."""
        try:
            now = self.length
            if now != length:
                raise RamError(
                    f"{self.spec.path} has {now} bytes now, but block {self.spec.name!r} has {length}:"
                    " it was truncated or extended during the migration",
                    side=self.side,
                )
            if not self.nameless and not self.is_at_its_path():
                raise RamError(
                    f"{self.spec.path} is another file now than the one that was opened", side=self.side
                )
        except OSError as error:
            raise RamError(f"{self.spec.path} is gone: {error.strerror}", side=self.side) from error

    def is_at_its_path(self) -> bool:
        """Whether the path leads to this very file. Raises OSError."""
        found = self.spec.path.stat()
        return (found.st_dev, found.st_ino) == self.identity

    def empty(self, length: int) -> None:
        """Make it `length` bytes of holes. Raises OSError.

        Who holds the file may have mapped it, and forbidden that it shrinks (memfd_create(2), seals).
        """
        if self.spec.held and self.length == length:
            punch(self.fd, length)
            return
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, length)

    def discard(self) -> None:
        """Close a file that nothing was written to; one that was made by this open goes away.

        It is removed while the lock is held, so never under the feet of a migration that found it meanwhile.
        """
        if self.created and self.locked:
            with contextlib.suppress(OSError):  # somebody removed it already
                if self.length == 0 and self.is_at_its_path():
                    self.spec.path.unlink()
        self.close()

    def close(self) -> None:
        """Close it, which releases the lock. The second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_source_file(spec: RamSpec, page_size: int) -> RamFile:
    """Open a guest's RAM for reading, without the lock.

    Raises:
        RamError: missing, unreadable, not a regular file, empty, of an odd length, or an unfinished copy.
    """
    file = _open(spec, os.O_RDONLY, "source")
    try:
        length = file.length
        if length == 0:
            raise RamError(
                f"{spec.path} is empty", side="source", hint="start the guest first, or name its RAM file"
            )
        if length % page_size:
            raise RamError(
                f"{spec.path} has {length} bytes, which is no multiple of the page size {page_size}",
                side="source",
                hint="is this the guest's RAM file?",
            )
        if not file.nameless and marker_path(spec.path).exists():
            raise RamError(
                f"{spec.path} is the unfinished copy of another migration: {marker_path(spec.path)} says so",
                side="source",
                hint="name the RAM file of the running guest",
            )
    except BaseException:
        file.close()
        raise
    return file


def open_destination_file(spec: RamSpec, length: int, *, create: bool) -> RamFile | None:
    """Open, or create with mode 0600 and no bytes, the file that will hold a block; not locked yet.

    Args:
        length: bytes of the block; the file must have as many, or none.
        create: whether a missing file is made; if not, None is returned for one.

    Raises:
        RamError: it cannot be written, is not a regular file, has another length, or has no directory.
    """
    if not spec.held:
        _check_directory(spec)
    flags = os.O_RDWR
    created = False
    if not os.path.lexists(spec.path):
        if not create:
            return None
        flags |= os.O_CREAT | os.O_EXCL
        created = True
    file = _open(spec, flags, "destination")
    file.created = created
    try:
        if file.nameless and not spec.held:
            raise RamError(
                f"{spec.path} has no name in a directory (a memfd, or deleted): the mark of an unfinished"
                " copy has no place beside it",
                side="destination",
                hint=f"name a file in tmpfs: --ram {spec.name}=/dev/shm/NAME",
            )
        if file.length not in (0, length):
            raise RamError(
                f"{spec.path} has {file.length} bytes, but the source's block {spec.name!r} has {length}",
                side="destination",
                hint=f"if nothing needs it: rm {spec.path}; or name another file: --ram {spec.name}=PATH",
            )
    except BaseException:
        file.close()
        raise
    return file


def _open(spec: RamSpec, flags: int, side: str) -> RamFile:
    """Open a regular file (and nothing else: opening a device may act on it)."""
    fd = -1
    try:
        if not flags & os.O_CREAT:
            _check_kind(spec.path, spec.path.stat(), side)
        fd = os.open(spec.path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        status = os.fstat(fd)
        _check_kind(spec.path, status, side)
        if is_hugetlbfs(fd):
            raise RamError(
                f"{spec.path} is in hugetlbfs, which this version cannot move",
                side=side,
                hint="back the guest's RAM with tmpfs, a memfd of normal pages, or a file",
            )
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise _cannot_open(spec, error, side) from error
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    nameless = spec.held or status.st_nlink == 0
    return RamFile(spec, side, fd, (status.st_dev, status.st_ino), nameless)


def _check_kind(path: Path, status: os.stat_result, side: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise RamError(f"{path} is {kind}, not a RAM file", side=side)


def _check_directory(spec: RamSpec) -> None:
    directory = spec.path.parent
    if not directory.is_dir():
        raise RamError(
            f"{spec.path} cannot be created: there is no directory {directory}",
            side="destination",
            hint=f"mkdir -p {directory}",
        )
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):  # the marker goes there too
        raise RamError(f"directory {directory} cannot be written to", side="destination")


def _cannot_open(spec: RamSpec, error: OSError, side: str) -> RamError:
    if error.errno == errno.ENOENT:
        return RamError(
            f"{spec.path} does not exist", side=side, hint=f"--ram {spec.name}=PATH names the file"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        use = "read" if side == "source" else "written"
        return RamError(
            f"{spec.path} cannot be {use}: {error.strerror}", side=side, hint="run this as the guest's user"
        )
    return RamError(f"{spec.path} cannot be opened: {error.strerror}", side=side)
