"""The ways to pause a guest, in one place."""

from migrate.daemon.command_guest import CommandGuest, NoGuest
from migrate.daemon.guest import GuestControl
from migrate.daemon.process_guest import ProcessGuest
from migrate.daemon.qmp_guest import QmpGuest

__all__ = ["CommandGuest", "GuestControl", "NoGuest", "ProcessGuest", "QmpGuest"]
