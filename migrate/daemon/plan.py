"""`migrate-src plan`: the sampling, and the link if it is to be measured, as one coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from migrate.config import SourceConfig
from migrate.daemon.guest_control import NoGuest, ProcessGuest
from migrate.daemon.plan_sampling import GuestSampler
from migrate.daemon.reporter import Reporter
from migrate.daemon.trackers import make_tracker
from migrate.protocol.plan_workload import Workload
from migrate.ram.image import RamImage


async def sample_guest(config: SourceConfig, seconds: float, reporter: Reporter) -> Workload:
    """Sample the guest with the tracker that a migration of this configuration would have.

    Raises:
        MigrateError: see `GuestSampler.run` and `make_tracker`; RAM that is in use by a migration is refused.
    """
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(RamImage.open_source(config.ram, config.page_size))
        guest = ProcessGuest(config.guest_pid) if config.guest_pid is not None else NoGuest()
        stack.callback(guest.close)
        await guest.probe()
        tracker, reasons = make_tracker(config, image, guest, stack)
        reporter.event("tracker", name=tracker.name, reasons=reasons, promise=tracker.describe())
        stop = threading.Event()
        work = asyncio.ensure_future(asyncio.to_thread(GuestSampler(image, tracker, seconds).run, stop))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])  # it reads what the stack closes
            raise
