"""Takes CPU time from the guest's process, by a keeper that gives it back whatever becomes of us."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from migrate.daemon import throttle_keeper
from migrate.daemon.cgroup import own_cgroup
from migrate.daemon.process_guest import ProcessGuest
from migrate.errors import GuestError

REPLY_SECONDS = 5.0


class GuestThrottle:
    """One guest, held back by a share of its time. The calls come one after the other.

    Args:
        guest: open for as long as this is used.
        lost: called with the reason if the keeper ended by itself; the guest has its time back by then.
    """

    def __init__(self, guest: ProcessGuest, lost: Callable[[str], None]) -> None:
        self._guest = guest
        self._lost = lost
        self._cgroup = own_cgroup(guest.pid)
        self._before = ""
        self._keeper: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._percent = 0

    def describe(self) -> str:
        """By what means, for a person."""
        if self._cgroup is not None:
            return f"{self._cgroup / 'cpu.max'}"
        return f"SIGSTOP and SIGCONT in turn to process {self._guest.pid}"

    async def set(self, percent: int) -> None:
        """From the return on the guest loses that share of its time; 0: nothing touches it any more.

        Raises GuestError: it cannot be done; then it has all of its time.
        """
        if percent == self._percent:
            return
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                keeper = self._keeper or await self._start()
                self._percent = percent
                assert keeper.stdin is not None and keeper.stdout is not None
                keeper.stdin.write(b"%d\n" % percent)
                answer = (await keeper.stdout.readline()).decode().strip()
        except (OSError, TimeoutError) as error:
            answer = f"! {error or 'its keeper does not answer'}"
        if answer != str(percent):
            reason = answer.removeprefix("! ") or "its keeper has ended"
            await self._give_up()
            raise GuestError(f"the guest cannot be throttled: {reason}", side="source")

    async def close(self) -> None:
        """Give the guest its time back and end the keeper; the second call does nothing."""
        if self._keeper is None:
            return
        with contextlib.suppress(GuestError):
            await self.set(0)
        await self._give_up()

    async def _start(self) -> asyncio.subprocess.Process:
        """Raises OSError."""
        means = ["signals", str(self._guest.pidfd), str(self._guest.pid)]
        if self._cgroup is not None:
            means = ["cgroup", str(self._cgroup)]
            self._before = (self._cgroup / "cpu.max").read_text()
        keeper = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(Path(throttle_keeper.__file__)), *means),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._guest.pidfd,),
            start_new_session=True,
        )
        self._keeper = keeper
        self._watch = asyncio.ensure_future(self._wait(keeper))
        return keeper

    async def _wait(self, keeper: asyncio.subprocess.Process) -> None:
        await keeper.wait()
        if self._keeper is not keeper:
            return  # as it was asked to
        throttled, self._keeper, self._percent = self._percent, None, 0
        if throttled:
            self._undo()
            self._lost("its keeper has ended")

    async def _give_up(self) -> None:
        """End the keeper, which lets the guest go at that; if it does not, do it from here."""
        keeper, watch, self._keeper, self._watch = self._keeper, self._watch, None, None
        throttled, self._percent = self._percent, 0
        if keeper is None or watch is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await asyncio.shield(watch)
        except TimeoutError:
            keeper.kill()
            await watch
        if throttled and keeper.returncode != 0:
            self._undo()

    def _undo(self) -> None:
        """What the keeper did not live to do."""
        with contextlib.suppress(OSError):
            if self._cgroup is not None:
                (self._cgroup / "cpu.max").write_text(self._before)
            else:
                signal.pidfd_send_signal(self._guest.pidfd, signal.SIGCONT)
