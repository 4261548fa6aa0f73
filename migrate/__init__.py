"""Live migration of guest RAM over TCP, in QEMU's RAM record framing.

`send` moves a guest from here, `Receiver` takes one. Both are given a configuration, the same that the
commands make of their options, and run in the caller's event loop; there is no global state, and several
may run at once.

    migration = migrate.send(migrate.SourceConfig(to=…, ram=(…,)), guest=my_guest)
    async for event in migration:
        print(event.name, event.fields)
    result = await migration

A guest in the same process is a `Guest` (pause, resume, state), one to be an `ArrivingGuest` (load, run).
Whatever fails raises a `MigrateError`: its class says what, its `guest` where the guest runs now.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from migrate.api.migration import Migration as Migration
    from migrate.api.migration import send as send
    from migrate.api.receiver import Receiver as Receiver
    from migrate.api.run import Event as Event
    from migrate.api.run import Result as Result
    from migrate.config import Address as Address
    from migrate.config import DestinationConfig as DestinationConfig
    from migrate.config import RamSpec as RamSpec
    from migrate.config import SourceConfig as SourceConfig
    from migrate.daemon.own_guest import ArrivingGuest as ArrivingGuest
    from migrate.daemon.own_guest import Guest as Guest
    from migrate.daemon.reporter import Reporter as Reporter
    from migrate.errors import CancelledMigration as CancelledMigration
    from migrate.errors import GuestError as GuestError
    from migrate.errors import MigrateError as MigrateError
    from migrate.errors import NetworkError as NetworkError
    from migrate.errors import NotConvergedError as NotConvergedError
    from migrate.errors import ProtocolError as ProtocolError
    from migrate.errors import RamError as RamError
    from migrate.errors import RefusedError as RefusedError
    from migrate.errors import UndecidedError as UndecidedError
    from migrate.errors import UsageError as UsageError
    from migrate.errors import VerifyError as VerifyError

_PLACES = {
    "migrate.api.migration": ("Migration", "send"),
    "migrate.api.receiver": ("Receiver",),
    "migrate.api.run": ("Event", "Result"),
    "migrate.config": ("Address", "DestinationConfig", "RamSpec", "SourceConfig"),
    "migrate.daemon.own_guest": ("ArrivingGuest", "Guest"),
    "migrate.daemon.reporter": ("Reporter",),
    "migrate.errors": (
        "CancelledMigration",
        "GuestError",
        "MigrateError",
        "NetworkError",
        "NotConvergedError",
        "ProtocolError",
        "RamError",
        "RefusedError",
        "UndecidedError",
        "UsageError",
        "VerifyError",
    ),
}
_PLACE = {name: module for module, names in _PLACES.items() for name in names}
__all__ = ["__version__", *sorted(_PLACE)]  # noqa: PLE0604 - names of the table


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for: `migrate-src --help` needs none of them."""
    if name not in _PLACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACE[name]), name)


def __dir__() -> list[str]:
    return __all__
