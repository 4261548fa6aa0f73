"""What trackers cost: a harvest, as Python sees it, and what the guest loses while it is watched.

The harvest is of 1 GiB of which the guest has written 1 % of the pages since the last one. The guest's loss
is a rate of page writes beside that of the same guest unwatched, in the same minute: a tracker is at work in
this process, which harvests four times a second as rounds would, and sends nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.figures import Part, Verdict, middle, table
from bench.lab import Lab, Program
from migrate import kernel
from migrate.config import RamSpec
from migrate.daemon.guest_memory import GuestMemory, GuestPages
from migrate.guest.layout import PAGE
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage
from migrate.ram.trackers import DirtyTracker, LogTracker, ScanTracker, WpTracker

ALLOWED_MS = 3.0
DIRTY_SHARE = 0.01
HARVEST_SECONDS = 0.25
WARM_UP = 2
"""Harvests that are not counted: the first one finds all that was written while the tracker began."""
POLL_SECONDS = 0.001
DONE_OFFSET = 32
"""Of the counter of finished writes in the guest's state page (`migrate.guest.layout`)."""
WATCHED = ("none", "log", "wp", "scan")


def run(runs: int, quick: bool, memory: Path) -> Part:
    """Measure and report."""
    part = Part("Trackers: a harvest, and what the guest loses")
    mib = 128 if quick else 1024
    rows = []
    for name in ("wp", "log"):
        found = _harvests(memory, mib, name, max(runs, 3))
        median = statistics.median(found)
        rows.append((name, middle(found)))
        part.numbers[f"harvest, {name}"] = found
        part.verdicts.append(
            Verdict(
                f"{name}: a harvest of 1 GiB with {DIRTY_SHARE:.0%} dirty takes at most {ALLOWED_MS:g} ms",
                f"{median:.2f} ms",
                None if quick else median <= ALLOWED_MS,
            )
        )
    part.text.append(
        f"Guest of {mib} MiB, all in use; {DIRTY_SHARE:.0%} of its pages written, scattered, between two"
        f" harvests; {max(runs, 3)} harvests. Milliseconds from the call for what is dirty until the bitmap"
        " is there, holes included; comparing what has settled is not in it. Median (lowest to highest)."
    )
    part.text.append(table(("harvest", "ms"), rows))
    rates = _rates(runs, mib // 2, memory, 0.3 if quick else 2.0)
    part.numbers["page writes/s"] = rates
    part.text.append(
        f"Guest of {mib // 2} MiB, `kv`, as fast as it can, and a harvest each {HARVEST_SECONDS:g} s;"
        f" {runs} interleaved runs. With `log` the guest marks what it"
        " writes. Median (lowest to highest); ratios within each run."
    )
    part.text.append(
        table(
            ("tracker", "page writes/s", "of none"),
            [
                (
                    name,
                    middle(found, digits=0),
                    middle([own / bare for own, bare in zip(found, rates["none"], strict=True)]),
                )
                for name, found in rates.items()
            ],
        )
    )
    return part


@contextmanager
def _tracked(lab: Lab, guest: Program, name: str) -> Iterator[tuple[DirtyTracker, RamImage]]:
    """A tracker of that name at work on the guest."""
    with ExitStack() as stack:
        specs = [RamSpec(block, path) for block, path in lab.source_ram.items()]
        image = stack.enter_context(RamImage.open_source(specs, PAGE))
        tracker: DirtyTracker
        if name == "wp":
            memory = GuestMemory(guest.pid, image)
            stack.callback(memory.close)
            tracker = WpTracker(memory)
        elif name == "log":
            fds = {block: os.open(f"{path}.log", os.O_RDWR) for block, path in lab.source_ram.items()}
            for fd in fds.values():
                stack.callback(os.close, fd)
            pages = GuestPages(guest.pid)
            stack.callback(pages.close)
            tracker = LogTracker(fds, pages)
        else:
            tracker = ScanTracker()
        stack.callback(tracker.close)
        table = DigestTable(kernel.Keys(bytes(32), PAGE), image.layout)
        tracker.start(image, table)
        yield tracker, image


def _harvests(memory: Path, mib: int, name: str, count: int) -> list[float]:
    """Milliseconds of harvests, each after the guest has written as many pages as it shall."""
    with _lab(memory, mib) as lab:
        kept = lab.dirty_logs()[0] if name == "log" else []
        pages = mib * (1 << 20) // PAGE
        rate = int(DIRTY_SHARE * pages / HARVEST_SECONDS)
        guest = lab.start_guest("--workload=sparse", f"--rate={rate}", *kept)
        with _tracked(lab, guest, name) as (tracker, image):
            found: list[float] = []
            while len(found) < WARM_UP + count:
                _wait_for_writes(lab, int(DIRTY_SHARE * pages))
                found.append(1000 * tracker.collect(DirtyBitmap(image.layout.total_pages)).seconds)
            return found[WARM_UP:]


def _rates(runs: int, mib: int, memory: Path, seconds: float) -> dict[str, list[float]]:
    """Page writes a second of the guest by what watches it."""
    rates: dict[str, list[float]] = {name: [] for name in WATCHED}
    for _ in range(runs):
        for name, found in rates.items():
            with _lab(memory, mib) as lab:
                kept = lab.dirty_logs()[0] if name == "log" else []
                guest = lab.start_guest("--workload=kv", "--rate=0", *kept)
                if name == "none":
                    found.append(_rate(lab, None, seconds))
                    continue
                with _tracked(lab, guest, name) as tracked:
                    found.append(_rate(lab, tracked, seconds))
    return rates


def _rate(lab: Lab, tracked: tuple[DirtyTracker, RamImage] | None, seconds: float) -> float:
    """Page writes a second over so long, with a harvest now and then."""
    began, before = time.monotonic(), _writes(lab)
    while (now := time.monotonic()) < began + seconds:
        if tracked is not None:
            tracker, image = tracked
            tracker.collect(DirtyBitmap(image.layout.total_pages))
        time.sleep(max(0.0, now + HARVEST_SECONDS - time.monotonic()))
    return (_writes(lab) - before) / (time.monotonic() - began)


@contextmanager
def _lab(memory: Path, mib: int) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory) as directory,
        Lab(Path(directory), Path(directory), [("pc.ram", f"{mib}M")]) as lab,
    ):
        yield lab


def _writes(lab: Lab) -> int:
    """Page writes that the running guest has finished."""
    with lab.source_ram["pc.ram"].open("rb") as ram:
        return int.from_bytes(os.pread(ram.fileno(), 8, PAGE + DONE_OFFSET), "little")


def _wait_for_writes(lab: Lab, count: int) -> None:
    until = _writes(lab) + count
    while _writes(lab) < until:
        time.sleep(POLL_SECONDS)
