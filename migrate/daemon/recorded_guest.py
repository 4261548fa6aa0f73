"""Resuming a guest that another program has paused, from what its journal says of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from migrate.daemon import socket_guest
from migrate.daemon.hooks import run_hook
from migrate.daemon.journal import boot_id
from migrate.daemon.pidfd import start_time
from migrate.daemon.qmp_guest import resume_paused
from migrate.errors import GuestError
from migrate.protocol.journal_record import JournalRecord, PausedGuest

RESUME_SECONDS = 30.0
_STOOD = "the guest is stopped here, as it was before the migration"


async def resume_recorded(record: JournalRecord) -> str:
    """Let the guest run, as often as one likes; the caller holds the journal's lock.

    Returns:
        One clause: where the guest is now.

    Raises:
        GuestError: it is there, and cannot be resumed.
    """
    guest = record.guest
    if guest is None:  # never paused
        return "the guest runs here"
    if record.embedded:
        return "the guest runs nowhere: it was part of the program that was killed"
    if guest.way == "command":
        await run_hook("--resume-cmd", guest.resume_cmd, guest.environment, RESUME_SECONDS)
        return "the guest runs here"
    if guest.way == "qmp":
        await resume_paused(Path(guest.monitor), guest.stopped_before)
        return _STOOD if guest.stopped_before else "the guest runs here"
    if guest.way == "socket":
        await socket_guest.resume_paused(Path(guest.monitor))
        return "the guest runs here"
    if guest.way != "process":
        return "the guest is where whoever stopped it left it: nothing of ours paused it"
    if record.boot != boot_id():
        return "the guest runs nowhere: this host was started anew since"
    if guest.stopped_before:
        return _STOOD
    return _continue(guest)


def _continue(guest: PausedGuest) -> str:
    gone = f"the guest runs nowhere: process {guest.pid} has ended"
    try:
        pidfd = os.pidfd_open(guest.pid)
    except ProcessLookupError:
        return gone
    except OSError as error:
        raise _cannot(guest, error) from error
    try:
        if start_time(guest.pid) != guest.start_time:  # after opening: the pidfd is of this very process
            return gone
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    except (ProcessLookupError, FileNotFoundError):
        return gone
    except OSError as error:
        raise _cannot(guest, error) from error
    finally:
        os.close(pidfd)
    return "the guest runs here"


def _cannot(guest: PausedGuest, error: OSError) -> GuestError:
    return GuestError(
        f"process {guest.pid} cannot be resumed: {error.strerror}",
        side="source",
        guest="the guest is still stopped here",
        hint="run this as the guest's user or as root",
    )
