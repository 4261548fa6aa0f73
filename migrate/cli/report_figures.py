"""What the plots of a migration show: which numbers of the two reports go into which chart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

from migrate.cli.plain_text import plural
from migrate.cli.report_charts import (
    Format,
    Line,
    Part,
    RoundBar,
    TimeAxis,
    columns_chart,
    legend,
    line_chart,
    parts_chart,
    rounds_chart,
)
from migrate.protocol.report_reading import Numbers, SideReport
from migrate.protocol.stats import DOWNTIME_PARTS
from migrate.units import format_count, format_duration, format_rate, format_size

KINDS = (("xbzrle", 1), ("normal", 2), ("duplicate", 3), ("unchanged", 6))
"""What becomes of a page in a round (names of the statistics), and its colour."""
KIND_LABELS = {
    "xbzrle": "xbzrle: as a delta",
    "normal": "normal: whole",
    "duplicate": "zero",
    "unchanged": "unchanged: not sent",
}
MOST_COLUMNS = 80
"""Rounds that a small figure has, the last ones."""
_SHORTEST_SAMPLE = 0.02
"""Samples closer than this are one: the rate between them would be noise."""


def figures(source: SideReport | None, destination: SideReport | None, shift: float) -> list[Element]:
    """Headings and figures, those without data left out.

    Args:
        shift: seconds from the source's beginning to the destination's.
    """
    both = [(report, 0.0 if report.side == "source" else shift) for report in (source, destination) if report]
    end = max((sample["time"] + offset for report, offset in both for sample in report.samples), default=0.0)
    if end <= 0:
        return []
    axis = _axis(source, end)
    found: list[Element] = []
    if source is not None and source.rounds:
        found += _figure(
            "What was sent",
            "Pages of each round: shares at the left, their number at the right (logarithmic).",
            legend([(KIND_LABELS[kind], colour) for kind, colour in KINDS], lines=False),
            rounds_chart("pages of each round by kind", [_round_bar(row) for row in source.rounds]),
        )
    found += _over_time(
        "Rate", "Bytes a second on the wire, headers included.", _rates(both), axis, format_rate
    )
    if source is not None:
        remaining = [Line("remaining", _remaining(source))]
        note = "Pages that wait to be sent; each harvest adds what the guest has written."
        found += _over_time("Remaining", note, remaining, axis, format_size)
        found += _by_round(source)
        found += _downtime_figure(source)
    return found


def _axis(source: SideReport | None, end: float) -> TimeAxis:
    if source is None:
        return TimeAxis(end)
    began = source.total("pause-requested")
    downtime = source.total("downtime")
    pause = (began, began + downtime / 1000) if began is not None and downtime is not None else None
    rounds = [(row["start"], int(row["round"])) for row in source.rounds if 0 <= row["start"] <= end]
    return TimeAxis(end, rounds, pause)


def _figure(title: str, note: str, key: Element | None, chart: Element) -> list[Element]:
    heading = Element("h2")
    heading.text = title
    figure = Element("figure")
    SubElement(figure, "figcaption").text = note
    if key is not None:
        figure.append(key)
    figure.append(chart)
    return [heading, figure]


def _over_time(title: str, note: str, lines: Sequence[Line], axis: TimeAxis, show: Format) -> list[Element]:
    """A figure of lines over time; the ones without a point are left out."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return []
    key = legend([(line.label, number + 1) for number, line in enumerate(drawn)], lines=True)
    pause = " The yellow band is the pause." if axis.pause is not None else ""
    chart = line_chart(f"{title.lower()} over time", drawn, axis, show)
    return _figure(title, f"{note}{pause}", key if len(drawn) > 1 else None, chart)


def _round_bar(row: Numbers) -> RoundBar:
    parts = [Part(kind, max(row.get(kind, 0.0), 0.0), colour) for kind, colour in KINDS]
    pages = sum(part.value for part in parts)
    note = f"{format_count(pages)} as {format_size(max(row['bytes'], 0.0))}"
    return RoundBar(int(row["round"]), parts, note)


def _rates(both: Sequence[tuple[SideReport, float]]) -> list[Line]:
    labels = {"source": "sent by the source", "destination": "applied by the destination"}
    return [
        Line(labels[report.side], rate_points(report.samples, offset), steps=True) for report, offset in both
    ]


def rate_points(samples: Sequence[Numbers], offset: float) -> list[tuple[float, float]]:
    """Bytes a second between one sample and the next, at the time of the first; the last value closes it."""
    kept: list[Numbers] = []
    for sample in samples:
        if not kept or sample["time"] - kept[-1]["time"] >= _SHORTEST_SAMPLE:
            kept.append(sample)
    points = [
        (
            before["time"] + offset,
            (after["transferred"] - before["transferred"]) / (after["time"] - before["time"]),
        )
        for before, after in pairwise(kept)
    ]
    if points:
        points.append((kept[-1]["time"] + offset, points[-1][1]))
    return [(at, max(value, 0.0)) for at, value in points if at >= 0]


def _remaining(source: SideReport) -> list[tuple[float, float]]:
    """The samples since round 1 began, and what each round began with."""
    page_size = source.total("ram.page-size") or 0.0
    samples = [s for s in source.samples if "remaining" in s and s.get("round", 0)]
    points = [(s["time"], max(s["remaining"], 0.0)) for s in samples]
    points += [(row["start"], row.get("dirty-pages", 0.0) * page_size) for row in source.rounds]
    return sorted(point for point in points if point[0] >= 0)


def _by_round(source: SideReport) -> list[Element]:
    """Small figures of what each round had, two in a row."""
    size = format_size(max(source.totals.get("xbzrle-cache.cache-size", 0.0), 0.0))
    wanted: tuple[tuple[str, str, float, Format, str], ...] = (
        ("Dirty rate", "dirty-pages-rate", 1, _pages_a_second, "Pages a second that its harvest found."),
        (
            "Cache hit rate",
            "cache-hit-rate",
            100,
            _percent,
            f"Lookups in the cache of {size} that found the page.",
        ),
        ("Encoding rate", "encoding-rate", 1, _times, "How many times smaller pages in the cache became."),
        ("Bandwidth", "bandwidth", 1, format_rate, "Bytes a second over the whole round."),
    )
    pair = Element("div", {"class": "pair"})
    for title, name, scale, show, note in wanted:
        rows = [(int(row["round"]), row[name] * scale) for row in source.rounds if row.get(name, -1.0) >= 0]
        if any(value for _, value in rows):
            chart = columns_chart(f"{title.lower()} by round", rows[-MOST_COLUMNS:], show)
            SubElement(pair, "div").extend(_figure(f"{title} by round", note, None, chart))
    return [pair] if len(pair) else []


def _downtime_figure(source: SideReport) -> list[Element]:
    downtime = source.total("downtime")
    if downtime is None:
        return []
    names = [*DOWNTIME_PARTS, "other"]
    parts = [
        Part(name, max(source.total(f"downtime-parts.{name}") or 0.0, 0.0), number)
        for number, name in enumerate(names, 1)
    ]
    limit = source.configuration.get("downtime-limit-ms")
    known = limit if isinstance(limit, int | float) and limit >= 0 else None
    labels = [(f"{part.name} {_milliseconds(part.value)}", part.colour) for part in parts]
    chart = parts_chart("parts of the downtime", parts, known, _milliseconds)
    note = f"{_milliseconds(downtime)} from the pause request until the guest ran at the destination."
    return _figure("Downtime", note, legend(labels, lines=False), chart)


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def _times(value: float) -> str:
    return f"{value:g} ×"


def _milliseconds(value: float) -> str:
    return format_duration(value / 1000)


def _pages_a_second(value: float) -> str:
    return f"{format_count(value)}/s"


def summary_tiles(source: SideReport | None, destination: SideReport | None) -> list[tuple[str, str, str]]:
    """What matters most: (label, value, remark)."""
    main = source or destination
    assert main is not None
    found = []
    if (total := main.total("total-time")) is not None:
        setup = main.total("setup-time") or 0.0
        found.append(("total time", _milliseconds(total), f"setup {_milliseconds(setup)} of it"))
    if source is not None:
        downtime, limit = source.total("downtime"), source.configuration.get("downtime-limit-ms")
        allowed = f"limit {_milliseconds(limit)}" if isinstance(limit, int | float) else ""
        paused = "never paused" if downtime is None else _milliseconds(downtime)
        found.append(("downtime", paused, allowed))
    if (transferred := main.total("ram.transferred")) is not None:
        ram = format_size(main.total("ram.total") or 0.0)
        verb = "sent" if main.side == "source" else "received"
        found.append((verb, format_size(transferred), f"for {ram} of RAM"))
    if main.rounds:
        number = main.rounds[-1]["round"]
        mbps = main.total("ram.mbps") or 0.0
        found.append(("rounds", f"{number:.0f}", f"at {format_rate(mbps * 125_000)}"))
    if source is not None and (pages := source.total("xbzrle-cache.pages")) is not None:
        lookups = pages + (source.total("xbzrle-cache.cache-miss") or 0.0)
        size = format_size(source.totals.get("xbzrle-cache.cache-size", 0.0))
        found.append(
            ("cache hits", _percent(100 * pages / lookups) if lookups > 0 else "–", f"cache of {size}")
        )
    resets, reconnects = main.total("lane-resets") or 0, main.total("reconnects") or 0
    found.append(("network", plural(reconnects, "reconnect"), plural(resets, "lane reset")))
    return found
