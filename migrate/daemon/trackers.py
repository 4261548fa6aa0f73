"""The dirty tracker of one migration, with the descriptors that it needs of the guest."""

from __future__ import annotations

import os
from contextlib import ExitStack

from migrate.config import SourceConfig
from migrate.daemon.guest import GuestControl
from migrate.daemon.guest_memory import GuestMemory, GuestPages
from migrate.daemon.process_guest import ProcessGuest
from migrate.errors import RamError
from migrate.ram.image import RamImage
from migrate.ram.trackers import (
    DirtyTracker,
    InjectedWpTracker,
    LogTracker,
    Offer,
    WpTracker,
    choose,
)


def make_tracker(
    config: SourceConfig, image: RamImage, guest: GuestControl, stack: ExitStack
) -> tuple[DirtyTracker, list[str]]:
    """The tracker and the reasons for it; what it holds is closed with the stack.

    Raises:
        RamError: a log cannot be opened.
        UsageError, RefusedError: see `choose`.
    """
    offers = []
    if config.dirty_tracker in ("auto", "log"):
        offers.append(_log(config, guest, stack))
    logged = bool(config.dirty_log or guest.logs)
    if config.dirty_tracker == "wp" or (config.dirty_tracker == "auto" and not logged):
        offers.append(_wp(guest, image, stack))
    if config.dirty_tracker == "wp-inject":
        offers.append(_wp_inject(guest.pid, image, stack))
    tracker, reasons = choose(config.dirty_tracker, offers)
    stack.callback(tracker.close)
    return tracker, reasons


def _log(config: SourceConfig, guest: GuestControl, stack: ExitStack) -> Offer:
    if guest.logs:
        return Offer(
            "log", LogTracker(guest.logs, _pages(guest.pid, stack)), "the guest gave a log on its socket"
        )
    if not config.dirty_log:
        return Offer("log", None, "no --dirty-log was given")
    if isinstance(guest, ProcessGuest) and not guest.ask_to_stop():
        return Offer(
            "log",
            None,
            f"process {guest.pid} does not handle SIGTSTP, and SIGSTOP may fall between a store and its mark:"
            " stop it by its own means, --pause-cmd",
        )
    fds = {}
    for spec in config.dirty_log:
        try:
            fds[spec.name] = os.open(spec.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise RamError(
                f"the dirty log {spec.path} cannot be opened: {error.strerror}",
                side="source",
                hint="--dirty-log names the bitmap that the emulator sets for this block",
            ) from error
        stack.callback(os.close, fds[spec.name])
    marked = ", ".join(str(spec.path) for spec in config.dirty_log)
    stops = ", and stops itself on SIGTSTP" if isinstance(guest, ProcessGuest) else ""
    return Offer("log", LogTracker(fds, _pages(guest.pid, stack)), f"the emulator marks {marked}{stops}")


def _pages(pid: int | None, stack: ExitStack) -> GuestPages | None:
    """The guest's page tables, if they can be seen."""
    if pid is None:
        return None
    try:
        pages = GuestPages(pid)
    except OSError:
        return None
    stack.callback(pages.close)
    return pages


def _wp(guest: GuestControl, image: RamImage, stack: ExitStack) -> Offer:
    if guest.pid is None:
        return Offer("wp", None, "no --guest-pid was given")
    try:
        memory = GuestMemory(guest.pid, image, given=guest.userfaultfd)
    except OSError as error:
        return Offer("wp", None, error.strerror or str(error))
    stack.callback(memory.close)
    return Offer("wp", WpTracker(memory), f"process {guest.pid} offers a userfaultfd")


def _wp_inject(pid: int | None, image: RamImage, stack: ExitStack) -> Offer:
    if pid is None:
        return Offer("wp-inject", None, "the guest's process is not known")
    try:
        memory = GuestMemory(pid, image, inject=True)
    except OSError as error:
        return Offer("wp-inject", None, error.strerror or str(error))
    stack.callback(memory.close)
    stood = f"{memory.stopped_seconds * 1e3:.1f} ms"
    return Offer(
        "wp-inject",
        InjectedWpTracker(memory),
        f"process {pid} was stopped by ptrace for {stood}, made a userfaultfd, and is as it was",
    )
