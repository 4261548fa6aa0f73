"""The guest's addresses seen from outside: its mappings, its page tables and a userfaultfd that it offers.

A guest offers one by having it open: any process may, and needs no privileges for it (`migrate-guest` does).
Whoever holds a copy of that descriptor can have the kernel note the guest's writes (LMT 2.1). One that offers
none can be made to create it (injection.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from migrate import kernel
from migrate.daemon.injection import inject_userfaultfd
from migrate.daemon.pidfd import copy_descriptor, has_exited
from migrate.ram.image import RamImage
from migrate.ram.mappings import Mapping, ram_mappings

_USERFAULTFD = "anon_inode:[userfaultfd]"
_WRITER_SECONDS = 2.0


class GuestPages:
    """One guest's mappings and page tables.

    Args:
        pid: the guest.

    Raises:
        OSError: why they cannot be seen from here, for a person.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pagemap = -1
        self._proc = -1
        self._pidfd = os.pidfd_open(pid)
        try:
            self._proc = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if has_exited(self._pidfd):
                raise ProcessLookupError(f"process {pid} has ended")
            self.pagemap = self._open("pagemap")
        except BaseException:
            self.close()
            raise

    def mappings(self, image: RamImage) -> tuple[Mapping, ...]:
        """Through which addresses the guest can write RAM now. Raises OSError: it cannot be seen."""
        with open(self._open("maps"), errors="replace") as maps:
            return ram_mappings(maps.read(), image)

    def close(self) -> None:
        """Let go of it; the second call does nothing."""
        for fd in (self.pagemap, self._proc, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self.pagemap = self._proc = self._pidfd = -1

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)


class GuestMemory(GuestPages):
    """One guest's memory, for `WpTracker`.

    Args:
        pid: the guest.
        image: its RAM as files.
        given: a userfaultfd that the guest handed over; -1: look for one that it has open.
        inject: it offers nothing; have it make a userfaultfd by ptrace.

    Attributes:
        stopped_seconds: for how long it stood for that.

    Raises:
        OSError: why its writes cannot be tracked from here, for a person.
    """

    def __init__(self, pid: int, image: RamImage, *, given: int = -1, inject: bool = False) -> None:
        self.stopped_seconds = 0.0
        self.userfaultfd = -1
        self._writer_looked = float("-inf")
        super().__init__(pid)
        try:
            _probe()
            mappings = self.mappings(image)
            if not mappings:
                raise OSError(f"process {pid} has none of the RAM files mapped, shared and writable")
            writer = self.other_writer(image)
            if writer is not None:
                raise OSError(f"{writer} can write the RAM file as well, which write protection does not see")
            if inject:
                self.userfaultfd, self.stopped_seconds = inject_userfaultfd(pid)
            elif given >= 0:
                self.userfaultfd = self._take_userfaultfd(given, mappings[0])
            else:
                self.userfaultfd = self._find_userfaultfd(mappings[0])
        except BaseException:
            self.close()
            raise

    def other_writer(self, image: RamImage) -> str | None:
        """Another process that has RAM mapped writable, for a person; looked for each two seconds at most."""
        now = time.monotonic()
        if now - self._writer_looked < _WRITER_SECONDS:
            return None
        for directory in Path("/proc").iterdir():
            name = directory.name
            if not name.isdecimal() or int(name) in (self.pid, os.getpid()):
                continue
            with contextlib.suppress(OSError):  # ended, or somebody else's who cannot have the file either
                if ram_mappings((directory / "maps").read_text(errors="replace"), image):
                    return f"process {name}"
        self._writer_looked = time.monotonic()
        return None

    def close(self) -> None:
        """Let go of it; the guest's own userfaultfd stays. The second call does nothing."""
        if self.userfaultfd >= 0:
            os.close(self.userfaultfd)
            self.userfaultfd = -1
        super().close()

    def _take_userfaultfd(self, given: int, mapping: Mapping) -> int:
        """A copy of what the guest says is a userfaultfd. Raises OSError."""
        if str(Path(f"/proc/self/fd/{given}").readlink()) != _USERFAULTFD:  # its ioctl could be anything
            raise OSError("what the guest gave is no userfaultfd")
        copy = os.dup(given)
        try:
            self._try(copy, mapping)
        except OSError as error:
            os.close(copy)
            raise OSError(f"the guest's userfaultfd cannot be used: {error.strerror}") from error
        return copy

    def _find_userfaultfd(self, mapping: Mapping) -> int:
        """A copy of the first userfaultfd of the guest that watches its own memory. Raises OSError."""
        problem = f"process {self.pid} offers no userfaultfd"
        descriptors = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            for name in sorted(os.listdir(descriptors), key=int):  # noqa: PTH208 - a descriptor is no path
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if os.readlink(name, dir_fd=descriptors) != _USERFAULTFD:
                        continue
                copy = copy_descriptor(self._pidfd, int(name))
                try:
                    self._try(copy, mapping)
                except OSError as error:
                    os.close(copy)
                    problem = f"userfaultfd {name} of process {self.pid} cannot be used: {error.strerror}"
                else:
                    return copy
        finally:
            os.close(descriptors)
        raise OSError(problem)

    def _try(self, userfaultfd: int, mapping: Mapping) -> None:
        """Whether a page of the guest can be protected through it; one of another process cannot."""
        kernel.track_writes(userfaultfd, mapping.start, mapping.length)
        page = os.sysconf("SC_PAGESIZE")
        kernel.written_pages(self.pagemap, mapping.start, page, 0, 0, page, bytearray(8))


def _probe() -> None:
    try:
        kernel.probe_write_tracking()
    except OSError as error:
        raise OSError(
            f"this kernel cannot track writes (Linux 6.7 can): {error.strerror or error}"
        ) from error
