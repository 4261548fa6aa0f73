"""The page of `migrate-inspect report`: one HTML file that needs nothing else.

It is built as a tree and serialised once, so that no text of a report can become markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, tostring

from migrate import __version__
from migrate.cli.plain_text import describe, guest_text, printable
from migrate.cli.report_figures import figures, summary_tiles
from migrate.cli.report_style import STYLE
from migrate.cli.summary import summary_title
from migrate.cli.wording import event_text
from migrate.protocol.report_reading import SideReport
from migrate.units import format_size

MOST_SHOWN_EVENTS = 400
_ROUND_COLUMNS = (
    *("round", "start", "time", "dirty-pages", "bytes", "bandwidth", "dirty-pages-rate"),
    *(
        "normal",
        "duplicate",
        "xbzrle",
        "unchanged",
        "cache-hit-rate",
        "cache-miss",
        "overflow",
        "encoding-rate",
    ),
)
_ROUND_UNITS = {
    "start": "s",
    "time": "ms",
    "dirty-pages": "pages",
    "bandwidth": "B/s",
    "dirty-pages-rate": "pages/s",
    "cache-hit-rate": "of 1",
    "encoding-rate": "×",
}
_SIDES = ("source", "destination")


def make_page(reports: Sequence[SideReport]) -> str:
    """The page of one side's report, or of both sides' (`check_pair`)."""
    by_side = {report.side: report for report in reports}
    source, destination = by_side.get("source"), by_side.get("destination")
    main = source or destination
    assert main is not None
    shift = _shift(source, destination)
    html = Element("html", {"lang": "en"})
    head = SubElement(html, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    # Nothing is fetched and nothing runs, even if markup got through.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    title = printable(summary_title(main.outcome)).capitalize()
    SubElement(head, "title").text = f"{title} – {printable(main.migration)[:8]}"
    SubElement(head, "style").text = STYLE
    body = SubElement(html, "body")
    _header(body, main, reports, title)
    for report in reports:
        _error(body, report)
    body.extend(figures(source, destination, shift))
    _round_table(body, source)
    _total_table(body, reports)
    _setting_table(body, reports)
    _event_table(body, reports, shift)
    _footer(body, reports, shift)
    return f"<!DOCTYPE html>\n{tostring(html, encoding='unicode', method='html')}\n"


def _shift(source: SideReport | None, destination: SideReport | None) -> float:
    """Seconds from the source's beginning to the destination's.

    Both have `negotiated` within a round trip, whatever the clocks of the two hosts say.
    """
    if source is None or destination is None:
        return 0.0
    here, there = source.event("negotiated"), destination.event("negotiated")
    if here is None or there is None:
        return destination.started_at - source.started_at
    return here.at - there.at


def _header(body: Element, main: SideReport, reports: Sequence[SideReport], title: str) -> None:
    style = "good" if main.outcome in ("completed", "checked") else "bad"
    SubElement(body, "h1", {"class": style}).text = title
    blocks = ", ".join(f"{printable(name)} {format_size(length)}" for name, length in main.blocks)
    facts = [_instant(main.started_at), f"RAM {blocks}" if blocks else "", f"attempt {main.attempt}"]
    if main.tracker:
        facts.append(f"dirty tracker {printable(main.tracker)}")
    if main.guest:
        facts.append(f"guest: {guest_text(main.guest)}")
    SubElement(body, "p").text = " · ".join(fact for fact in facts if fact)
    line = SubElement(body, "p", {"class": "muted"})
    line.text = "migration "
    SubElement(line, "span", {"class": "id"}).text = printable(main.migration) or "(none)"
    if len(reports) == 1:
        other = "destination" if main.side == "source" else "source"
        line[-1].tail = f" · the {main.side}'s report alone; the {other}'s was not given"
    tiles = SubElement(body, "div", {"class": "tiles"})
    by_side = {report.side: report for report in reports}
    for label, value, remark in summary_tiles(by_side.get("source"), by_side.get("destination")):
        tile = SubElement(tiles, "div", {"class": "tile"})
        SubElement(tile, "span").text = label
        SubElement(tile, "b").text = value
        SubElement(tile, "span").text = remark or "\u00a0"


def _error(body: Element, report: SideReport) -> None:
    if not report.error:
        return
    error = dict(report.error)
    box = SubElement(body, "div", {"class": "error"})
    first = SubElement(box, "p")
    SubElement(first, "b").text = f"{report.side}: {_lines(error['message'])}"
    for label, name in (("failed at", "side"), ("guest", "guest"), ("next", "hint")):
        if error[name]:
            SubElement(box, "p").text = f"{label}: {_lines(error[name])}"
    kind = f"{printable(error['class'])}, exit code {error['exit-code']}"
    SubElement(box, "p", {"class": "muted"}).text = kind


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))


def _heading(body: Element, text: str) -> None:
    SubElement(body, "h2").text = text


def _table(
    body: Element, head: Sequence[str], rows: Iterable[Sequence[str]], names: int, text: int = 0
) -> None:
    """A table: the first `names` columns name the row, the next `text` hold words, the others numbers."""
    styles = ["name"] * names + ["text"] * text + [""] * (len(head) - names - text)
    table = SubElement(SubElement(body, "div", {"class": "scroll"}), "table")
    line = SubElement(SubElement(table, "thead"), "tr")
    for title, style in zip(head, styles, strict=True):
        SubElement(line, "th", {"class": "text"} if style else {}).text = title
    inner = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(inner, "tr")
        for cell, style in zip(row, styles, strict=True):
            SubElement(line, "td", {"class": style} if style else {}).text = cell


def _round_table(body: Element, source: SideReport | None) -> None:
    if source is None or not source.rounds:
        return
    _heading(body, "Rounds")
    head = [f"{name} {_ROUND_UNITS[name]}" if name in _ROUND_UNITS else name for name in _ROUND_COLUMNS]
    rows = [
        [f"{row['start']:.3f}" if name == "start" else _number(row.get(name)) for name in _ROUND_COLUMNS]
        for row in source.rounds
    ]
    _table(body, head, rows, 0)
    left_out = source.total("rounds-left-out")
    if left_out:
        text = f"{left_out:.0f} rounds in the middle are not in the report."
        SubElement(body, "p", {"class": "muted"}).text = text


def _total_table(body: Element, reports: Sequence[SideReport]) -> None:
    names = dict.fromkeys(name for report in reports for name in report.totals)
    if not names:
        return
    _heading(body, "All numbers")
    SubElement(
        body, "p", {"class": "muted"}
    ).text = (
        "Names and meaning are those of QEMU's query-migrate: times in ms, sizes in bytes, rates a second."
    )
    rows = [[printable(name), *(_number(report.totals.get(name)) for report in reports)] for name in names]
    _table(body, ["", *(report.side for report in reports)], rows, 1)


def _setting_table(body: Element, reports: Sequence[SideReport]) -> None:
    _heading(body, "Configuration")
    rows = []
    for part in ("software", "configuration", "agreed"):
        values = [dict(getattr(report, part)) for report in reports]
        for name in dict.fromkeys(name for one in values for name in one):
            cells = [_setting(one.get(name)) for one in values]
            rows.append([part if part != "configuration" else "option", printable(name), *cells])
    _table(body, ["", "", *(report.side for report in reports)], rows, 2, len(reports))
    for report in reports:
        for reason in report.tracker_reasons:
            SubElement(body, "p", {"class": "muted"}).text = f"dirty tracker: {printable(reason)}"


def _setting(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return printable(value)
    return describe({"": value}).strip()


def _event_table(body: Element, reports: Sequence[SideReport], shift: float) -> None:
    found = sorted(
        (
            (event.at + (shift if report.side == "destination" else 0.0), report.side, event)
            for report in reports
            for event in report.events
        ),
        key=lambda row: row[0],
    )
    if not found:
        return
    _heading(body, "What happened")
    rows = [
        [f"{at:.3f}", side, printable(event_text(event.name, event.fields, side))]
        for at, side, event in found
        if event.name != "outlook" or event.fields.get("worse")
    ]
    _table(body, ["seconds", "side", "event"], rows, 2, 1)
    for report in reports:
        if report.events_left_out:
            text = (
                f"{report.events_left_out} events of the {report.side} in the middle are not in the report."
            )
            SubElement(body, "p", {"class": "muted"}).text = text


def _footer(body: Element, reports: Sequence[SideReport], shift: float) -> None:
    text = f"Made by migrate-inspect {__version__} from {' and '.join(printable(r.name) for r in reports)}."
    if len(reports) == 2:
        clocks = reports[1].started_at - reports[0].started_at - shift
        text += (
            " Both sides are on the source's clock, laid together where the two had agreed; the wall clocks"
            f" of the hosts differ by {abs(clocks):.3f} s."
        )
    SubElement(body, "p", {"class": "muted"}).text = text


def _instant(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s since 1970"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}".replace(",", "\u202f") if value == int(value) else f"{value:.6g}"
