"""`migrate-src plan` against real moves: each guest is planned for, then moved over that very link."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.figures import MIB, Part, Verdict, table
from bench.lab import Event, Lab, Program
from bench.two_hosts import TwoHosts

TOLERANCE = 0.25
DEMANDED_SHARE = 0.8
LEAST_DOWNTIME_MS = 15
"""A downtime is also right if it is off by no more than that, a twentieth of the limit."""
MOVE_SECONDS = 180.0
DURATION = 5
QUEUE = "50ms"
"""What a packet may wait in front of the slow link."""
DOWNTIME_LIMIT_MS = 300
MAX_ROUNDS = 20
QUANTITIES = ("total-time", "transferred", "downtime")

Workloads = dict[str, tuple[str, ...]]


def _workloads(working_set: int) -> Workloads:
    """Guests by name; each writes for some seconds before it is looked at."""
    busy = (f"--working-set={working_set}M", "--fill=random", "--seed=1")
    return {
        "idle": ("--workload=idle", "--fill=random", "--seed=1"),
        "sparse": ("--workload=sparse", "--rate=6000", *busy),
        "kv": ("--workload=kv", "--rate=8000", *busy),
        "log": ("--workload=log", "--rate=2500", *busy),
        "thrash": ("--workload=thrash", "--rate=20000", *busy),
    }


LINKS: dict[str, float | None] = {"25 MB/s": 25e6, "50 MB/s": 50e6, "100 MB/s": 100e6, "unlimited": None}


@dataclass
class Cell:
    """One workload over one link."""

    workload: str
    link: str
    planned: Event
    moved: Event
    """`status`, and the quantities."""

    @property
    def agree(self) -> bool:
        """On whether it converges."""
        converged: bool = self.moved["status"] == 0
        return bool(self.planned["converges"] == converged)

    def close(self, quantity: str) -> bool:
        """Within the tolerance. A move that gives up has no downtime: both must say so."""
        planned, real = self.planned.get(quantity), self.moved.get(quantity)
        if planned is None or real is None:
            return planned is None and real is None
        return bool(abs(planned - real) <= TOLERANCE * real)

    def right(self, quantity: str) -> bool:
        """Close, or a downtime that is off by no more than what does not count."""
        planned, real = self.planned.get(quantity), self.moved.get(quantity)
        if quantity == "downtime" and planned is not None and real is not None:
            return self.close(quantity) or bool(abs(planned - real) <= LEAST_DOWNTIME_MS)
        return self.close(quantity)


def run(quick: bool, memory: Path) -> Part:
    """Plan and move, cell by cell."""
    mib, working_set = (64, 24) if quick else (128, 48)
    links = dict(list(LINKS.items())[:1]) if quick else LINKS
    part = Part("Plan: what `migrate-src plan` says beside what a move then does")
    part.text.append(
        f"Guests of {mib} MiB of random RAM, {working_set} MiB of it a working set; sampled for"
        f" {DURATION} s, then moved while they go on; downtime limit {DOWNTIME_LIMIT_MS} ms, at most"
        f" {MAX_ROUNDS} rounds, a cache of 64 MiB. The links are token buckets"
        " between two network namespaces; for `unlimited` there is none, and the plan is told the rate of an"
        " idle guest's first round, moved before. Planned / real; one move each."
    )
    cells = [
        _cell(memory, mib, name, guest, link, rate)
        for link, rate in links.items()
        for name, guest in _workloads(working_set).items()
    ]
    part.text.append(table(("workload, link", *QUANTITIES, "rounds"), [_row(cell) for cell in cells]))
    for quantity in QUANTITIES:
        right = sum(cell.right(quantity) for cell in cells)
        slack, strictly = "", ""
        if quantity == "downtime":
            slack = f" or {LEAST_DOWNTIME_MS} ms"
            strictly = f", {sum(cell.close(quantity) for cell in cells)} of them within {TOLERANCE:.0%}"
        part.verdicts.append(
            Verdict(
                f"{quantity} within {TOLERANCE:.0%}{slack} for {DEMANDED_SHARE:.0%} of the grid",
                f"{right} of {len(cells)}{strictly}",
                None if quick else right >= DEMANDED_SHARE * len(cells),
            )
        )
    agree = sum(cell.agree for cell in cells)
    part.verdicts.append(
        Verdict(
            f"right about whether it converges for {DEMANDED_SHARE:.0%} of the grid",
            f"{agree} of {len(cells)}",
            None if quick else agree >= DEMANDED_SHARE * len(cells),
        )
    )
    part.numbers = {f"{c.workload}, {c.link}": {"planned": c.planned, "moved": c.moved} for c in cells}
    return part


_loopback: dict[int, float] = {}
"""Bytes a second of an idle guest's first round, by its size."""


def _cell(memory: Path, mib: int, name: str, guest: tuple[str, ...], link: str, rate: float | None) -> Cell:
    if rate is None and mib not in _loopback:
        idle = _workloads(mib // 4)["idle"]
        _, moved = _plan_and_move(memory, mib, idle, None, None)
        _loopback[mib] = moved["first bandwidth"]
    planned, moved = _plan_and_move(memory, mib, guest, rate or _loopback[mib], rate)
    return Cell(name, link, planned, moved)


def _plan_and_move(
    memory: Path, mib: int, guest_options: tuple[str, ...], bandwidth: float | None, rate: float | None
) -> tuple[Event, Event]:
    """The plan (empty without a bandwidth), then the move of the same guest while it runs on."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="migrate-test-bench-", dir=memory))
        hosts = stack.enter_context(TwoHosts(Path(directory), f"{mib}M"))
        if rate is not None:
            hosts.throttle(f"{rate * 8:.0f}bit", QUEUE)
        guest = hosts.start_guest(*guest_options)
        _wait_until_filled(hosts.source_ram["pc.ram"], mib)
        planned = {} if bandwidth is None else _plan(hosts, guest, bandwidth)
        destination = hosts.listen("--once")
        limits = (f"--downtime-limit={DOWNTIME_LIMIT_MS}", f"--max-rounds={MAX_ROUNDS}")
        source = hosts.move(guest, *limits)
        status = source.wait(MOVE_SECONDS)
        destination.wait()
        if status == 0:
            hosts.end_arrived_guest()
        return planned, _moved(status, source.summary)


def _wait_until_filled(ram: Path, mib: int) -> None:
    """A guest fills its RAM as its first writes do."""
    end = time.monotonic() + MOVE_SECONDS
    while ram.stat().st_blocks * 512 < 0.99 * mib * MIB:
        if time.monotonic() > end:
            raise RuntimeError("the guest does not fill its RAM")
        time.sleep(0.05)


def _plan(lab: Lab, guest: Program, bandwidth: float) -> Event:
    ram = [f"--ram={name}={path}" for name, path in lab.source_ram.items()]
    planner = lab.run(
        "migrate-src",
        *("plan", *ram, f"--guest-pid={guest.pid}", f"--bandwidth={bandwidth:.0f}", f"--duration={DURATION}"),
        *(f"--downtime-limit={DOWNTIME_LIMIT_MS}", f"--max-rounds={MAX_ROUNDS}"),
    )
    status = planner.wait()
    if status != 0:
        raise RuntimeError(f"the plan failed: {planner.story()}")
    found: Event = planner.wait_event("plan")["predictions"][0]
    downtime = found["downtime"]
    return {
        "converges": found["converges"],
        "total-time": found["total-time"] * 1000,
        "transferred": found["transferred"],
        "downtime": None if downtime is None else downtime * 1000,
        "rounds": len(found["rounds"]),
        "all rounds": [[row["dirty-pages"], row["bytes"], row["time"] * 1000] for row in found["rounds"]],
    }


def _moved(status: int, summary: Event) -> Event:
    return {
        "status": status,
        "total-time": summary["total-time"],
        "transferred": summary["ram"]["transferred"],
        "downtime": summary.get("downtime"),
        "rounds": summary["ram"]["dirty-sync-count"],
        "first bandwidth": summary["rounds"][0]["bandwidth"],
        "parts": summary.get("downtime-parts"),
        "all rounds": [[row["dirty-pages"], row["bytes"], row["time"]] for row in summary["rounds"]],
    }


def _row(cell: Cell) -> list[object]:
    texts: list[object] = [f"{cell.workload}, {cell.link}"]
    for quantity, divisor, unit in (
        ("total-time", 1000, "s"),
        ("transferred", MIB, "MiB"),
        ("downtime", 1, "ms"),
    ):
        planned, real = cell.planned.get(quantity), cell.moved.get(quantity)
        digits = 2 if unit == "s" else 0
        shown = ["never" if v is None else f"{v / divisor:.{digits}f}" for v in (planned, real)]
        mark = "" if cell.right(quantity) else " (!)"
        texts.append(f"{shown[0]} / {shown[1]} {unit}{mark}")
    texts.append(f"{cell.planned['rounds']} / {cell.moved['rounds']}{'' if cell.agree else ' (!)'}")
    return texts
