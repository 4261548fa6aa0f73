"""A migration into a real QEMU, step by step; each step says what went wrong there if it fails.

    head, PING 1 ──→ PONG: it takes a guest of this machine
    RAM START, PING 2 ──→ PONG: it has these blocks
    rounds, each with a PING ──→ PONG: what the round sent is in its RAM
    RAM END, devices, PING ──→ PONG: they are loaded; nothing runs yet, and QEMU still waits
    EOF, description ──→ SHUT 0: it is the guest now

Until EOF has left QEMU cannot let the guest run, so that step is our commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial

from migrate.config import Address
from migrate.daemon.qemu_channel import QemuChannel
from migrate.daemon.reporter import Reporter
from migrate.errors import GuestError, MigrateError, NetworkError, RefusedError, UndecidedError
from migrate.kernel.results import FillResult
from migrate.protocol.bandwidth import TokenBucket, batch_limit
from migrate.protocol.qemu_encode import encode_command, encode_head, encode_part
from migrate.protocol.qemu_source import QemuRamSource
from migrate.protocol.qemu_wire import Command, Configuration, Section
from migrate.protocol.stats import MigrationStats
from migrate.ram.bitmap import DirtyBitmap

LOAD_SECONDS = 30.0
"""For QEMU to load all devices, and then to say that it has."""
BURST_BYTES = 1 << 18
PROGRESS_SECONDS = 0.25
_ITS_WORDS = "what QEMU printed there says why; it has ended, or serves no second attempt: start it anew"


class QemuOutgoing:
    """One migration; the steps are called in their order, `close` always.

    Args:
        ram: the RAM; its statistics go into `stats`.
        timeout: seconds of silence after which QEMU is taken for dead.
        bandwidth: bytes a second; 0: unlimited.
    """

    def __init__(
        self,
        to: Address,
        ram: QemuRamSource,
        stats: MigrationStats,
        reporter: Reporter,
        *,
        timeout: float,
        bandwidth: int,
    ) -> None:
        self._to = to
        self._ram = ram
        self._stats = stats
        self._reporter = reporter
        self._channel = QemuChannel(to, timeout)
        self._bucket = TokenBucket(bandwidth, BURST_BYTES)
        self._loop = asyncio.get_running_loop()
        self._ticker: asyncio.Task[None] | None = None

    async def begin(self, configuration: Configuration, blocks: str) -> None:
        """Connect, and have QEMU agree to the guest. Raises MigrateError; `blocks` is for its text."""
        await self._channel.open()
        self._reporter.event("connected", peer=str(self._to), format="qemu")
        machine = configuration.machine
        open_path = encode_command(Command.OPEN_RETURN_PATH)
        async with self._refusal(
            f"the QEMU at {self._to} takes no guest of machine {machine}",
            f"start it with -machine {machine} (and without migration capabilities) -S -incoming"
            f" tcp:{self._to}; {_ITS_WORDS}",
        ):
            await self._send(encode_head(configuration) + open_path)
            await self._channel.confirm()
        async with self._refusal(
            f"the QEMU at {self._to} does not have the guest's RAM: {blocks}",
            f"start it with the same -m, memory backends and devices; {_ITS_WORDS}",
        ):
            await self._send(self._ram.start())
            await self._channel.confirm()
        self._ticker = asyncio.ensure_future(self._tick())

    async def send_round(self, number: int, stage: int, dirty: DirtyBitmap) -> None:
        """Send what waits and these pages, until QEMU has them. Raises MigrateError."""
        self._ram.start_round(number, stage, dirty)
        self._stats.round_started(number, self._ram.remaining, time.monotonic())
        with self._broken("while its RAM came"):
            await self._channel.in_thread(partial(self._send_sections, stage))
            await self._channel.confirm()
        now = time.monotonic()
        self._stats.round_ended(now)
        row = self._stats.rounds[-1].as_dict(now, self._stats.page_size)
        self._reporter.event("round", **row)

    async def load(self, devices: bytes, records: bytes = b"") -> None:
        """End the RAM, with these records, and have the devices loaded. Raises MigrateError."""
        try:
            if records:
                await self._send(encode_part(records))
            await self._send(encode_part(b"", Section.END) + devices)
            await self._channel.confirm(LOAD_SECONDS)
        except NetworkError as error:
            raise GuestError(
                f"the QEMU at {self._to} did not load the devices: {error.message}",
                side="destination",
                hint=f"it needs the same devices, in the same places, as the guest had; {_ITS_WORDS}",
            ) from error

    async def commit(self, end: bytes) -> None:
        """Send the end of the stream, and wait for the last word.

        Raises:
            UndecidedError: QEMU may have loaded everything.
            MigrateError: it has not.
        """
        self._channel.check()
        try:
            await self._send(end)
            status = await self._channel.verdict(LOAD_SECONDS)
        except MigrateError as error:
            raise UndecidedError(
                f"the end of the stream was sent, but no answer came: {error.message}", side="destination"
            ) from error
        if status != 0:
            raise GuestError(
                f"the QEMU at {self._to} failed at the end of the stream",
                side="destination",
                hint=_ITS_WORDS,
            )

    def stop(self) -> None:
        """End what waits in threads."""
        self._channel.stop()

    async def close(self) -> None:
        """Let go of the connection."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        self._channel.close()

    async def _send(self, data: bytes) -> None:
        await self._channel.send(data)
        self._stats.add_wire(len(data))

    def _send_sections(self, stage: int) -> None:
        """In a thread."""
        while not self._channel.stopped:
            made = self._ram.next_section(batch_limit(self._bucket.rate))
            if made is None:
                return
            view, fills = made
            self._wait_for_rate(len(view))
            self._channel.send_now(view)
            self._loop.call_soon_threadsafe(self._count, fills, len(view), stage)

    def _count(self, fills: list[FillResult], wire_bytes: int, stage: int) -> None:
        for fill in fills:
            self._stats.add_fill(fill, stage)
        self._stats.add_wire(wire_bytes - sum(fill.length for fill in fills))

    def _wait_for_rate(self, nbytes: int) -> None:
        until = time.monotonic() + self._bucket.delay(time.monotonic(), nbytes)
        while not self._channel.stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, PROGRESS_SECONDS))

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            self._stats.tick(now)
            self._reporter.progress(self._stats, now)
            await asyncio.sleep(PROGRESS_SECONDS)

    @contextlib.asynccontextmanager
    async def _refusal(self, message: str, hint: str) -> AsyncIterator[None]:
        try:
            yield
        except NetworkError as error:
            if not self._channel.broken_off:
                raise
            raise RefusedError(message, side="destination", hint=hint) from error

    @contextlib.contextmanager
    def _broken(self, when: str) -> Iterator[None]:
        try:
            yield
        except NetworkError as error:
            raise NetworkError(f"{error.message}, {when}", side="destination", hint=_ITS_WORDS) from error
