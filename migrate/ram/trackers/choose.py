"""Which dirty tracker is used, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from migrate.errors import RefusedError, UsageError
from migrate.ram.trackers.base import DirtyTracker
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.trackers.stop import StopTracker
from migrate.ram.trackers.wp import InjectedWpTracker


class Offer(NamedTuple):
    """A tracker that needs something of the guest, or why there is none."""

    name: str
    tracker: DirtyTracker | None
    reason: str
    """For a person: what it rests on, or what is missing."""


def choose(requested: str, offers: Sequence[Offer] = ()) -> tuple[DirtyTracker, list[str]]:
    """The tracker for `--dirty-tracker REQUESTED`, and the reasons, best first, for a person to read.

    Args:
        requested: a name, or `auto`: the first offer that there is, else scan.
        offers: what the guest gives, best first.

    Raises:
        UsageError: there is no tracker of that name.
        RefusedError: the guest gives nothing for the tracker that was asked for; for wp-inject there is scan.
    """
    if requested == ScanTracker.name:
        return ScanTracker(), ["scan: asked for by --dirty-tracker"]
    if requested == StopTracker.name:
        return StopTracker(), ["stop: asked for by --dirty-tracker"]
    if requested == "auto":
        reasons = []
        for offer in offers:
            reasons.append(f"{offer.name}: {offer.reason}")
            if offer.tracker is not None:
                return offer.tracker, reasons
        return ScanTracker(), [
            *reasons,
            "scan: needs nothing but the RAM files, so it always works",
            "stop: not needed, it would send all of RAM in the pause",
        ]
    for offer in offers:
        if offer.name == requested:
            if offer.tracker is None and requested == InjectedWpTracker.name:
                # What a debugger may do here cannot be known beforehand, and the guest has not changed.
                return ScanTracker(), [f"{requested}: {offer.reason}", "scan: in its place"]
            if offer.tracker is None:
                raise RefusedError(
                    f"--dirty-tracker {requested} is not possible: {offer.reason}",
                    side="source",
                    hint="--dirty-tracker auto takes the best that is possible, scan needs nothing",
                )
            return offer.tracker, [
                f"{requested}: asked for by --dirty-tracker",
                f"{requested}: {offer.reason}",
            ]
    raise UsageError(
        f"--dirty-tracker {requested}: choose one of auto, log, wp, wp-inject, scan, stop", side="source"
    )
