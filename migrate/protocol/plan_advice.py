"""What would help a migration that does not converge, and which page cache is worth its memory.

Found by playing it with other values (`plan.predict`): a move that converges with some bandwidth, limit or
speed of the guest is taken to do so with a better one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from migrate.protocol.convergence_text import INDEX_ENTRY
from migrate.protocol.forecast import Limits
from migrate.protocol.plan import PlannedLink, predict
from migrate.protocol.plan_workload import Workload


@dataclass(frozen=True, slots=True)
class Advice:
    """What is worth having, and what it would take where it does not converge; None: nothing there helps."""

    cache_size: int
    """Bytes of page cache beyond which a move is hardly faster; 0: a cache does not help."""
    bandwidth: float | None = None
    downtime_limit: float | None = None
    """Seconds."""
    guest_speed: float | None = None
    """Share of its speed to which the guest would have to be held."""


CACHE_SIZES = (0, *(1 << shift for shift in range(24, 41)))
WORTH = 1.05
"""A cache is worth it up to where a larger one makes a move less than this much faster."""
MOST_BANDWIDTH = 100e9 / 8
LONGEST_LIMIT = 60.0
LOWEST_SPEED = 0.02
_STEPS = 24


def advise(workload: Workload, link: PlannedLink, limits: Limits) -> Advice:
    """The cache that is worth it; where it does not converge with these limits, what would be needed."""
    size = _worthwhile_cache(workload, link, limits)
    if predict(workload, link, limits).converges:
        return Advice(size)
    return Advice(
        size,
        bandwidth=_least(
            link.bandwidth,
            MOST_BANDWIDTH,
            lambda value: predict(workload, replace(link, bandwidth=value), limits).converges,
        ),
        downtime_limit=_least(
            max(limits.downtime_limit, 0.001),
            LONGEST_LIMIT,
            lambda value: predict(workload, link, replace(limits, downtime_limit=value)).converges,
        ),
        guest_speed=_inverse(
            _least(
                1.0,
                1 / LOWEST_SPEED,
                lambda value: predict(workload.slower(1 / value), link, limits).converges,
            )
        ),
    )


def _worthwhile_cache(workload: Workload, link: PlannedLink, limits: Limits) -> int:
    slot = workload.page_size + INDEX_ENTRY
    enough = workload.data_pages * slot
    sizes = [size for size in CACHE_SIZES if size < 2 * enough]
    found = [predict(workload, link, replace(limits, xbzrle_cache_size=size)) for size in sizes]
    usable = [one for one in found if one.converges] or found
    best = min(one.total_seconds for one in usable)
    return next(
        size
        for size, one in zip(sizes, found, strict=True)
        if one in usable and one.total_seconds <= best * WORTH
    )


def _least(low: float, high: float, works: Callable[[float], bool]) -> float | None:
    """The smallest value that works, to a few percent; None: not even the highest does."""
    if not works(high):
        return None
    for _ in range(_STEPS):
        if high / low < 1.03:
            break
        middle = math.sqrt(low * high)
        if works(middle):
            high = middle
        else:
            low = middle
    return high


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value
