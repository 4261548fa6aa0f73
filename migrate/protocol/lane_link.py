"""One lane as the source's migration machine sees it: its connection, and the reset when that breaks.

    down ──open──→ up ──broken / reset by the peer / control lost──→ breaking ──┐
      ↑                                                                          │ thread has ended and
      └────────────────────── lane reset, pages owed ────────────────────────────┘ the peer named its position

While a thread runs the lane belongs to it; in `breaking` without a thread, and in `down`, to the machine.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from migrate.errors import ProtocolError
from migrate.protocol.batch import Kind
from migrate.protocol.lane_source import SentBatch, SourceLane

FIRST_RETRY_DELAY = 0.1
LONGEST_RETRY_DELAY = 3.0
SETTLED_SECONDS = 1.0


class LinkState(Enum):
    """Where a lane's connection stands."""

    DOWN = "down"
    UP = "up"
    BREAKING = "breaking"


class LaneLink:
    """Bookkeeping for one lane: connection, what is in flight, whether its round is out."""

    def __init__(self, lane: SourceLane) -> None:
        self.lane = lane
        self.state = LinkState.DOWN
        self.has_thread = False
        self.reason = ""
        self.reason_is_vague = False
        """The connection broke, as it does when the peer ends it: the peer may know better why."""
        self.in_flight: deque[tuple[int, int]] = deque()
        """(sequence, wire bytes) of what was not acknowledged."""
        self.in_flight_bytes = 0
        self.round_out = 0
        """Number of the last round whose end is on its way in this epoch; 0: none."""
        self.final_sequence: int | None = None
        self.final_acknowledged = False
        self.resizing = False
        """The lane was given a cache of another size, and the peer has not applied that yet."""
        self._resize_sequence = 0
        self.last_progress = 0.0
        self.fruitless_resets = 0
        """In a row, without a batch applied behind the one that opens the epoch."""
        self.open_not_before = 0.0
        self._last_sent = 0
        self._last_acknowledged = 0
        self._position: tuple[int, int] | None = None

    def open(self, now: float) -> int:
        """A new epoch begins; returns its number."""
        epoch = self.lane.epoch + 1
        self.lane.open(epoch)
        self.state = LinkState.UP
        self.has_thread = True
        self.last_progress = now
        self._last_sent = 0
        self._last_acknowledged = 0
        self._position = None
        return epoch

    def sent(self, batch: SentBatch, now: float) -> None:
        """The thread put a batch on its way."""
        if batch.epoch != self.lane.epoch or self.state is not LinkState.UP:
            return
        if not self.in_flight:
            self.last_progress = now
        self.in_flight.append((batch.sequence, batch.wire_bytes))
        self.in_flight_bytes += batch.wire_bytes
        self._last_sent = batch.sequence
        if batch.kind is Kind.CACHE_RESIZE:
            self._resize_sequence = batch.sequence
        if batch.kind in (Kind.ROUND_END, Kind.FINAL):
            self.round_out = batch.round
            if batch.kind is Kind.FINAL:
                self.final_sequence = batch.sequence

    def acknowledged(self, epoch: int, sequence: int, now: float) -> int:
        """The peer applied everything up to `sequence`; returns how many bytes that were.

        Raises:
            ProtocolError: that epoch or that batch never was.
        """
        if epoch < self.lane.epoch or (epoch == self.lane.epoch and self.state is not LinkState.UP):
            return 0
        if epoch > self.lane.epoch or sequence > self._last_sent:
            raise ProtocolError(
                f"the destination acknowledged batch {sequence} of lane {self.lane.number}, epoch {epoch},"
                " which was never sent"
            )
        if sequence > 1:
            self.fruitless_resets = 0
        self._last_acknowledged = max(sequence, self._last_acknowledged)
        done = 0
        while self.in_flight and self.in_flight[0][0] <= sequence:
            done += self.in_flight.popleft()[1]
        self.in_flight_bytes -= done
        if done:
            self.last_progress = now
        if self.final_sequence is not None and sequence >= self.final_sequence:
            self.final_acknowledged = True
        if 0 < self._resize_sequence <= sequence:
            self._resize_sequence = 0
            self.resizing = False
        return done

    @property
    def working(self) -> bool:
        """Something behind the opening batch was acknowledged on this connection, maybe long ago."""
        return self.state is LinkState.UP and (self._last_acknowledged > 1 or not self.in_flight)

    def settled(self, now: float) -> bool:
        """The connection works: all was acknowledged, or something behind the opening batch, a moment ago.

        Not while the cache changes its size: that takes a copy of it, which would be downtime.
        """
        if self.state is not LinkState.UP or self._last_acknowledged == 0 or self.resizing:
            return False
        recently = self._last_acknowledged > 1 and now - self.last_progress <= SETTLED_SECONDS
        return not self.in_flight or recently

    def stalled(self, now: float, limit: float) -> bool:
        """Something is in flight and nothing was acknowledged for `limit` seconds."""
        return self.state is LinkState.UP and bool(self.in_flight) and now - self.last_progress > limit

    def broken(self, reason: str) -> None:
        """The lane cannot go on; until the peer's position is known nothing is counted as applied."""
        if self.state is LinkState.UP:
            self.state = LinkState.BREAKING
            self.reason = reason
            self.reason_is_vague = False
            self._position = None
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.round_out = 0
        self.final_sequence = None
        self.final_acknowledged = False

    def position_known(self, epoch: int, sequence: int) -> None:
        """The peer has ended its side and named the last batch that it applied."""
        self._position = (epoch, sequence)

    @property
    def resettable(self) -> bool:
        """Both ends are at rest."""
        return self.state is LinkState.BREAKING and not self.has_thread and self._position is not None

    def reset(self, now: float) -> int:
        """Empty the cache, make the unacknowledged pages owed; returns how many are owed.

        The first reset is followed by a new connection at once, further ones in a row wait longer each time.
        """
        assert self._position is not None
        epoch, sequence = self._position
        owed = self.lane.reset(epoch, sequence)
        self.resizing = self.lane.resizing
        self._resize_sequence = 0
        self.state = LinkState.DOWN
        if epoch == self.lane.epoch and sequence > 1:
            self.fruitless_resets = 0
        self.fruitless_resets += 1
        if self.fruitless_resets > 1:
            delay = FIRST_RETRY_DELAY * 2 ** (self.fruitless_resets - 2)
            self.open_not_before = now + min(delay, LONGEST_RETRY_DELAY)
        return owed
