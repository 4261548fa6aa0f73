"""How much of its time the guest loses so that the rounds converge: a pure function of the last rounds.

The rule and its numbers are those of QEMU's auto-converge (qemu-ram-stream.md 4.7): where the guest dirties
more than half of what was sent meanwhile, twice in a row, it is throttled, first by `initial` per cent; after
that every such round (in QEMU every second one) takes `increment` per cent more, up to `maximum`. On the way
nothing is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HIGH_SHARE = 0.5
PATIENCE = 2


@dataclass(frozen=True, slots=True)
class ThrottleRule:
    """What is wanted; per cent of the guest's time."""

    mode: int | Literal["auto"]
    """A fixed share, 0 for none, or by this rule."""
    initial: int = 20
    increment: int = 10
    maximum: int = 99


def is_high(sent_pages: int, dirty_pages: int) -> bool:
    """Whether a round leaves so much behind that it gains too little."""
    return dirty_pages > HIGH_SHARE * sent_pages


def next_throttle(percent: int, high_rounds: int, rule: ThrottleRule) -> int:
    """The share for the next round.

    Args:
        percent: the share of the last round.
        high_rounds: how many of the last rounds, in a row, were high.
    """
    if rule.mode != "auto":
        return rule.mode
    if percent == 0:
        return min(rule.initial, rule.maximum) if high_rounds >= PATIENCE else 0
    if high_rounds == 0:
        return min(percent, rule.maximum)
    return min(percent + rule.increment, rule.maximum)
