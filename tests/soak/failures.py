"""Migrations that fail, one after another in one process: nothing piles up for it."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import uvloop

import migrate
from tests.soak.tally import Tally

RAM_BYTES = 1 << 20
WARM_UP = 21
"""Migrations before the first look: what is made once is made by then."""
MOST_GROWTH = 32 << 20


class FailingGuest:
    """In this process; fails where it is told to, or fills the way with state that nobody wants."""

    def __init__(self, failing: str) -> None:
        self._failing = failing

    async def pause(self) -> None:
        """Of the source."""
        self._maybe("pause")

    async def resume(self) -> None:
        """Of the source."""

    async def state(self) -> Mapping[str, bytes]:
        """Of the source."""
        self._maybe("state")
        return {"cpu": b"x" * 1000}

    async def load(self, state: Mapping[str, bytes]) -> None:
        """Of the destination."""
        self._maybe("load")

    async def run(self) -> None:
        """Of the destination."""

    def _maybe(self, step: str) -> None:
        if self._failing == step:
            raise OSError(f"{step} fails on purpose")


HOW = ("pause", "state", "load", "cancel", "other size", "nobody listens", "other block")


def fail_migrations(seed: int, count: int) -> Tally:
    """So many, of every kind in turn."""
    tally = Tally()
    with (
        tempfile.TemporaryDirectory(prefix="migrate-test-soak-", dir="/dev/shm") as directory,
        mock.patch.object(tempfile, "tempdir", directory),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_fail_all(random.Random(seed), Path(directory), count, tally))
    return tally


async def _fail_all(rng: random.Random, directory: Path, count: int, tally: Tally) -> None:
    ram = directory / "source.ram"
    ram.write_bytes(rng.randbytes(RAM_BYTES))
    level = _level(directory)
    for number in range(count + -count % len(HOW)):
        if number == WARM_UP:
            level = _level(directory)
        how = HOW[number % len(HOW)]
        try:
            await asyncio.wait_for(_fail(how, ram, directory), 30)
        except migrate.MigrateError as error:
            tally.facts[type(error).__name__] += 1
        except TimeoutError:
            tally.went_wrong("hangs", how)
        else:
            tally.went_wrong("migrations that should have failed", how)
        tally.done += 1
    now = _level(directory)
    for name, before, after in zip(("descriptors", "threads", "files"), level, now, strict=False):
        if after > before:
            tally.went_wrong(f"{name} left", f"{before} before, {after} after {count} failures")
    if now[3] - level[3] > MOST_GROWTH:
        tally.went_wrong("growth beyond the bound", f"{level[3]} bytes before, {now[3]} after")


async def _fail(how: str, ram: Path, directory: Path) -> None:
    """One migration. Raises MigrateError."""
    there = directory / "destination.ram"
    if how == "other size":
        there.write_bytes(b"x" * 4096)
    else:
        there.unlink(missing_ok=True)
    name = "vga" if how == "other block" else "pc.ram"
    receiver_config = migrate.DestinationConfig(
        migrate.Address("127.0.0.1", 0),
        (migrate.RamSpec(name, there),),
        once=True,
        state_dir=directory / "there",
    )
    async with migrate.Receiver(receiver_config, guest=FailingGuest(how)) as receiver:
        address = await receiver.address()
        if how == "nobody listens":
            address = migrate.Address("127.0.0.1", 1)
        config = migrate.SourceConfig(
            address, (migrate.RamSpec("pc.ram", ram),), state_dir=directory / "here", reconnect_timeout=0.0
        )
        migration = migrate.send(config, guest=FailingGuest(how))
        if how == "cancel":
            async for event in migration:
                if event.name == "negotiated":
                    migration.cancel()
        await migration


def _level(directory: Path) -> tuple[int, int, int, int]:
    """Descriptors, threads, files, bytes of memory."""
    gc.collect()
    files = [path for path in directory.rglob("*") if path.is_file()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    threads = [one for one in threading.enumerate() if not one.name.startswith("uvloop_")]  # its pool's
    return len(list(Path("/proc/self/fd").iterdir())), len(threads), len(files), peak
