"""The journal at the beginning of a migration, unless an older one says that its RAM must be left alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from migrate.config import DestinationConfig, SourceConfig
from migrate.daemon.arbiter import remove_arbiter
from migrate.daemon.journal import Journal, boot_id, default_state_dir, find_journals
from migrate.errors import RefusedError
from migrate.protocol import messages as m
from migrate.protocol.journal_record import JournalRecord, RamPlace, Step
from migrate.ram.image import RamImage

_OPEN = frozenset(
    {Step.PAUSING, Step.COMMITTED, Step.TAKEN_BACK, Step.DONE, Step.PREPARED, Step.STARTING, Step.RUNNING}
)
"""Whose guest it is was not settled, or it is not this host's to move or to overwrite."""
_LEFT = frozenset({Step.MOVING, Step.RECEIVING})
"""A journal that nobody will ask for, once its daemon is gone."""
_GIVEN_UP = frozenset({Step.PREPARED, Step.DECLINED})
"""Of the very migration that begins anew: its source would ask, and say no hello, had it committed."""


def start_source_journal(config: SourceConfig, hello: m.Hello, image: RamImage, embedded: bool) -> Journal:
    """Make the source's journal of a new migration.

    Args:
        embedded: the guest is part of this process.

    Raises:
        JournalError: it cannot be made.
        RefusedError: an earlier migration of this RAM left its guest paused, or handed it over; or a journal
            is damaged, so that this may be so.
    """
    assert config.to is not None
    first = _first("source", hello, image, str(config.to), embedded, config.arbiter)
    return _start(config.state_dir, first)


def start_destination_journal(
    config: DestinationConfig, hello: m.Hello, image: RamImage, peer: str, embedded: bool
) -> Journal:
    """Make the destination's journal of a new migration.

    Args:
        peer: address of the source.
        embedded: the guest will be part of this process.

    Raises:
        JournalError: it cannot be made.
        RefusedError: a guest that an earlier migration brought runs on this RAM, or may; or a journal is
            damaged, so that this may be so.
    """
    first = _first("destination", hello, image, peer, embedded, config.arbiter)
    return _start(config.state_dir, first)


def _start(state_dir: Path | None, first: JournalRecord) -> Journal:
    directory, side, ram = state_dir or default_state_dir(), first.side, first.ram
    for found in find_journals(directory, side):
        record = found.record
        if record is None:
            raise RefusedError(
                f"which guest this journal is about, and whose that is, is not known: {found.problem}",
                side=side,
                hint=f"settle what `status` says at the other side, then: rm {found.path}",
            )
        if record.migration == first.migration and record.step in _GIVEN_UP and not found.in_use:
            found.path.unlink(missing_ok=True)
            continue
        if not _same_files(record.ram, ram):
            continue
        if record.step in _OPEN:
            program = "migrate-src" if side == "source" else "migrate-dst"
            what = ram[0].path or f"block {ram[0].name!r}"
            raise RefusedError(
                f"migration {record.migration} of {what} came as far as {record.step.value!r} and was"
                f" not settled ({found.path})",
                side=side,
                guest="the guest is where that migration left it",
                hint=f"{program} recover --state-dir {directory}",
            )
        if record.step in _LEFT and not found.in_use:
            if side == "source" and record.arbiter:
                remove_arbiter(Path(record.arbiter), record.migration)
            found.path.unlink(missing_ok=True)
    return Journal.create(directory, first)


def _first(
    side: str, hello: m.Hello, image: RamImage, peer: str, embedded: bool, arbiter: Path | None
) -> JournalRecord:
    return JournalRecord(
        side,
        _FIRST[side],
        hello.migration.hex(),
        boot_id(),
        _places(image),
        peer=peer,
        arbiter="" if arbiter is None else str(arbiter.absolute()),
        embedded=embedded,
    )


_FIRST = {"source": Step.MOVING, "destination": Step.RECEIVING}


def _places(image: RamImage) -> tuple[RamPlace, ...]:
    """Which files the image's blocks are."""
    places = []
    for name, fd in image.fds.items():
        status = os.fstat(fd)
        path = "" if name in image.held else str(image.paths[name].absolute())
        places.append(RamPlace(name, path, status.st_dev, status.st_ino))
    return tuple(places)


def _same_files(some: Iterable[RamPlace], others: Iterable[RamPlace]) -> bool:
    files = {(place.device, place.inode) for place in some}
    return any((place.device, place.inode) in files for place in others)
