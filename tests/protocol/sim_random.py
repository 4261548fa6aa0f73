"""Scenarios drawn at random: every option, and several faults of all kinds at once."""

from __future__ import annotations

import random

from sim_network import Channel, Fault
from simulation import Scenario

SIZES = [0, 1 << 13, 1 << 14, 1 << 15, 1 << 16, 1 << 21]
"""Of page caches; the last is more than is allowed."""
CHANNELS: list[Channel] = ["control up", "control down", "lane up"]
SLOW_WORK = ("pause", "resume", "state", "tracker", "harvest", "confirm", "verify", "prepare", "commit")


def draw(rng: random.Random) -> Scenario:
    """One of them."""
    verify = rng.choice(["stream", "ram", "full"])
    faults = tuple(
        Fault(
            rng.choice(CHANNELS),
            rng.randrange(200, 2500),
            rng.choice(["cut", "cut", "flip", "silence"]),  # type: ignore[arg-type]
            rng.randrange(8),
            rng.choice([0.0, 0.0, 2.0]),
        )
        for _ in range(rng.randrange(1, 5))
    )
    seconds = {f"{work}_seconds": rng.choice([0.0, 0.0, 0.05, 0.5]) for work in SLOW_WORK}
    return Scenario(
        pages=rng.choice([(2,), (3, 2), (3, 2, 2)]),
        lanes=rng.randrange(1, 4),
        codec=rng.choice(["none", "zlib"]),
        cache_rule=rng.choice(["default", "qemu"]),
        cache_bytes=rng.choice([0, 1 << 14]),
        verify=verify,
        batch_limit=rng.choice([1, 3000, 1 << 20]),
        tracker=rng.choice(["scan", "log", "stop"]),
        downtime_limit_ms=rng.choice([300, 300, 20]),
        timeout=rng.choice([0.0, 0.3]),
        timeout_action="pause",
        tampered=rng.choice([0, 1, 2]) if verify == "full" else 0,
        failing=tuple((work, 1) for work in ("pause", "prepare", "state") if rng.random() < 0.05),
        faults=faults,
        throttle=rng.choice([0, 0, 30, "auto"]),
        warm=rng.choice([0, 0, 0, 1, 4]),
        restarts=tuple(rng.randrange(1, 600) for _ in range(rng.choice([0, 0, 0, 1, 2]))),
        resizes=tuple((rng.randrange(400), rng.choice(SIZES)) for _ in range(rng.randrange(3))),
        **seconds,  # type: ignore[arg-type]
    )
