"""The states of a migration at the destination, what may follow what, and which message belongs where.

    active ──prepare──→ preparing ──journalled──→ prepared ──commit──→ starting ──→ running ──settled──→ ended
      ↑                     │                        │ │                   └→ ended
      └─────────────────────┴── resumed, unequal, ───┘ └→ declining ──→ ended
                                a new attempt

Any state before `starting` ends at a cancel, an error of this side, or when the source does not come back in
time: the RAM files keep their marks, nothing is ever started. What was promised by `prepared` is taken back
in the journal first (`declining`). A lost connection leaves `prepared` as it is: the source may have
committed, and asks. In `starting` and `running` the guest is ours: a lost connection changes nothing.
"""

from __future__ import annotations

from enum import Enum

from migrate.protocol import messages as m
from migrate.protocol.schema import Message


class DestinationState(Enum):
    """See the diagram above."""

    ACTIVE = "active"
    PREPARING = "preparing"
    PREPARED = "prepared"
    DECLINING = "declining"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


D = DestinationState

TRANSITIONS: dict[DestinationState, frozenset[DestinationState]] = {
    D.ACTIVE: frozenset({D.PREPARING, D.ENDED}),
    D.PREPARING: frozenset({D.PREPARED, D.ACTIVE, D.DECLINING, D.ENDED}),
    D.PREPARED: frozenset({D.STARTING, D.ACTIVE, D.DECLINING, D.ENDED}),
    D.DECLINING: frozenset({D.ENDED}),
    D.STARTING: frozenset({D.RUNNING, D.ENDED}),
    D.RUNNING: frozenset({D.ENDED}),
    D.ENDED: frozenset(),
}

STATUS: dict[DestinationState, str] = {
    D.ACTIVE: "active",
    D.PREPARING: "device",
    D.PREPARED: "device",
    D.DECLINING: "device",
    D.STARTING: "device",
    D.RUNNING: "device",
}

BEFORE_COMMIT = frozenset({D.ACTIVE, D.PREPARING, D.PREPARED})

EXPECTED: dict[type[Message], frozenset[DestinationState]] = {
    m.LaneBroken: BEFORE_COMMIT,
    m.CacheResize: BEFORE_COMMIT,
    m.StateBlob: frozenset({D.ACTIVE}),
    m.Prepare: frozenset({D.ACTIVE}),
    m.Resumed: BEFORE_COMMIT,
    m.Commit: frozenset({D.PREPARED, D.DECLINING, D.STARTING, D.RUNNING}),
    m.Settled: frozenset({D.RUNNING}),
}
"""Where a message may come. Ping, pong, cancel and failed may come always."""
