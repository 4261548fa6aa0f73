"""What the daemons' lane threads do, in steps: batches into a connection, batches out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sim_network import MAX_IN_FLIGHT, Connection

from migrate.errors import MigrateError
from migrate.protocol.batch import HEADER_BYTES, Kind
from migrate.protocol.lane_destination import AppliedBatch, DestinationLane
from migrate.protocol.lane_source import SourceLane

if TYPE_CHECKING:
    from sim_destination import DestinationShell
    from sim_source import SourceShell


class Sender:
    """The thread behind a source lane."""

    def __init__(self, shell: SourceShell, lane: SourceLane, opening: bytes) -> None:
        self._shell = shell
        self._lane = lane
        self._opening = opening
        self._connection: Connection | None = None
        self._inbox: deque[Callable[[], object]] = deque()
        self._unsent = b""
        self._idle = False
        self._stopping = False
        self.ended = False

    def post(self, call: Callable[[], object]) -> None:
        """Have something done between two batches."""
        self._inbox.append(call)

    def do_rest(self) -> None:
        """What was posted after the last look."""
        while self._inbox:
            self._inbox.popleft()()

    def stop(self) -> None:
        """`lane_ended` follows."""
        self._stopping = True
        if self._connection is not None:
            self._connection.close("source")

    @property
    def ready(self) -> bool:
        """There is something to do."""
        if self.ended:
            return False
        if self._unsent and not self._stopping:
            assert self._connection is not None
            gone = self._connection.is_cut or "destination" not in self._connection.ends_open
            return gone or len(self._connection.up.in_flight) < MAX_IN_FLIGHT
        return self._stopping or bool(self._inbox) or not (self._idle or self._lane.window_full)

    def step(self) -> None:
        """One thing that the thread does."""
        try:
            self._step()
        except (ConnectionError, MigrateError) as error:
            self._end(error)

    def _step(self) -> None:
        if self._stopping:
            self._end(None)
        elif self._connection is None:
            self._connection = self._shell.world.network.connect(self._shell.world.now, "lane")
            self._connection.write("source", self._opening)
        elif self._unsent:
            self._connection.write("source", self._unsent)
            self._unsent = b""
        elif self._inbox:
            self._idle = False
            self.do_rest()
        else:
            self._make()

    def _make(self) -> None:
        made = self._lane.next_batch(self._shell.world.scenario.batch_limit)
        self._idle = made is None
        if made is not None:
            self._unsent = bytes(made[0])
            self._shell.tell(partial(self._shell.machine.batch_sent, lane=self._lane.number, batch=made[1]))

    def _end(self, problem: Exception | None) -> None:
        self.ended = True
        if self._connection is not None:
            self._connection.close("source")
        problem = None if self._stopping else problem
        self._shell.tell_plain(partial(self._shell.lane_ended, self._lane.number, problem))


class Receiver:
    """The thread behind a destination lane."""

    def __init__(self, shell: DestinationShell, lane: DestinationLane, connection: Connection) -> None:
        self._shell = shell
        self._lane = lane
        self._connection = connection
        self._needed = HEADER_BYTES
        self._in_body = False
        self._held: list[AppliedBatch] = []
        self._stopping = False
        self.ended = False

    def stop(self) -> None:
        """`receiver_ended` follows."""
        self._stopping = True
        self._connection.close("destination")

    @property
    def ready(self) -> bool:
        """There is something to do."""
        if self.ended:
            return False
        enough = len(self._connection.up.arrived) >= self._needed
        return self._stopping or enough or self._at_end

    @property
    def _at_end(self) -> bool:
        connection = self._connection
        return connection.is_cut or (connection.up.ended and not connection.up.in_flight)

    def step(self) -> None:
        """One thing that the thread does."""
        try:
            self._step()
        except (ConnectionError, MigrateError) as error:
            self._end(error)

    def _step(self) -> None:
        arrived = self._connection.up.arrived
        if self._stopping:
            self._end(None)
            return
        if len(arrived) < self._needed:
            raise ConnectionError("the source closed the lane")
        data = bytearray(arrived[: self._needed])
        del arrived[: self._needed]
        if not self._in_body:
            self._needed, self._in_body = self._lane.header(data), True
            return
        applied = self._lane.body(data)
        self._needed, self._in_body = HEADER_BYTES, False
        self._held.append(applied)
        more = len(arrived) >= self._needed and self._shell.world.rng.random() < 0.5
        if applied.kind is not Kind.RECORDS or not more:
            self._tell_held()
        if applied.kind is Kind.FINAL:
            self._end(None)

    def _tell_held(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._shell.tell(self._shell.made.batches_applied, self._lane.number, held)

    def _end(self, problem: Exception | None) -> None:
        self.ended = True
        self._connection.close("destination")
        self._tell_held()
        problem = None if self._stopping else problem
        told = partial(self._shell.receiver_ended, self._lane.number, problem)
        world = self._shell.world
        world.after(world.delay(), partial(self._shell.events.append, told))  # when it is nearly gone
