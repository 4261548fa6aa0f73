"""One migration at the destination: carries out what its machine asks for."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict

from migrate.daemon.arbiter import Arbiter, won_by
from migrate.daemon.arrival import Arrival
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.device_state import DeviceState
from migrate.daemon.journal import Journal
from migrate.daemon.journal_writer import JournalWriter
from migrate.daemon.lane_receiver import LaneReceiver
from migrate.daemon.page_caches import allocate_caches
from migrate.daemon.receipts import destination_receipt
from migrate.daemon.reporter import Reporter
from migrate.daemon.sockets import shut_down
from migrate.daemon.tls import PeerIdentity
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import GuestError, MigrateError, ProtocolError, as_error
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.destination import DestinationMachine
from migrate.protocol.lane_destination import AppliedBatch
from migrate.protocol.schema import Message
from migrate.protocol.stats import MigrationStats
from migrate.ram.digests import read_digests
from migrate.ram.image import RamImage
from migrate.ram.windows import cpu_count

TICK_SECONDS = 0.05
PROGRESS_SECONDS = 0.25
CLOSE_SECONDS = 5.0


class Incoming:
    """Connects one destination machine with the event loop, sockets, threads, hooks and RAM.

    Args:
        image: marked as incoming; closed when the migration has ended.
        channel: the control connection that said hello.
        arrival: brings the guest up; closed when the migration has ended.
        journal: of this migration; removed at the end unless the source may ask for it.
        arbiter: without whose word the guest is not started; None: there is none.
    """

    def __init__(
        self,
        reporter: Reporter,
        machine: DestinationMachine,
        image: RamImage,
        channel: ControlChannel,
        arrival: Arrival,
        journal: Journal,
        arbiter: Arbiter | None,
    ) -> None:
        self.migration = machine.hello.migration.hex()
        self.handed_over = False
        """The guest is ours: its RAM must not be touched any more."""
        self.stop_wanted = False
        """A person wants the program to end, whatever becomes of this migration."""
        self._reporter = reporter
        self._machine = machine
        self._image = image
        self._arrival = arrival
        self._arbiter = arbiter
        self._journal = JournalWriter(journal)
        self._channel: ControlChannel | None = None
        self._identity = channel.identity
        """Of the source, for all its connections; None: without TLS."""
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        """Lane connections that wait for their thread, by (lane, epoch)."""
        self._receivers: dict[int, LaneReceiver] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: MigrateError | None = None
        self._hook: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self._finished: asyncio.Future[MigrateError | None] = asyncio.get_running_loop().create_future()
        self._take_channel(channel)
        self._input(machine.start)

    @property
    def identities(self) -> list[tuple[int, int]]:
        """(device, inode) of every RAM file."""
        found = [os.fstat(fd) for fd in self._image.fds.values()]
        return [(status.st_dev, status.st_ino) for status in found]

    @property
    def stats(self) -> MigrationStats:
        """The numbers as they are now."""
        return self._machine.stats

    @property
    def outcome(self) -> str:
        """`completed`, `failed` or `cancelled`, once it has ended."""
        return "failed" if self._machine.outcome == "start-failed" else self._machine.outcome

    def cancel(self, reason: str) -> bool:
        """A person wants to stop. False: the guest is this host's."""
        possible = self._machine.cancel(time.monotonic(), reason)
        self._perform()
        return possible

    async def run(self) -> None:
        """Serve to the end. Raises MigrateError."""
        ticker = asyncio.ensure_future(self._tick())
        self._spawn(self._watch_guest())
        try:
            error = await self._wait_for_end()
        finally:
            ticker.cancel()
            await uninterrupted(self._clean_up(ticker))
        if self.outcome == "completed" and error is None:
            receipt = destination_receipt(self._machine, time.monotonic())
            self._reporter.event("proved", receipt=asdict(receipt))
        self._reporter.summary(
            self._machine.stats, time.monotonic(), self.outcome, guest=self._machine.guest_place
        )
        if error is not None:
            raise error

    async def _wait_for_end(self) -> MigrateError | None:
        while True:
            try:
                return await asyncio.shield(self._finished)
            except asyncio.CancelledError as cancelled:
                reason = f"cancelled ({cancelled})" if str(cancelled) else "cancelled"
                self.stop_wanted = True
                if not self._machine.cancel(time.monotonic(), reason):
                    message = "too late to cancel: the guest is this host's; finishing"
                    self._reporter.event("warning", message=message)
                self._perform()

    async def _clean_up(self, ticker: asyncio.Task[None]) -> None:
        self._stop.set()
        await self._journal.close(remove=not self._machine.pause.journal_needed)
        for receiver in list(self._receivers.values()):
            receiver.stop()
        for receiver in list(self._receivers.values()):
            await asyncio.to_thread(receiver.join)
        for sock in self._sockets.values():
            sock.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(ticker, *self._tasks, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()
            await self._channel.closed(CLOSE_SECONDS)
        await self._arrival.leave()
        self._arrival.close()
        self._image.close()
        self._machine.lanes.release_caches()

    # --- connections -------------------------------------------------------------------------------------

    def lane_came(self, opening: m.LaneOpen, sock: socket.socket, identity: PeerIdentity | None) -> None:
        """Take a lane connection. Raises ProtocolError: it is not wanted."""
        if identity != self._identity:
            raise ProtocolError(f"a lane came from somebody else ({identity}) than the migration it names")
        self._machine.lane_opened(opening)
        self._sockets[opening.lane, opening.epoch] = sock
        self._perform()

    def resume(self, hello: m.Hello, channel: ControlChannel) -> m.Reject | None:
        """The source came back. Returns a reject where it cannot go on."""
        if channel.identity != self._identity:
            return m.Reject("this migration was begun by another source", "", "source")
        reject = self._machine.resume(time.monotonic(), hello)
        if reject is None:
            self._reporter.event("reconnected", peer=channel.peer, attempt=hello.attempt)
            if self._channel is not None:
                self._channel.close()
            self._take_channel(channel)
            self._perform()
        return reject

    def ask(self, question: m.Question, channel: ControlChannel) -> m.Verdict | None:
        """The source came back with a question. Returns the answer where it cannot stay."""
        if channel.identity != self._identity:
            return m.Verdict(question.number, "busy", "this migration was begun by another source")
        verdict = self._machine.asked(time.monotonic(), question)
        if verdict is None:
            self._reporter.event("question", migration=self.migration, step=self._machine.state.value)
            if self._channel is not None:
                self._channel.close()
            self._take_channel(channel)
            self._perform()
        return verdict

    def _take_channel(self, channel: ControlChannel) -> None:
        self._channel = channel
        channel.on_message = self._on_message
        channel.on_lost = self._on_lost

    def _on_message(self, message: Message) -> None:
        self._input(self._machine.message, message)

    def _on_lost(self, reason: str) -> None:
        self._channel = None
        self._input(self._machine.connection_lost, reason)

    def batches_applied(self, lane: int, batches: list[AppliedBatch]) -> None:
        """A lane thread has applied some batches (ReceiverEvents)."""
        self._input(self._machine.batches_applied, lane, batches)

    def receiver_ended(self, lane: int, problem: Exception | None) -> None:
        """A lane thread has ended (ReceiverEvents)."""
        del self._receivers[lane]
        if problem is None:
            self._input(self._machine.lane_stopped, lane)
        else:
            self._input(self._machine.lane_failed, lane, problem)

    # --- actions -----------------------------------------------------------------------------------------

    def _input(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(time.monotonic(), *arguments)
            self._perform()
        except Exception as problem:  # a fault of ours must end the migration, not leave it hanging
            self._unexpected(problem)

    def _unexpected(self, problem: Exception) -> None:
        """End the migration; if even that fails, end the program."""
        if self._broken is not None:
            return
        self._broken = as_error(problem)
        try:
            self._machine.failed(time.monotonic(), self._broken)
            self._perform()
        except Exception:
            if not self._finished.done():
                self._finished.set_result(self._broken)

    def _perform(self) -> None:
        for action in self._machine.take_actions():
            self._perform_one(action)

    def _perform_one(self, action: a.Action) -> None:
        match action:
            case a.Send():
                if self._channel is not None:
                    self._channel.send(action.message)
            case a.Disconnect():
                if self._channel is not None:
                    self._channel.close()
            case a.RunLane():
                self._run_lane(action)
            case a.StopLane():
                if action.lane in self._receivers:
                    self._receivers[action.lane].stop()
            case a.AllocateCaches():
                self._spawn(self._allocate_caches(action))
            case a.Verify():
                self._spawn(self._verify())
            case a.ReadDigests():
                self._spawn(self._read_held_ram())
            case a.SendDigests():
                self._spawn(self._send_digests(action.number, action.digests))
            case a.RunPrepare():
                self._hook = self._spawn(self._prepare(action.number))
            case a.StopHook():
                if self._hook is not None:
                    self._hook.cancel()
            case a.Claim():
                self._spawn(self._claim())
            case a.RunCommit():
                self._spawn(self._commit())
            case a.WriteJournal():
                self._spawn(self._write_journal(action))
            case a.RemoveJournal():
                self._journal.remove()
            case a.Report():
                self._reporter.event(action.name, **action.fields)
            case a.Finish():
                if not self._finished.done():
                    self._finished.set_result(action.error)
            case _:
                raise AssertionError(f"no way to do {action}")

    def _run_lane(self, action: a.RunLane) -> None:
        for key in [key for key in self._sockets if key[0] == action.lane and key[1] < action.epoch]:
            stale = self._sockets.pop(key)
            shut_down(stale)
            stale.close()
        sock = self._sockets.pop((action.lane, action.epoch), None)
        if sock is None:
            return
        receiver = LaneReceiver(self._machine.lanes.lane(action.lane), sock, self)
        self._receivers[action.lane] = receiver
        receiver.start()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._finished.done():
            problem = task.exception()
            error = as_error(problem) if isinstance(problem, Exception) else MigrateError(repr(problem))
            self._input(self._machine.failed, error)

    async def _tick(self) -> None:
        next_progress = 0.0
        while True:
            now = time.monotonic()
            self._input(self._machine.tick)
            if now >= next_progress:
                next_progress = now + PROGRESS_SECONDS
                self._reporter.progress(self._machine.stats, now)
            await asyncio.sleep(TICK_SECONDS)

    async def _allocate_caches(self, action: a.AllocateCaches) -> None:
        rule = self._machine.agreement.cache_rule
        caches = await asyncio.to_thread(allocate_caches, self._machine.keys, rule, action)
        self._input(self._machine.caches_allocated, caches)

    async def _watch_guest(self) -> None:
        self._input(self._machine.failed, await self._arrival.lost())

    async def _verify(self) -> None:
        digests: bytearray | None = None
        if self._machine.agreement.verify == "full":
            digests = await self._read_ram()
            if digests is None:
                return
        self._input(self._machine.pause.verified, digests)

    async def _read_held_ram(self) -> None:
        digests = await self._read_ram()
        if digests is not None:
            self._input(self._machine.held_ram_read, digests)

    async def _read_ram(self) -> bytearray | None:
        """Digests of the RAM files as they are; None: that failed, and the machine knows."""
        keys = self._machine.keys
        try:
            return await asyncio.to_thread(read_digests, self._image, keys, cpu_count(), self._stop)
        except MigrateError as error:
            self._input(self._machine.failed, error)
            return None

    async def _send_digests(self, number: int, array: bytearray) -> None:
        """On the present connection; a later one has its own."""
        channel = self._channel
        for at in range(0, len(array), m.CHUNK_BYTES):
            if channel is None or self._channel is not channel:
                return
            data = bytes(array[at : at + m.CHUNK_BYTES])
            channel.send(m.Digests(number, at // 16, data, at + len(data) == len(array)))
            await channel.drained()

    async def _prepare(self, number: int) -> None:
        error: MigrateError | None = None
        began = time.monotonic()
        try:
            states = [DeviceState(name, data) for name, data in self._machine.pause.blobs.items()]
            await self._arrival.load(self._machine.hello.attempt, states)
        except MigrateError as problem:
            error = problem
        self._input(self._machine.pause.prepare_ended, number, error, time.monotonic() - began)

    async def _write_journal(self, action: a.WriteJournal) -> None:
        error = await self._journal.write(action)
        self._input(self._machine.journalled, action.step, error)

    async def _claim(self) -> None:
        assert self._arbiter is not None
        won, error = await won_by("destination", self._arbiter)
        self._input(self._machine.claimed, won, error)

    async def _commit(self) -> None:
        """The guest is ours. Its RAM is whole: the marks go first, since the command looks for them."""
        error: MigrateError | None = None
        began = time.monotonic()
        self.handed_over = True
        try:
            await asyncio.to_thread(self._image.unmark)
            await self._arrival.run(self._machine.hello.attempt)
        except MigrateError as problem:
            error = problem
        except OSError as problem:
            error = GuestError(f"the on-commit command could not be run: {problem}")
        self._input(self._machine.pause.start_ended, error, time.monotonic() - began)
