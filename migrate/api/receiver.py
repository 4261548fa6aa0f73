"""The destination as a program uses it: take the RAM of guests that are sent here."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from migrate.api.run import Event, Run, with_metrics
from migrate.config import Address, DestinationConfig
from migrate.daemon.destination import serve
from migrate.daemon.destination_service import serve_destination
from migrate.daemon.own_guest import ArrivingGuest
from migrate.daemon.reporter import Reporter
from migrate.errors import MigrateError


class Receiver(Run):
    """A destination that listens, in the running event loop; what `migrate-dst` is.

        async with migrate.Receiver(config, guest=my_guest) as receiver:
            print(await receiver.address())
            result = await receiver

    With `once` in the configuration awaiting it gives the Result of the one migration, or raises its
    MigrateError; without it, it goes on until it is cancelled, and failures are events named `error`.

    Args:
        config: where to listen, and where RAM goes; with the names of the command's options.
        guest: what becomes the guest, if it is in this process; otherwise the commands of `config` start it.
        reporter: is told everything as it happens; iterating over the receiver shows the same.
    """

    def __init__(
        self,
        config: DestinationConfig,
        *,
        guest: ArrivingGuest | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._address: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        start = partial(serve if config.control is None else serve_destination, config, own=guest)
        super().__init__("destination", with_metrics(config.metrics, start), reporter)

    async def address(self) -> Address:
        """Where it listens, as soon as it does. Raises MigrateError: it cannot."""
        ends: list[asyncio.Future[Any]] = [self._address, self._task]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._address.done():
            await self
            raise MigrateError("it ended before it listened", side="destination")
        return self._address.result()

    def _note(self, event: Event) -> None:
        if event.name == "listening":
            self._address.set_result(Address(str(event.fields["host"]), int(str(event.fields["port"]))))
