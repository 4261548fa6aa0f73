"""Journals on disk: one small file a migration and side in the state directory, locked while it is in use.

`SIDE-MIGRATION.journal`, mode 0600 in a directory of mode 0700; content: protocol/journal_record.py. The lock
is flock(2), exclusive, for the life of whoever may write: a daemon, the supervisor after it, `recover`. It
goes with the process, however that ends. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from migrate.daemon.arbiter import remove_arbiter
from migrate.errors import JournalError
from migrate.protocol.journal_record import FILE_BYTES, SLOT_BYTES, JournalRecord, decode_file, encode_slot

SUFFIX = ".journal"
LOCK_SECONDS = 1.0
"""How long a lock is tried: somebody may only be looking whether it is free."""
_LOCK_POLL = 0.02


def default_state_dir() -> Path:
    """Where journals go without --state-dir.

    What systemd made for the unit (StateDirectory=, systemd.exec(5)); else /var/lib/migrate for root, and for
    others the place of the XDG Base Directory Specification.
    """
    given = os.environ.get("STATE_DIRECTORY")
    if given:
        return Path(given.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/migrate")
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "migrate"


def boot_id() -> str:
    """Identity of this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Journal:
    """An open journal, ours alone. Calls may come from any thread, one after the other.

    Attributes:
        record: the last one that is on disk for certain.
    """

    def __init__(self, path: Path, fd: int, record: JournalRecord, sequence: int, slot: int) -> None:
        self.path = path
        self.record = record
        self._fd = fd
        self._sequence = sequence
        self._slot = slot
        """That holds `record`."""

    @classmethod
    def create(cls, directory: Path, record: JournalRecord) -> Journal:
        """Make the file of a new migration, with room for all that will be written.

        Raises:
            JournalError: it cannot be made, or there is one already.
        """
        path = directory / f"{record.side}-{record.migration}{SUFFIX}"
        fd = -1
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(fd, 0, FILE_BYTES)
            _write_all(fd, encode_slot(record, 1), 0)
            os.fsync(fd)
            _sync_directory(directory)
        except BaseException as error:
            if fd >= 0:
                path.unlink(missing_ok=True)
                os.close(fd)
            if isinstance(error, OSError):
                raise _cannot(error, path, record.side, "made") from error
            raise
        return cls(path, fd, record, 1, 0)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Take over the journal of a program that has ended.

        Raises:
            JournalError: it is gone, damaged, or in use (`JournalBusyError`).
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot(error, path, None, "opened") from error
        try:
            _lock(fd, path)
            if not _is_at(fd, path):  # whoever had it has just removed it
                raise JournalError(f"{path} is gone: its handover was settled meanwhile")
            data = os.pread(fd, FILE_BYTES, 0)
            sequence, record = decode_file(data)
            slot = 0 if data[:SLOT_BYTES].startswith(encode_slot(record, sequence)) else 1
        except OSError as error:
            os.close(fd)
            raise _cannot(error, path, None, "read") from error
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, record, sequence, slot)

    def write(self, record: JournalRecord) -> None:
        """Put a record on disk.

        Raises:
            JournalError: it may be there or not; `record` stays what it was.
        """
        self._sequence += 1
        slot = 1 - self._slot
        try:
            _write_all(self._fd, encode_slot(record, self._sequence), slot * SLOT_BYTES)
            os.fdatasync(self._fd)
        except OSError as error:
            raise _cannot(error, self.path, record.side, "written") from error
        self._slot = slot
        self.record = record

    def remove(self) -> None:
        """Remove and close it: the handover is settled, or never began. The second call does nothing.

        At the source the arbiter's file goes before it, so that none is left that nobody knows.
        """
        if self._fd >= 0:
            if self.record.side == "source" and self.record.arbiter:
                remove_arbiter(Path(self.record.arbiter), self.record.migration)
            with contextlib.suppress(OSError):  # it says what is true; it only was not needed any more
                self.path.unlink(missing_ok=True)
                _sync_directory(self.path.parent)
        self.close()

    def close(self) -> None:
        """Let go of it as it is; the second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JournalBusyError(JournalError):
    """Another program has the journal."""


@dataclass(frozen=True)
class FoundJournal:
    """A journal as it was read: a record, or what is wrong with it."""

    path: Path
    record: JournalRecord | None
    problem: str
    in_use: bool
    """A program has it: the migration, its supervisor, or a `recover` is at work."""


def find_journals(directory: Path, side: str) -> list[FoundJournal]:
    """All journals of a side; none where there is no directory. Raises JournalError: it cannot be read."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.match(f"{side}-*{SUFFIX}"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot(error, directory, side, "read") from error
    return list(_read_all(paths))


def find_journal(directory: Path, side: str, migration: str) -> Path | None:
    """The journal of that migration, if there is one."""
    path = directory / f"{side}-{migration}{SUFFIX}"
    return path if path.exists() else None


def _read_all(paths: list[Path]) -> Iterator[FoundJournal]:
    """Without those that broke off while they were made: nothing was ever done on the strength of them."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # settled meanwhile
        except OSError as error:
            yield FoundJournal(path, None, str(_cannot(error, path, None, "read")), False)
            continue
        try:
            in_use = _is_locked(fd)
            data = os.pread(fd, FILE_BYTES, 0)
            _, record = decode_file(data)
            yield FoundJournal(path, record, "", in_use)
        except JournalError as error:
            if any(data[SLOT_BYTES:]):  # the second record comes once the first is on disk
                yield FoundJournal(path, None, error.message, in_use)
        except OSError as error:
            yield FoundJournal(path, None, str(_cannot(error, path, None, "read")), False)
        finally:
            os.close(fd)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _lock(fd: int, path: Path) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_LOCK_POLL)
                continue
            raise JournalBusyError(
                f"{path} is in use: its migration, or another `recover`, is at work",
                hint="wait until it has ended; `fuser -v FILE` shows who has it open",
            ) from None
        return


def _is_at(fd: int, path: Path) -> bool:
    ours = os.fstat(fd)
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _cannot(error: OSError, path: Path, side: str | None, what: str) -> JournalError:
    hint = "name a directory that can be written to, on a disk that survives a crash: --state-dir DIR"
    if error.errno == errno.ENOSPC:
        hint = "make room on the file system of --state-dir"
    return JournalError(f"the journal {path} cannot be {what}: {error.strerror}", side=side, hint=hint)
