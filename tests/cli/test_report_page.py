"""`migrate-inspect report`: what is drawn is what the reports say, and nothing of them is markup."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder

import pytest

from migrate.cli import report_charts
from migrate.cli.inspect import main
from migrate.cli.report_charts import binary_ticks, decimal_ticks
from migrate.protocol.report_reading import read_report
from migrate.protocol.run_report import TIMELINE_COLUMNS

HOSTILE = "<script>alert('x')</script>&\"<!--]]>\x1b[2J"
VOID = {"meta"}


class Page(HTMLParser):
    """The page as a tree."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._builder = TreeBuilder()
        self.feed(text)
        self.close()
        self.root: Element = self._builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self._builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self._builder.data(data)

    def chart(self, name: str) -> Element:
        found = [svg for svg in self.root.iter("svg") if svg.get("aria-label") == name]
        assert len(found) == 1, name
        return found[0]

    @property
    def text(self) -> str:
        return " ".join(self.root.itertext())


def row(number: int, start: float, **values: float) -> dict[str, Any]:
    empty = dict.fromkeys(("normal", "duplicate", "xbzrle", "unchanged", "cache-miss", "overflow"), 0)
    return {
        "round": number,
        "start": start,
        "time": 500,
        "bytes": 4096,
        "bandwidth": 8192,
        "dirty-pages": 10,
        "dirty-pages-rate": 20,
        "cache-hit-rate": None,
        "encoding-rate": 0.0,
        **empty,
        **values,
    }


def sample(time: float, **values: float) -> list[float | None]:
    known = {"time": time, "round": 1, **{name.replace("_", "-"): value for name, value in values.items()}}
    return [known.get(name) for name in TIMELINE_COLUMNS]


def source_report() -> dict[str, Any]:
    return {
        "schema": "migrate-report",
        "version": 1,
        "side": "source",
        "migration": "5e" * 16,
        "attempt": 2,
        "software": {"migrate": "0.1.0", "kernel": "Linux 6.18"},
        "started-at": 1_700_000_000.5,
        "configuration": {"ram": ["pc.ram=/vm"], "downtime-limit-ms": 300, "lanes": 1, "check": False},
        "blocks": [{"name": "pc.ram", "length": 1 << 30}],
        "agreed": {"lanes": 1},
        "tracker": {"name": "wp", "reasons": ["wp: asked for"], "promise": "all"},
        "outcome": "completed",
        "guest": "the guest runs at the destination",
        "error": None,
        "statistics": {
            "status": "completed",
            "total-time": 3000,
            "setup-time": 40,
            "downtime": 200,
            "downtime-parts": {
                "pause": 5,
                "harvest": 20,
                "copy": 100,
                "verify": 60,
                "commands": 12,
                "other": 3,
            },
            "pause-requested": 2.5,
            "ram": {"transferred": 900 << 20, "total": 1 << 30, "page-size": 4096, "mbps": 240.5},
            "xbzrle-cache": {"cache-size": 64 << 20, "pages": 300, "cache-miss": 100},
            "lane-resets": 1,
            "reconnects": 1,
            "rounds": [
                row(1, 0.1, normal=200_000, duplicate=60_000, bytes=800 << 20),
                row(
                    2,
                    1.6,
                    normal=1000,
                    xbzrle=2500,
                    unchanged=7,
                    **{"cache-hit-rate": 0.75, "encoding-rate": 21},
                ),
                row(3, 2.6, xbzrle=90, normal=10, **{"cache-hit-rate": 0.9, "encoding-rate": 35.5}),
            ],
        },
        "timeline": {
            "columns": list(TIMELINE_COLUMNS),
            "rows": [
                sample(0.0, transferred=0, remaining=1 << 30),
                sample(0.5, transferred=200 << 20, remaining=700 << 20),
                sample(1.5, transferred=800 << 20, remaining=0),
                sample(3.0, transferred=900 << 20, remaining=0),
            ],
        },
        "events": [
            {"at": 0.05, "event": "negotiated", "lanes": 1},
            {
                "at": 0.9,
                "event": "lane-reset",
                "lane": 0,
                "epoch": 2,
                "reason": "reset by peer",
                "owed-pages": 5,
            },
        ],
        "events-left-out": 0,
    }


def destination_report() -> dict[str, Any]:
    report = source_report()
    report |= {"side": "destination", "tracker": None, "started-at": 1_700_000_100.5}
    statistics = report["statistics"]
    report["statistics"] = {"ram": {"transferred": 890 << 20}, "total-time": 2900, "rounds": []} | {
        "lane-resets": statistics["lane-resets"]
    }
    report["timeline"]["rows"] = [sample(0.0, transferred=0), sample(2.0, transferred=400 << 20)]
    report["events"] = [{"at": 0.01, "event": "negotiated", "lanes": 1}]
    return report


def write(path: Path, report: object) -> Path:
    path.write_text(json.dumps(report))
    return path


def page_of(tmp_path: Path, *reports: dict[str, Any]) -> Page:
    paths = [write(tmp_path / f"{number}.json", report) for number, report in enumerate(reports)]
    output = tmp_path / "page.html"
    assert main(["report", *map(str, paths), "--output", str(output)]) == 0
    return Page(output.read_text())


def values(chart: Element, name: str) -> list[float]:
    return [float(found) for element in chart.iter() if (found := element.get(name)) is not None]


def drawn(chart: Element, series: str) -> list[tuple[float, float]]:
    """The corners of a line, back in the units of the axes."""
    _, _, width, height = map(float, chart.get("viewbox", "").split())
    left, right, top, bottom = 86.0, width - 16, 22.0, height - 34
    [path] = [path for path in chart.iter("path") if path.get("data-series") == series]
    x_end, y_end = float(chart.get("data-x-end", "")), float(chart.get("data-y-end", ""))
    points = []
    for command in path.get("d", "").replace("M", " M").replace("L", " L").replace("H", " H").split(" "):
        if command:
            points.append(command)
    found, x, y = [], 0.0, 0.0
    numbers = iter(points)
    for word in numbers:
        x = float(word[1:])
        if word[0] != "H":
            y = float(next(numbers))
        found.append(((x - left) / (right - left) * x_end, (bottom - y) / (bottom - top) * y_end))
    return found


def near(points: list[tuple[float, float]]) -> list[Any]:
    return [pytest.approx(point, rel=0.002, abs=0.02) for point in points]


def test_the_rounds_are_drawn_as_they_were(tmp_path: Path) -> None:
    page = page_of(tmp_path, source_report(), destination_report())
    chart = page.chart("pages of each round by kind")
    bars = [
        (r.get("data-part"), float(r.get("data-value", ""))) for r in chart.iter("rect") if r.get("data-part")
    ]
    assert bars == [
        *[("normal", 200_000), ("duplicate", 60_000)],
        *[("xbzrle", 2500), ("normal", 1000), ("unchanged", 7)],
        *[("xbzrle", 90), ("normal", 10)],
    ]
    assert values(chart, "data-pages") == [260_000, 3507, 100]
    widths = {
        (r.get("data-part"), float(r.get("data-value", ""))): float(r.get("width", ""))
        for r in chart.iter("rect")
        if r.get("data-part")
    }
    assert widths["xbzrle", 90] / widths["normal", 10] == pytest.approx(9, rel=0.01)
    assert widths["normal", 200_000] + widths["duplicate", 60_000] == pytest.approx(430, rel=0.001)
    rates = page.chart("dirty rate by round")
    assert values(rates, "data-value") == [20, 20, 20]
    hits = page.chart("cache hit rate by round")
    assert [(c.get("data-round"), c.get("data-value")) for c in hits.iter("rect")] == [
        ("2", "75"),
        ("3", "90"),
    ]
    heights = [float(c.get("height", "")) for c in hits.iter("rect")]
    assert heights[0] / heights[1] == pytest.approx(75 / 90, rel=0.01)
    assert values(page.chart("encoding rate by round"), "data-value") == [0, 21, 35.5]


def test_lines_go_through_the_samples(tmp_path: Path) -> None:
    page = page_of(tmp_path, destination_report(), source_report())
    mib = 1 << 20
    rate = page.chart("rate over time")
    sent = [(0.0, 400 * mib), (0.5, 400 * mib), (0.5, 600 * mib), (1.5, 600 * mib)]
    last = 100 * mib / 1.5
    assert drawn(rate, "sent by the source") == [
        pytest.approx(point, rel=0.01, abs=0.05) for point in [*sent, (1.5, last), (3.0, last), (3.0, last)]
    ]
    applied = drawn(rate, "applied by the destination")
    assert [at for at, _ in applied] == pytest.approx([0.04, 2.04, 2.04], abs=0.01), (
        "laid on the source's clock"
    )
    remaining = drawn(page.chart("remaining over time"), "remaining")
    expected = [
        (0.0, 1 << 30),
        (0.1, 40960),
        (0.5, 700 * mib),
        (1.5, 0.0),
        (1.6, 40960),
        (2.6, 40960),
        (3.0, 0),
    ]
    assert [at for at, _ in remaining] == pytest.approx([at for at, _ in expected], abs=0.01)
    assert [v for _, v in remaining] == pytest.approx([v for _, v in expected], rel=0.01, abs=4 * mib)


def test_the_downtime_is_drawn_to_scale(tmp_path: Path) -> None:
    page = page_of(tmp_path, source_report())
    chart = page.chart("parts of the downtime")
    parts = {r.get("data-part"): float(r.get("data-value", "")) for r in chart.iter("rect")}
    assert parts == source_report()["statistics"]["downtime-parts"]
    scale = float(chart.get("data-x-end", "")) / (report_charts.WIDTH - 48)
    for rect in chart.iter("rect"):
        assert float(rect.get("width", "")) * scale == pytest.approx(
            float(rect.get("data-value", "")), rel=0.01
        )
    assert "limit 300 ms" in page.text


def test_all_numbers_stand_in_tables(tmp_path: Path) -> None:
    source, destination = source_report(), destination_report()
    text = page_of(tmp_path, source, destination).text.replace("\u202f", "")
    assert "Migration completed" in text
    for name, value in source["statistics"]["ram"].items():
        assert f"ram.{name} {value:g}" in text or f"ram.{name} {value}" in text
    assert "260" in text and "0.75" in text
    assert "lane 0 reset (epoch 2): reset by peer; 5 pages to send again" in text
    assert "the wall clocks of the hosts differ by 99.960 s" in text


def test_nothing_of_a_report_is_markup(tmp_path: Path) -> None:
    report = source_report()
    report["blocks"][0]["name"] = report["guest"] = report["outcome"] = HOSTILE
    report["migration"] = report["tracker"]["name"] = HOSTILE
    report["tracker"]["reasons"] = [HOSTILE]
    report["software"] |= {"kernel": HOSTILE, HOSTILE: "1"}
    report["configuration"][HOSTILE] = [HOSTILE, {HOSTILE: HOSTILE}]
    report["agreed"][HOSTILE] = HOSTILE
    report["statistics"]["ram"][HOSTILE] = 1
    report["error"] = dict.fromkeys(("class", "message", "side", "guest", "hint"), HOSTILE) | {"exit-code": 1}
    report["events"] += [
        {
            "at": 1.0,
            "event": name,
            **dict.fromkeys(("reason", "lane", "peer", "message", "time-left"), HOSTILE),
        }
        for name in (HOSTILE, "lane-reset", "connected", "warning", "outlook", "prepared", "cancelled")
    ]
    page = page_of(tmp_path, report)
    assert {element.tag for element in page.root.iter()} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "b", "span", "div", "ul", "li"),
        *("figure", "figcaption", "svg", "line", "text", "rect", "path", "circle", "table", "thead", "tbody"),
        *("tr", "th", "td"),
    }
    attributes = {name for element in page.root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on") or name in ("href", "src")}
    assert page.text.count("<script>") > 20
    assert "\x1b" not in page.text
    [policy] = [m.get("content", "") for m in page.root.iter("meta") if m.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_a_run_without_numbers_is_a_page_too(tmp_path: Path) -> None:
    report = source_report()
    report |= {"statistics": None, "migration": "", "tracker": None, "outcome": "failed", "guest": None}
    report["timeline"]["rows"] = []
    report["error"] = {"class": "RamError", "message": "no such file", "exit-code": 9}
    page = page_of(tmp_path, report)
    assert "Migration failed" in page.text and "no such file" in page.text
    assert not list(page.root.iter("path"))


def test_many_rounds_fit(tmp_path: Path) -> None:
    report = source_report()
    report["statistics"]["rounds"] = [row(n, n * 0.007, normal=n) for n in range(1, 401)]
    page = page_of(tmp_path, report)
    chart = page.chart("pages of each round by kind")
    pages = values(chart, "data-pages")
    assert pages[0] == 1 and pages[-1] == 400 and len(pages) == report_charts.MOST_ROWS
    assert "370 rounds are in the table only" in page.text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: r.pop("schema"), "schema is not a text"),
        (lambda r: r.update(schema="x"), '"schema" is not "migrate-report"'),
        (lambda r: r.update(version=2), "version 2"),
        (lambda r: r.update(side="middle"), "neither source nor destination"),
        (lambda r: r.update(blocks={}), "blocks is not a list"),
        (lambda r: r.update(attempt=-1), "attempt is not a whole number"),
        (lambda r: r["statistics"]["rounds"].append({"round": 4}), r"rounds\[3\].start is not a number"),
        (lambda r: r["statistics"]["rounds"][0].update(bytes=10**400), r"rounds\[0\].bytes is not a number"),
        (lambda r: r["statistics"].update(rounds=[row(1, 0.0)] * 401), "a list of at most 400"),
        (lambda r: r["timeline"]["rows"].append(sample(1.0, transferred=1)), "not before"),
        (lambda r: r["timeline"]["rows"].append("x"), r"rows\[4\] is not a list"),
        (lambda r: r["events"].append({"at": "soon", "event": "x"}), r"events\[2\].at is not a number"),
        (lambda r: r["events"].append({"at": 1, "event": "x", "f": [[[[[[1]]]]]]}), "nested at most"),
    ],
)
def test_a_malformed_report_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], what: str
) -> None:
    report = source_report()
    change(report)
    path = write(tmp_path / "bad.json", report)
    assert main(["report", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"migrate-inspect: error: {path} is ")
    assert re.search(what, captured.err), captured.err


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": NaN}', "[" * 100_000, '"x"', "\x00"])
def test_what_is_no_report_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["report", str(path)]) == 1
    assert "is no report" in capsys.readouterr().err


def test_damaged_reports_never_break_the_reader(tmp_path: Path, rng: random.Random) -> None:
    """Any member of any object replaced by anything: a page or a ReportError."""
    strange = [None, True, -1, 1e17, "", HOSTILE, [], {}, [None], {"a": [1]}]
    for _ in range(400):
        report = source_report()
        place: Any = report
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if rng.random() < 0.3 or not isinstance(place[key], dict | list) or not place[key]:
                place[key] = rng.choice(strange)
                break
            place = place[key]
        path = write(tmp_path / "bad.json", report)
        assert main(["report", str(path), "--output", str(tmp_path / "page.html")]) in (0, 1), report


def test_reports_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(first: dict[str, Any], second: dict[str, Any]) -> str:
        paths = [str(write(tmp_path / name, report)) for name, report in (("a", first), ("b", second))]
        assert main(["report", *paths]) == 1
        return capsys.readouterr().err

    assert "are both the source's" in refused(source_report(), source_report())
    other = destination_report() | {"migration": "77" * 16}
    assert f"is of migration {'5e' * 16}, {tmp_path / 'b'} of {'77' * 16}" in refused(source_report(), other)
    later = destination_report() | {"attempt": 3}
    assert "ends with attempt 2" in refused(source_report(), later)
    earlier = destination_report() | {"attempt": 1}
    assert "ends with attempt 2" in refused(earlier, source_report())
    lost = earlier | {"outcome": "failed"}
    both = [str(write(tmp_path / name, r)) for name, r in (("a", source_report()), ("b", lost))]
    assert main(["report", *both, "--output", str(tmp_path / "page.html")]) == 0


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "missing.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    path = str(write(tmp_path / "good.json", source_report()))
    assert main(["report", path, "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", path, path, path]) == 2
    capsys.readouterr()
    assert main(["report", path]) == 0
    assert capsys.readouterr().out.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("ticks", [decimal_ticks, binary_ticks])
def test_axes_end_at_a_round_number_above_the_highest(
    ticks: Callable[[float], list[float]], rng: random.Random
) -> None:
    for _ in range(1000):
        highest = 10 ** rng.uniform(-4, 15)
        found = ticks(highest)
        assert found[0] == 0 and found[-1] >= highest * 0.999999 and 2 <= len(found) <= 12
        step = found[1]
        assert found[-2] < highest
        assert [value / step for value in found] == pytest.approx(range(len(found)))


def test_every_member_is_read() -> None:
    report = read_report(json.dumps(source_report()).encode(), "x")
    assert report.total("downtime-parts.copy") == 100
    assert report.total("xbzrle-cache.pages") == 300
    assert report.rounds[1]["xbzrle"] == 2500
    assert "cache-hit-rate" not in report.rounds[0]
    assert report.samples[1]["remaining"] == 700 << 20
    assert report.blocks == (("pc.ram", 1 << 30),)
