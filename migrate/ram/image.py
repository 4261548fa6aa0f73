"""The RAM image: the open files of all blocks, where their pages are, and what keeps them safe.

The source reads its files and never changes them. The destination's files go through these states:

    open_destination ─→ opened: locked, checked, nothing changed (missing files exist, empty)
        mark(id)     ─→ incoming: `<file>.migrating` stands beside each file that nobody holds; all are holes,
                        or (warm start) what they were
        unmark()     ─→ whole: the marks are gone, a guest may use the files

Closed while opened: files made for it are removed again. Closed while incoming: the marks stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from migrate import kernel
from migrate.config import RamSpec
from migrate.errors import RamError, UsageError
from migrate.kernel.results import RamBlock
from migrate.ram.extents import data_extents
from migrate.ram.filesystem import free_bytes
from migrate.ram.layout import BlockPlace, PageLayout
from migrate.ram.marker import marker_path, remove_marker, write_marker
from migrate.ram.ram_file import RamFile, open_destination_file, open_source_file

__all__ = ["RamImage", "RamSpec"]

MARK_BYTES = 4096
"""What the mark beside a file takes of its file system: a page, as any small file."""


class RamImage:
    """The RAM of a guest as files. Made by `open_source` and `open_destination`; a context manager.

    Attributes:
        layout: the blocks and their places in page space.
        available_bytes: destination: what fits into its files, by the file systems' word; None at the source.
        holds_ram: destination: a file had the length of its block when it was opened, and thus maybe content
            that is worth keeping.
    """

    def __init__(
        self, side: str, layout: PageLayout, files: list[RamFile], available_bytes: int | None = None
    ) -> None:
        self.side = side
        self.layout = layout
        self.available_bytes = available_bytes
        self.holds_ram = False
        self._files = files
        self._incoming = False
        self._ram = self._make_kernel_ram() if side == "source" else None

    @classmethod
    def open_source(cls, specs: Sequence[RamSpec], page_size: int) -> Self:
        """Open the RAM of a running guest for reading, and lock it against other migrations.

        Raises:
            RamError: a file is missing, unfit, unreadable, in use by another migration, or named twice.
            UsageError: names or sizes that no migration can have.
        """
        files: list[RamFile] = []
        try:
            for spec in specs:
                _take(open_source_file(spec, page_size), files)
            try:
                layout = PageLayout(page_size, [(file.spec.name, file.length) for file in files])
            except ValueError as error:
                raise UsageError(str(error), side="source") from error
            return cls("source", layout, files)
        except BaseException:
            _discard(files)
            raise

    @classmethod
    def open_destination(
        cls,
        specs: Sequence[RamSpec],
        lengths: Mapping[str, int],
        page_size: int,
        *,
        needed_bytes: int = 0,
        dry_run: bool = False,
    ) -> Self:
        """Open and lock the files that will hold the blocks; nothing in them changes before `mark`.

        Args:
            specs: where each block goes here.
            lengths: the source's blocks in its order, in bytes.
            page_size: agreed wire page.
            needed_bytes: bytes of data that the source's blocks have.
            dry_run: make all checks and create nothing; the image is closed when it is returned.

        Raises:
            RamError: the blocks do not match, a file is unfit or used by another migration, or no space.
            ValueError: the peer's block list or page size is impossible (`PageLayout`).
        """
        layout = PageLayout(page_size, list(lengths.items()))
        by_name = _match(specs, layout)
        files: list[RamFile] = []
        try:
            for block in layout.blocks:
                file = open_destination_file(by_name[block.name], block.length, create=not dry_run)
                if file is not None:
                    _take(file, files)
            available = _available_bytes(layout, by_name, files)
            if available < needed_bytes:
                raise RamError(
                    f"{needed_bytes} bytes of RAM are to come, but only {available} fit into"
                    f" {', '.join(str(spec.path) for spec in specs)}",
                    side="destination",
                    hint="make room, or name files on another file system with --ram NAME=PATH",
                )
        except BaseException:
            _discard(files)
            raise
        image = cls("destination", layout, files, available)
        lengths_here = {file.spec.name: file.length for file in files}
        image.holds_ram = any(lengths_here.get(block.name) == block.length for block in layout.blocks)
        if dry_run:
            image.close()
        return image

    def mark(self, migration_id: str, *, keep: bool = False) -> None:
        """Put the marks, then make each file of its block's length and all holes.

        On an image that is marked already, only the marks are renewed.

        Args:
            keep: leave a file that has its block's length as it is (warm start).

        Raises:
            RamError: a mark cannot be written (no file was changed then), or a file cannot be resized.
        """
        if self.side != "destination" or not self._files:
            raise RuntimeError("only an open image of a destination can be marked")
        self._put_marks(migration_id)
        if self._incoming:
            return
        self._incoming = True
        for file, block in self._placed():
            if keep and file.length == block.length:
                continue
            try:
                file.empty(block.length)
            except OSError as error:
                raise RamError(
                    f"{file.spec.path} cannot be made {block.length} bytes long: {error.strerror}",
                    side=file.side,
                ) from error
        self._ram = self._make_kernel_ram()

    def unmark(self) -> None:
        """Remove the marks: the files are a whole guest now. Raises RamError."""
        for file in self._marked():
            try:
                remove_marker(file.spec.path)
            except OSError as error:
                raise RamError(
                    f"{marker_path(file.spec.path)} cannot be removed: {error.strerror}",
                    side=file.side,
                    hint="the RAM is whole: remove the mark by hand before the guest is started",
                ) from error

    @property
    def kernel_ram(self) -> kernel.Ram:
        """The blocks for kernel calls. RuntimeError: closed, or a destination before `mark`."""
        if self._ram is None:
            raise RuntimeError("this image is closed, or was not marked as incoming yet")
        return self._ram

    @property
    def fds(self) -> dict[str, int]:
        """Open descriptor of each block, by name; empty when closed."""
        return {file.spec.name: file.fd for file in self._files}

    @property
    def paths(self) -> dict[str, Path]:
        """Path of each block's file, by name, in the order of the blocks; empty when closed."""
        return {file.spec.name: file.spec.path for file in self._files}

    @property
    def held(self) -> set[str]:
        """Names of the blocks whose file somebody holds: its path means something in this process only."""
        return {file.spec.name for file in self._files if file.spec.held}

    def data_extents(self, block: BlockPlace, *, grain_pages: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (first page in page space, count) of each stretch of the block that is no hole, ascending.

        Args:
            block: one of `layout.blocks`.
            grain_pages: see `migrate.ram.extents.data_extents`.

        Raises:
            RamError: the file was truncated, or cannot be searched.
        """
        file = self._file_of(block)
        try:
            if file.length < block.length:
                file.check_unchanged(block.length)
            for first, count in data_extents(
                file.fd, block.pages, self.layout.page_size, grain_pages=grain_pages
            ):
                yield block.first_page + first, count
        except OSError as error:
            file.check_unchanged(block.length)  # if it was truncated, that says so
            raise RamError(
                f"the holes of {file.spec.path} cannot be found: {error.strerror}", side=file.side
            ) from error

    def data_bytes(self) -> int:
        """Bytes of RAM that are no holes, in whole pages. Raises RamError."""
        pages = sum(count for block in self.layout.blocks for _, count in self.data_extents(block))
        return pages * self.layout.page_size

    def check_unchanged(self) -> None:
        """Raise RamError if a file has another length now, or its path leads to another file."""
        for file, block in self._placed():
            file.check_unchanged(block.length)

    def close(self) -> None:
        """Close the files and release their locks; the second call does nothing.

        Marks that stand are left; files that were made for this image and never marked are removed.
        """
        files, self._files = self._files, []
        self._ram = None
        if not self._incoming:
            _discard(files)
        for file in files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _marked(self) -> list[RamFile]:
        """The files that have a mark; who holds a file waits for the commit by himself."""
        return [file for file in self._files if not file.spec.held]

    def _placed(self) -> Iterator[tuple[RamFile, BlockPlace]]:
        return zip(self._files, self.layout.blocks, strict=True)

    def _file_of(self, block: BlockPlace) -> RamFile:
        for file, place in self._placed():
            if place == block:
                return file
        raise ValueError(f"block {block.name!r} is not one of this image")

    def _make_kernel_ram(self) -> kernel.Ram:
        return kernel.Ram(
            self.layout.page_size,
            self.layout.stripe_pages,
            [
                RamBlock(block.name.encode(), file.fd, block.first_page, block.pages)
                for file, block in self._placed()
            ],
        )

    def _put_marks(self, migration_id: str) -> None:
        new: list[Path] = []
        for file in self._marked():
            path = file.spec.path
            stood = os.path.lexists(marker_path(path))
            try:
                write_marker(path, migration_id, file.spec.name)
            except OSError as error:
                for other in new:  # those files are as they were
                    remove_marker(other)
                raise RamError(
                    f"the mark {marker_path(path)} cannot be written: {error.strerror}", side=file.side
                ) from error
            if not stood:
                new.append(path)


def _match(specs: Sequence[RamSpec], layout: PageLayout) -> dict[str, RamSpec]:
    """The spec of each block of the source, or RamError that names the option."""
    by_name = {spec.name: spec for spec in specs}
    sent = [block.name for block in layout.blocks]
    for name in sent:
        if name not in by_name:
            raise RamError(
                f"the source sends a RAM block {name!r} that has no file here",
                side="destination",
                hint=f"start migrate-dst with --ram {name}=PATH",
            )
    for name, spec in by_name.items():
        if name not in sent:
            raise RamError(
                f"--ram {name}={spec.path}: the source sends no block of that name, but"
                f" {', '.join(map(repr, sent))}",
                side="destination",
                hint="use the source's block names in --ram NAME=PATH, on one of the two sides",
            )
    return by_name


def _take(file: RamFile, files: list[RamFile]) -> None:
    """Lock one more file, append it to the list; from here on closing the list closes it."""
    earlier = [other for other in files if other.identity == file.identity]
    files.append(file)
    if earlier:  # said before the lock, which the first of them holds
        raise RamError(
            f"{earlier[0].spec.path} and {file.spec.path} are the same file, but blocks"
            f" {earlier[0].spec.name!r} and {file.spec.name!r} need one each",
            side=file.side,
        )
    file.lock()
    # Between open and lock a migration that was given up may have removed the file it had made.
    file.check_unchanged(file.length)


def _available_bytes(layout: PageLayout, specs: Mapping[str, RamSpec], files: Sequence[RamFile]) -> int:
    """How many bytes of data the files can take, what they occupy already included, less room for the marks.

    Of each file system at most the length of the blocks in it is counted, since only these can use its room.
    """
    opened = {file.spec.name: file for file in files}
    free: dict[int, int | None] = {}
    lengths: dict[int, int] = {}
    occupied: dict[int, int] = {}
    marks: dict[int, int] = {}
    try:
        for block in layout.blocks:
            file = opened.get(block.name)
            place = specs[block.name].path.parent if file is None else file.fd
            device = place.stat().st_dev if isinstance(place, Path) else os.fstat(place).st_dev
            free[device] = free_bytes(place)
            lengths[device] = lengths.get(device, 0) + block.length
            marks[device] = marks.get(device, 0) + MARK_BYTES
            occupied[device] = occupied.get(device, 0) + (file.occupied_bytes if file else 0)
    except OSError as error:
        raise RamError(f"the free space cannot be found: {error.strerror}", side="destination") from error
    total = 0
    for device, length in lengths.items():
        room = free[device]
        total += length if room is None else max(0, min(length, room + occupied[device] - marks[device]))
    return total


def _discard(files: Sequence[RamFile]) -> None:
    for file in files:
        file.discard()
