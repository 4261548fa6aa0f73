"""Commands of the user: `--on-prepare`, `--on-commit`, `--state-cmd`, `--pause-cmd`, `--resume-cmd`.

A hook is `/bin/sh -c CMD` in a session of its own, so that Ctrl-C does not reach it and a timeout ends all
of it. It is over when the shell is: a guest that it left running in the background (`… &`) is not waited
for and not touched. Its output goes to a file, since a pipe would have to be read for as long as that
guest lives; a guest that writes much should redirect its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from migrate.daemon.pidfd import has_exited, wait_exited
from migrate.errors import GuestError

TAIL_BYTES = 4096
_GRACE = 1.0  # between SIGTERM and SIGKILL
_DEATH = 5.0  # a killed process that is not gone by then hangs in the kernel


class HookError(GuestError):
    """A hook could not be started, failed, or took too long.

    Attributes:
        command: what was run.
        status: exit status, negative for a signal; None: not started, or ended for taking too long.
        output: the last 4 KiB of what it wrote to stderr and stdout.
    """

    def __init__(self, message: str, *, command: str, status: int | None, output: str) -> None:
        super().__init__(f"{message}: {command}" + (f"\nit said: {output}" if output else ""))
        self.command = command
        self.status = status
        self.output = output


class HookResult(NamedTuple):
    """A hook that ended with status 0."""

    seconds: float
    output: str
    """The last 4 KiB of what it wrote to stderr and stdout."""


def hook_environment(
    *,
    migration_id: str,
    attempt: int,
    side: str,
    ram: Mapping[str, Path],
    state_dir: Path | None = None,
    guest_pid: int | None = None,
) -> dict[str, str]:
    """What a hook finds in its environment beside the daemon's own.

    Args:
        ram: path of each block's file, in the order of the blocks (`RamImage.paths`). The first is
            MIGRATE_RAM; each is MIGRATE_RAM_<NAME>, where the first counts of two that read alike.
        state_dir: directory with the device state.
    """
    environment = {
        "MIGRATE_ID": migration_id,
        "MIGRATE_ATTEMPT": str(attempt),
        "MIGRATE_SIDE": side,
    }
    for name, path in ram.items():
        environment.setdefault("MIGRATE_RAM", str(path))
        environment.setdefault("MIGRATE_RAM_" + re.sub("[^A-Z0-9]", "_", name.upper()), str(path))
    if state_dir is not None:
        environment["MIGRATE_STATE_DIR"] = str(state_dir)
    if guest_pid is not None:
        environment["MIGRATE_GUEST_PID"] = str(guest_pid)
    return environment


async def run_hook(name: str, command: str, environment: Mapping[str, str], time_limit: float) -> HookResult:
    """Run a command of the user until its shell ends.

    When this returns, raises or is cancelled, the shell is gone. After the time limit or a cancel everything
    in its process group is.

    Args:
        name: what to call it in an error, "--on-commit".
        command: for /bin/sh.
        environment: added to the daemon's own.
        time_limit: seconds.

    Raises:
        HookError: it could not be started, ended with another status than 0, or took longer.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = _start(command, environment, output)
        except OSError as error:
            raise HookError(
                f"{name} could not be started ({error.strerror})", command=command, status=None, output=""
            ) from error
        in_time = await _wait(process, time_limit)
        seconds = time.monotonic() - began
        said = _tail(output)
    if not in_time:
        raise HookError(
            f"{name} took longer than {time_limit:g} s and was ended",
            command=command,
            status=None,
            output=said,
        )
    if process.returncode:
        raise HookError(
            f"{name} {_ending(process.returncode)}", command=command, status=process.returncode, output=said
        )
    return HookResult(seconds, said)


def _start(command: str, environment: Mapping[str, str], output: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, **environment},
        start_new_session=True,
    )


async def _wait(process: subprocess.Popen[bytes], time_limit: float) -> bool:
    """Wait for the shell, end its process group if that takes too long. Returns whether it ended by itself.

    The group is only signalled before the shell was reaped: until then its number cannot be another's.
    """
    pidfd = os.pidfd_open(process.pid)
    try:
        ended = await wait_exited(pidfd, time_limit)
        if not ended:
            os.killpg(process.pid, signal.SIGTERM)
            await wait_exited(pidfd, _GRACE)
            os.killpg(process.pid, signal.SIGKILL)
        return ended
    except asyncio.CancelledError:
        if not has_exited(pidfd):  # else it was quicker, and what it left in the background stays
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        os.close(pidfd)
        with contextlib.suppress(subprocess.TimeoutExpired):  # hangs in the kernel
            process.wait(_DEATH)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by signal {signal.Signals(-status).name}"


def _tail(output: BinaryIO) -> str:
    """The end of the output as text that is safe to print."""
    length = output.seek(0, os.SEEK_END)
    output.seek(max(0, length - TAIL_BYTES))
    text = output.read(TAIL_BYTES).decode(errors="replace").strip()
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
