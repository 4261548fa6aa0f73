"""The kernel's table (`bench.kernel`) with the issue's demands beside it."""

from __future__ import annotations

from bench.figures import Part, Verdict, table
from bench.kernel import RAM_BYTES, kernel_table

ENCODE_DEMANDS = {"1": 0.7, "64": 0.32}
"""Least speed of the encoder as a fraction of memcmp, by scattered changed bytes a page."""
SAME = 0.95
"""Decoding is "not slower" than encoding down to this ratio: medians of a noisy machine differ by much."""


def run(rounds: int, judge: bool) -> Part:
    """Measure and report. Raises bench.kernel.NoCompilerError: the C loops cannot be built."""
    numbers = kernel_table(rounds=rounds)
    part = Part("Kernel: XBZRLE as a fraction of memcmp, and the batch calls", numbers=numbers)
    part.text.append(
        f"Pages of 4096 bytes; changed bytes scattered unless said otherwise; medians of {rounds}"
        " interleaved rounds."
    )
    xbzrle = numbers["xbzrle"]
    rows: list[tuple[object, ...]] = [
        (
            *(name, f"{row['encode']:.2f}", f"{row['decode']:.2f}"),
            *(f"{row['encode-ns']:.0f}", f"{row['decode-ns']:.0f}"),
        )
        for name, row in xbzrle.items()
    ]
    part.text.append(table(("changed bytes", "encode", "decode", "encode, ns", "decode, ns"), rows))
    loops = ", ".join(f"{name} {speed:.1f}" for name, speed in numbers["loops"].items())
    part.text.append(f"Loops over pages in the cache, GB/s: {loops}.")
    part.text.append(
        f"Batch calls over {RAM_BYTES >> 20} MiB of random pages in warm memory files (apply reads back"
        " unless it is `stream`):"
    )
    rows = []
    for name, row in numbers["batches"].items():
        ratios = ", ".join(f"{value:.2f} {key}" for key, value in row.items() if key != "GB/s")
        rows.append((name, f"{row['GB/s']:.2f}", ratios or "1"))
    part.text.append(table(("", "GB/s", "fraction"), rows))
    for name, demand in ENCODE_DEMANDS.items():
        own = xbzrle[name]["encode"]
        part.verdicts.append(
            Verdict(
                f"encoding {name} changed byte{'s' if name != '1' else ''} a page runs at {demand} of memcmp",
                f"{own:.2f}",
                own >= demand if judge else None,
            )
        )
    slower = [name for name, row in xbzrle.items() if row["decode"] < SAME * row["encode"]]
    part.verdicts.append(
        Verdict(
            "decoding is not slower than encoding",
            f"slower at {', '.join(slower)} changed bytes" if slower else "nowhere slower",
            not slower if judge else None,
        )
    )
    return part
