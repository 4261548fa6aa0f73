"""The mark beside a RAM file that is not a whole guest yet: `<ram file>.migrating`.

It stands from before the first change of the file until the commit. Whoever would start a guest on the file
looks for it first; a crash of the daemon or the host leaves it where it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SUFFIX = ".migrating"


def marker_path(ram_file: Path) -> Path:
    """Where the marker of this RAM file is."""
    return ram_file.with_name(ram_file.name + SUFFIX)


def write_marker(ram_file: Path, migration_id: str, block: str) -> None:
    """Create or replace the marker: whole or not at all, mode 0600, on disk when this returns.

    The caller holds the lock of the RAM file. Content: JSON with `migration`, `state` ("incoming"), `pid`,
    `block`. Raises OSError.
    """
    marker = marker_path(ram_file)
    unfinished = marker.with_name(marker.name + ".new")
    content = {"migration": migration_id, "state": "incoming", "pid": os.getpid(), "block": block}
    unfinished.unlink(missing_ok=True)  # from a daemon that was killed right here
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(marker)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_directory(marker.parent)


def remove_marker(ram_file: Path) -> None:
    """Remove the marker if there is one; gone from the disk too when this returns. Raises OSError."""
    marker = marker_path(ram_file)
    marker.unlink(missing_ok=True)
    _sync_directory(marker.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
