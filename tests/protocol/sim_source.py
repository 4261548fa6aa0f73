"""The source's shell in the simulation: does what the machine asks for, in fake time, one step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from protocol_support import digests_now
from sim_lanes import Sender
from sim_network import Connection

from migrate import kernel
from migrate.errors import GuestError, JournalError, MigrateError, VerifyError
from migrate.protocol import actions as a
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message
from migrate.protocol.source import SourceMachine
from migrate.protocol.source_rounds import HarvestResult
from migrate.protocol.source_states import SourceState
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.reread import Look, Rereader
from migrate.ram.trackers import mark_all_data

if TYPE_CHECKING:
    from simulation import World

SEEN: set[tuple[SourceState, SourceState]] = set()
"""Every transition that any simulation took."""
_Step = Callable[[], None]


class WatchedSource(SourceMachine):
    """Remembers the transitions."""

    def enter(self, state: SourceState) -> None:
        SEEN.add((self.state, state))
        super().enter(state)


class SourceShell:
    """Connects the source machine with the simulated world."""

    def __init__(self, world: World, machine: WatchedSource) -> None:
        self.world = world
        self.machine = machine
        self.events: deque[_Step] = deque()
        """The event loop's queue: lane threads and the control connection put their news here, in order."""
        self.control: Connection | None = None
        self.finished = False
        self.error: MigrateError | None = None
        self.reports: list[a.Report] = []
        self._reading: Connection | None = None
        self._reader = frames.FrameReader()
        self._senders: dict[int, Sender] = {}
        self._guest_work: deque[tuple[_Step, float]] = deque()
        self._guest_busy = False
        self._rereader = Rereader(world.source_image, machine.digests)

    # --- inputs -----------------------------------------------------------------------------------

    def input(self, call: Callable[..., object], *arguments: object, **more: object) -> None:
        """Tell the machine and do what it asks for."""
        call(self.world.now, *arguments, **more)
        self.perform()

    def tell(self, call: Callable[..., object], *arguments: object) -> None:
        """From a thread: an input, in its turn."""
        self.events.append(partial(self.input, call, *arguments))

    def tell_plain(self, call: _Step) -> None:
        """From a thread: anything, in its turn."""
        self.events.append(call)

    def lane_ended(self, lane: int, problem: Exception | None) -> None:
        """A lane thread has ended."""
        self._senders.pop(lane).do_rest()
        if problem is None:
            self.input(self.machine.lane_stopped, lane)
        elif isinstance(problem, MigrateError):
            self.machine.lane_stopped(self.world.now, lane)
            self.input(self.machine.failed, problem)
        else:
            self.input(self.machine.lane_broken, lane, str(problem))

    def steps(self) -> list[_Step]:
        """What can happen now."""
        found: list[_Step] = [sender.step for sender in self._senders.values() if sender.ready]
        if self.events:
            found.append(self._next_event)
        reading = self._reading
        if reading is not None and (reading.down.arrived or reading.at_end("source")):
            found.append(partial(self._read_control, reading))
        return found

    def _next_event(self) -> None:
        self.events.popleft()()

    def _read_control(self, control: Connection) -> None:
        data = bytes(control.down.arrived)
        control.down.arrived.clear()
        if not data:
            self._lose(control, "the peer closed the connection")
            return
        try:
            for message in self._reader.feed(data):
                self.events.append(partial(self._message, control, message))
        except MigrateError as error:
            self._lose(control, str(error))

    def _message(self, control: Connection, message: Message) -> None:
        if self.control is control:
            self.world.received("source", message)
            self.input(self.machine.message, message)

    def _lose(self, control: Connection, reason: str) -> None:
        self._reading = None
        control.close("source")
        self.events.append(partial(self._lost, control, reason))

    def _lost(self, control: Connection, reason: str) -> None:
        if self.control is control:
            self.control = None
            self.input(self.machine.connection_lost, reason)

    # --- actions ----------------------------------------------------------------------------------

    def perform(self) -> None:
        """Do what the machine asks for."""
        self.carry_out(self.machine.take_actions())

    def carry_out(self, actions: list[a.Action]) -> None:
        """Do what the machine asked for."""
        for action in actions:
            assert not self.finished, f"{action} after the end"
            self.world.record("source", action)
            self._perform(action)

    def _perform(self, action: a.Action) -> None:
        machine, world = self.machine, self.world
        match action:
            case a.Send():
                self._send(action.message)
            case a.Connect():
                world.after(action.delay + world.delay(), self._connect)
            case a.Disconnect():
                self._disconnect()
            case a.OpenLane():
                lane = machine.link.lanes[action.lane].lane
                opening = frames.PREFACE_LANE + frames.encode_frame(action.opening)
                assert action.lane not in self._senders, "a lane with two threads"
                self._senders[action.lane] = Sender(self, lane, opening)
            case a.StopLane():
                if action.lane in self._senders:
                    self._senders[action.lane].stop()
            case a.StartRound():
                lane = machine.link.lanes[action.lane].lane
                start = partial(lane.start_round, action.number, action.stage, action.dirty)
                self._in_lane(action.lane, start)
            case a.PassAck():
                lane = machine.link.lanes[action.lane].lane
                self._in_lane(action.lane, partial(lane.acknowledge, action.epoch, action.sequence))
            case a.ResizeCache():
                lane = machine.link.lanes[action.lane].lane
                resize = partial(lane.resize, action.number, action.cache_bytes, action.cache)
                self._in_lane(action.lane, resize)
            case a.SetRate():
                pass
            case a.Report():
                self.reports.append(action)
            case a.Finish():
                self._finish(action.error)
            case _:
                self._perform_work(action)

    def _perform_work(self, action: a.Action) -> None:
        world = self.world
        match action:
            case a.StartTracker():
                self._start_tracker()
            case a.LookAgain():
                world.after(world.delay(), partial(self._look, action))
            case a.Distrust():
                world.tracker.distrust(action.page, action.pages)
            case a.Throttle():
                self._queue_guest(partial(self._throttle, action.percent), 0.0)
            case a.AllocateCaches():
                caches = world.allocate("source", self.machine.keys, action)
                world.after(world.delay(), partial(self.input, self.machine.caches_allocated, caches))
            case a.Harvest():
                began = world.now
                world.after(world.delay(), partial(self._harvest, action.stopped, began))
            case a.PauseGuest():
                self._queue_guest(self._pause, world.scenario.pause_seconds)
            case a.ResumeGuest():
                self._queue_guest(self._resume, world.scenario.resume_seconds)
            case a.WriteJournal():
                world.journals.append(("source", action.step))
                self._queue_guest(partial(self._write_journal, action.step), 0.0)
            case a.RemoveJournal():
                world.removed.add("source")
            case a.CollectState():
                state = world.device_state()
                seconds = world.delay() + world.scenario.state_seconds
                world.after(seconds, partial(self._collect_state, state))
            case a.Confirm():
                world.after(world.delay(), partial(self._confirm, action.ram))
            case a.Reread():
                world.after(world.delay(), self._reread)
            case _:
                raise AssertionError(f"no way to do {action}")

    def _send(self, message: Message) -> None:
        if isinstance(message, m.Commit):
            self.world.commit_sent = True
        if self.control is not None:
            with suppress(ConnectionError):  # noticed by reading
                self.control.write("source", frames.encode_frame(message))

    def _connect(self) -> None:
        if self.finished:
            return
        try:
            self.control = self.world.network.connect(self.world.now, "control")
        except ConnectionError as error:
            self.input(self.machine.connection_lost, str(error))
            return
        self._reading = self.control
        self._reader = frames.FrameReader()
        self.control.write("source", frames.PREFACE_CONTROL)
        self.input(self.machine.connected)

    def _disconnect(self) -> None:
        self._reading = None
        if self.control is not None:
            self.control.close("source")
            self.control = None

    def _in_lane(self, number: int, call: Callable[[], object]) -> None:
        sender = self._senders.get(number)
        if sender is not None:
            sender.post(call)
        else:
            call()

    def _finish(self, error: MigrateError | None) -> None:
        self.finished = True
        self.error = error
        for sender in self._senders.values():
            sender.stop()
        self._disconnect()

    # --- slow work --------------------------------------------------------------------------------

    def _start_tracker(self) -> None:
        world, began = self.world, self.world.now
        world.tracker.start(world.source_image, self.machine.digests)
        dirty = DirtyBitmap(world.source_image.layout.total_pages)
        pages = mark_all_data(world.source_image, dirty)
        result = HarvestResult(dirty, pages, 0.001, began)
        world.after(world.delay() + world.scenario.tracker_seconds, partial(self._tracking, result))

    def _tracking(self, result: HarvestResult) -> None:
        self.input(self.machine.tracking, result)

    def _harvest(self, stopped: bool, began: float) -> None:
        world = self.world
        dirty = DirtyBitmap(world.source_image.layout.total_pages)
        all_cpus = stopped and not world.tracker.live  # a scan would begin threads for it
        found = world.tracker.collect(dirty, stopped=all_cpus)
        result = HarvestResult(dirty, found.dirty_pages, world.now - began, began, unsettled=found.unsettled)
        world.after(
            world.delay() + world.scenario.harvest_seconds,
            partial(self.input, self.machine.harvested, result),
        )

    def _look(self, action: a.LookAgain) -> None:
        """RAM is read at some moment, and the news come at a later one."""
        world = self.world
        look = self._rereader.look(action.candidates, action.start, action.most_pages)
        world.after(world.delay() + world.scenario.look_seconds, partial(self._looked, look))

    def _looked(self, look: Look) -> None:
        self.input(self.machine.reread.looked, look)

    def _queue_guest(self, work: _Step, seconds: float) -> None:
        """One at a time, as under the daemon's lock."""
        self._guest_work.append((work, seconds))
        self._next_guest_work()

    def _next_guest_work(self) -> None:
        if self._guest_busy or not self._guest_work:
            return
        work, seconds = self._guest_work.popleft()
        if work == self._pause and self.machine.state is not SourceState.PAUSING:
            self._next_guest_work()  # given up before it began
            return
        self._guest_busy = True
        self.world.after(self.world.delay() + seconds, partial(self._do_guest_work, work))

    def _do_guest_work(self, work: _Step) -> None:
        self._guest_busy = False
        work()
        self._next_guest_work()

    def _write_journal(self, step: Step) -> None:
        error = JournalError("no space") if self.world.fails(step.value) else None
        self.input(self.machine.journalled, step, error)

    def _throttle(self, percent: int) -> None:
        if self.world.fails("throttle"):
            self.world.guest.throttle_percent = 0
            self.input(self.machine.throttle_failed, "the guest cannot be throttled")
        else:
            self.world.guest.throttle_percent = percent

    def _pause(self) -> None:
        if self.world.fails("pause"):
            self.input(self.machine.pause.pause_failed, GuestError("the guest did not stop"))
            return
        self.world.guest.pause()
        self.world.all_marked()
        self.input(self.machine.pause.paused)

    def _resume(self) -> None:
        if self.world.commit_sent:
            assert self.machine.commit.journal_step is Step.TAKEN_BACK, (
                "resumed after the commit may have left"
            )
            assert ("destination", Step.DECLINED) in self.world.journals
            assert not self.world.handed_over, "taken back from a destination that starts it"
        guest = self.world.guest
        if guest.dead or (not guest.runs_here and self.world.fails("resume")):
            self.input(self.machine.resume_failed, GuestError("the guest did not continue"))
            return
        guest.resume()
        self.input(self.machine.resumed)

    def _collect_state(self, state: list[tuple[str, bytes]]) -> None:
        if self.world.fails("state"):
            error = GuestError("the state command failed")
            self.input(self.machine.pause.state_failed, error)
        else:
            self.input(self.machine.pause.state_collected, state)

    def _differing(self) -> int:
        digests = digests_now(self.world.source_image, self.machine.keys)
        return kernel.bitmap_count(self.machine.digests.differing(digests))

    def _confirm(self, ram: bool) -> None:
        problem: MigrateError | None = None
        if self.world.guest.runs_here:
            problem = GuestError("somebody resumed the guest")
        elif ram and (differing := self._differing()):
            problem = GuestError(f"{differing} pages of RAM changed after the guest was paused")
        seconds = self.world.delay() + self.world.scenario.confirm_seconds
        self.world.after(seconds, partial(self.input, self.machine.pause.confirmed, problem))

    def _reread(self) -> None:
        problem = VerifyError("RAM changed after it was sent") if self._differing() else None
        self.input(self.machine.pause.reread, problem)
