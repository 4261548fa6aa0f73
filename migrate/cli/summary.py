"""The result of a migration as labelled lines, the same on a terminal and in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.cli.plain_text import Fields, describe, guest_text, percent, plural, printable
from migrate.units import format_count, format_duration, format_rate, format_size

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats

OUTCOMES = {
    "completed": "migration completed",
    "failed": "migration failed",
    "cancelled": "migration cancelled",
    "undecided": "migration undecided: look who runs the guest before anything else",
    "checked": "pre-flight done, nothing was moved",
}


def summary_title(outcome: str) -> str:
    """The first line; an unknown outcome is shown as it is."""
    return OUTCOMES.get(outcome, f"migration {printable(outcome)}")


def summary_rows(stats: MigrationStats, now: float, fields: Fields) -> list[tuple[str, str]]:
    """What to know afterwards, most important first.

    Args:
        stats: the final numbers.
        now: the clock of `stats`.
        fields: further facts; `guest` comes first, the others are shown as they are.
    """
    rows = []
    if guest := fields.get("guest"):
        rows.append(("guest", guest_text(guest)))
    total, setup = stats.total_seconds(now), stats.setup_seconds(now)
    of_it = f", setup {format_duration(setup)} of it" if setup >= 0.0005 else ""
    rows.append(("total time", f"{format_duration(total)}{of_it}"))
    if stats.transferred or stats.rounds:  # else there is nothing to tell about
        rows += _transfer_rows(stats, now)
    rest = {name: value for name, value in fields.items() if name != "guest"}
    rows += [
        (printable(name), describe({name: value}).removeprefix(f"{name} ")) for name, value in rest.items()
    ]
    return rows


def _transfer_rows(stats: MigrationStats, now: float) -> list[tuple[str, str]]:
    rows = _downtime_rows(stats, now)
    if stats.rounds:
        rows.append(("rounds", str(len(stats.rounds))))
    verb = "sent" if stats.side == "source" else "received"
    bandwidth = stats.bandwidth(now)
    rows.append(
        (
            verb,
            f"{format_size(stats.transferred)} for {format_size(stats.total)} of RAM, "
            f"{format_rate(bandwidth)} ({bandwidth * 8 / 1e6:.0f} Mbit/s)",
        )
    )
    rows.append(("pages", _pages(stats)))
    if stats.cache_size:
        rows.append(("XBZRLE cache", _cache(stats)))
    if stats.dirty_tracker:
        rows.append(("dirty tracker", printable(stats.dirty_tracker)))
    if stats.verify and stats.status == "completed":
        rows.append(("verified", _VERIFIED.get(stats.verify, printable(stats.verify))))
    throttled = [row.throttle_percent for row in stats.rounds if row.throttle_percent]
    if throttled:
        rows.append(("throttle", f"up to {max(throttled)} % in {plural(len(throttled), 'round')}"))
    if stats.lane_resets or stats.reconnects:
        rows.append(
            ("network", f"{plural(stats.lane_resets, 'lane reset')}, {plural(stats.reconnects, 'reconnect')}")
        )
    return rows


_VERIFIED = {
    "stream": "stream: the destination wrote what was sent",
    "ram": "ram: the destination's RAM was read back and is equal",
    "full": "full: both RAMs were read again in the pause and are equal",
}


def _downtime_rows(stats: MigrationStats, now: float) -> list[tuple[str, str]]:
    rows = []
    if (downtime := stats.downtime_seconds(now)) is not None:
        parts = ", ".join(
            f"{name} {format_duration(seconds)}"
            for name, seconds in stats.downtime_parts(now).items()
            if seconds >= 0.00005
        )
        rows.append(("downtime", format_duration(downtime) + (f": {parts}" if parts else "")))
    if stats.aborted_pauses:
        times = "once" if stats.aborted_pauses == 1 else f"{stats.aborted_pauses} times"
        rows.append(("other pauses", f"{times}, {format_duration(stats.aborted_pause_seconds)} in all"))
    return rows


def _pages(stats: MigrationStats) -> str:
    pages = stats.pages
    counts = [("normal", pages.normal), ("zero", pages.zero), ("xbzrle", pages.xbzrle)]
    counts.append(("unchanged", pages.unchanged) if stats.side == "source" else ("written", pages.written))
    return ", ".join(f"{name} {format_count(count)}" for name, count in counts)


def _cache(stats: MigrationStats) -> str:
    pages = stats.pages
    text = format_size(stats.cache_size)
    if stats.side != "source":
        return text
    if pages.hit_rate is None:
        return f"{text}, not used yet"
    hits = f"hits {format_count(pages.cache_hit)} ({percent(pages.hit_rate)})"
    rate = pages.encoding_rate(stats.page_size)
    encoding = f", encoding rate {rate:.3g}" if rate else ""
    return (
        f"{text}, {hits}, misses {format_count(pages.cache_miss)}, "
        f"overflows {format_count(pages.overflow)}{encoding}"
    )
