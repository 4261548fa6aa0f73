"""Which dirty tracker is used, and why."""

from __future__ import annotations

from migrate.errors import UsageError
from migrate.ram.trackers.base import DirtyTracker
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.trackers.stop import StopTracker


def choose(requested: str) -> tuple[DirtyTracker, list[str]]:
    """The tracker for `--dirty-tracker REQUESTED`, and the reasons, best first, for a person to read.

    Raises UsageError: there is no tracker of that name.
    """
    if requested == ScanTracker.name:
        return ScanTracker(), ["scan: asked for by --dirty-tracker"]
    if requested == StopTracker.name:
        return StopTracker(), ["stop: asked for by --dirty-tracker"]
    if requested == "auto":
        return ScanTracker(), [
            "scan: needs nothing but the RAM files, so it always works",
            "stop: not needed, it would send all of RAM in the pause",
        ]
    raise UsageError(f"--dirty-tracker {requested}: choose one of auto, scan, stop", side="source")
