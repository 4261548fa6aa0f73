"""The source as a program uses it: move the RAM of a guest to a waiting destination."""

from __future__ import annotations

from functools import partial

from migrate.api.run import Run, with_metrics
from migrate.config import SourceConfig
from migrate.daemon.checkpoint_source import send_checkpoint
from migrate.daemon.own_guest import Guest
from migrate.daemon.reporter import Reporter
from migrate.daemon.source_service import serve_source
from migrate.daemon.source_start import migrate
from migrate.errors import UsageError


class Migration(Run):
    """A move under way; made by `send`."""


def send(config: SourceConfig, *, guest: Guest | None = None, reporter: Reporter | None = None) -> Migration:
    """Begin to move a guest's RAM, in the running event loop; what `migrate-src` does.

        result = await migrate.send(config, guest=my_guest)

    Args:
        config: what to move, where to, and how; with the names of the command's options.
        guest: the guest, if it is in this process; otherwise `config` says how it is paused.
        reporter: is told everything as it happens; iterating over the migration shows the same.

    Awaiting what this returns gives a Result once the guest runs at the destination. It raises
        MigrateError: the class says what failed, `guest` where the guest runs now.
    """
    if config.format == "qemu":
        if guest is not None:
            raise UsageError("a guest in this process has no devices that a QEMU could load", side="source")
        start = partial(send_checkpoint, config)
    else:
        start = partial(migrate if config.control is None else serve_source, config, own=guest)
    return Migration("source", with_metrics(config.metrics, start), reporter)
