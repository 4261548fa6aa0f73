"""A decision about the next round in words: the numbers behind it, and which option would change it."""

from __future__ import annotations

import math
from dataclasses import replace

from migrate.protocol.forecast import Forecast, Limits, Situation
from migrate.units import format_count, format_duration, format_rate, format_size

MIB = 1 << 20
INDEX_ENTRY = 32  # bytes of the page cache beside each page it holds


def numbers(view: Forecast) -> str:
    """Expected downtime with its parts, against the limit; pages pending; dirty rate against bandwidth."""
    situation, limit = view.situation, format_duration(view.limits.downtime_limit)
    expected = view.downtime(situation.pending_pages)
    parts = ", ".join(
        f"{name} {format_duration(seconds)}"
        for name, seconds in view.parts(situation.pending_pages).items()
        if seconds > 0
    )
    pending = f"{format_count(situation.pending_pages)} pages pending"
    if expected is None:
        return f"{pending}, downtime limit {limit}; nothing comes through that would tell the bandwidth"
    carried = "" if view.bandwidth is None else f", bandwidth {format_rate(view.bandwidth)}"
    lifted = (
        f" ({format_rate(view.pause_bandwidth)} in the pause)"
        if view.pause_bandwidth is not None and view.pause_bandwidth != view.bandwidth
        else ""
    )
    return (
        f"expected downtime {format_duration(expected)}{f' ({parts})' if parts else ''}, limit {limit}; "
        f"{pending} ({format_size(situation.pending_pages * view.bytes_per_page)} on the wire), "
        f"dirty rate {format_count(view.dirty_rate)} pages/s "
        f"({format_rate(view.dirty_rate * view.bytes_per_page)} on the wire){carried}{lifted}"
    )


def ran_out(situation: Situation, limits: Limits) -> str | None:
    """Which limit has run out, in words; None: neither."""
    if limits.rounds_left(situation.rounds) == 0:
        return f"{situation.rounds} rounds are done (--max-rounds {limits.max_rounds})"
    if limits.seconds_left(situation.elapsed) == 0:
        return f"{format_duration(situation.elapsed)} have passed (--timeout {limits.timeout:g})"
    return None


def advice(view: Forecast) -> str:
    """Options that would help and the values they need, the least invasive first."""
    situation, limits = view.situation, view.limits
    expected = view.downtime(situation.pending_pages)
    if expected is None:
        return "look at the link: nothing is acknowledged"
    parts = [_more_of_the_same(view), _cache(view), _bandwidth(view)]
    fixed = view.downtime(0) or 0.0
    if fixed > limits.downtime_limit:
        parts.append(
            f"the parts of the pause that no round can shorten take {format_duration(fixed)} alone: "
            f"less than --downtime-limit {_milliseconds(fixed)} cannot work"
        )
    parts.append(f"--downtime-limit {_milliseconds(expected)} would have let it finish now")
    if limits.timeout_action != "pause":
        parts.append(f"--timeout-action pause accepts a pause of {format_duration(expected)}")
    return "; ".join(part for part in parts if part)


def _more_of_the_same(view: Forecast) -> str:
    """Where the rounds do shrink, time was all that lacked."""
    patient = replace(view, limits=replace(view.limits, max_rounds=0, timeout=0.0, timeout_action="cancel"))
    left = patient.time_left()
    if left is None or math.isinf(left[1]):
        return ""
    if view.limits.rounds_left(view.situation.rounds) == 0:
        return f"the rounds do shrink: --max-rounds {2 * view.limits.max_rounds}"
    return f"the rounds do shrink: --timeout {math.ceil(view.situation.elapsed + left[1])}"


def _cache(view: Forecast) -> str:
    """A cache that holds what one round dirties, if there is none or a smaller one."""
    needed = view.situation.pending_pages * (view.situation.page_size + INDEX_ENTRY)
    if view.limits.xbzrle_cache_size >= needed:
        return ""
    mebibytes = max(math.ceil(needed / MIB), 64)
    return f"--xbzrle-cache-size {mebibytes}M holds all pages of a round, so that only changed bytes travel"


def _bandwidth(view: Forecast) -> str:
    """If our own limit is the brake: half as much again as the guest dirties."""
    needed = 1.5 * view.dirty_rate * view.bytes_per_page
    if not view.throttled or needed <= view.limits.max_bandwidth:
        return ""
    return f"--max-bandwidth {math.ceil(needed / MIB)}M, if the link carries it, outruns the guest"


def _milliseconds(seconds: float) -> int:
    """A tenth more than that, rounded up to two digits."""
    value = seconds * 1100
    step = 10 ** max(math.floor(math.log10(value)) - 1, 0) if value > 0 else 1
    return math.ceil(value / step) * step
