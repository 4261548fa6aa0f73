"""A failure that the other side told of, as an error of its own class here (errors.py has the classes)."""

from __future__ import annotations

from migrate.errors import (
    CancelledMigration,
    GuestError,
    MigrateError,
    NetworkError,
    NotConvergedError,
    ProtocolError,
    RamError,
    RefusedError,
    VerifyError,
)

_BY_EXIT_CODE: dict[int, type[MigrateError]] = {
    kind.exit_code: kind
    for kind in (
        RefusedError,
        NetworkError,
        ProtocolError,
        GuestError,
        NotConvergedError,
        VerifyError,
        RamError,
        CancelledMigration,
    )
}


def peer_error(exit_code: int, message: str, side: str) -> MigrateError:
    """The error to raise here for what failed there, so that both sides end with the same exit code.

    Args:
        side: where it failed, "source" or "destination".
    """
    kind = _BY_EXIT_CODE.get(exit_code, MigrateError)
    return kind(message, side=side)
