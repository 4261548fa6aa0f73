"""The states of a migration at the source, what may follow what, and which peer message belongs where.

    new → setup → tracking → sending ⇄ harvesting          the guest runs
                      │           ↑ │        │
                      │  resuming │ │        │ switchover (or the timeout, in the middle of a round)
                      │      ↑    │ ↓        ↓
                      └──────┼──→ pausing → last-harvest → last-round → preparing        the guest is paused
                             └───────┴────────────┴────────────┴───────────┘│
                                                                            ↓
                                              ended ← rereading ← committing            the destination's, or
                                                  ended ← taking-back ┤                 declined by it, or
                                                                      └→ ended          undecided
    every state before committing → ending (the guest is resumed first) → ended

Two rules of this file: a guest that was paused is resumed on every way that does not go through
`committing`; and from `committing` on nothing resumes it but a destination that has declined (taking-back).
"""

from __future__ import annotations

from enum import Enum

from migrate.protocol import messages as m
from migrate.protocol.schema import Message


class SourceState(Enum):
    """See the diagram above."""

    NEW = "new"
    SETUP = "setup"
    TRACKING = "tracking"
    SENDING = "sending"
    HARVESTING = "harvesting"
    PAUSING = "pausing"
    LAST_HARVEST = "last-harvest"
    LAST_ROUND = "last-round"
    PREPARING = "preparing"
    COMMITTING = "committing"
    REREADING = "rereading"
    TAKING_BACK = "taking-back"
    RESUMING = "resuming"
    ENDING = "ending"
    ENDED = "ended"


S = SourceState

PAUSED = frozenset({S.PAUSING, S.LAST_HARVEST, S.LAST_ROUND, S.PREPARING})
"""The guest is paused or about to be, and may still be resumed."""

LIVE = frozenset({S.TRACKING, S.SENDING, S.HARVESTING, S.RESUMING}) | PAUSED
"""Lanes are in use; a broken link is repaired from here."""

TRANSITIONS: dict[SourceState, frozenset[SourceState]] = {
    S.NEW: frozenset({S.SETUP, S.ENDING}),
    S.SETUP: frozenset({S.TRACKING, S.ENDING}),
    S.TRACKING: frozenset({S.SENDING, S.PAUSING, S.ENDING}),
    S.SENDING: frozenset({S.HARVESTING, S.PAUSING, S.ENDING}),
    S.HARVESTING: frozenset({S.SENDING, S.PAUSING, S.ENDING}),
    S.PAUSING: frozenset({S.LAST_HARVEST, S.RESUMING, S.ENDING}),
    S.LAST_HARVEST: frozenset({S.LAST_ROUND, S.RESUMING, S.ENDING}),
    S.LAST_ROUND: frozenset({S.PREPARING, S.RESUMING, S.ENDING}),
    S.PREPARING: frozenset({S.COMMITTING, S.RESUMING, S.ENDING}),
    S.COMMITTING: frozenset({S.REREADING, S.TAKING_BACK, S.ENDED}),
    S.REREADING: frozenset({S.ENDED}),
    S.TAKING_BACK: frozenset({S.ENDED}),
    S.RESUMING: frozenset({S.SENDING, S.ENDING}),
    S.ENDING: frozenset({S.ENDED}),
    S.ENDED: frozenset(),
}

STATUS: dict[SourceState, str] = {
    S.NEW: "none",
    S.SETUP: "setup",
    S.TRACKING: "setup",
    S.SENDING: "active",
    S.HARVESTING: "active",
    S.RESUMING: "active",
    S.PAUSING: "device",
    S.LAST_HARVEST: "device",
    S.LAST_ROUND: "device",
    S.PREPARING: "device",
    S.COMMITTING: "device",
    S.REREADING: "device",
    S.TAKING_BACK: "device",
}
"""QEMU's status names; `ending` and `ended` show the outcome (failed, cancelling, cancelled, completed)."""

DECIDED = frozenset({S.COMMITTING, S.REREADING, S.TAKING_BACK})
"""`committed` is in the journal, or may be: questions and their answers are about the outcome alone."""

EXPECTED: dict[type[Message], frozenset[SourceState]] = {
    m.Ack: LIVE | DECIDED,
    m.LaneReset: LIVE,
    m.CacheAgreed: LIVE | {S.COMMITTING, S.REREADING},
    m.CacheRefused: LIVE | {S.COMMITTING, S.REREADING},
    m.Prepared: frozenset({S.PREPARING}),
    m.Refused: frozenset({S.PREPARING}),
    m.Unequal: frozenset({S.PREPARING}),
    m.Digests: frozenset({S.PREPARING}),
    m.Running: DECIDED,
    m.StartFailed: DECIDED,
    m.Verdict: LIVE | DECIDED,
    m.Forgotten: DECIDED,
}
"""Where a message may come. Ping, pong, cancel and failed may come always; accept and reject answer a
hello."""

NUMBERED = (m.Prepared, m.Refused, m.Unequal, m.Digests)
"""Answers to a pause that carry its number: one of an older pause is late, not wrong, and is dropped."""
