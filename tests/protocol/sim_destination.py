"""The destination's shell in the simulation: listener, lane threads, verification and hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from protocol_support import SECRET, digests_now
from sim_lanes import Receiver
from sim_network import Connection

from migrate import kernel
from migrate.errors import GuestError, JournalError, MigrateError, ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.destination import DestinationMachine
from migrate.protocol.destination_states import DestinationState
from migrate.protocol.handshake import Offer, negotiate
from migrate.protocol.journal_record import Step
from migrate.protocol.schema import Message

if TYPE_CHECKING:
    from simulation import World

SEEN: set[tuple[DestinationState, DestinationState]] = set()
"""Every transition that any simulation took."""
_Step = Callable[[], None]


class WatchedDestination(DestinationMachine):
    """Remembers the transitions."""

    def enter(self, state: DestinationState) -> None:
        SEEN.add((self.state, state))
        super().enter(state)


class DestinationShell:
    """Connects the destination machine with the simulated world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.machine: WatchedDestination | None = None
        self.events: deque[_Step] = deque()
        self.control: Connection | None = None
        self.finished = False
        self.error: MigrateError | None = None
        self.reports: list[a.Report] = []
        self._greeting: list[Connection] = []
        self._readers: dict[Connection, frames.FrameReader] = {}
        self._lanes: dict[tuple[int, int], Connection] = {}
        self._receivers: dict[int, Receiver] = {}
        self._write_ends = 0.0
        self._hook = 0
        """Counts hooks: one that was stopped does not answer."""

    @property
    def made(self) -> WatchedDestination:
        """The machine, of which there is one by now."""
        assert self.machine is not None
        return self.machine

    def kill(self) -> None:
        """The daemon is gone, with all that it knew; its peer sees its connections end."""
        self.finished = True
        for connection in [*self._readers, *self._greeting, *self._lanes.values()]:
            connection.close("destination")
        for receiver in self._receivers.values():
            receiver.stop()

    # --- inputs -----------------------------------------------------------------------------------

    def input(self, call: Callable[..., object], *arguments: object) -> None:
        """Tell the machine and do what it asks for; slow work may outlive the daemon that began it."""
        if self is not self.world.destination:
            return
        call(self.world.now, *arguments)
        self.perform()

    def tell(self, call: Callable[..., object], *arguments: object) -> None:
        """From a thread: an input, in its turn."""
        self.events.append(partial(self.input, call, *arguments))

    def receiver_ended(self, lane: int, problem: Exception | None) -> None:
        """A lane thread has ended."""
        del self._receivers[lane]
        if problem is None:
            self.input(self.made.lane_stopped, lane)
        else:
            self.input(self.made.lane_failed, lane, problem)

    def steps(self) -> list[_Step]:
        """What can happen now."""
        found: list[_Step] = [receiver.step for receiver in self._receivers.values() if receiver.ready]
        if self.events:
            found.append(self._next_event)
        if self.world.network.backlog:
            found.append(self._accept)
        found += [partial(self._greet, one) for one in self._greeting if _has_greeted(one)]
        for connection in self._readers:
            if connection.up.arrived or connection.at_end("destination"):
                found.append(partial(self._read_control, connection))
        return found

    def _next_event(self) -> None:
        self.events.popleft()()

    # --- connections ------------------------------------------------------------------------------

    def _accept(self) -> None:
        connection = self.world.network.backlog.popleft()
        self._greeting.append(connection)
        self.world.after(self.world.scenario.keepalive_timeout, partial(self._give_up_greeting, connection))

    def _give_up_greeting(self, connection: Connection) -> None:
        if connection in self._greeting:
            self._greeting.remove(connection)
            connection.close("destination")

    def _greet(self, connection: Connection) -> None:
        self._greeting.remove(connection)
        arrived = connection.up.arrived
        preface = bytes(arrived[: frames.PREFACE_BYTES])
        del arrived[: frames.PREFACE_BYTES]
        try:
            if preface == frames.PREFACE_CONTROL:
                self._readers[connection] = frames.FrameReader()
            elif preface == frames.PREFACE_LANE:
                self._take_lane(connection)
            else:
                raise ProtocolError("this is no migration")
        except ProtocolError:
            connection.close("destination")

    def _take_lane(self, connection: Connection) -> None:
        arrived = connection.up.arrived
        length = frames.HEADER_BYTES + int.from_bytes(arrived[:4], "big")
        frame = bytes(arrived[:length])
        del arrived[:length]
        messages = list(frames.FrameReader().feed(frame))
        if self.machine is None or len(messages) != 1 or not isinstance(messages[0], m.LaneOpen):
            raise ProtocolError("a lane came that nobody waits for")
        opening = messages[0]
        self.machine.lane_opened(opening)
        self._lanes[opening.lane, opening.epoch] = connection
        self.perform()

    def _read_control(self, connection: Connection) -> None:
        data = bytes(connection.up.arrived)
        connection.up.arrived.clear()
        if not data:
            self._lose(connection, "the peer closed the connection")
            return
        try:
            for message in self._readers[connection].feed(data):
                self.events.append(partial(self._message, connection, message))
        except ProtocolError as error:
            self._lose(connection, str(error))

    def _lose(self, connection: Connection, reason: str) -> None:
        del self._readers[connection]
        connection.close("destination")
        self.events.append(partial(self._lost, connection, reason))

    def _lost(self, connection: Connection, reason: str) -> None:
        if self.control is connection:
            self.control = None
            self.input(self.made.connection_lost, reason)

    def _message(self, connection: Connection, message: Message) -> None:
        self.world.received("destination", message)
        if self.control is connection:
            self.input(self.made.message, message)
        elif connection in self._readers and isinstance(message, m.Hello):
            self._hello_came(connection, message)
        elif connection in self._readers and isinstance(message, m.Question):
            self._question_came(connection, message)

    def _hello_came(self, connection: Connection, hello: m.Hello) -> None:
        """As the daemon does: begin, resume, or say why not."""
        reject: m.Reject | None
        if self.machine is None and not hello.resume:
            reject = self._begin(connection, hello)
        elif self.machine is None or self.finished:
            anew = self.machine is None
            reject = m.Reject("no such migration is under way here", "", "destination", anew)
        else:
            reject = self.machine.resume(self.world.now, hello)
            if reject is None:
                self._take_control(connection)
                self.perform()
        if reject is not None:
            with suppress(ConnectionError):
                connection.write("destination", frames.encode_frame(reject))
            self._hang_up(connection)

    def _question_came(self, connection: Connection, question: m.Question) -> None:
        """As the daemon does while the migration is under way, or from the journal that it left."""
        if self.finished or self.machine is None:
            self._answer_from_journal(connection, question)
            return
        verdict = self.made.asked(self.world.now, question)
        if verdict is None:
            self._take_control(connection)
            self.perform()
        else:
            self._say(connection, verdict)
            self._hang_up(connection)

    def _answer_from_journal(self, connection: Connection, question: m.Question) -> None:
        """What a source may still hear of a daemon that has ended; the model has the whole of it."""
        step = self.made.pause.journal_step if self.machine is not None else None
        if step is None or not self.made.pause.journal_needed or "destination" in self.world.removed:
            self._say(connection, m.Verdict(question.number, "unknown", "no journal"))
        elif step is Step.RUNNING:
            self._say(connection, m.Running(0))
        elif step is Step.STARTING:
            self._say(connection, m.StartFailed("the on-commit command failed"))
        else:
            self._say(connection, m.Verdict(question.number, step.value, "it ended"))

    def _say(self, connection: Connection, message: Message) -> None:
        with suppress(ConnectionError):
            connection.write("destination", frames.encode_frame(message))

    def _begin(self, connection: Connection, hello: m.Hello) -> m.Reject | None:
        blocks: dict[str, int | None] = {block.name: None for block in hello.blocks}
        holds_ram = self.world.there.exist
        agreed = negotiate(
            hello, Offer(blocks, 1 << 30, self.world.scenario.cache_limit, holds_ram=holds_ram)
        )
        if isinstance(agreed, m.Reject):
            return agreed
        image = self.world.open_destination(keep=agreed.warm)
        scenario = self.world.scenario
        self.machine = WatchedDestination(
            hello, agreed, image, SECRET, 1 << 30, scenario.keepalive_timeout, scenario.reconnect_timeout
        )
        self._take_control(connection)
        self.input(self.machine.start)
        return None

    def _take_control(self, connection: Connection) -> None:
        if self.control is not None:
            self._hang_up(self.control)
        self.control = connection

    def _hang_up(self, connection: Connection) -> None:
        self._readers.pop(connection, None)
        connection.close("destination")

    # --- actions ----------------------------------------------------------------------------------

    def perform(self) -> None:
        """Do what the machine asks for."""
        for action in self.made.take_actions():
            assert not self.finished, f"{action} after the end"
            self.world.record("destination", action)
            self._perform(action)

    def _perform(self, action: a.Action) -> None:
        match action:
            case a.Send():
                if self.control is not None:
                    with suppress(ConnectionError):  # noticed by reading
                        self.control.write("destination", frames.encode_frame(action.message))
            case a.Disconnect():
                self._disconnect()
            case a.RunLane():
                lane = self.made.lanes.lane(action.lane)
                assert action.lane not in self._receivers, "a lane with two threads"
                connection = self._lanes.pop((action.lane, action.epoch))
                self._receivers[action.lane] = Receiver(self, lane, connection)
            case a.StopLane():
                if action.lane in self._receivers:
                    self._receivers[action.lane].stop()
            case a.Report():
                self.reports.append(action)
            case a.Finish():
                self._finish(action.error)
            case _:
                self._perform_work(action)

    def _perform_work(self, action: a.Action) -> None:
        world = self.world
        match action:
            case a.Verify():
                assert not self._receivers, "RAM is verified while a lane thread may write to it"
                self._wait_for(0.0, self._verify)
            case a.ReadDigests():
                digests = digests_now(world.open_destination(), self.made.keys)
                self._wait_for(world.scenario.verify_seconds, partial(self._held_ram_read, digests))
            case a.AllocateCaches():
                caches = world.allocate("destination", self.made.keys, action)
                self._wait_for(0.0, partial(self._allocated, caches))
            case a.RunPrepare():
                self._hook += 1
                self._wait_for(
                    world.scenario.prepare_seconds,
                    partial(self._prepared, action.number, self._hook, world.now),
                )
            case a.StopHook():
                self._hook += 1
            case a.RunCommit():
                world.hand_over()
                self._wait_for(world.scenario.commit_seconds, partial(self._committed, world.now))
            case a.WriteJournal():
                world.journals.append(("destination", action.step))
                self._queue_write(action.step)
            case a.RemoveJournal():
                world.removed.add("destination")
            case a.SendDigests():
                self._send_digests(action.number, action.digests)
            case _:
                raise AssertionError(f"no way to do {action}")

    def _queue_write(self, step: Step) -> None:
        """One at a time, in order."""
        error = JournalError("no space") if self.world.fails(step.value) else None
        self._write_ends = max(self._write_ends, self.world.now) + self.world.delay() / 4
        wait = self._write_ends - self.world.now
        self.world.after(wait, partial(self.input, self.made.journalled, step, error))

    def _wait_for(self, seconds: float, work: _Step) -> None:
        self.world.after(self.world.delay() + seconds, work)

    def _disconnect(self) -> None:
        if self.control is not None:
            self._hang_up(self.control)
            self.control = None

    def _finish(self, error: MigrateError | None) -> None:
        self.finished = True
        self.error = error
        for receiver in self._receivers.values():
            receiver.stop()
        self._disconnect()

    # --- slow work --------------------------------------------------------------------------------

    def _held_ram_read(self, digests: bytearray) -> None:
        if not self.finished:
            self.input(self.made.held_ram_read, digests)

    def _allocated(self, caches: list[kernel.PageCache | None] | None) -> None:
        if not self.finished:
            self.input(self.made.caches_allocated, caches)

    def _verify(self) -> None:
        self.world.tamper()
        digests: bytearray | None = None
        if self.made.agreement.verify == "full":
            digests = digests_now(self.world.open_destination(), self.made.keys)
        self._wait_for(
            self.world.scenario.verify_seconds, partial(self.input, self.made.pause.verified, digests)
        )

    def _prepared(self, number: int, hook: int, began: float) -> None:
        if hook != self._hook:
            return
        error = GuestError("the on-prepare command failed") if self.world.fails("prepare") else None
        self.input(self.made.pause.prepare_ended, number, error, self.world.now - began)

    def _committed(self, began: float) -> None:
        error: MigrateError | None = None
        if self.world.fails("commit"):
            error = GuestError("the on-commit command failed")
        else:
            self.world.guest.start_there()
        self.input(self.made.pause.start_ended, error, self.world.now - began)

    def _send_digests(self, number: int, array: bytearray) -> None:
        for at in range(0, len(array), m.CHUNK_BYTES):
            data = bytes(array[at : at + m.CHUNK_BYTES])
            self._perform(a.Send(m.Digests(number, at // 16, data, at + len(data) == len(array))))


def _has_greeted(connection: Connection) -> bool:
    """It has said what it is, wrongly perhaps, or has hung up."""
    arrived = connection.up.arrived
    if connection.is_cut or (connection.up.ended and not connection.up.in_flight):
        return True
    if len(arrived) < frames.PREFACE_BYTES:
        return False
    if bytes(arrived[: frames.PREFACE_BYTES]) != frames.PREFACE_LANE:
        return True
    head = frames.PREFACE_BYTES + frames.HEADER_BYTES
    if len(arrived) < head:
        return False
    length = int.from_bytes(arrived[frames.PREFACE_BYTES : frames.PREFACE_BYTES + 4], "big")
    return length > 512 or len(arrived) >= head + length
