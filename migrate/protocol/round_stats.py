"""Page counters, and the row they make for one round; definitions in qemu-ram-stream.md 3.9 and 10.5."""

from __future__ import annotations

from dataclasses import dataclass, field

from migrate.kernel.results import ApplyResult, FillResult


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, or 0 where there is nothing to divide by."""
    return numerator / denominator if denominator > 0 else 0.0


def milliseconds(seconds: float) -> int:
    """As QEMU reports times."""
    return round(seconds * 1000)


@dataclass(slots=True)
class PageCounters:
    """What the batch calls of the kernel counted, summed up."""

    zero: int = 0
    """QEMU's `duplicate`."""
    normal: int = 0
    """Whole pages: never in a cache, missed, or overflowed."""
    xbzrle: int = 0
    """Pages that went as a delta."""
    unchanged: int = 0
    """Dirty pages whose content was what the destination has already."""
    cache_hit: int = 0
    """Lookups that hit: QEMU's `pages`."""
    cache_miss: int = 0
    overflow: int = 0
    xbzrle_bytes: int = 0
    """QEMU's `bytes`."""
    received: int = 0
    """Destination: pages in applied batches."""
    written: int = 0
    """Destination: pages written to RAM; the rest of `received` were zero already."""

    def add_fill(self, result: FillResult) -> None:
        """Count a batch the source made."""
        self.zero += result.zero
        self.normal += result.normal
        self.xbzrle += result.xbzrle
        self.unchanged += result.unchanged
        self.cache_hit += result.cache_hit
        self.cache_miss += result.cache_miss
        self.overflow += result.overflow
        self.xbzrle_bytes += result.xbzrle_bytes

    def add_apply(self, result: ApplyResult) -> None:
        """Count a batch the destination applied."""
        self.zero += result.zero
        self.normal += result.normal
        self.xbzrle += result.xbzrle
        self.received += result.records
        self.written += result.written

    @property
    def sent(self) -> int:
        """Pages that became a record: what QEMU counts as sent."""
        return self.zero + self.normal + self.xbzrle

    @property
    def moved(self) -> int:
        """What QEMU's `pages-per-second` counts: overflowed pages twice, unchanged ones of its rule once.

        The destination makes no lookups and counts the deltas instead.
        """
        return self.zero + self.normal + (self.xbzrle if self.received else self.cache_hit)

    @property
    def hit_rate(self) -> float | None:
        """Hits over lookups, 0…1; None: nothing was looked up."""
        lookups = self.cache_hit + self.cache_miss
        return self.cache_hit / lookups if lookups else None

    @property
    def miss_rate(self) -> float:
        """QEMU's `cache-miss-rate`: misses over pages sent."""
        return ratio(self.cache_miss, self.sent)

    def encoding_rate(self, page_size: int) -> float:
        """QEMU's `encoding-rate`: bytes of the pages that hit over the bytes they became; 0 if none."""
        return ratio(self.cache_hit * page_size, self.xbzrle_bytes)


@dataclass(slots=True)
class RoundStats:
    """What one round found and sent."""

    round: int
    dirty_pages: int
    """Pages to send when the round began, owed ones included (round 1: all that are not holes)."""
    started: float
    """Monotonic seconds."""
    dirty_rate: float = 0.0
    """Pages a second: `dirty_pages` over the time since the round before began; 0 in round 1."""
    ended: float | None = None
    bytes: int = 0
    """On the wire in this round, batch headers included."""
    throttle_percent: int = 0
    """What share of its time the guest lost to the throttle in this round."""
    pages: PageCounters = field(default_factory=PageCounters)

    def seconds(self, now: float) -> float:
        """How long it took, or takes already."""
        return max((self.ended if self.ended is not None else now) - self.started, 0.0)

    def bandwidth(self, now: float) -> float:
        """Bytes a second over the whole round."""
        return ratio(self.bytes, self.seconds(now))

    def as_dict(self, now: float, page_size: int) -> dict[str, object]:
        """A row of `rounds`: `time` in ms, `bandwidth` in bytes, `dirty-pages-rate` in pages a second."""
        pages = self.pages
        row: dict[str, object] = {
            "round": self.round,
            "dirty-pages": self.dirty_pages,
            "bytes": self.bytes,
            "time": milliseconds(self.seconds(now)),
            "bandwidth": round(self.bandwidth(now)),
            "dirty-pages-rate": round(self.dirty_rate),
            "normal": pages.normal,
            "duplicate": pages.zero,
            "xbzrle": pages.xbzrle,
            "unchanged": pages.unchanged,
            "cache-hit-rate": None if pages.hit_rate is None else round(pages.hit_rate, 4),
            "cache-miss": pages.cache_miss,
            "overflow": pages.overflow,
            "encoding-rate": round(pages.encoding_rate(page_size), 2),
        }
        if self.throttle_percent:
            row["cpu-throttle-percentage"] = self.throttle_percent
        return row
