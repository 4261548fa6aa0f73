"""The network of the simulation: bytes arrive in random pieces, and faults strike at exact bytes."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Literal

Channel = Literal["control up", "control down", "lane up"]
"""Up: from the source to the destination."""
MAX_IN_FLIGHT = 3000
"""What a lane may write ahead of its receiver: fills and drains in a small migration."""


@dataclass(frozen=True)
class Fault:
    """What happens to the connection that carries byte number `at` (from 0) of a channel.

    Args:
        how: "cut" after that many bytes; "flip" a bit of that byte; "silence" from that byte on.
        outage: "cut" only: seconds in which no new connection can be opened either, and every other
            connection is cut too.
        each: `at` counts from the beginning of each connection, and the fault strikes all of them.
    """

    channel: Channel
    at: int
    how: Literal["cut", "flip", "silence"] = "cut"
    bit: int = 0
    outage: float = 0.0
    each: bool = False


class Pipe:
    """One direction of a connection."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.in_flight = bytearray()
        self.arrived = bytearray()
        self.delivered = 0
        self.struck: list[Fault] = []
        self.ended = False
        """The writer has closed: the end follows what is in flight."""


class Connection:
    """A connection with its two pipes; the source opened it."""

    def __init__(self, kind: Literal["control", "lane"]) -> None:
        self.kind = kind
        self.up = Pipe("control up" if kind == "control" else "lane up")
        self.down = Pipe("control down")
        self.silent = False
        self.is_cut = False
        self.ends_open = {"source", "destination"}

    def write(self, side: str, data: bytes | memoryview) -> None:
        """Raises ConnectionError once the connection is cut, or the reader has closed its end."""
        other = "destination" if side == "source" else "source"
        if self.is_cut or other not in self.ends_open:
            raise ConnectionResetError("connection reset by peer")
        (self.up if side == "source" else self.down).in_flight += data

    def readable(self, side: str) -> Pipe:
        """The pipe that this side reads."""
        return self.down if side == "source" else self.up

    def at_end(self, side: str) -> bool:
        """Nothing more will arrive."""
        pipe = self.readable(side)
        return not pipe.arrived and (self.is_cut or (pipe.ended and not pipe.in_flight))

    def close(self, side: str) -> None:
        """Close this end; what it wrote still arrives."""
        self.ends_open.discard(side)
        (self.up if side == "source" else self.down).ended = True

    def cut(self) -> None:
        """What has not arrived is lost; both ends find out when they look."""
        self.is_cut = True
        for pipe in (self.up, self.down):
            pipe.in_flight.clear()

    @property
    def dead(self) -> bool:
        """Nothing will happen here any more."""
        return not self.ends_open


class Network:
    """All connections, and what goes wrong with them."""

    def __init__(self, rng: random.Random, faults: list[Fault]) -> None:
        self._rng = rng
        self.faults = list(faults)
        self.fired: list[Fault] = []
        self.connections: list[Connection] = []
        self.backlog: deque[Connection] = deque()
        """Opened, and not accepted yet."""
        self.delivered: dict[Channel, int] = {"control up": 0, "control down": 0, "lane up": 0}
        self.down_until = 0.0

    def connect(self, now: float, kind: Literal["control", "lane"]) -> Connection:
        """Raises ConnectionError during an outage."""
        if now < self.down_until:
            raise ConnectionRefusedError("connection refused")
        connection = Connection(kind)
        self.connections.append(connection)
        self.backlog.append(connection)
        return connection

    def deliverable(self) -> list[tuple[Connection, Pipe]]:
        """Pipes with bytes on their way."""
        self.connections = [connection for connection in self.connections if not connection.dead]
        return [
            (connection, pipe)
            for connection in self.connections
            if not connection.silent
            for pipe in (connection.up, connection.down)
            if pipe.in_flight
        ]

    def deliver(self, now: float, connection: Connection, pipe: Pipe) -> None:
        """Let a random number of bytes arrive, as far as the next fault."""
        most = len(pipe.in_flight)
        count = most if self._rng.random() < 0.5 else self._rng.randrange(1, most + 1)
        fault, distance = self._next_fault(pipe)
        if distance >= count:
            fault = None
        else:
            count = distance
        pipe.arrived += pipe.in_flight[:count]
        del pipe.in_flight[:count]
        pipe.delivered += count
        self.delivered[pipe.channel] += count
        if fault is not None:
            self._fire(now, fault, connection, pipe)

    def _next_fault(self, pipe: Pipe) -> tuple[Fault | None, int]:
        """The next fault on the way of this pipe, and how many bytes are before it."""
        found: Fault | None = None
        nearest = 1 << 62
        for fault in self.faults:
            if fault.channel != pipe.channel:
                continue
            done = pipe.delivered if fault.each else self.delivered[pipe.channel]
            distance = fault.at - done
            if fault.each and (distance < 0 or (distance == 0 and fault in pipe.struck)):
                continue
            if distance < nearest:
                found, nearest = fault, max(distance, 0)
        return found, nearest

    def _fire(self, now: float, fault: Fault, connection: Connection, pipe: Pipe) -> None:
        if fault.each:
            pipe.struck.append(fault)
        else:
            self.faults.remove(fault)
        self.fired.append(fault)
        if fault.how == "flip":
            pipe.in_flight[0] ^= 1 << fault.bit
        elif fault.how == "silence":
            connection.silent = True
        else:
            connection.cut()
            if fault.outage:
                self.down_until = now + fault.outage
                for other in self.connections:
                    other.cut()
