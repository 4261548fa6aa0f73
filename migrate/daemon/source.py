"""The source daemon: carries out what the source machine asks for, and tells it what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from functools import partial
from typing import Protocol

from migrate.config import SourceConfig
from migrate.daemon.control_channel import ControlChannel, open_control
from migrate.daemon.guest_control import GuestControl
from migrate.daemon.journal import Journal
from migrate.daemon.lane_sender import LaneSender
from migrate.daemon.page_caches import allocate_caches
from migrate.daemon.preflight import check_items
from migrate.daemon.receipts import source_receipt
from migrate.daemon.reporter import Reporter
from migrate.daemon.source_turns import SourceTurns
from migrate.daemon.source_work import SourceWork
from migrate.daemon.tls_client import TlsClient
from migrate.daemon.uninterrupted import uninterrupted
from migrate.errors import MigrateError, as_error
from migrate.protocol import actions as a
from migrate.protocol import frames
from migrate.protocol.bandwidth import TokenBucket
from migrate.protocol.schema import Message
from migrate.protocol.source import SourceMachine
from migrate.protocol.source_states import DECIDED, SourceState

TICK_SECONDS = 0.05
PROGRESS_SECONDS = 0.25
ALIVE_SECONDS = 0.5
CLOSE_SECONDS = 2.0
BURST_BYTES = 1 << 18


class SourceWatcher(Protocol):
    """Who wants to steer a migration while it runs."""

    def begun(self, daemon: SourceDaemon) -> None:
        """There is a daemon, which is about to run."""

    def pass_started(self, number: int) -> None:
        """A round begins."""


class SourceDaemon:
    """Connects one source machine with the event loop, sockets, threads and the guest."""

    def __init__(
        self,
        config: SourceConfig,
        reporter: Reporter,
        machine: SourceMachine,
        work: SourceWork,
        guest: GuestControl,
        journal: Journal | None,
        tls: TlsClient | None,
        watcher: SourceWatcher | None = None,
    ) -> None:
        self.machine = self._machine = machine
        """To look at; inputs go through this class."""
        self._config = config
        self._reporter = reporter
        self._watcher = watcher
        self._work = work
        self._guest = guest
        self._turns = SourceTurns(machine, self._input, guest, journal, reporter)
        self._tls = tls
        self._channel: ControlChannel | None = None
        self._lanes: dict[int, LaneSender] = {}
        self._bucket = TokenBucket(config.max_bandwidth, BURST_BYTES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: MigrateError | None = None
        self._finished: asyncio.Future[MigrateError | None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Run the migration to its end. Raises MigrateError."""
        self._input(self._machine.start)
        ticker = asyncio.ensure_future(self._tick())
        try:
            error = await self._wait_for_end()
        finally:
            ticker.cancel()
            await uninterrupted(self._clean_up(ticker))
        now = time.monotonic()
        outcome = self._machine.outcome
        left = {}
        stopped = self._guest.stopped_copy()
        if outcome == "completed" and self._config.source_after == "keep" and stopped is not None:
            left["stopped_here"] = stopped
        if outcome == "completed" and error is None:
            self._reporter.event("proved", receipt=asdict(source_receipt(self._machine, now)))
        self._reporter.summary(self._machine.stats, now, outcome, guest=self._machine.guest_place, **left)
        if error is not None:
            raise error

    async def _wait_for_end(self) -> MigrateError | None:
        while True:
            try:
                return await asyncio.shield(self._finished)
            except asyncio.CancelledError as cancelled:
                reason = f"cancelled ({cancelled})" if str(cancelled) else "cancelled"
                if not self._machine.cancel(time.monotonic(), reason):
                    self._reporter.event(
                        "warning",
                        message="too late to cancel: the guest is being handed over",
                    )
                self._perform()

    async def _clean_up(self, ticker: asyncio.Task[None]) -> None:
        self._work.stop()
        await self._turns.close_journal()
        for sender in list(self._lanes.values()):
            sender.stop()
        for sender in list(self._lanes.values()):
            await asyncio.to_thread(sender.join)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(ticker, *self._tasks, return_exceptions=True)
        await self._turns.leave_guest()
        if self._channel is not None:
            self._channel.close()
            await self._channel.closed(CLOSE_SECONDS)
        self._machine.link.release_caches()

    # --- steering ----------------------------------------------------------------------------------------

    def cancel(self, reason: str) -> bool:
        """A person wants to stop. False: the guest is being handed over."""
        possible = self._machine.cancel(time.monotonic(), reason)
        self._perform()
        return possible

    def switch_over(self) -> bool:
        """A person wants the pause now. False: there are no rounds to end."""
        possible = self._machine.switch_over(time.monotonic())
        self._perform()
        return possible

    def set_parameters(self, values: Mapping[str, int | str]) -> None:
        """Change parameters. Raises UsageError."""
        self._machine.set_parameters(time.monotonic(), values)
        self._perform()

    # --- inputs ------------------------------------------------------------------------------------------

    def _input(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(time.monotonic(), *arguments)
            self._perform()
        except Exception as problem:  # a fault of ours must not leave a guest stopped that nobody resumes
            self._unexpected(problem)

    def _unexpected(self, problem: Exception) -> None:
        """End the migration; if even that fails, end the program."""
        if self._broken is None:
            self._broken = as_error(problem)
            try:
                self._machine.failed(time.monotonic(), self._broken)
                self._perform()
            except Exception:
                if not self._finished.done():
                    self._finished.set_result(self._broken)

    def batches_noted(self, lane: int) -> None:
        """A lane thread sends (LaneEvents)."""
        if lane in self._lanes:
            for batch in self._lanes[lane].take_sent():
                self._input(self._machine.batch_sent, lane, batch)

    def lane_ended(self, lane: int, problem: Exception | None) -> None:
        """A lane thread has ended (LaneEvents)."""
        self.batches_noted(lane)
        self._lanes.pop(lane).do_rest()
        if problem is None:
            self._input(self._machine.lane_stopped, lane)
        elif isinstance(problem, MigrateError):
            self._machine.lane_stopped(time.monotonic(), lane)
            self._input(self._machine.failed, problem)
        else:
            self._input(self._machine.lane_broken, lane, _text(problem))

    def _on_message(self, message: Message) -> None:
        for lane in list(self._lanes):
            self.batches_noted(lane)  # before their acknowledgements
        self._input(self._machine.message, message)

    def _on_lost(self, reason: str) -> None:
        self._channel = None
        self._input(self._machine.connection_lost, reason)

    async def _tick(self) -> None:
        next_progress = next_alive = 0.0
        while True:
            now = time.monotonic()
            self._input(self._machine.tick)
            if now >= next_progress:
                next_progress = now + PROGRESS_SECONDS
                self._reporter.progress(self._machine.stats, now)
            if now >= next_alive:
                next_alive = now + ALIVE_SECONDS
                if self._machine.state not in (*DECIDED, SourceState.ENDED):
                    await self._turns.check()
            await asyncio.sleep(TICK_SECONDS)

    # --- actions -----------------------------------------------------------------------------------------

    def _perform(self) -> None:
        for action in self._machine.take_actions():
            self._perform_one(action)

    def _perform_one(self, action: a.Action) -> None:
        match action:
            case a.Send():
                if self._channel is not None:
                    self._channel.send(action.message)
            case a.Connect():
                self._spawn(self._connect(action.delay))
            case a.Disconnect():
                if self._channel is not None:
                    self._channel.close()
            case a.OpenLane():
                self._open_lane(action)
            case a.StopLane():
                if action.lane in self._lanes:
                    self._lanes[action.lane].stop()
            case a.StartRound():
                if action.lane == 0 and self._watcher is not None:
                    self._watcher.pass_started(action.number)
                lane = self._machine.link.lanes[action.lane].lane
                self._in_lane(
                    action.lane, partial(lane.start_round, action.number, action.stage, action.dirty)
                )
            case a.PassAck():
                lane = self._machine.link.lanes[action.lane].lane
                self._in_lane(action.lane, partial(lane.acknowledge, action.epoch, action.sequence))
            case a.ResizeCache():
                lane = self._machine.link.lanes[action.lane].lane
                resize = partial(lane.resize, action.number, action.cache_bytes, action.cache)
                self._in_lane(action.lane, resize)
            case a.SetRate():
                self._bucket.set_rate(time.monotonic(), action.rate)
                for sender in self._lanes.values():
                    sender.wake()
            case a.Report():
                self._report(action)
            case a.Finish():
                if not self._finished.done():
                    self._finished.set_result(action.error)
            case _:
                self._perform_work(action)

    def _perform_work(self, action: a.Action) -> None:
        match action:
            case a.StartTracker():
                self._spawn(self._do(self._work.start_tracker, self._machine.tracking, self._machine.failed))
            case a.Harvest():
                harvest = partial(self._work.harvest, action.stopped)
                self._spawn(self._do(harvest, self._machine.harvested, self._machine.failed))
            case a.LookAgain():
                look = partial(self._work.look_again, action)
                self._spawn(self._do(look, self._machine.reread.looked, self._machine.failed))
            case a.Distrust():
                self._work.distrust(action)
            case a.Throttle():
                self._spawn(self._turns.set_throttle(action.percent))
            case a.AllocateCaches():
                self._spawn(self._allocate_caches(action))
            case a.PauseGuest():
                self._spawn(self._turns.pause(self._config.keepalive_timeout))
            case a.ResumeGuest():
                self._spawn(self._turns.resume())
            case a.WriteJournal():
                self._spawn(self._turns.write_journal(action))
            case a.RemoveJournal():
                self._turns.remove_journal()
            case a.CollectState():
                pause = self._machine.pause
                self._spawn(self._do(self._work.collect_state, pause.state_collected, pause.state_failed))
            case a.Confirm():
                confirm = partial(self._work.confirm, action.ram)
                self._spawn(self._do(confirm, self._machine.pause.confirmed, self._machine.failed))
            case a.Reread():
                self._spawn(
                    self._do(self._work.let_go, self._machine.pause.reread, self._machine.pause.reread)
                )
            case _:
                raise AssertionError(f"no way to do {action}")

    def _report(self, action: a.Report) -> None:
        self._reporter.event(action.name, **action.fields)
        if action.name == "negotiated" and self._config.check:
            agreed = self._machine.link.agreed
            assert agreed is not None
            items = check_items(
                self._config,
                self._machine.link.hello,
                agreed,
                self._work.tracker_name,
                self._guest.describe(),
                self._tls.describe() if self._tls is not None else "without TLS",
            )
            self._reporter.event("check", items=items)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._finished.done():
            problem = task.exception()
            error = as_error(problem) if isinstance(problem, Exception) else MigrateError(repr(problem))
            self._input(self._machine.failed, error)

    async def _do(
        self,
        work: Callable[[], Coroutine[object, object, object]],
        done: Callable[..., object],
        failed: Callable[..., object],
    ) -> None:
        try:
            result = await work()
        except MigrateError as error:
            self._input(failed, error)
        else:
            self._input(done, result)

    async def _connect(self, delay: float) -> None:
        await asyncio.sleep(delay)
        to = self._config.to
        assert to is not None
        channel = ControlChannel(self._on_message, self._on_lost)
        try:
            async with asyncio.timeout(self._config.keepalive_timeout):
                await open_control(to, channel, self._tls)
        except TimeoutError:
            self._input(self._machine.connection_lost, "the connection could not be opened in time")
        except MigrateError as error:
            self._input(self._machine.connection_refused, error)
        except (OSError, EOFError) as error:
            self._input(self._machine.connection_lost, _text(error))
        else:
            self._channel = channel
            self._input(self._machine.connected)

    def _open_lane(self, action: a.OpenLane) -> None:
        assert self._channel is not None
        sender = LaneSender(
            self._machine.link.lanes[action.lane].lane,
            self._channel.address,
            frames.PREFACE_LANE + frames.encode_frame(action.opening),
            self._bucket,
            len(self._machine.link.lanes),
            self._config.keepalive_timeout,
            self,
            self._tls,
        )
        self._lanes[action.lane] = sender
        try:
            sender.start()
        except RuntimeError as error:  # no more threads: as if it had ended at once
            asyncio.get_running_loop().call_soon(self.lane_ended, action.lane, OSError(str(error)))

    def _in_lane(self, number: int, call: Callable[[], object]) -> None:
        sender = self._lanes.get(number)
        if sender is not None:
            sender.post(call)
        else:
            call()

    async def _allocate_caches(self, action: a.AllocateCaches) -> None:
        rule = self._machine.link.hello.cache_rule
        caches = await asyncio.to_thread(allocate_caches, self._machine.keys, rule, action)
        self._input(self._machine.caches_allocated, caches)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
