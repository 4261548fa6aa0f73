"""What the source does beside its connections: tracking, harvests, device state, the second look, letting go.

Everything that reads RAM runs in threads (the kernel drops the GIL) and ends early once `stop` was called.
"""

from __future__ import annotations

import asyncio
import threading
import time

from migrate import kernel
from migrate.config import SourceConfig
from migrate.daemon.device_state import STATE_SECONDS, StateDirectory
from migrate.daemon.guest import guest_died
from migrate.daemon.guest_control import GuestControl, NoGuest
from migrate.daemon.hooks import hook_environment, run_hook
from migrate.daemon.reporter import Reporter
from migrate.errors import CancelledMigration, GuestError, MigrateError, VerifyError
from migrate.protocol import actions as a
from migrate.protocol.source import SourceMachine
from migrate.protocol.source_rounds import HarvestResult
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import read_digests
from migrate.ram.image import RamImage
from migrate.ram.reread import Look, Rereader
from migrate.ram.trackers import DirtyTracker, mark_all_data
from migrate.ram.windows import cpu_count


class SourceWork:
    """The slow calls of one migration, as coroutines."""

    def __init__(
        self,
        config: SourceConfig,
        migration: str,
        image: RamImage,
        guest: GuestControl,
        tracker: DirtyTracker,
        machine: SourceMachine,
        reporter: Reporter,
    ) -> None:
        self._config = config
        self._migration = migration
        self._image = image
        self._guest = guest
        self._tracker = tracker
        self._machine = machine
        self._reporter = reporter
        self._told_fault: str | None = None
        self._stop = threading.Event()
        self._rereader = Rereader(image, machine.digests)

    @property
    def tracker_name(self) -> str:
        """The tracker that was chosen."""
        return self._tracker.name

    def stop(self) -> None:
        """End what runs in threads soon."""
        self._stop.set()

    async def start_tracker(self) -> HarvestResult:
        """Start tracking, and only then look which pages are not holes (design 2, Order at the start)."""
        result = await asyncio.to_thread(self._start_tracker)
        self._tell_fault()
        return result

    def _start_tracker(self) -> HarvestResult:
        began = time.monotonic()
        self._tracker.start(self._image, self._machine.digests)
        dirty = DirtyBitmap(self._image.layout.total_pages)
        pages = mark_all_data(self._image, dirty)
        return HarvestResult(dirty, pages, time.monotonic() - began, began)

    async def harvest(self, stopped: bool) -> HarvestResult:
        """Fetch and clear what is dirty. Raises RamError."""
        result = await asyncio.to_thread(self._harvest, stopped)
        self._tell_fault()
        return result

    def _harvest(self, stopped: bool) -> HarvestResult:
        dirty = DirtyBitmap(self._image.layout.total_pages)
        found = self._tracker.collect(dirty, stopped=stopped, stop=self._stop)
        return HarvestResult(
            dirty, found.dirty_pages, found.seconds, found.began, found.compare_seconds, found.unsettled
        )

    async def look_again(self, action: a.LookAgain) -> Look:
        """In the background: are pages that the tracker calls clean what was sent? Raises RamError."""
        return await asyncio.to_thread(
            self._rereader.look, action.candidates, action.start, action.most_pages
        )

    def distrust(self, action: a.Distrust) -> None:
        """The tracker has missed pages: it compares all of RAM from now on."""
        self._tracker.distrust(action.page, action.pages)
        self._tell_fault()

    async def collect_state(self) -> list[tuple[str, bytes]]:
        """The pieces of device state: what --state-cmd makes, or the guest gives. Raises GuestError."""
        if self._config.state_cmd is None:
            return [(state.name, state.data) for state in await self._guest.state()]
        with StateDirectory() as directory:
            environment = hook_environment(
                migration_id=self._migration,
                attempt=self._machine.link.hello.attempt,
                side="source",
                ram=self._image.paths,
                state_dir=directory.path,
                guest_pid=self._config.guest_pid,
            )
            await run_hook("--state-cmd", self._config.state_cmd, environment, STATE_SECONDS)
            return [(state.name, state.data) for state in directory.read()]

    async def confirm(self, ram: bool) -> MigrateError | None:
        """After the last copy: the guest still stands and, with `ram`, RAM still is what was sent.

        Without `ram` it is the look before the commit: the guest is sealed first. Raises GuestError.

        A tracker that is told of writes says which pages could differ; otherwise, and with `--verify full`,
        every page is read once more: it costs what a harvest costs, while the destination verifies.
        """
        if not ram:
            await self._guest.seal()
        differing = await asyncio.to_thread(self._second_look) if ram else 0
        self._tell_fault()
        if not await self._guest.still_paused():
            if not await self._guest.alive():
                raise guest_died()
            return GuestError(
                "somebody resumed the guest during the pause",
                side="source",
                hint="find who sends it SIGCONT, or resumes it otherwise, then start the migration again",
            )
        if differing:
            return GuestError(
                f"{differing} pages of RAM changed after the guest was paused",
                side="source",
                hint=(
                    "nothing pauses the guest: give --guest-pid, or --pause-cmd with --resume-cmd"
                    if isinstance(self._guest, NoGuest)
                    else "does another process write to the RAM file?"
                ),
            )
        return None

    async def let_go(self) -> MigrateError | None:
        """The guest runs at the destination: compare RAM a last time, then end or keep the stopped guest."""
        problem: MigrateError | None = None
        if self._config.verify != "stream":
            differing = await asyncio.to_thread(self._differing)
            if differing:
                problem = VerifyError(
                    f"{differing} pages of the source's RAM changed after they were sent",
                    side="source",
                    hint="another process writes to the RAM file: its last writes are not at the destination",
                )
        if self._config.source_after == "kill" and problem is None:
            try:
                await self._guest.kill()
            except MigrateError as error:
                return error
        return problem

    def _second_look(self) -> int:
        found = None if self._config.verify == "full" else self._tracker.differing()
        return self._differing() if found is None else found

    def _tell_fault(self) -> None:
        """Say once that the tracker works in another way now."""
        fault = self._tracker.fault
        if fault is not None and fault != self._told_fault:
            self._told_fault = fault
            self._reporter.event("warning", message=fault)

    def _differing(self) -> int:
        try:
            digests = read_digests(self._image, self._machine.keys, cpu_count(), self._stop)
        except CancelledMigration:
            return 0
        return kernel.bitmap_count(self._machine.digests.differing(digests))
