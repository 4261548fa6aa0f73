"""RAM files that belong to a guest which was started here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from migrate.config import RamSpec
from migrate.errors import RamError


class HandedOver:
    """Keeps a daemon that goes on listening from emptying the RAM of the guest that it started."""

    def __init__(self) -> None:
        self._migrations: dict[tuple[int, int], str] = {}

    def add(self, files: Iterable[tuple[int, int]], migration: str) -> None:
        """These files (device, inode) are a guest's from now on, which that migration brought."""
        self._migrations |= dict.fromkeys(files, migration)

    def check(self, ram: Sequence[RamSpec]) -> None:
        """Raises RamError: one of these files is a guest's."""
        for spec in ram:
            try:
                found = spec.path.stat()
            except OSError:
                continue
            owner = self._migrations.get((found.st_dev, found.st_ino))
            if owner is not None:
                raise RamError(
                    f"{spec.path} belongs to the guest that migration {owner} brought here",
                    hint="remove the file once that guest is gone, or start migrate-dst with other files",
                )
