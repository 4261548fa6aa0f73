"""What each side saw proved, once a move is completed: the content of its receipt."""

from __future__ import annotations

import time

from migrate import __version__
from migrate.protocol.destination import DestinationMachine
from migrate.protocol.receipt import Receipt
from migrate.protocol.source import SourceMachine

OURS = f"migrate {__version__}"


def source_receipt(machine: SourceMachine, now: float) -> Receipt:
    """Of the source, after the last reading of its RAM; `now` is monotonic."""
    hello, agreed = machine.link.hello, machine.link.agreed
    assert agreed is not None
    return Receipt(
        migration=hello.migration.hex(),
        attempt=hello.attempt,
        side="source",
        level=agreed.verify,
        root=machine.root.to_bytes(16, "big").hex(),
        source_read_again=agreed.verify != "stream",
        ram={block.name: block.length for block in hello.blocks},
        source_software=OURS,
        destination_software=agreed.software,
        completed_at=int(time.time()),
        total_time_ms=round(machine.stats.total_seconds(now) * 1000),
    )


def destination_receipt(machine: DestinationMachine, now: float) -> Receipt:
    """Of the destination, which does not learn of the source's last reading; `now` is monotonic."""
    hello = machine.hello
    return Receipt(
        migration=hello.migration.hex(),
        attempt=hello.attempt,
        side="destination",
        level=machine.agreement.verify,
        root=machine.root.to_bytes(16, "big").hex(),
        source_read_again=False,
        ram={block.name: block.length for block in hello.blocks},
        source_software=hello.software,
        destination_software=OURS,
        completed_at=int(time.time()),
        total_time_ms=round(machine.stats.total_seconds(now) * 1000),
    )
