"""A handover whose daemon has ended, taken up at the destination from its journal.

Either the source asks, over a connection of its own (`serve`), or a person does (`recover`). One step after
the other: whatever the journal has to say first is on disk before the next message is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from migrate.config import DestinationConfig
from migrate.daemon.arbiter import FileArbiter, won_by
from migrate.daemon.arrival import CommandArrival
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.hooks import HookError, hook_environment, run_hook
from migrate.daemon.journal import Journal, JournalBusyError, boot_id, default_state_dir, find_journal
from migrate.daemon.journal_writer import JournalWriter
from migrate.daemon.qemu_arrival import QemuArrival
from migrate.daemon.reporter import Reporter
from migrate.daemon.socket_guest import run_loaded
from migrate.errors import JournalError, MigrateError, ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handover_destination import DestinationHandover, Order
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message
from migrate.ram.marker import remove_marker

ANSWER_SECONDS = 30.0
"""How long a source may say nothing before it counts as gone."""


class Settlement:
    """Carries out what a destination's handover asks for.

    Args:
        config: its hooks are those of the program that takes up, which may be another one than before.
        journal: open; closed by `close`.
    """

    def __init__(self, config: DestinationConfig, reporter: Reporter, journal: Journal) -> None:
        self.record = journal.record
        survives = self.record.boot == boot_id() and not self.record.embedded
        self.handover = DestinationHandover(
            self.record.step, same_boot=survives, arbiter=bool(self.record.arbiter)
        )
        self.forgotten = False
        """Both sides know; the journal is gone."""
        self._config = config
        self._reporter = reporter
        self._writer = JournalWriter(journal)
        self._channel: ControlChannel | None = None
        self._ram = {place.name: Path(place.path) for place in self.record.ram if place.path}

    async def serve(self, question: m.Question, channel: ControlChannel) -> None:
        """Answer on that connection until the source has what it needs, or is gone."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._channel = channel
        channel.on_message = messages.put_nowait
        channel.on_lost = lambda _: messages.put_nowait(None)
        self._reporter.event("question", migration=self.record.migration, step=self.handover.step.value)
        self.handover.asked()
        await self._follow()
        with contextlib.suppress(TimeoutError, ProtocolError):
            while not self.forgotten:
                async with asyncio.timeout(ANSWER_SECONDS):
                    message = await messages.get()
                if message is None:
                    return
                self._take(question, message)
                await self._follow()

    async def recover(self, force: Step | None = None) -> None:
        """Without the source: decline what is only prepared, find out about what was being started.

        Args:
            force: what a person says that the journal should say, against the rules. Raises UsageError.
        """
        if force is not None:
            self.handover.force(force)
        else:
            self.handover.recover()
        await self._follow()

    async def close(self) -> None:
        """Let go of the journal."""
        await self._writer.close(remove=False)

    def _take(self, question: m.Question, message: Message) -> None:
        match message:
            case m.Ping():
                self._send(m.Pong(message.number))
                return
            case m.Commit():
                expected = (message.migration, message.root) == (question.migration, question.root)
                expected = expected and self.handover.commit()
            case m.Settled():
                expected = message.migration == question.migration
                expected = expected and self.handover.settled(message.runs_there)
            case _:
                expected = False
        if not expected:
            text = f"the source sent {message.TYPE} while the journal says {self.handover.step.value}"
            self._send(m.Failed(ProtocolError.exit_code, text))
            raise ProtocolError(text)

    async def _follow(self) -> None:
        while orders := self.handover.take_orders():
            for order in orders:
                if isinstance(order, Step):
                    root = bytes.fromhex(self.record.root)
                    action = a.WriteJournal(order, self.record.number, self.record.attempt, root)
                    self.handover.journalled(order, await self._writer.write(action) is None)
                else:
                    await self._carry_out(order)

    async def _carry_out(self, order: Order) -> None:
        handover, number = self.handover, self.record.number
        match order:
            case Order.SAY_STEP:
                self._send(m.Verdict(number, handover.step.value, handover.reason))
            case Order.SAY_RUNNING:
                self._reporter.event("running")
                self._send(m.Running(0))
            case Order.SAY_START_FAILED:
                self._reporter.event("warning", message=f"the guest could not be started: {handover.reason}")
                self._send(m.StartFailed(handover.reason))
            case Order.CLAIM:
                arbiter = FileArbiter(Path(self.record.arbiter), self.record.migration)
                won, error = await won_by("destination", arbiter)
                handover.claimed(won, "" if error is None else error.message)
            case Order.START:
                self._reporter.event("committed")
                handover.started(await self._start())
            case Order.LOOK:
                handover.looked(await self._look())
            case Order.FORGET:
                self._writer.remove()
                self.forgotten = True
                self._send(m.Forgotten(bytes.fromhex(self.record.migration)))
            case _:  # a pause that nobody waits for is prepared or declined
                pass

    async def _start(self) -> str | None:
        """Let the guest go; what went wrong."""
        try:
            for path in self._ram.values():
                await asyncio.to_thread(remove_marker, path)
            if self._config.guest_qmp is not None:
                async with self._attached(self._config.guest_qmp) as qemu:
                    await qemu.run(self.record.attempt)
            elif self._config.guest_socket is not None:
                await run_loaded(self._config.guest_socket, self._config.hook_timeout)
            else:
                commands = CommandArrival(self._config, self.record.migration, self._ram)
                await commands.run(self.record.attempt)
        except OSError as error:
            return f"the mark of the RAM cannot be removed: {error.strerror}"
        except MigrateError as error:
            return error.message
        return None

    @contextlib.asynccontextmanager
    async def _attached(self, path: Path) -> AsyncIterator[QemuArrival]:
        arrival = QemuArrival(self._config, self.record.migration, self._ram, path)
        await arrival.attach()
        try:
            yield arrival
        finally:
            await arrival.leave()

    async def _look(self) -> bool | None:
        if self._config.guest_qmp is not None:
            try:
                async with self._attached(self._config.guest_qmp) as qemu:
                    return await qemu.runs()
            except MigrateError:
                return None
        if self._config.guest_socket is not None:
            return False  # a guest that runs already answers to another `run` all the same
        if self._config.is_running is None:
            return None
        environment = hook_environment(
            migration_id=self.record.migration,
            attempt=self.record.attempt,
            side="destination",
            ram=self._ram,
        )
        try:
            await run_hook("--is-running", self._config.is_running, environment, self._config.hook_timeout)
        except HookError as error:
            return None if error.status is None else False
        return True

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)


async def open_settlement(
    config: DestinationConfig, reporter: Reporter, question: m.Question
) -> Settlement | m.Verdict:
    """The settlement of the pause that a source asks about, or the only answer there is."""
    directory = config.state_dir or default_state_dir()
    path = find_journal(directory, "destination", question.migration.hex())
    if path is None:
        return m.Verdict(question.number, "unknown", f"there is no journal of it in {directory}")
    try:
        journal = await asyncio.to_thread(Journal.open, path)
    except JournalBusyError as error:
        return m.Verdict(question.number, "busy", error.message)
    except JournalError as error:
        return m.Verdict(question.number, "unknown", error.message)
    record = journal.record
    if (record.number, record.root) != (question.number, question.root.hex()):
        journal.close()
        return m.Verdict(question.number, "unknown", "the journal here is of another pause")
    return Settlement(config, reporter, journal)
