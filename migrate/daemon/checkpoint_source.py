"""A stored checkpoint of a QEMU's guest on its way into a QEMU that waits with `-incoming`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from migrate.config import SourceConfig
from migrate.daemon.qemu_outgoing import QemuOutgoing
from migrate.daemon.reporter import Reporter
from migrate.errors import CancelledMigration, MigrateError, RamError, UndecidedError
from migrate.kernel.results import STAGE_BULK
from migrate.protocol.qemu_source import QemuRamSource
from migrate.protocol.qemu_wire import Configuration
from migrate.protocol.run_report import blocks_of
from migrate.protocol.stats import MigrationStats
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.checkpoint import digest
from migrate.ram.image import RamImage
from migrate.ram.stored_checkpoint import StoredBlock, StoredCheckpoint, read_checkpoint
from migrate.units import format_size

_STORED = "nowhere; the checkpoint is as it was, and can be sent again"


async def send_checkpoint(config: SourceConfig, reporter: Reporter) -> None:
    """Send it; returns when QEMU has loaded everything, and stands there.

    Raises:
        MigrateError: the class says what failed.
    """
    assert config.checkpoint is not None and config.to is not None
    checkpoint = read_checkpoint(config.checkpoint, config.ram)
    await _check_digests(checkpoint.blocks, reporter)
    specs = [block.spec for block in checkpoint.blocks]
    with RamImage.open_source(specs, checkpoint.page_size) as image:
        _check_lengths(checkpoint, image)
        stats = MigrationStats(
            total=sum(block.length for block in checkpoint.blocks), page_size=checkpoint.page_size
        )
        stats.start(time.monotonic())
        blocks = blocks_of([(block.name, block.length) for block in image.layout.blocks])
        reporter.event("migration", id=os.urandom(16).hex(), attempt=1, blocks=blocks)
        outgoing = QemuOutgoing(
            config.to,
            QemuRamSource(image, os.urandom(32), 0, config.xbzrle_cache_rule),
            stats,
            reporter,
            timeout=config.keepalive_timeout,
            bandwidth=config.max_bandwidth,
        )
        outcome, guest = "failed", _STORED
        try:
            await _send(checkpoint, outgoing, stats, image)
            outcome, guest = "completed", f"paused in the QEMU at {config.to}: `cont` there lets it go on"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise CancelledMigration("cancelled", side="source", guest=_STORED) from None
        except UndecidedError as error:
            outcome, guest = "undecided", f"perhaps paused in the QEMU at {config.to}"
            error.with_context(guest=guest, hint=f"look there: `info status`; {_STORED}")
            raise
        except MigrateError as error:
            error.with_context(guest=_STORED)
            raise
        finally:
            outgoing.stop()
            await outgoing.close()
            now = time.monotonic()
            stats.status = outcome if outcome != "undecided" else "failed"
            stats.finish(now)
            reporter.summary(stats, now, outcome, guest=guest)


async def _send(
    checkpoint: StoredCheckpoint, outgoing: QemuOutgoing, stats: MigrationStats, image: RamImage
) -> None:
    configuration = Configuration(checkpoint.machine, checkpoint.page_size, uuid=checkpoint.uuid)
    listed = ", ".join(f"{block.spec.name} {format_size(block.length)}" for block in checkpoint.blocks)
    stats.status = "setup"
    await outgoing.begin(configuration, listed)
    stats.setup_done(time.monotonic())
    stats.status = "active"
    await outgoing.send_round(1, STAGE_BULK, DirtyBitmap(image.layout.total_pages))
    stats.status = "device"
    await outgoing.load(checkpoint.devices)
    await outgoing.commit(checkpoint.end)


async def _check_digests(blocks: Sequence[StoredBlock], reporter: Reporter) -> None:
    """RAM that changed since does not fit the devices any more. Raises RamError."""
    for block in blocks:
        if block.sha256 is None:
            message = f"{block.spec.path} has no digest in the checkpoint: whether it changed is not known"
            reporter.event("warning", message=message)
        elif await asyncio.to_thread(digest, block.spec.path, "source") != block.sha256:
            raise RamError(
                f"{block.spec.path} is not what was stored: its SHA-256 is another one",
                side="source",
                guest=_STORED,
                hint="a guest that ran on this file changed it; a checkpoint is good for copies of its files",
            )


def _check_lengths(checkpoint: StoredCheckpoint, image: RamImage) -> None:
    for block, place in zip(checkpoint.blocks, image.layout.blocks, strict=True):
        if place.length != block.length:
            raise RamError(
                f"{block.spec.path} has {place.length} bytes, but the block had {block.length}", side="source"
            )
