"""What `migrate-src plan` says: for people as lines, for programs as one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from migrate.cli.plain_text import percent
from migrate.protocol.forecast import Limits
from migrate.protocol.plan import PlannedLink, Prediction, predict
from migrate.protocol.plan_advice import Advice, advise
from migrate.protocol.plan_workload import Workload
from migrate.units import format_count, format_duration, format_rate, format_size

_TIMES = (0.1, 1.0, 5.0, 30.0)
"""Seconds for which the working set is shown."""


def plan_object(
    workload: Workload, links: Sequence[PlannedLink], limits: Sequence[Limits]
) -> dict[str, object]:
    """The fields of the event `plan`: sizes in bytes, rates in bytes a second, times in seconds."""
    return {
        "workload": {
            "page-size": workload.page_size,
            "data-bytes": workload.data_bytes,
            "zero-share": round(workload.zero_share, 4),
            "written-pages": [[round(at, 4), round(value, 1)] for at, value in workload.written.points],
            "written-zero-share": round(workload.written_zero_share, 4),
            "delta-bytes": [[round(at, 4), round(value, 1)] for at, value in workload.delta_bytes.points],
            "harvest-seconds": round(workload.harvest_seconds, 6),
        },
        "predictions": [
            _prediction(link, limit, predict(workload, link, limit), advise(workload, link, limit))
            for link in links
            for limit in limits
        ],
    }


def _prediction(link: PlannedLink, limits: Limits, found: Prediction, advice: Advice) -> dict[str, object]:
    downtime = found.downtime_seconds
    return {
        "bandwidth": round(link.bandwidth),
        "round-trip": round(link.round_trip, 6),
        "downtime-limit": limits.downtime_limit,
        "converges": found.converges,
        "total-time": round(found.total_seconds, 3),
        "transferred": round(found.wire_bytes),
        "downtime": None if downtime is None else round(downtime, 4),
        "rounds": [
            {"dirty-pages": round(row.pages), "bytes": round(row.wire_bytes), "time": round(row.seconds, 4)}
            for row in found.rounds
        ],
        "reason": found.reason,
        "worthwhile-cache-size": advice.cache_size,
        "needed-bandwidth": None if advice.bandwidth is None else round(advice.bandwidth),
        "needed-downtime-limit": advice.downtime_limit,
        "needed-guest-speed": advice.guest_speed,
    }


def plan_lines(workload: Workload, links: Sequence[PlannedLink], limits: Sequence[Limits]) -> list[str]:
    """What was measured, then a paragraph for each link and limit."""
    lines = _workload_lines(workload)
    for link in links:
        for limit in limits:
            lines += ["", *_prediction_lines(workload, link, limit)]
    return lines


def _workload_lines(workload: Workload) -> list[str]:
    page = workload.page_size
    zero = f", {percent(workload.zero_share)} of them zeros" if workload.zero_share else ""
    pages = f"{format_count(workload.data_pages)} pages{zero}"
    lines = [f"RAM in use         {format_size(workload.data_bytes)} ({pages})"]
    end = workload.written.points[-1][0] if workload.written.points else 0.0
    if not workload.written(end):
        return [*lines, "written            nothing"]
    times = [at for at in _TIMES if at < end * 0.9] + [end]
    for name, at in zip(("written within", *[""] * len(times)), times, strict=False):
        count, delta = workload.written(at), workload.delta_bytes(at)
        written = f"{format_count(count)} pages, {format_size(count * page)}"
        as_delta = f"; a page as a delta: {delta:.0f} bytes" if delta else ""
        lines.append(f"{name:<18} {format_duration(at):>7}: {written}{as_delta}")
    if workload.written_zero_share:
        lines.append(f"{'':<18} {percent(workload.written_zero_share)} of the pages written are zeros then")
    return lines


def _prediction_lines(workload: Workload, link: PlannedLink, limits: Limits) -> list[str]:
    found = predict(workload, link, limits)
    advice = advise(workload, link, limits)
    lines = [f"at {format_rate(link.bandwidth)}, downtime limit {format_duration(limits.downtime_limit)}"]

    def say(label: str, text: str) -> None:
        lines.append(f"  {label:<16} {text}")

    if found.converges:
        say("converges", f"yes, in {len(found.rounds)} rounds")
        say("total time", format_duration(found.total_seconds))
        say("sent", format_size(found.wire_bytes))
        say("downtime", format_duration(found.downtime_seconds or 0.0))
    else:
        say("converges", f"no: {found.reason}")
        say("gives up after", f"{format_duration(found.total_seconds)}, {format_size(found.wire_bytes)} sent")
        say(
            "would need",
            " or ".join(_needs(advice)) or "a guest that writes less: no link and no limit would do",
        )
    say("page cache", _cache(workload, link, limits, advice))
    return lines


def _needs(advice: Advice) -> list[str]:
    needs = []
    if advice.bandwidth is not None:
        needs.append(f"a link of {format_rate(advice.bandwidth)}")
    if advice.downtime_limit is not None:
        needs.append(f"--downtime-limit {advice.downtime_limit * 1000:.0f}")
    if advice.guest_speed is not None:
        needs.append(f"the guest held at {percent(advice.guest_speed)} of its speed")
    return needs


def _cache(workload: Workload, link: PlannedLink, limits: Limits, advice: Advice) -> str:
    if not advice.cache_size:
        return "is not worth it: --xbzrle-cache-size 0"
    without = predict(workload, link, replace(limits, xbzrle_cache_size=0))
    with_it = predict(workload, link, replace(limits, xbzrle_cache_size=advice.cache_size))
    text = f"--xbzrle-cache-size {advice.cache_size >> 20}M is worth it"
    if not without.converges:
        return f"{text}: without one it does not converge" if with_it.converges else text
    times = [format_duration(found.total_seconds) for found in (with_it, without)]
    return f"{text}: {times[0]}, without one {times[1]}"
