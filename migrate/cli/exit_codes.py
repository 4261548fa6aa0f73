"""What each exit code of `migrate-src` and `migrate-dst` means; the classes are in `migrate.errors`."""

from __future__ import annotations

EXIT_CODES: tuple[tuple[int, str, str], ...] = (
    (0, "success", "handed over (--check: nothing stands in the way)"),
    (1, "unexpected", "a fault of the program; MIGRATE_DEBUG=1 shows the traceback"),
    (2, "usage", "an option or a combination of options cannot work"),
    (3, "refused", "the peer or the pre-flight said no before anything moved"),
    (4, "network", "the peer is unreachable, silent, or was gone for too long"),
    (5, "protocol", "the peer sent something the protocol forbids"),
    (6, "guest", "the guest could not be paused or resumed, or died"),
    (7, "not converged", "the rest never fitted into the downtime limit"),
    (8, "verify", "the two RAMs were not equal"),
    (9, "ram", "a RAM file or the journal is missing, unfit, locked or damaged"),
    (10, "undecided", "the commit may have arrived: look who runs the guest"),
    (130, "cancelled", "Ctrl-C, SIGTERM, or a cancel from the peer"),
)
"""Code, short name, meaning."""


def exit_code_name(code: int) -> str:
    """Short name of an exit code. Raises KeyError for one that is not in the table."""
    return {number: name for number, name, _ in EXIT_CODES}[code]


def exit_code_help() -> str:
    """The table for the end of `--help`."""
    rows = "\n".join(f"  {code:>3}  {name:<14} {meaning}" for code, name, meaning in EXIT_CODES)
    return f"exit codes:\n{rows}"
