"""What the source remembers of its rounds, and what it asks the convergence rule with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrate.config import Address, RamSpec, SourceConfig
from migrate.protocol import switchover
from migrate.protocol.convergence import Decision, decide
from migrate.protocol.forecast import Limits, Situation
from migrate.protocol.round_stats import RoundStats
from migrate.protocol.source_rounds import HarvestResult
from migrate.protocol.switchover import PAUSE_SECONDS, ROUND_TRIPS, STOPPED_SHARE, SwitchoverPolicy
from migrate.ram.bitmap import DirtyBitmap

PAGE = 4096
CONFIG = SourceConfig(
    to=Address("there", 4444),
    ram=(RamSpec("pc.ram", Path("ram")),),
    downtime_limit_ms=300,
    max_rounds=5,
    timeout=60.0,
    timeout_action="pause",
    max_bandwidth=50_000_000,
    switchover_bandwidth=80_000_000,
    xbzrle_cache_size=1 << 20,
)


class Asked:
    """Notes what the rule is asked, and lets the real one answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.situation: Situation
        self.limits: Limits
        monkeypatch.setattr(switchover, "decide", self._decide)

    def _decide(self, situation: Situation, limits: Limits) -> Decision:
        self.situation, self.limits = situation, limits
        return decide(situation, limits)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def _harvest(pages: int, seconds: float = 0.2, began: float = 10.0) -> HarvestResult:
    return HarvestResult(DirtyBitmap(64), pages, seconds, began)


def _round(policy: SwitchoverPolicy, number: int, pages: int, nbytes: int, seconds: float = 1.0) -> None:
    row = RoundStats(number, pages, started=0.0)
    row.bytes = nbytes
    row.pages.normal = pages
    policy.round_ended(row, seconds, nbytes / seconds)


def _decided(policy: SwitchoverPolicy, **changes: Any) -> Decision:
    arguments: dict[str, Any] = {
        "elapsed": 5.0,
        "harvest": _harvest(10),
        "pending_pages": 12,
        "in_flight": 1000,
        "round_trip": 0.01,
    }
    return policy.decide(**(arguments | changes))


def test_the_limits_are_those_of_the_options(asked: Asked) -> None:
    _decided(SwitchoverPolicy(CONFIG, PAGE))
    assert asked.limits == Limits(
        downtime_limit=0.3,
        max_rounds=5,
        timeout=60.0,
        timeout_action="pause",
        max_bandwidth=50_000_000,
        switchover_bandwidth=80_000_000,
        xbzrle_cache_size=1 << 20,
    )


def test_the_situation(asked: Asked) -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    policy.round_started(4.0)
    _round(policy, 1, 100, 400_000)
    _decided(policy)
    situation = asked.situation
    assert (situation.pending_pages, situation.dirtied_pages) == (12, 10)
    assert situation.dirtied_seconds == 6.0, "from the harvest that opened the round to this one"
    assert (situation.in_flight, situation.elapsed, situation.page_size) == (1000, 5.0, PAGE)
    assert [(row.number, row.pages_dirty, row.pages_sent, row.wire_bytes) for row in situation.rows] == [
        (1, 100, 100, 400_000)
    ]
    costs = situation.costs
    assert costs.pause == PAUSE_SECONDS
    assert costs.harvest == costs.verify == pytest.approx(0.2 * STOPPED_SHARE)
    assert costs.round_trip == pytest.approx(ROUND_TRIPS * 0.01)


def test_a_measured_last_harvest_is_believed(asked: Asked) -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    policy.last_harvest(0.07)
    _decided(policy, round_trip=None)
    assert asked.situation.costs.harvest == 0.07
    assert asked.situation.costs.round_trip == 0.0


def test_only_the_last_rounds_are_kept(asked: Asked) -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    for number in range(1, 10):
        _round(policy, number, 100, 400_000)
    _decided(policy)
    assert [row.number for row in asked.situation.rows] == [6, 7, 8, 9]


@pytest.mark.parametrize(
    "pages, elapsed, kind, forced",
    [
        (10, 5.0, "switchover", False),
        (100_000, 5.0, "round", False),
        (100_000, 61.0, "switchover", True),
        (10, 61.0, "switchover", False),
    ],
)
def test_a_pause_beyond_the_limit_is_forced(pages: int, elapsed: float, kind: str, forced: bool) -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    policy.round_started(4.0)
    _round(policy, 1, 10_000, 40_000_000)
    decision = _decided(policy, harvest=_harvest(pages, 0.02), pending_pages=pages, elapsed=elapsed)
    assert decision.kind == kind
    assert policy.forced is forced


def test_a_pause_of_unknown_length_is_forced_too() -> None:
    """Nothing came through that would tell the bandwidth, and the time is over."""
    policy = SwitchoverPolicy(CONFIG, PAGE)
    decision = _decided(policy, elapsed=61.0)
    assert decision.kind == "switchover" and decision.expected_downtime is None
    assert policy.forced
    policy.pause_abandoned()
    assert not policy.forced, "the next one keeps the limits again"


def test_giving_up() -> None:
    policy = SwitchoverPolicy(replace(CONFIG, timeout_action="cancel"), PAGE)
    _round(policy, 1, 10_000, 40_000_000)
    decision = _decided(policy, harvest=_harvest(100_000), pending_pages=100_000, elapsed=61.0)
    assert decision.kind == "give-up"
    assert not policy.forced


def test_the_timeout() -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    assert not policy.timed_out(59.9)
    assert policy.timed_out(60.0)
    assert not SwitchoverPolicy(replace(CONFIG, timeout=0.0), PAGE).timed_out(1e9)


def test_the_reason_of_a_timeout_in_the_middle_of_a_round() -> None:
    policy = SwitchoverPolicy(CONFIG, PAGE)
    _round(policy, 1, 100, 400_000)
    text = policy.timed_out_reason(60.04, 256, 2_000_000.0)
    assert "--timeout 60 s is over after 60.0 s and 1 rounds" in text
    assert "1 MiB of pages were still to be sent" in text
    assert "1.91 MiB/s" in text
    assert "at" not in policy.timed_out_reason(60.0, 256, None).split("sent")[1]
