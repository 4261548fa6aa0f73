"""What stands before a migration runs at the destination: RAM files, agreement, tables, journal, mark."""

from __future__ import annotations

import os
from collections.abc import Mapping

from migrate import __version__
from migrate.config import DestinationConfig
from migrate.daemon.arbiter import FileArbiter
from migrate.daemon.arrival import Arrival
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.handed_over import HandedOver
from migrate.daemon.incoming import Incoming
from migrate.daemon.journal_start import start_destination_journal
from migrate.daemon.own_guest import OwnArrival
from migrate.daemon.page_caches import available_memory
from migrate.daemon.reporter import Reporter
from migrate.errors import RamError, RefusedError
from migrate.protocol import messages as m
from migrate.protocol.destination import DestinationMachine
from migrate.protocol.handshake import Agreement, Offer, negotiate
from migrate.protocol.run_report import blocks_of
from migrate.ram.image import RamImage
from migrate.ram.layout import PageLayout

TABLE_BYTES_PER_PAGE = 64  # three digest arrays at the most (own, re-read, sums), and bitmaps
NO_MEMORY = "this host has no memory for the tables of so much RAM"


def begin(
    config: DestinationConfig,
    reporter: Reporter,
    handed_over: HandedOver,
    hello: m.Hello,
    channel: ControlChannel,
    arrival: Arrival,
    qemu: m.QemuMachine | None = None,
) -> Incoming | m.Accept | m.Reject:
    """Agree and make the migration ready to run, or say why not; a pre-flight is accepted, nothing is made.

    Args:
        handed_over: what must not be written any more.
        arrival: the guest that is to run here.
        qemu: the machine that waits, where the guest is a QEMU.
    """
    try:
        lengths = _lengths(hello)
        ram = arrival.ram or config.ram
        handed_over.check(ram)
        image = RamImage.open_destination(
            ram,
            lengths,
            hello.page_size,
            needed_bytes=hello.data_bytes,
            dry_run=hello.check,
        )
    except (RamError, ValueError) as error:
        hint = error.hint if isinstance(error, RamError) and error.hint else "--ram"
        return m.Reject(str(error)[:4000], hint[:4000], "destination")
    free = image.available_bytes or 0
    offer = Offer(
        dict(lengths),
        free,
        config.xbzrle_cache_limit,
        holds_ram=image.holds_ram,
        qemu=qemu,
        arbiter=config.arbiter is not None,
    )
    agreed = negotiate(hello, offer)
    if isinstance(agreed, m.Reject):
        image.close()
        return agreed
    if not _tables_fit(hello.page_size, lengths):
        image.close()
        return m.Reject(NO_MEMORY, "--ram", "destination")
    if hello.check:
        return _accept_check(agreed, free)
    try:
        embedded = isinstance(arrival, OwnArrival)
        journal = start_destination_journal(config, hello, image, channel.peer, embedded)
    except (RamError, RefusedError) as error:
        image.close()
        return m.Reject(str(error)[:4000], (error.hint or "--state-dir")[:4000], "destination")
    try:
        image.mark(hello.migration.hex(), keep=agreed.warm)
    except RamError as error:
        journal.remove()
        image.close()
        return m.Reject(str(error)[:4000], "--ram", "destination")
    try:
        machine = DestinationMachine(
            hello,
            agreed,
            image,
            os.urandom(32),
            free,
            config.keepalive_timeout,
            config.reconnect_timeout,
        )
    except BaseException as error:
        journal.remove()
        image.close()  # or its lock would stand until this program ends
        if not isinstance(error, MemoryError):
            raise
        return m.Reject(NO_MEMORY, "--ram", "destination")
    migration = hello.migration.hex()
    blocks = blocks_of([(block.name, block.length) for block in hello.blocks])
    reporter.event("migration", id=migration, attempt=hello.attempt, blocks=blocks)
    known = {"identity": str(channel.identity)} if channel.identity is not None else {}
    reporter.event("connected", peer=channel.peer, migration=migration, **known)
    reporter.event("negotiated", **agreed.as_fields(), peer=hello.software)
    arbiter = None if config.arbiter is None else FileArbiter(config.arbiter, migration)
    return Incoming(reporter, machine, image, channel, arrival, journal, arbiter)


def _tables_fit(page_size: int, lengths: Mapping[str, int]) -> bool:
    """Whether digests and what is computed from them leave this host half of its free memory."""
    needed = TABLE_BYTES_PER_PAGE * PageLayout(page_size, list(lengths.items())).total_pages
    available = available_memory()
    return available is None or needed <= available // 2


def _lengths(hello: m.Hello) -> dict[str, int]:
    """The blocks by name; the kernel and the layout check the rest. Raises ValueError."""
    lengths = {block.name: block.length for block in hello.blocks}
    if len(lengths) != len(hello.blocks):
        raise ValueError("the source lists a RAM block twice")
    PageLayout(hello.page_size, list(lengths.items()))
    return lengths


def _accept_check(agreed: Agreement, free: int) -> m.Accept:
    return m.Accept(
        agreed.version,
        f"migrate {__version__}",
        agreed.cache_bytes,
        agreed.cache_rule,
        agreed.lanes,
        agreed.codec,
        agreed.verify,
        bytes(32),
        [],
        free,
    )
