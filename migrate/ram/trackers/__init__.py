"""Dirty trackers: one interface, chosen by `choose`, the choice and its reasons shown (design 5)."""

from migrate.ram.trackers.base import CollectStats, DirtyTracker, mark_all_data
from migrate.ram.trackers.choose import choose
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.trackers.stop import StopTracker

__all__ = ["CollectStats", "DirtyTracker", "ScanTracker", "StopTracker", "choose", "mark_all_data"]
