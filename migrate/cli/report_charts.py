"""Plots as SVG elements: lines over time, columns by round, the composition of rounds, one bar of parts.

Elements are built with ElementTree, which escapes whatever text they get. Every `svg` says in `data-`
attributes where its plot lies and what its axes span, every shape which value it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from migrate.units import format_rate

WIDTH = 940
_LEFT, _RIGHT, _TOP, _BOTTOM = 86, 16, 22, 34
_HEIGHT = 230
_HALF_WIDTH = 458
_HALF_HEIGHT = 170
_LABEL_GAP = 26
_LINE_GAP = 4
_DASHES = ("", "7 4", "2 3", "10 3 2 3")
_MARKED_POINTS = 60
"""A line of at most so many points shows each of them."""

MOST_ROWS = 30
"""Rounds that the chart of rounds draws: the first half and the last half of them."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A series over time; `steps`: each value holds until the next point."""

    label: str
    points: Sequence[tuple[float, float]]
    steps: bool = False


@dataclass(frozen=True)
class TimeAxis:
    """What all plots over time share."""

    end: float
    """Seconds."""
    rounds: Sequence[tuple[float, int]] = ()
    """When each round began, and its number."""
    pause: tuple[float, float] | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a bar."""

    name: str
    value: float
    colour: int
    """1 to 7."""


@dataclass(frozen=True)
class RoundBar:
    """A round in the chart of rounds."""

    number: int
    parts: Sequence[Part]
    """Pages by kind."""
    note: str
    """What stands at its right."""

    @property
    def pages(self) -> float:
        """All of it."""
        return math.fsum(part.value for part in self.parts)


@dataclass
class _Plot:
    """The rectangle of a plot and its axes."""

    svg: Element
    x_end: float
    y_end: float
    width: float = WIDTH
    height: float = _HEIGHT

    @property
    def right(self) -> float:
        return self.width - _RIGHT

    def x(self, value: float) -> float:
        return _LEFT + value / self.x_end * (self.right - _LEFT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - value / self.y_end * (self.height - _TOP - _BOTTOM)


def line_chart(name: str, lines: Sequence[Line], axis: TimeAxis, show: Format) -> Element:
    """Lines over time of what is counted in bytes; the y axis begins at 0.

    Args:
        name: for who cannot see it.
        show: a value with its unit.
    """
    highest = max((y for line in lines for _, y in line.points), default=0.0)
    ticks = binary_ticks(highest)
    plot = _Plot(_svg(name, _HEIGHT), axis.end or 1.0, ticks[-1])
    plot.svg.set("data-x-end", repr(plot.x_end))
    plot.svg.set("data-y-end", repr(plot.y_end))
    _draw_values(plot, ticks, show)
    _draw_times(plot)
    _draw_rounds(plot, axis)
    for number, line in enumerate(lines):
        _draw_line(plot, line, number, show)
    return plot.svg


def columns_chart(name: str, values: Sequence[tuple[int, float]], show: Format) -> Element:
    """A column for each round, half as wide as the others; the y axis begins at 0.

    Args:
        values: number of a round and what it had.
    """
    highest = max((value for _, value in values), default=0.0)
    ticks = binary_ticks(highest) if show is format_rate else decimal_ticks(highest)
    svg = _svg(name, _HALF_HEIGHT, _HALF_WIDTH)
    plot = _Plot(svg, max(len(values), 1), ticks[-1], _HALF_WIDTH, _HALF_HEIGHT)
    svg.set("data-y-end", repr(plot.y_end))
    _draw_values(plot, ticks, show)
    slot = plot.x(1) - plot.x(0)
    every = max(math.ceil(_LABEL_GAP / slot), 1)
    for place, (number, value) in enumerate(values):
        top = plot.y(value)
        column = _rect(svg, "f1", plot.x(place) + slot * 0.12, top, slot * 0.76, plot.y(0) - top)
        column.set("data-round", str(number))
        column.set("data-value", f"{value:.12g}")
        SubElement(column, "title").text = f"round {number}: {show(value)}"
        if place % every == 0:
            _text(svg, str(number), plot.x(place) + slot / 2, plot.y(0) + 19, "middle", "small")
    _text(svg, "round", _LEFT - 8, plot.y(0) + 19, "end", "small")
    return svg


def _draw_values(plot: _Plot, ticks: Sequence[float], show: Format) -> None:
    for tick in ticks:
        y = plot.y(tick)
        _line(plot.svg, "axis" if tick == 0 else "grid", _LEFT, y, plot.right, y)
        _text(plot.svg, show(tick), _LEFT - 8, y + 4, "end", "small")


def _draw_times(plot: _Plot) -> None:
    bottom = plot.height - _BOTTOM
    times = decimal_ticks(plot.x_end)
    step = times[1] - times[0]
    for tick in times:
        if tick > plot.x_end * 1.0001:
            break
        x = plot.x(tick)
        _line(plot.svg, "axis", x, bottom, x, bottom + 4)
        last = tick + step > plot.x_end * 1.0001
        _text(plot.svg, f"{tick:g} s" if last else f"{tick:g}", x, bottom + 18, "middle", "small")


def _draw_rounds(plot: _Plot, axis: TimeAxis) -> None:
    bottom = plot.height - _BOTTOM
    if axis.pause is not None:
        begin, end = (plot.x(value) for value in axis.pause)
        rect = _rect(plot.svg, "band", begin, _TOP, max(end - begin, 1.5), bottom - _TOP)
        SubElement(rect, "title").text = "the guest is paused"
    free_from = drawn = -math.inf
    for at, number in axis.rounds:
        x = plot.x(at)
        if x >= drawn + _LINE_GAP:
            _line(plot.svg, "round", x, _TOP, x, bottom)
            drawn = x
        if x >= free_from:
            label = f"round {number}" if free_from == -math.inf else str(number)
            _text(plot.svg, label, x + 2, _TOP - 7, "start", "small")
            free_from = x + (_LABEL_GAP if free_from > -math.inf else 2 * _LABEL_GAP)


def _draw_line(plot: _Plot, line: Line, number: int, show: Format) -> None:
    colour = number % 7 + 1
    commands, before = [], None
    for x, y in line.points:
        here = (plot.x(x), plot.y(y))
        if before is None:
            commands.append(f"M{here[0]:.2f} {here[1]:.2f}")
        else:
            if line.steps:
                commands.append(f"H{here[0]:.2f}")
            commands.append(f"L{here[0]:.2f} {here[1]:.2f}")
        before = here
    path = SubElement(plot.svg, "path", {"class": f"series s{colour}", "d": " ".join(commands)})
    path.set("data-series", line.label)
    if _DASHES[number % len(_DASHES)]:
        path.set("stroke-dasharray", _DASHES[number % len(_DASHES)])
    if len(line.points) <= _MARKED_POINTS:
        for x, y in line.points:
            circle = SubElement(plot.svg, "circle", {"class": f"f{colour}", "r": "2.5"})
            circle.set("cx", f"{plot.x(x):.2f}")
            circle.set("cy", f"{plot.y(y):.2f}")
            SubElement(circle, "title").text = f"{line.label}: {show(y)} at {x:.2f} s"


def legend(entries: Sequence[tuple[str, int]], *, lines: bool) -> Element:
    """What each colour is: (label, colour from 1); as lines with their dashes, or as squares."""
    found = Element("ul", {"class": "legend"})
    for number, (label, colour) in enumerate(entries):
        item = SubElement(found, "li")
        size = ("26", "10") if lines else ("12", "12")
        svg = SubElement(item, "svg", {"width": size[0], "height": size[1], "aria-hidden": "true"})
        if lines:
            mark = _line(svg, f"series s{colour}", 0, 5, 26, 5)
            if _DASHES[number % len(_DASHES)]:
                mark.set("stroke-dasharray", _DASHES[number % len(_DASHES)])
        else:
            _rect(svg, f"f{colour}", 0, 0, 12, 12)
        SubElement(item, "span").text = label
    return found


def rounds_chart(name: str, rounds: Sequence[RoundBar]) -> Element:
    """A row a round: at the left what its pages became, as shares; at the right how many they were.

    The right bars have a logarithmic scale: a first round may be ten thousand times the last one.
    """
    rows: list[RoundBar | None] = list(rounds)
    if len(rows) > MOST_ROWS:
        rows = [*rows[: MOST_ROWS // 2], None, *rows[-MOST_ROWS // 2 :]]
    row_height, top, share_width = 20, 26, 430
    bar_left = _LEFT + share_width + 34
    note_left = bar_left + 206
    height = top + row_height * len(rows) + 8
    svg = _svg(name, height)
    most = max((bar.pages for bar in rounds), default=0.0)
    decades = max(math.ceil(math.log10(most)), 1) if most >= 1 else 1
    svg.set("data-decades", str(decades))
    for share in (0, 25, 50, 75, 100):
        x = _LEFT + share_width * share / 100
        _line(svg, "grid", x, top - 2, x, height - 6)
        _text(svg, f"{share} %", x, 14, "middle", "small")
    for decade in range(decades + 1):
        x = bar_left + 190 * decade / decades
        _line(svg, "grid", x, top - 2, x, height - 6)
        if decade % 2 == 0 or decades <= 3:
            _text(svg, _power(decade), x, 14, "middle", "small")
    _text(svg, "pages", note_left + 6, 14, "start", "small")
    for index, bar in enumerate(rows):
        y = top + index * row_height
        if bar is None:
            text = f"… {len(rounds) - MOST_ROWS} rounds are in the table only"
            _text(svg, text, _LEFT, y + 14, "start", "small")
            continue
        _text(svg, str(bar.number), _LEFT - 10, y + 13, "end")
        _draw_parts(svg, bar.parts, _LEFT, y + 2, share_width, bar.pages, row_height - 5)
        if bar.pages >= 1:
            width = max(190 * math.log10(bar.pages) / decades, 2)
            rect = _rect(svg, "f7", bar_left, y + 2, width, row_height - 5)
            rect.set("data-pages", f"{bar.pages:g}")
        _text(svg, bar.note, note_left + 6, y + 13, "start", "small")
    return svg


def parts_chart(name: str, parts: Sequence[Part], limit: float | None, show: Format) -> Element:
    """One bar of parts along a scale that begins at 0, with a limit marked."""
    total = math.fsum(part.value for part in parts)
    scale = decimal_ticks(max(total, limit or 0.0))
    height, bottom = 92, 62
    svg = _svg(name, height)
    width = WIDTH - 24 - 24
    for tick in scale:
        x = 24 + width * tick / scale[-1]
        _line(svg, "grid", x, 22, x, bottom)
        _text(svg, show(tick), x, bottom + 17, "middle", "small")
    _draw_parts(svg, parts, 24, 28, width * total / scale[-1], total, 28)
    _line(svg, "axis", 24, bottom, 24 + width, bottom)
    svg.set("data-x-end", repr(scale[-1]))
    if limit is not None:
        x = 24 + width * limit / scale[-1]
        _line(svg, "limit", x, 18, x, bottom)
        anchor = "end" if x > WIDTH / 2 else "start"
        _text(svg, f"limit {show(limit)}", x, 13, anchor, "small")
    return svg


def _draw_parts(
    svg: Element, parts: Sequence[Part], left: float, y: float, width: float, total: float, height: float
) -> None:
    at = left
    for part in parts:
        if part.value <= 0 or total <= 0:
            continue
        length = width * part.value / total
        rect = _rect(svg, f"f{part.colour}", at, y, length, height)
        rect.set("data-part", part.name)
        rect.set("data-value", f"{part.value:.12g}")
        SubElement(rect, "title").text = f"{part.name}: {part.value:,.12g}"
        at += length


def decimal_ticks(highest: float) -> list[float]:
    """From 0 to a round number at or above `highest`, in steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.9999)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def binary_ticks(highest: float) -> list[float]:
    """The same in steps of a power of two, for bytes."""
    if highest <= 0:
        return [0.0, 1024.0]
    step = 2.0 ** math.ceil(math.log2(highest / 5) - 1e-9)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _power(decade: int) -> str:
    return f"{10**decade:,}".replace(",", " ") if decade < 4 else f"10{_superscript(decade)}"


def _superscript(number: int) -> str:
    return "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(number))


def _svg(name: str, height: float, width: float = WIDTH) -> Element:
    box = f"0 0 {width:g} {height:g}"
    return Element("svg", {"class": "chart", "viewBox": box, "role": "img", "aria-label": name})


def _line(svg: Element, style: str, x1: float, y1: float, x2: float, y2: float) -> Element:
    places = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return SubElement(svg, "line", {"class": style, **{key: f"{at:.2f}" for key, at in places.items()}})


def _rect(svg: Element, style: str, x: float, y: float, width: float, height: float) -> Element:
    places = {"x": x, "y": y, "width": width, "height": height}
    return SubElement(svg, "rect", {"class": style, **{key: f"{at:.3f}" for key, at in places.items()}})


def _text(svg: Element, text: str, x: float, y: float, anchor: str, style: str = "") -> None:
    element = SubElement(svg, "text", {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor})
    if style:
        element.set("class", style)
    element.text = text
