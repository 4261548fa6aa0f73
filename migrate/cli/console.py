"""What a person at a terminal sees: events, a table of rounds, a live display below, the result.

The live display is redrawn as a whole in one write, at most REFRESHES a second, and erased at the end: what
stays on the screen are events, rounds and the result. Fits 80 columns; shows more from WIDE columns on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from migrate.cli.error_text import error_lines
from migrate.cli.plain_text import Fields, number, percent, printable
from migrate.cli.summary import summary_rows, summary_title
from migrate.cli.wording import (
    TROUBLE,
    check_items,
    check_verdict,
    event_text,
    expected_downtime,
    is_bad_news,
    recent_hit_rate,
)
from migrate.daemon.event_reporter import dashed
from migrate.errors import MigrateError
from migrate.units import format_count, format_duration, format_rate, format_size, format_time_left

if TYPE_CHECKING:  # it loads the kernel, which --help can do without
    from migrate.protocol.stats import MigrationStats

REFRESHES: Final = 5
WIDE: Final = 110

_STYLES = {"completed": "bold green", "checked": "bold", "cancelled": "bold yellow"}
_VERDICT_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


class ConsoleReporter:
    """Reporter for a terminal."""

    def __init__(
        self,
        console: Console,
        errors: Console,
        *,
        program: str,
        side: str,
        wall_clock: Callable[[], float] = time.time,
        congested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args:
        console: where everything goes but the error.
        errors: where the error goes.
        program: the error's first word.
        side: "source" or "destination".
        wall_clock: seconds since the epoch, for the time before each event.
        congested: true while the terminal does not keep up; the live display then skips frames.
        """
        self._console = console
        self._errors = errors
        self._program = program
        self._side = side
        self._wall_clock = wall_clock
        self._congested = congested
        self._live: Live | None = None
        self._next_refresh = -math.inf
        self._round_header_shown = False

    def event(self, name: str, /, **fields: object) -> None:
        """Print one line above the live display; `round` adds a row to the table of rounds."""
        named = dashed(fields)
        if name == "round":
            self._print_round(named)
        elif name == "check":
            items = check_items(named)
            self._console.print(check_table(items))
            self._print_line(check_verdict(items), "bold")
        elif is_bad_news(name, named):
            style = "yellow" if name in TROUBLE else "dim" if name == "status" else ""
            self._print_line(event_text(name, named, self._side), style)

    def progress(self, stats: MigrationStats, now: float) -> None:
        """Redraw the live display."""
        if now < self._next_refresh or self._congested():
            return
        self._next_refresh = now + 1 / REFRESHES
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        # Not to the edge: the ^C that a terminal echoes must not wrap and push the display up.
        width = min(self._console.width - 4, WIDE)
        self._live.update(live_display(stats, now, width), refresh=True)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        """Erase the live display and print the result."""
        self.close()
        self._round_header_shown = False
        self._next_refresh = -math.inf
        self._console.print(Text(summary_title(outcome), style=_STYLES.get(outcome, "bold red")))
        self._console.print(_labelled(summary_rows(stats, now, dashed(fields))))

    def error(self, error: MigrateError) -> None:
        """Erase the live display and print what failed, where, and what to do next."""
        self.close()
        (title, message), *rest = error_lines(self._program, error)
        style = "bold yellow" if error.exit_code == 130 else "bold red"
        self._errors.print(Text.assemble((f"{title}: ", style), (message, "bold")))
        self._errors.print(_labelled(rest))

    def close(self) -> None:
        """Erase the live display and give the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_line(self, text: str, style: str) -> None:
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True, style="dim")
        line.add_column(overflow="fold")
        line.add_row(datetime.fromtimestamp(self._wall_clock()).strftime("%H:%M:%S"), Text(text, style=style))
        self._console.print(line)

    def _print_round(self, row: Fields) -> None:
        cells = _round_cells(row, wide=self._console.width >= WIDE)
        if not self._round_header_shown:
            self._round_header_shown = True
            self._console.print(Text("".join(f"{title:>{width}}" for title, width, _ in cells), style="dim"))
        self._console.print(Text("".join(f"{value:>{width}}" for _, width, value in cells)))


def _round_cells(row: Fields, *, wide: bool) -> list[tuple[str, int, str]]:
    """Title, width and text of each column of the table of rounds."""
    hit_rate = row.get("cache-hit-rate")
    dirty_rate = number(row, "dirty-pages-rate")
    cells = [
        ("round", 6, printable(row.get("round"))),
        ("dirty pages", 13, format_count(number(row, "dirty-pages"))),
        ("sent", 11, format_size(number(row, "bytes"))),
        ("time", 13, format_duration(number(row, "time") / 1000)),
        ("rate", 13, format_rate(number(row, "bandwidth"))),
        ("dirty pages/s", 15, format_count(dirty_rate) if dirty_rate else "-"),
        ("hits", 8, percent(hit_rate) if isinstance(hit_rate, int | float) else "-"),
    ]
    if wide:
        cells += [
            (title, 10, format_count(number(row, name)))
            for title, name in (("normal", "normal"), ("zero", "duplicate"), ("xbzrle", "xbzrle"))
        ]
    return cells


def live_display(stats: MigrationStats, now: float, width: int) -> RenderableType:
    """Three lines: where it stands and how far the round is; amounts and rates; outlook."""
    head = Table.grid(padding=(0, 1))
    head.width = width
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right", width=6)
    row = stats.current_round
    title = Text(f"{stats.status}, round {row.round}" if row else stats.status, style="bold")
    if stats.pause_requested is not None and stats.pause_ended is None:
        stopped = format_duration(stats.downtime_seconds(now) or 0.0)
        title.append(f", guest paused for {stopped}", style="bold yellow")
    done = None
    if row and row.dirty_pages and stats.side == "source":
        done = min(max(1 - stats.remaining_pages / row.dirty_pages, 0.0), 1.0)
        head.add_row(title, ProgressBar(total=1.0, completed=done), percent(done))
    else:
        head.add_row(title, "", "")
    cells = Table.grid(padding=(0, 1))
    cells.width = width
    for share in (21, 29, 24):  # as wide as their longest contents on 80 columns
        cells.add_column(ratio=share, no_wrap=True, overflow="ellipsis")
    for line in _live_cells(stats, now):
        cells.add_row(*(Text.assemble((f"{label} ", "dim"), text) for label, text in line))
    return Group(head, cells)


def _live_cells(stats: MigrationStats, now: float) -> list[list[tuple[str, str]]]:
    rate = ("rate", format_rate(stats.bandwidth(now)))
    if stats.side != "source":
        pages = stats.pages
        return [
            [("received", format_size(stats.transferred)), rate, ("of RAM", format_size(stats.total))],
            [
                ("pages", format_count(pages.received)),
                ("written", format_count(pages.written)),
                ("lane resets", str(stats.lane_resets)),
            ],
        ]
    hit_rate = recent_hit_rate(stats)
    hits = "no XBZRLE" if not stats.cache_size else "-" if hit_rate is None else percent(hit_rate)
    expected = expected_downtime(stats)
    downtime = "-" if expected is None else format_duration(expected)
    return [
        [
            ("remaining", format_size(stats.remaining_pages * stats.page_size)),
            rate,
            ("dirty rate", format_rate(stats.dirty_rate * stats.page_size) if stats.dirty_rate else "-"),
        ],
        [
            ("cache hits", hits),
            ("expected downtime", downtime),
            ("time left", "-" if (left := stats.time_left(now)) is None else format_time_left(*left)),
        ],
    ]


def check_table(items: list[tuple[str, str, str]]) -> Table:
    """The pre-flight's items: what, value, verdict."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pre-flight", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for what, value, verdict in items:
        table.add_row(Text(what), Text(value), Text(verdict, style=_VERDICT_STYLES.get(verdict, "")))
    return table


def _labelled(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"  {label}", Text(text))
    return table
