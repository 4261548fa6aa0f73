"""What each daemon needs over the RAM file, which neither maps: cache, digests, buffers, Python."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.figures import MIB, Part, Verdict, table
from bench.moves import move

CACHES_MIB = (64, 256)
ALLOWED_SHARE = 0.03
ALLOWED_MIB = 64


def run(mib: int, memory: Path, link_rate: float) -> Part:
    """Measure and report."""
    part = Part("Memory: peak resident set of the daemons")
    guest = ("--workload=sparse", "--rate=20000", f"--working-set={mib // 2}M")
    rows: list[tuple[object, ...]] = []
    for cache in CACHES_MIB:
        allowed = cache + ALLOWED_SHARE * mib + ALLOWED_MIB
        options = (f"--xbzrle-cache-size={cache}M", "--timeout-action=pause", "--max-rounds=6")
        moved = asyncio.run(
            move(
                memory,
                f"{mib}M",
                guest,
                options,
                destination_options=(f"--xbzrle-cache-limit={cache}M",),
                link_rate=link_rate,
            )
        )
        if moved.status != 0:
            raise RuntimeError(f"the move failed: {moved.error}")
        for side, peak in moved.peak_bytes.items():
            used = peak / MIB
            rows.append(
                (f"{side}, cache {cache} MiB", f"{used:.1f}", f"{used - cache:.1f}", f"{allowed:.1f}")
            )
            part.verdicts.append(
                Verdict(
                    f"{side} with a cache of {cache} MiB stays within {allowed:.0f} MiB",
                    f"{used:.1f} MiB",
                    used <= allowed,
                )
            )
            part.numbers[f"{side}, cache {cache} MiB"] = {"peak MiB": used, "allowed MiB": allowed}
    part.text.append(
        f"Guest of {mib} MiB, workload `sparse`, several rounds. Allowed: the agreed cache +"
        f" {ALLOWED_SHARE:.0%} of RAM + {ALLOWED_MIB} MiB over the mapped file; the daemons map none of it,"
        " so nothing is subtracted. VmHWM, shared libraries included, in MiB."
    )
    part.text.append(table(("", "peak", "less the cache", "allowed"), rows))
    return part
