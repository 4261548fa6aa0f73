"""What stands before a source daemon runs: guest, first hello, RAM, tracker, journal, supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from migrate import __version__
from migrate.config import SourceConfig
from migrate.daemon.arbiter import FileArbiter, ask, remove_arbiter
from migrate.daemon.guest_control import CommandGuest, GuestControl, NoGuest, ProcessGuest, QmpGuest
from migrate.daemon.hooks import hook_environment
from migrate.daemon.journal import default_state_dir, find_journal
from migrate.daemon.journal_start import start_source_journal
from migrate.daemon.own_guest import Guest, OwnGuest
from migrate.daemon.reporter import Reporter
from migrate.daemon.socket_guest import SocketGuest
from migrate.daemon.source import SourceDaemon, SourceWatcher
from migrate.daemon.source_work import SourceWork
from migrate.daemon.supervisor import Supervisor
from migrate.daemon.tls_client import TlsClient
from migrate.daemon.trackers import make_tracker
from migrate.errors import MigrateError, UsageError
from migrate.protocol import messages as m
from migrate.protocol.run_report import blocks_of
from migrate.protocol.source import SourceMachine
from migrate.ram.image import RamImage


async def migrate(
    config: SourceConfig, reporter: Reporter, watcher: SourceWatcher | None = None, own: Guest | None = None
) -> None:
    """Move the guest's RAM as configured; returns when the guest runs at the destination.

    `own` is a guest in this process, which the configuration cannot name.

    Cancelling the task cancels the migration in an orderly way: the guest is resumed first. Once the commit
    may have left, cancelling has no effect any more.

    Raises:
        MigrateError: the class says what failed, `guest` where the guest runs now.
    """
    with contextlib.ExitStack() as stack:
        with _guest_untouched():
            tls = TlsClient(config) if config.tls else None
            asked: SocketGuest | None = None
            ram = config.ram
            if config.guest_socket is not None:
                asked = await SocketGuest.connect(config.guest_socket)
                stack.callback(asked.close)
                ram = asked.offer.ram_with(ram, config.guest_socket)
            image = stack.enter_context(RamImage.open_source(ram, config.page_size))
            hello = make_hello(config, image)
            blocks = blocks_of([(block.name, block.length) for block in image.layout.blocks])
            reporter.event("migration", id=hello.migration.hex(), attempt=hello.attempt, blocks=blocks)
            environment = hook_environment(
                migration_id=hello.migration.hex(), attempt=1, side="source", ram=image.paths
            )
            guest = asked or make_guest(config, environment, own)
            stack.callback(guest.close)
        try:
            with _guest_untouched():
                await guest.probe()
                if isinstance(guest, QmpGuest):
                    hello = replace(hello, qemu=[guest.machine])
                tracker, reasons = make_tracker(config, image, guest, stack)
                reporter.event("tracker", name=tracker.name, reasons=reasons, promise=tracker.describe())
                machine = SourceMachine(hello, config, image, tracker.live)
                machine.stats.dirty_tracker = tracker.name
                work = SourceWork(config, hello.migration.hex(), image, guest, tracker, machine, reporter)
                if config.arbiter is not None:
                    await open_arbiter(config, config.arbiter, hello.migration.hex(), stack)
                journal = None
                if not config.check:
                    embedded = own is not None
                    journal = await asyncio.to_thread(start_source_journal, config, hello, image, embedded)
                    if config.guest_pid or config.pause_cmd or config.guest_qmp or config.guest_socket:
                        stack.callback(Supervisor(journal.path).stop)
                daemon = SourceDaemon(config, reporter, machine, work, guest, journal, tls, watcher)
                if watcher is not None:
                    watcher.begun(daemon)
            await daemon.run()
        finally:
            await guest.leave()


async def open_arbiter(
    config: SourceConfig, directory: Path, migration: str, stack: contextlib.ExitStack
) -> None:
    """Make the arbiter's file; it goes at the end, unless a journal stays that knows of it.

    Raises ArbiterError.
    """

    def leave() -> None:
        if find_journal(config.state_dir or default_state_dir(), "source", migration) is None:
            remove_arbiter(directory, migration)

    await ask(FileArbiter(directory, migration).open)
    stack.callback(leave)


@contextlib.contextmanager
def _guest_untouched() -> Iterator[None]:
    """What fails in here says that nothing has happened to the guest."""
    try:
        yield
    except MigrateError as error:
        error.with_context(side="source", guest="the guest is where it was")
        raise


def make_guest(config: SourceConfig, environment: Mapping[str, str], own: Guest | None) -> GuestControl:
    """The way to pause the guest: its own, or the one that the options name.

    Args:
        environment: for commands.
        own: a guest in this process.

    Raises UsageError: both.
    """
    if own is not None:
        ways = (config.guest_pid, config.guest_qmp, config.guest_socket, config.pause_cmd, config.state_cmd)
        if any(way is not None for way in ways):
            text = "guest_pid, guest_qmp, guest_socket, pause_cmd and state_cmd"
            raise UsageError(f"a guest in this process excludes {text}", side="source")
        return OwnGuest(own)
    if config.guest_qmp is not None:
        return QmpGuest(config.guest_qmp, config.ram)
    if config.guest_pid is not None:
        return ProcessGuest(config.guest_pid)
    if config.pause_cmd is not None and config.resume_cmd is not None:
        return CommandGuest(config.pause_cmd, config.resume_cmd, environment)
    return NoGuest()


def make_hello(config: SourceConfig, image: RamImage) -> m.Hello:
    """The wish of the first attempt, with a new migration id and new digest keys."""
    return m.Hello(
        versions=[m.PROTOCOL_VERSION],
        migration=os.urandom(16),
        attempt=1,
        resume=False,
        check=config.check,
        software=f"migrate {__version__}",
        page_size=config.page_size,
        blocks=[m.Block(block.name, block.length) for block in image.layout.blocks],
        data_bytes=image.data_bytes(),
        cache_bytes=config.xbzrle_cache_size,
        cache_rule=config.xbzrle_cache_rule,
        lanes=config.lanes,
        codec=config.compression,
        verify=config.verify,
        warm=config.warm,
        digest_seed=os.urandom(32),
        arbiter=config.arbiter is not None,
    )
