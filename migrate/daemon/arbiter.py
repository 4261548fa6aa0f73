"""The arbiter: a folder on storage that both hosts see, which says once for a migration whose the guest is.

MIGRATION.undecided      made by the source before its hello; the destination looks whether it sees it
MIGRATION.destination    the destination may start the guest
MIGRATION.source         the source may resume the guest that it had handed over

A claim renames `undecided`. Of two renames (rename(2); on NFS the server carries them out, RFC 1813, 3.3.14)
one finds it and the other does not, and sees by the name that is there who was first; a claim whose answer
was lost sees its own. There is no lease and no clock: what was decided stays, until the source removes the
file because both sides know the outcome. Who gets no answer, or finds none of the three, may do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from migrate.daemon.left_behind import left_behind
from migrate.errors import ArbiterError

Side = Literal["source", "destination"]
ANSWER_SECONDS = 30.0
"""Storage that hangs longer gives no answer. A claim that it carries out later is one all the same."""
REMOVE_SECONDS = 5.0
_SIDES: tuple[Side, ...] = ("source", "destination")
_UNDECIDED = "undecided"
T = TypeVar("T")


class Arbiter(Protocol):
    """Decides once; calls do I/O, and may hang."""

    def open(self) -> None:
        """Begin: nobody has claimed. Raises ArbiterError."""

    def look(self) -> None:
        """See that it is the one that the other side has opened. Raises ArbiterError."""

    def claim(self, side: Side) -> Side:
        """Claim the guest for a side; whose it is, for ever. Raises ArbiterError: nobody knows."""

    def remove(self) -> None:
        """Both sides know the outcome."""


class FileArbiter:
    """The arbiter of one migration; see the module's text.

    Args:
        directory: the same for both hosts, by whatever path; writable for both daemons.
        migration: its id, hexadecimal.
    """

    def __init__(self, directory: Path, migration: str) -> None:
        self._directory = directory
        self._migration = migration

    def open(self) -> None:
        """As `Arbiter.open`."""
        with self._told("made"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(self._path(_UNDECIDED), flags, 0o644))
            self._sync()

    def look(self) -> None:
        """As `Arbiter.look`."""
        with self._told("found"):
            self._path(_UNDECIDED).stat()

    def claim(self, side: Side) -> Side:
        """As `Arbiter.claim`."""
        with self._told("claimed"):
            with contextlib.suppress(FileNotFoundError):  # there was a claim before, perhaps our own
                self._path(_UNDECIDED).rename(self._path(side))
            self._sync()  # also what somebody else renamed: it is the ground that we stand on
            for winner in _SIDES:
                if self._path(winner).exists():
                    return winner
        raise self._error("claimed", "it is gone, or this is not the folder that it was")

    def remove(self) -> None:
        """As `Arbiter.remove`; what cannot be removed is of no harm."""
        with contextlib.suppress(OSError):
            for name in (_UNDECIDED, *_SIDES):
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._directory / f"{self._migration}.{name}"

    def _sync(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(what, error.strerror or str(error)) from error

    def _error(self, what: str, reason: str) -> ArbiterError:
        return ArbiterError(
            f"the arbiter's file {self._path(_UNDECIDED)} cannot be {what}: {reason}",
            hint="--arbiter DIR is a folder on storage that both hosts see, and that both daemons may write",
        )


async def ask(call: Callable[[], T]) -> T:
    """Carry out one call of an arbiter. Raises ArbiterError, also if the storage does not answer in time."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await left_behind(call, "arbiter")
    except TimeoutError:
        raise ArbiterError(
            f"the arbiter's storage does not answer for {ANSWER_SECONDS:g} s",
            hint="see to the storage of --arbiter, then recover",
        ) from None


async def won_by(side: Side, arbiter: Arbiter) -> tuple[bool | None, ArbiterError | None]:
    """Whether the guest is that side's, which claims it; None and why: there is no answer."""
    try:
        return await ask(lambda: arbiter.claim(side)) == side, None
    except ArbiterError as error:
        return None, error


def remove_arbiter(directory: Path, migration: str) -> None:
    """Both sides know the outcome: remove the file, or leave it where its storage does not answer."""
    thread = threading.Thread(target=FileArbiter(directory, migration).remove, name="arbiter", daemon=True)
    thread.start()
    thread.join(REMOVE_SECONDS)
