"""Every error this package raises on purpose, and the exit code of each.

    MigrateError                 1   anything unexpected
     ├─ ReportError              1   the report of a run is malformed, or two do not belong together
     ├─ UsageError               2   an option or a combination of options that cannot work
     ├─ RefusedError             3   the peer, or the pre-flight, said no before anything moved
     ├─ NetworkError             4   peer unreachable, silent or gone for longer than allowed
     ├─ ProtocolError            5   the peer sent bytes that the protocol forbids
     │   ├─ RecordError              the same, inside a batch of RAM records (rule, offset)
     │   └─ StreamError              the same, in a QEMU stream (rule, offset)
     ├─ GuestError               6   the guest could not be paused or resumed, or died
     ├─ NotConvergedError        7   the rest never fitted into the allowed pause
     ├─ VerifyError              8   the two RAMs were not equal
     ├─ RamError                 9   a RAM file is missing, unfit, locked, truncated, or its disk is full
     │   └─ JournalError             the same, of the journal of a handover
     ├─ UndecidedError          10   commit may have arrived: a person must look who runs the guest
     └─ CancelledMigration     130   Ctrl-C, SIGTERM or a cancel from the peer

Inner code raises the error that says *what* failed; the daemon that reports it adds where the guest
runs and what to type next (`with_context`).
"""

from __future__ import annotations

from typing import Self


class MigrateError(Exception):
    """Base of all errors of this package.

    Attributes:
        exit_code: what the command ends with.
        side: "source" or "destination": where it failed, if known.
        guest: one clause saying where the guest runs now, if known.
        hint: what to type or look at next, if anything helps.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, side: str | None = None, guest: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.side = side
        self.guest = guest
        self.hint = hint

    def with_context(
        self, *, side: str | None = None, guest: str | None = None, hint: str | None = None
    ) -> Self:
        """Fill in what the raiser did not know; what is set already stays."""
        self.side = self.side or side
        self.guest = self.guest or guest
        self.hint = self.hint or hint
        return self

    def as_dict(self) -> dict[str, object]:
        """What there is to tell, as `--json` prints it."""
        return {
            "class": type(self).__name__,
            "exit-code": self.exit_code,
            "message": self.message,
            "side": self.side,
            "guest": self.guest,
            "hint": self.hint,
        }


class ReportError(MigrateError):
    """The report of a run is malformed, or two reports do not belong together; `migrate-inspect` only."""


class UsageError(MigrateError):
    """An option, or a combination of options, that cannot work."""

    exit_code = 2


class RefusedError(MigrateError):
    """The handshake or the pre-flight found that the migration cannot be done; nothing was moved."""

    exit_code = 3


class NetworkError(MigrateError):
    """The peer cannot be reached, was silent for too long, or did not come back in time."""

    exit_code = 4


class ProtocolError(MigrateError):
    """The peer sent something the protocol forbids. The machine that raised it is finished."""

    exit_code = 5


class RecordError(ProtocolError):
    """A batch of RAM records is illegal. Nothing of it was written to RAM.

    Attributes:
        rule: short name of the violated rule, stable for tests and tools ("unknown-block", …).
        offset: byte offset of the offending record inside the batch body.
    """

    def __init__(self, rule: str, offset: int, message: str) -> None:
        super().__init__(f"{message} (rule {rule}, at byte {offset} of the batch)")
        self.rule = rule
        self.offset = offset

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, int, str]]:
        return type(self), (self.rule, self.offset, self.message)


class StreamError(ProtocolError):
    """A QEMU migration stream, or a recorded one, is illegal or holds what is not read here.

    Attributes:
        rule: short name of the violated rule, stable for tests and tools ("footer", "truncated" …).
        offset: byte offset in the stream of what breaks it.
    """

    def __init__(self, rule: str, offset: int, message: str) -> None:
        super().__init__(f"{message} (rule {rule}, at byte {offset:#x} of the stream)")
        self.rule = rule
        self.offset = offset


class GuestError(MigrateError):
    """The guest could not be paused or resumed, or it died."""

    exit_code = 6


class NotConvergedError(MigrateError):
    """The dirty rest never fitted into the downtime limit within the allowed rounds or time."""

    exit_code = 7


class VerifyError(MigrateError):
    """The destination's RAM was not equal to the source's, and repair did not help."""

    exit_code = 8


class RamError(MigrateError):
    """A RAM file is missing, too small, not a file, read-only, locked or truncated, or its disk is full."""

    exit_code = 9


class JournalError(RamError):
    """The journal of a handover cannot be written, read or locked, or is damaged."""


class ArbiterError(RamError):
    """The arbiter of a handover gives no answer: nobody may do anything on its strength."""


class UndecidedError(MigrateError):
    """The commit may have reached the destination but no answer came: the source guest stays paused."""

    exit_code = 10


class CancelledMigration(MigrateError):  # noqa: N818 - a cancel is an outcome, not a fault
    """A person or a supervisor ended the migration (Ctrl-C, SIGTERM), here or at the peer."""

    exit_code = 130


def as_error(problem: Exception) -> MigrateError:
    """An exception that nobody foresaw as one of ours, chained; one of ours as it is."""
    if isinstance(problem, MigrateError):
        return problem
    error = MigrateError(f"unexpected {type(problem).__name__}: {problem}")
    error.__cause__ = problem
    return error
