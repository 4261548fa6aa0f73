"""Dirty trackers: one interface, chosen by `choose`, the choice and its reasons shown (design 5)."""

from migrate.ram.trackers.base import CollectStats, DirtyTracker, mark_all_data
from migrate.ram.trackers.choose import Offer, choose
from migrate.ram.trackers.log import LogTracker
from migrate.ram.trackers.scan import ScanTracker
from migrate.ram.trackers.stop import StopTracker
from migrate.ram.trackers.wp import GuestMemory, InjectedWpTracker, WpTracker

__all__ = [
    "CollectStats",
    "DirtyTracker",
    "GuestMemory",
    "InjectedWpTracker",
    "LogTracker",
    "Offer",
    "ScanTracker",
    "StopTracker",
    "WpTracker",
    "choose",
    "mark_all_data",
]
