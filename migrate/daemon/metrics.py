"""Prometheus text over HTTP: names, kinds and meaning of all metrics in one table.

Units are Prometheus' own, bytes and seconds. What a side cannot know (`MigrationStats.as_dict`) is absent.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from migrate.config import Address
from migrate.daemon.name_lookup import LOOKUP_SECONDS, look_up
from migrate.daemon.reporter import Reporter
from migrate.errors import MigrateError, UsageError
from migrate.protocol.stats import MigrationStats

STATUSES = ("none", "setup", "active", "device", "cancelling", "completed", "failed", "cancelled")
MOST_HEAD_BYTES = 8 << 10
REQUEST_SECONDS = 5.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name with the unit, and where `MigrationStats.as_dict` has it."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    path: tuple[str, ...]
    scale: float = 1.0


METRICS = (
    Metric("migrate_transferred_bytes", "counter", "Sent or received, headers too", ("ram", "transferred")),
    Metric("migrate_ram_bytes", "gauge", "All RAM blocks", ("ram", "total")),
    Metric("migrate_remaining_bytes", "gauge", "Pages that wait to be sent", ("ram", "remaining")),
    Metric("migrate_rounds", "counter", "Rounds begun", ("ram", "dirty-sync-count")),
    Metric("migrate_zero_pages", "counter", "Zero pages", ("ram", "duplicate")),
    Metric("migrate_normal_pages", "counter", "Pages sent whole", ("ram", "normal")),
    Metric("migrate_xbzrle_pages", "counter", "Pages sent as a delta", ("xbzrle-cache", "encoded-pages")),
    Metric("migrate_cache_misses", "counter", "Lookups that missed", ("xbzrle-cache", "cache-miss")),
    Metric("migrate_dirty_pages_per_second", "gauge", "By the last harvest", ("ram", "dirty-pages-rate")),
    Metric("migrate_bytes_per_second", "gauge", "Bandwidth of the last second", ("ram", "mbps"), 125_000),
    Metric("migrate_total_seconds", "gauge", "Since the migration began", ("total-time",), 0.001),
    Metric("migrate_expected_downtime_seconds", "gauge", "Of a pause now", ("expected-downtime",), 0.001),
    Metric("migrate_downtime_seconds", "gauge", "Of the pause", ("downtime",), 0.001),
    Metric("migrate_throttle_ratio", "gauge", "Time the guest loses", ("cpu-throttle-percentage",), 0.01),
    Metric("migrate_reread_pages", "counter", "Clean pages read again", ("ram", "reread-pages")),
    Metric("migrate_unreported_pages", "counter", "Of these, not as sent", ("ram", "unreported-pages")),
    Metric("migrate_lane_resets", "counter", "Lanes begun anew", ("lane-resets",)),
    Metric("migrate_reconnects", "counter", "Control connections that came back", ("reconnects",)),
)


class MetricsReporter(Collector):
    """A reporter that tells another one and keeps the last numbers for whoever scrapes them."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._report: Mapping[str, object] = {"status": "none"}

    def event(self, name: str, /, **fields: object) -> None:
        """Pass it on (Reporter)."""
        self._reporter.event(name, **fields)

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Pass it on (Reporter)."""
        self._report = stats.as_dict(now, most_rounds=0)
        self._reporter.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Pass it on (Reporter)."""
        self._report = stats.as_dict(now, most_rounds=0)
        self._reporter.summary(stats, now, outcome, **fields)

    def error(self, error: MigrateError) -> None:
        """Pass it on (Reporter)."""
        self._reporter.error(error)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics of the last numbers."""
        status = GaugeMetricFamily("migrate_status", "1 for the status it has", labels=["status"])
        for name in STATUSES:
            status.add_metric([name], float(self._report["status"] == name))
        yield status
        for metric in METRICS:
            value: object = self._report
            for step in metric.path:
                value = value.get(step) if isinstance(value, Mapping) else None
            if isinstance(value, int | float):
                family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                yield family(metric.name, metric.text, value=value * metric.scale)


async def with_metrics(
    address: Address, reporter: Reporter, start: Callable[[Reporter], Coroutine[object, object, None]]
) -> None:
    """Run a daemon's coroutine and serve its numbers at `address` meanwhile.

    Raises:
        UsageError: the address cannot be listened on.
        MigrateError: of the daemon.
    """
    kept = MetricsReporter(reporter)
    registry = CollectorRegistry()
    registry.register(kept)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head, registry))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that went away or is none
        finally:
            writer.close()

    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            hosts = {str(where[0]) for _, _, _, where in await look_up(address, socket.AI_PASSIVE)}
        server = await asyncio.start_server(answer, list(hosts), address.port, limit=MOST_HEAD_BYTES)
    except OSError as error:
        raise UsageError(
            f"--metrics {address}: {error.strerror or error or 'the name is not known'}"
        ) from None
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        kept.event("metrics", host=host, port=port)
        await start(kept)


def _response(head: bytes, registry: CollectorRegistry) -> bytes:
    method, _, rest = head.partition(b" ")
    found = method == b"GET" and rest.partition(b" ")[0].partition(b"?")[0] == b"/metrics"
    status, body = ("200 OK", generate_latest(registry)) if found else ("404 Not Found", b"see /metrics\n")
    fields = f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body
