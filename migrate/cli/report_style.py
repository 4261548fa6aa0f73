"""How the page of `migrate-inspect report` looks: on a bright screen, on a dark one, and printed.

The colours of series are Okabe and Ito's, which people with any common colour blindness tell apart; lines
also differ by their dashes, and every value stands in a table as well.
"""

from __future__ import annotations

SERIES = 7
"""Colours there are: classes `s1` to `s7` draw in them, `f1` to `f7` fill with them."""

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7f87")
_DARK = ("#4ba3e3", "#f08a4b", "#2fc79b", "#e39cc4", "#f0b840", "#8fd0f7", "#9aa1aa")


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours, 1))


_SERIES_RULES = "\n".join(
    f".s{n} {{ stroke: var(--c{n}); }} .f{n} {{ fill: var(--c{n}); }}" for n in range(1, SERIES + 1)
)

_LIGHT_VARIABLES = (
    "--page: #ffffff; --card: #ffffff; --text: #1a1f24; --muted: #5a646e; --line: #d8dde2; --grid: #e8ebee;"
    f" --band: #fbe3a4; --good: #00694d; --bad: #a83e00; {_variables(_LIGHT)}"
)
_DARK_VARIABLES = (
    "--page: #14171a; --card: #1b1f23; --text: #e7eaed; --muted: #a1aab3; --line: #3a4149; --grid: #2a3036;"
    f" --band: #574a1f; --good: #3fd0a4; --bad: #ff9d66; {_variables(_DARK)}"
)

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT_VARIABLES} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK_VARIABLES} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 28px 24px 48px; max-width: 1000px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }}
h1 {{ font-size: 24px; line-height: 1.25; margin: 0 0 4px; font-weight: 600; }}
h2 {{ font-size: 17px; margin: 36px 0 6px; font-weight: 600; }}
p {{ margin: 4px 0 10px; }}
.muted, figcaption {{ color: var(--muted); font-size: 13px; }}
.good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
code, .id {{ font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(144px, 1fr)); gap: 10px;
  margin: 20px 0 8px; }}
.tile {{ border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; background: var(--card); }}
.tile b {{ display: block; font-size: 17px; font-weight: 600; line-height: 1.45; white-space: nowrap; }}
.tile span {{ color: var(--muted); font-size: 12.5px; line-height: 1.35; display: block; }}
.error {{ border: 1px solid var(--bad); border-left-width: 5px; border-radius: 6px; padding: 10px 14px;
  margin: 18px 0; background: var(--card); overflow-wrap: anywhere; }}
.error p {{ margin: 2px 0; white-space: pre-line; }}
figure {{ margin: 0 0 6px; break-inside: avoid; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 0 24px; }}
svg.chart {{ display: block; width: 100%; height: auto; font-family: inherit; }}
svg text {{ fill: var(--text); font-size: 12px; font-family: system-ui, "DejaVu Sans", sans-serif; }}
svg .small {{ font-size: 11px; fill: var(--muted); }}
svg .axis {{ stroke: var(--line); stroke-width: 1; }}
svg .grid {{ stroke: var(--grid); stroke-width: 1; }}
svg .round {{ stroke: var(--muted); stroke-width: 1; stroke-dasharray: 1 4; }}
svg .limit {{ stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 5 3; }}
svg .band {{ fill: var(--band); }}
svg .series {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
svg .track {{ fill: var(--grid); }}
{_SERIES_RULES}
.legend {{ display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 2px 0 4px; padding: 0; list-style: none;
  font-size: 13px; }}
.legend li {{ display: flex; align-items: center; gap: 7px; }}
.legend svg {{ flex: none; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 12.5px; margin: 4px 0 12px; min-width: 40%; }}
th, td {{ padding: 3px 6px; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 500; border-bottom-color: var(--line); white-space: normal;
  vertical-align: bottom; line-height: 1.25; }}
td.text, th.text {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
td.name {{ text-align: left; color: var(--muted); white-space: nowrap; }}
@media print {{ body {{ max-width: none; padding: 0; font-size: 11pt; }} h2 {{ break-after: avoid; }}
  .pair {{ grid-template-columns: 1fr 1fr; }}
  .scroll {{ overflow: visible; }} table {{ font-size: 8pt; }} th, td {{ padding: 1px 4px; }}
  svg .band, svg rect, .legend svg {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  tr {{ break-inside: avoid; }} }}
"""
