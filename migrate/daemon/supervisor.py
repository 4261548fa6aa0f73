"""A process of its own that resumes the guest if migrate-src is killed while it is paused.

It waits for the end of a pipe whose other end only migrate-src has: however that ends, the kernel closes it.
Then it takes the journal's lock, which is free by then, and does what the journal says: after `pausing` it
resumes the guest, after `committed` nothing. Whoever kills it as well (a whole container, a control group)
needs `migrate-src recover`, which does the same and more.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from migrate.daemon.journal import Journal
from migrate.errors import GuestError, MigrateError
from migrate.protocol.journal_record import Step


class Supervisor:
    """The process, as migrate-src sees it."""

    def __init__(self, journal: Path) -> None:
        """Start it. Raises GuestError: then nobody would resume the guest."""
        reading, self._writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(journal), str(reading)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[reading],
                start_new_session=True,  # Ctrl-C and a closed terminal are not for it
            )
        except OSError as error:
            os.close(self._writing)
            raise GuestError(
                f"the supervisor of the pause could not be started: {error.strerror}", side="source"
            ) from error
        finally:
            os.close(reading)

    def stop(self) -> None:
        """The journal is closed: there is nothing to do for it any more."""
        self._process.kill()
        self._process.wait()
        os.close(self._writing)


def main(path: str, pipe: str) -> None:
    """Wait for the end of migrate-src, then do what the journal says."""
    os.read(int(pipe), 1)
    try:
        said = take_up(Path(path))
    except MigrateError as error:
        said = f"{error.message}; next: migrate-src recover --state-dir {Path(path).parent}"
    if said:
        print(f"migrate-src was killed: {said}", file=sys.stderr)


def take_up(path: Path) -> str:
    """Resume a guest that was left paused; one clause: where it is. Raises MigrateError."""
    if not path.exists():
        return ""
    journal = Journal.open(path)
    try:
        record = journal.record
        if record.step is Step.PAUSING:
            from migrate.daemon.recorded_guest import resume_recorded  # heavy, and seldom needed

            place = asyncio.run(resume_recorded(record))
            journal.write(replace(record, step=Step.MOVING))
        elif record.step is Step.MOVING:
            place = "the guest runs here"
        else:
            next_step = f"next: migrate-src recover --state-dir {path.parent}"
            return f"its journal says {record.step.value!r}; {next_step}"
        journal.remove()
        return place
    finally:
        journal.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
