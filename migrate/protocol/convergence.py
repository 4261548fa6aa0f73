"""Go on, switch over, or give up: a pure function of the numbers of the last rounds.

After every harvest the machine asks `decide`. The rule is QEMU's (qemu-ram-stream.md 4.5: what is left,
over the bandwidth, against the downtime limit), but every part of the pause counts, not only the copy
(`forecast.py`). It switches over only if the expected downtime keeps the limit; when the rounds or the
time have run out, --timeout-action decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from migrate.protocol import convergence_text as text
from migrate.protocol.forecast import Limits, Situation, forecast


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and why."""

    kind: Literal["round", "switchover", "give-up"]
    expected_downtime: float | None
    """Sum of `parts`, seconds; None: no bandwidth is known yet."""
    parts: dict[str, float]
    """Seconds; without `in-flight` and `copy` if no bandwidth is known."""
    eta: tuple[float, float] | None
    """Seconds until the guest runs at the destination, at best and at worst; `math.inf` where it does not
    come about within the limits; None: unknown, or given up."""
    reason: str
    """One line with the numbers."""
    hint: str = ""
    """Which options would help, and to what value; only where the limits ran out."""


def decide(situation: Situation, limits: Limits) -> Decision:
    """Go on, switch over or give up.

    Never "switchover" with an expected downtime above the limit, except when rounds or time have run out
    and the timeout action is "pause".
    """
    view = forecast(situation, limits)
    parts = view.parts(situation.pending_pages)
    expected = view.downtime(situation.pending_pages)
    numbers = text.numbers(view)
    at_once = (expected or 0.0, expected or 0.0)
    if view.fits(situation.pending_pages):
        return Decision("switchover", expected, parts, at_once, f"it fits: {numbers}")
    out_of = text.ran_out(situation, limits)
    if out_of is None:
        return Decision("round", expected, parts, view.time_left(), f"it does not fit yet: {numbers}")
    hint = text.advice(view)
    if limits.timeout_action == "pause":
        reason = f"{out_of}, and --timeout-action pause accepts a longer pause: {numbers}"
        return Decision("switchover", expected, parts, at_once, reason, hint)
    return Decision("give-up", expected, parts, None, f"{out_of} and it still does not fit: {numbers}", hint)
