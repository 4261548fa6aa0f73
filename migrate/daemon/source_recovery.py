"""`migrate-src recover`: a handover whose daemon has ended, taken up at the source from its journal.

One step after the other, as often as one likes: what the journal has to say is on disk before anything is
done. The guest is resumed only while the journal's lock is held, and only where it says so.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from migrate.config import Address
from migrate.daemon.arbiter import FileArbiter, won_by
from migrate.daemon.control_channel import ControlChannel, open_control
from migrate.daemon.journal import Journal
from migrate.daemon.journal_writer import JournalWriter
from migrate.daemon.recorded_guest import resume_recorded
from migrate.daemon.tls_client import TlsClient
from migrate.errors import MigrateError, NetworkError, ProtocolError, UndecidedError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handover_source import Order, SourceHandover
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message
from migrate.protocol.source_commit import verdict_step

CONNECT_SECONDS = 10.0
CLOSE_SECONDS = 2.0
BUSY_SECONDS = 0.2
"""Pause between two questions to a destination that is still ending the migration itself."""
_ASKS = frozenset({Step.COMMITTED, Step.DONE, Step.RESUMED})


class _BusyError(Exception):
    """The destination is about to answer, and says so."""


class SourceRecovery:
    """Carries out what the handover of one journal asks for.

    Args:
        journal: open; closed by `run`.
        to: where the destination listens now.
        tls: as the migration had it.
        answer_seconds: how long it may take to answer, its hooks included.
    """

    def __init__(self, journal: Journal, to: Address, tls: TlsClient | None, answer_seconds: float) -> None:
        self._record = journal.record
        self._handover = SourceHandover(self._record.step)
        self._writer = JournalWriter(journal)
        self._to = to
        self._tls = tls
        self._answer_seconds = answer_seconds
        self._channel: ControlChannel | None = None
        here = self._record.step in (Step.MOVING, Step.RESUMED)
        self._place = "the guest runs here" if here else "the guest runs at the destination"
        self._over = False
        self._unanswered: UndecidedError | None = None
        """Why the arbiter has to decide."""

    async def run(self, force: Step | None = None) -> str:
        """Settle it; one clause: where the guest is now.

        Args:
            force: what a person says that the journal should say, against the rules.

        Raises:
            UndecidedError: whose the guest is cannot be known yet.
            MigrateError: it is decided, but could not be carried out or told to the destination; `guest` says
                where the guest is.
        """
        try:
            if force is not None:
                self._handover.force(force)
            else:
                self._handover.recover()
            await self._follow()
            if self._handover.step is Step.MOVING:
                self._writer.remove()
            elif not self._over:
                await self._ask_or_claim()
        finally:
            await self._writer.close(remove=False)
            await self._disconnect()
        return self._place

    async def _ask_or_claim(self) -> None:
        """Ask the destination; where it does not know or cannot be asked, the arbiter, if there is one."""
        try:
            await self._ask_until_answered()
        except UndecidedError as undecided:
            if not self._record.arbiter or self._handover.step is not Step.COMMITTED:
                raise
            self._unanswered = undecided
            await self._disconnect()
            self._handover.unanswered()
            await self._follow()
            self._place = (
                "the guest runs here, by the arbiter's word; the destination never starts it, and the journal"
                " stays until `migrate-src recover` could tell it so"
            )

    async def _claim(self) -> None:
        arbiter = FileArbiter(Path(self._record.arbiter), self._record.migration)
        won, error = await won_by("source", arbiter)
        self._handover.claimed(won, "" if error is None else error.message)

    async def _ask_until_answered(self) -> None:
        """Ask again, on a new connection, while the daemon there still ends the migration itself."""
        end = asyncio.get_running_loop().time() + self._answer_seconds
        while True:
            try:
                await self._ask()
            except _BusyError as busy:
                if asyncio.get_running_loop().time() + BUSY_SECONDS > end:
                    raise self._cut(f"the destination cannot answer now: {busy}") from busy
            else:
                return
            await self._disconnect()
            await asyncio.sleep(BUSY_SECONDS)

    async def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            await self._channel.closed(CLOSE_SECONDS)
            self._channel = None

    async def _ask(self) -> None:
        messages: asyncio.Queue[Message | str] = asyncio.Queue()
        self._channel = ControlChannel(messages.put_nowait, messages.put_nowait)
        to = self._to
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await open_control(to, self._channel, self._tls)
        except (OSError, EOFError, TimeoutError, MigrateError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no answer"
            raise self._cut(f"cannot talk to the destination at {to}: {reason}") from error
        self._handover.link()
        await self._follow()
        while not self._over:
            try:
                async with asyncio.timeout(self._answer_seconds):
                    message = await messages.get()
            except TimeoutError:
                raise self._cut(f"the destination at {to} does not answer") from None
            if isinstance(message, str):
                raise self._cut(f"the connection to {to} broke: {message}")
            self._take(message)
            await self._follow()

    def _take(self, message: Message) -> None:
        handover = self._handover
        match message:
            case m.Ping():
                self._send(m.Pong(message.number))
                return
            case m.Running():
                expected = handover.running()
            case m.StartFailed():
                expected = handover.start_failed(message.reason)
            case m.Forgotten():
                expected = handover.forgotten()
            case m.Verdict() if message.step != "busy":
                expected = handover.verdict(verdict_step(message), message.reason)
            case m.Verdict():
                raise _BusyError(message.reason)
            case m.Failed() | m.Reject():
                raise self._cut(f"the destination cannot answer now: {message.reason}")
            case _:
                expected = False
        if not expected:
            raise ProtocolError(f"the destination sent {message.TYPE}, which answers nothing")

    async def _follow(self) -> None:
        while orders := self._handover.take_orders():
            for order in orders:
                if isinstance(order, Step):
                    record = self._record
                    root = bytes.fromhex(record.root or "00" * 16)
                    action = a.WriteJournal(order, record.number, record.attempt, root)
                    error = await self._writer.write(action)
                    self._handover.journalled(order, error is None)
                    if error is not None:
                        raise error.with_context(guest=self._where())
                else:
                    await self._carry_out(order)

    async def _carry_out(self, order: Order) -> None:
        record = self._record
        migration, root = bytes.fromhex(record.migration), bytes.fromhex(record.root or "00" * 16)
        match order:
            case Order.RESUME:
                self._place = await resume_recorded(record)
                self._handover.resumed()
            case Order.ASK:
                self._send(m.Question(migration, record.number, root))
            case Order.COMMIT:
                self._send(m.Commit(migration, record.attempt, root))
            case Order.SETTLE:
                self._send(m.Settled(migration, self._handover.step is Step.RESUMED))
            case Order.FORGET:
                self._writer.remove()
                self._over = True
            case Order.CLAIM:
                await self._claim()
            case Order.UNDECIDED if self._unanswered is not None:
                raise UndecidedError(
                    f"{self._unanswered.message}; {self._handover.reason}",
                    side="destination",
                    guest=self._where(),
                    hint=self._unanswered.hint,
                )
            case Order.UNDECIDED:
                raise UndecidedError(
                    f"the destination does not know whether the guest runs there: {self._handover.reason}",
                    side="destination",
                    guest=self._where(),
                    hint="look there: `migrate-dst status`, `migrate-dst recover`",
                )
            case _:  # told by its outcome, or said once the destination answers
                pass

    def _where(self) -> str:
        if self._handover.step is Step.COMMITTED:
            return "the guest is stopped here and may run at the destination"
        return self._place

    def _cut(self, text: str) -> MigrateError:
        if self._handover.step is Step.COMMITTED:
            return UndecidedError(
                text,
                side="destination",
                guest=self._where(),
                hint="start migrate-dst there, with the --state-dir it had, then this again; --to says where"
                " it listens now",
            )
        return NetworkError(
            text,
            side="destination",
            guest=self._where(),
            hint="nothing is undecided, the destination only is to be told: do this again some time",
        )

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)
