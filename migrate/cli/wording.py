"""Events in words: one plain sentence each, with units, safe to show on a terminal.

What a peer sent may be in any of these texts, so control characters never get through as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from migrate.cli.plain_text import Fields, describe, number, percent, plural, printable
from migrate.units import format_count, format_duration, format_rate, format_size, format_time_left

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats

_NEWLINE = "\n"  # what a hook said follows it; an event is one line


def event_text(name: str, fields: Fields, side: str) -> str:
    """One line that says what happened.

    Args:
        name: of the event; an unknown one is shown with all its fields.
        fields: with dashes in their names.
        side: "source" or "destination": where we are.
    """
    wording = _WORDINGS.get(name)
    if wording is None:
        rest = describe(fields)
        return f"{printable(name)}: {rest}" if rest else printable(name)
    return wording(fields, side)


def _because(fields: Fields) -> str:
    reason = fields.get("reason")
    return f": {printable(str(reason).replace(_NEWLINE, '; '))}" if reason else ""


def _pages(fields: Fields, name: str) -> str:
    return plural(number(fields, name), "page")


def _address(fields: Fields) -> str:
    host = printable(fields.get("host", "?"))
    return f"[{host}]:{fields.get('port')}" if ":" in host else f"{host}:{printable(fields.get('port'))}"


def _connected(fields: Fields, side: str) -> str:
    peer = printable(fields.get("peer", "the peer"))
    return f"connected to {peer}" if side == "source" else f"connection from {peer}"


def _tracker(fields: Fields, side: str) -> str:
    del side
    reasons = fields.get("reasons")
    text = f"dirty tracker: {printable(fields.get('name'))}"
    if not reasons:
        return text
    if isinstance(reasons, Mapping):
        parts = [f"{printable(name)}: {printable(reason)}" for name, reason in reasons.items()]
    elif isinstance(reasons, Sequence) and not isinstance(reasons, str):
        chosen = f"{fields.get('name')}: "  # the name stands before the bracket already
        parts = [printable(str(reason).removeprefix(chosen)) for reason in reasons]
    else:
        parts = [printable(reasons)]
    return f"{text} ({'; '.join(parts)})"


def round_text(row: Fields) -> str:
    """A row of `rounds` (`RoundStats.as_dict`) on one line."""
    hit_rate = row.get("cache-hit-rate")
    parts = [
        f"{_pages(row, 'dirty-pages')} to send",
        f"sent {format_size(number(row, 'bytes'))} in {format_duration(number(row, 'time') / 1000)}"
        f" ({format_rate(number(row, 'bandwidth'))})",
        f"normal {format_count(number(row, 'normal'))}",
        f"zero {format_count(number(row, 'duplicate'))}",
        f"xbzrle {format_count(number(row, 'xbzrle'))}",
        f"unchanged {format_count(number(row, 'unchanged'))}",
    ]
    if throttle := number(row, "cpu-throttle-percentage"):
        parts.append(f"throttle {throttle:g} %")
    if number(row, "dirty-pages-rate"):
        parts.append(f"dirty rate {format_count(number(row, 'dirty-pages-rate'))} pages/s")
    if isinstance(hit_rate, int | float):
        parts.append(f"cache hits {percent(hit_rate)}")
    return f"round {printable(row.get('round'))}: {', '.join(parts)}"


def _lane_reset(fields: Fields, side: str) -> str:
    lane, epoch = printable(fields.get("lane")), printable(fields.get("epoch"))
    text = f"lane {lane} reset (epoch {epoch}){_because(fields)}"
    if side == "source" and "owed-pages" in fields:
        text += f"; {_pages(fields, 'owed-pages')} to send again"
    return text


def _begun_anew(fields: Fields, side: str) -> str:
    del side
    return (
        f"the destination was started anew; what its RAM files hold is kept, {_pages(fields, 'pages')} differ"
    )


def _warm(fields: Fields, side: str) -> str:
    del side
    return f"the destination's RAM files hold an old copy, of which {_pages(fields, 'pages')} differ"


def _waiting(fields: Fields, side: str) -> str:
    del side
    limit = f" for up to {format_duration(number(fields, 'seconds'))}" if "seconds" in fields else ""
    return f"connection lost{_because(fields)}; waiting{limit} for the source to come back"


def _reconnecting(fields: Fields, side: str) -> str:
    del side
    delay = format_duration(number(fields, "delay"))
    return f"connection lost{_because(fields)}; attempt {printable(fields.get('attempt'))} in {delay}"


def _reconnected(fields: Fields, side: str) -> str:
    del side
    after = f" after {format_duration(number(fields, 'seconds'))}" if "seconds" in fields else ""
    owed = f"; {_pages(fields, 'owed-pages')} to send again" if "owed-pages" in fields else ""
    return f"connected again{after}{owed}"


def _negotiated(fields: Fields, side: str) -> str:
    del side
    return f"agreed: {describe(fields)}"


def _cache_resized(fields: Fields, side: str) -> str:
    del side
    size, before = number(fields, "size"), number(fields, "before")
    return f"page cache: {format_size(size)} now, before {format_size(before)}; what fitted was kept"


def _cache_refused(fields: Fields, side: str) -> str:
    del side
    hint = f"; {printable(fields['hint'])}" if "hint" in fields else ""
    stays = format_size(number(fields, "in-force"))
    return (
        f"page cache of {format_size(number(fields, 'size'))} refused, {stays} stay{_because(fields)}{hint}"
    )


def _throttle(fields: Fields, side: str) -> str:
    del side
    percent = number(fields, "percent")
    return f"guest throttled by {percent:g} %" if percent else "guest not throttled any more"


def _paused(fields: Fields, side: str) -> str:
    del side
    took = f" within {format_duration(number(fields, 'seconds'))}" if "seconds" in fields else ""
    return f"guest paused{took}"


def _migration(fields: Fields, side: str) -> str:
    del side
    blocks = fields.get("blocks")
    rows = [row for row in blocks if isinstance(row, Mapping)] if isinstance(blocks, Sequence) else []
    ram = ", ".join(f"{printable(row.get('name'))} {format_size(number(row, 'length'))}" for row in rows)
    return f"migration {printable(fields.get('id'))}: RAM {ram}"


def _outlook(fields: Fields, side: str) -> str:
    del side
    left, before = (_time_left(fields.get(name)) for name in ("time-left", "time-left-before"))
    instead = f" instead of {before}" if before != left else ""
    return f"time left {left}{instead}{_because(fields)}"


def _time_left(value: object) -> str:
    if not isinstance(value, Sequence) or len(value) != 2:
        return "unknown"
    best, worst = (bound if isinstance(bound, int | float) else math.inf for bound in value)
    return format_time_left(best, worst)


def is_bad_news(name: str, fields: Fields) -> bool:
    """Whether an `outlook` has to explain something; the others say what the display shows anyway."""
    return name != "outlook" or bool(fields.get("worse"))


def _fixed(text: str) -> Callable[[Fields, str], str]:
    """A sentence that further fields, if any, follow in brackets."""

    def wording(fields: Fields, side: str) -> str:
        del side
        rest = describe(fields)
        return f"{text} ({rest})" if rest else text

    return wording


def _question(fields: Fields, side: str) -> str:
    del side
    migration, step = printable(fields.get("migration")), printable(fields.get("step"))
    return f"the source asks about migration {migration}: {step} here"


def _proved(fields: Fields, side: str) -> str:
    del side
    receipt = fields.get("receipt")
    shown = receipt if isinstance(receipt, Mapping) else {}
    return f"RAM proved equal (level {printable(shown.get('level'))}, root {printable(shown.get('root'))})"


def _stored(fields: Fields, side: str) -> str:
    del side
    blocks = fields.get("blocks")
    rows = blocks if isinstance(blocks, list) else []
    files = ", ".join(printable(row.get("file")) for row in rows if isinstance(row, Mapping))
    size = format_size(number(fields, "received-bytes"))
    return f"stored {size} of a QEMU's stream: {files}; the guest is {printable(fields.get('guest'))}"


_WORDINGS: dict[str, Callable[[Fields, str], str]] = {
    "control": lambda fields, _: f"taking commands on {printable(fields.get('path'))}",
    "metrics": lambda fields, _: f"metrics at http://{_address(fields)}/metrics",
    "migration": _migration,
    "outlook": _outlook,
    "listening": lambda fields, _: f"listening on {_address(fields)}",
    "connected": _connected,
    "negotiated": _negotiated,
    "tracker": _tracker,
    "status": lambda fields, _: f"status {printable(fields.get('old'))} -> {printable(fields.get('new'))}",
    "round": lambda fields, _: round_text(fields),
    "pausing": lambda fields, _: f"pausing the guest{_because(fields)}",
    "paused": _paused,
    "resumed": lambda fields, _: f"guest resumed at the source{_because(fields)}",
    "cache-resized": _cache_resized,
    "cache-refused": _cache_refused,
    "throttle": _throttle,
    "throttling": lambda fields, _: f"throttle by {printable(fields.get('means'))}",
    "lane-reset": _lane_reset,
    "begun-anew": _begun_anew,
    "warm": _warm,
    "reconnecting": _reconnecting,
    "reconnected": _reconnected,
    "waiting": _waiting,
    "proved": _proved,
    "prepared": _fixed("destination prepared: it can run the guest"),
    "committed": _fixed("committed: the guest belongs to the destination"),
    "running": _fixed("guest runs at the destination"),
    "question": _question,
    "stored": _stored,
    "cancelling": lambda fields, _: f"{printable(fields.get('signal', 'signal'))}: cancelling",
    "cancelled": lambda fields, _: f"cancelled{_because(fields)}",
    "warning": lambda fields, _: f"warning: {printable(fields.get('message'))}",
}

TROUBLE = frozenset(
    {
        "warning",
        "outlook",
        "cache-refused",
        "lane-reset",
        "begun-anew",
        "reconnecting",
        "waiting",
        "resumed",
        "cancelling",
        "cancelled",
    }
)
"""Events that a person should notice."""


def check_items(fields: Fields) -> list[tuple[str, str, str]]:
    """What, value and verdict of each of the pre-flight's items (`CheckItem`)."""
    items = fields.get("items")
    rows = [item for item in items if isinstance(item, Mapping)] if isinstance(items, Sequence) else []
    return [
        (printable(row.get("what")), printable(row.get("value")), printable(row.get("verdict")))
        for row in rows
    ]


def check_verdict(items: list[tuple[str, str, str]]) -> str:
    """What the items of the pre-flight come to."""
    failed = [what for what, _, verdict in items if verdict == "failed"]
    if failed:
        return f"the migration cannot be done: {', '.join(failed)}"
    return "nothing stands in the way of the migration; nothing was moved"


def progress_text(stats: MigrationStats, now: float) -> str:
    """The numbers of `progress` on one line."""
    row = stats.current_round
    parts = [f"round {row.round}" if row else stats.status]
    if stats.side == "source":
        parts.append(f"{format_size(stats.remaining_pages * stats.page_size)} remaining")
    parts.append(f"{format_rate(stats.bandwidth(now))}")
    if dirty_rate := stats.dirty_rate:
        parts.append(f"dirty rate {format_rate(dirty_rate * stats.page_size)}")
    if (hit_rate := recent_hit_rate(stats)) is not None:
        parts.append(f"cache hits {percent(hit_rate)}")
    if (downtime := expected_downtime(stats)) is not None:
        parts.append(f"expected downtime {format_duration(downtime)}")
    if (left := stats.time_left(now)) is not None:
        parts.append(f"time left {format_time_left(*left)}")
    return ", ".join(parts)


def expected_downtime(stats: MigrationStats) -> float | None:
    """Seconds; None before the first round's end: until then it only is the limit, as in QEMU."""
    known = bool(stats.rounds) and stats.rounds[0].ended is not None and stats.expected_downtime_ms
    return stats.expected_downtime_ms / 1000 if known else None


def recent_hit_rate(stats: MigrationStats) -> float | None:
    """Cache hits over lookups of the running round, or of all rounds while it has none; None: no lookups."""
    row = stats.current_round
    recent = row.pages.hit_rate if row else None
    return stats.pages.hit_rate if recent is None else recent
