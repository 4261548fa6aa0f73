"""The decision after a harvest: a table, the rules that always hold, and whole migrations played through."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.config import TimeoutAction
from migrate.protocol.convergence import Decision, decide
from migrate.protocol.forecast import Limits, PauseCosts, RoundRow, Situation, forecast

MB = 1_000_000

LIMITS = Limits(
    downtime_limit=0.3,
    max_rounds=30,
    timeout=0,
    timeout_action="cancel",
    max_bandwidth=0,
    switchover_bandwidth=0,
    xbzrle_cache_size=64 << 20,
)


def row(
    number: int = 2, dirty: int = 1000, wire: int = 4_000_000, bandwidth: float | None = 100 * MB
) -> RoundRow:
    return RoundRow(number, dirty, dirty, wire, wire / (bandwidth or 100 * MB), bandwidth)


SITUATION = Situation(
    rows=(row(1, 10_000, 40_000_000), row(2)),
    pending_pages=1000,
    dirtied_pages=1000,
    dirtied_seconds=1.0,
    harvest_seconds=0.0,
    in_flight=0,
    elapsed=2.0,
    page_size=4096,
    costs=PauseCosts(),
)


def outcome(**changes: object) -> Decision:
    """`decide` on SITUATION and LIMITS with these fields changed, each where it belongs."""
    parts: list[Situation | Limits | PauseCosts] = [SITUATION.costs, SITUATION, LIMITS]
    for i, part in enumerate(parts):
        names = {field.name for field in dataclasses.fields(part)}
        parts[i] = dataclasses.replace(part, **{k: v for k, v in changes.items() if k in names})  # type: ignore[arg-type]
    costs, situation, limits = parts
    assert isinstance(costs, PauseCosts)
    assert isinstance(situation, Situation)
    assert isinstance(limits, Limits)
    if "costs" not in changes:
        situation = dataclasses.replace(situation, costs=costs)
    return decide(situation, limits)


# --- the table -----------------------------------------------------------------------------------------

# 1000 pages of 4000 bytes at 100 MB/s: 40 ms of copying.
TABLE = [
    ("it fits", {}, "switchover", {"copy": 0.04}),
    ("exactly the limit still fits", {"downtime_limit": 0.04}, "switchover", {"copy": 0.04}),
    ("it does not fit", {"downtime_limit": 0.039}, "round", {"copy": 0.04}),
    ("nothing pending", {"pending_pages": 0, "dirtied_pages": 0}, "switchover", {"copy": 0.0}),
    (
        "nothing pending and nothing known yet",
        {"pending_pages": 0, "dirtied_pages": 0, "rows": ()},
        "switchover",
        {"copy": 0.0, "in-flight": 0.0},
    ),
    ("the pause counts", {"pause": 0.261}, "round", {"pause": 0.261}),
    ("the last harvest counts", {"harvest": 0.261}, "round", {"harvest": 0.261}),
    ("verification counts", {"verify": 0.261}, "round", {"verify": 0.261}),
    ("journals count", {"journals": 0.261}, "round", {"journals": 0.261}),
    ("commands count", {"commands": 0.261}, "round", {"commands": 0.261}),
    ("round trips count", {"round_trip": 0.261}, "round", {"round-trip": 0.261}),
    (
        "pages dirtied during the harvest and the pause count",
        {"harvest_seconds": 2.0, "pause": 0.5, "downtime_limit": 5.0},
        "switchover",
        {"copy": 0.04 + 0.1},
    ),
    ("bytes in flight go first", {"in_flight": 30 * MB}, "round", {"in-flight": 0.3}),
    (
        "but not those that get through while the guest is stopped and harvested",
        {"in_flight": 30 * MB, "pause": 0.1, "harvest": 0.1, "dirtied_pages": 0, "downtime_limit": 1.0},
        "switchover",
        {"in-flight": 0.1},
    ),
    (
        "bytes a page are those of the newest rounds",
        {"rows": (row(1, 10_000, 40_000_000), row(2, 5000, 20_000_000), row(3, 1000, 100_000))},
        "switchover",
        {"copy": 0.001},
    ),
    (
        "a round of a few pages says little: the one before counts too",
        {"rows": (row(1, 10_000, 40_000_000), row(2, 990, 3_999_000), row(3, 10, 1000))},
        "switchover",
        {"copy": 0.04},
    ),
    (
        "the first round never does, if there is another",
        {"rows": (row(1, 10_000, 80_000), row(2, 100, 400_000))},
        "switchover",
        {"copy": 0.04},
    ),
    (
        "after the first round a page counts as whole, however many zero pages there were",
        {"rows": (row(1, 10_000, 80_000),)},
        "switchover",
        {"copy": 1000 * 4096 / (100 * MB)},
    ),
    (
        "the source itself may be slower than the link",
        {"rows": (RoundRow(2, 1000, 1000, 100_000, 0.2, 100 * MB),)},
        "switchover",
        {"copy": 0.2},
    ),
    (
        "not measured yet: what came through since the start",
        {
            "rows": (row(2, 1000, 4_000_000, None),),
            "in_flight": 2_000_000,
            "elapsed": 0.1,
            "downtime_limit": 5,
        },
        "switchover",
        {"copy": 0.2, "in-flight": 0.1},
    ),
    (
        "a link on which nothing moves is never good enough",
        {"rows": (row(2, 1000, 4_000_000, 0.0),), "downtime_limit": 2000},
        "round",
        {},
    ),
    (
        "the link may be free of our own limit in the pause, but nobody has seen what it carries",
        {"max_bandwidth": 100 * MB},
        "switchover",
        {"copy": 0.04},
    ),
    (
        "--switchover-bandwidth above a limit that hides the link is believed",
        {"max_bandwidth": 100 * MB, "switchover_bandwidth": 400 * MB},
        "switchover",
        {"copy": 0.01},
    ),
    (
        "on a link that was seen to be slower it is not",
        {
            "max_bandwidth": 1000 * MB,
            "switchover_bandwidth": 400 * MB,
            "rows": (RoundRow(2, 1000, 1000, 4_000_000, 0.0, 100 * MB),),
        },
        "switchover",
        {"copy": 0.04},
    ),
    (
        "a limit is seldom reached to the last byte",
        {"max_bandwidth": 110 * MB, "switchover_bandwidth": 400 * MB},
        "switchover",
        {"copy": 0.01},
    ),
    (
        "--switchover-bandwidth below the rest is the limit",
        {"switchover_bandwidth": 10 * MB},
        "round",
        {"copy": 0.4},
    ),
    ("rounds run out", {"downtime_limit": 0.01, "max_rounds": 2}, "give-up", {}),
    ("one is left", {"downtime_limit": 0.01, "max_rounds": 3}, "round", {}),
    ("time runs out", {"downtime_limit": 0.01, "timeout": 2.0}, "give-up", {}),
    ("some is left", {"downtime_limit": 0.01, "timeout": 2.1}, "round", {}),
    ("no bound at all", {"downtime_limit": 0.01, "max_rounds": 0, "elapsed": 1e6}, "round", {}),
    ("it fits in the last moment", {"max_rounds": 2, "timeout": 2.0}, "switchover", {"copy": 0.04}),
    ("pause anyway", {"downtime_limit": 0.01, "max_rounds": 2, "timeout_action": "pause"}, "switchover", {}),
    ("pause, but there is time", {"downtime_limit": 0.01, "timeout_action": "pause"}, "round", {}),
]


@pytest.mark.parametrize(
    ("changes", "kind", "parts"), [entry[1:] for entry in TABLE], ids=[e[0] for e in TABLE]
)
def test_table(changes: dict[str, object], kind: str, parts: dict[str, float]) -> None:
    decision = outcome(**changes)
    assert decision.kind == kind, decision.reason
    for name, seconds in parts.items():
        assert decision.parts[name] == pytest.approx(seconds), name
    if decision.expected_downtime is None:
        assert "copy" not in decision.parts
    else:
        assert decision.expected_downtime == pytest.approx(sum(decision.parts.values()))


# --- what is said --------------------------------------------------------------------------------------


def test_going_on_gives_the_numbers() -> None:
    reason = outcome(downtime_limit=0.02, pending_pages=12_000, verify=0.05).reason
    for number in (
        "530 ms",  # expected
        "copy 480 ms",
        "verify 50 ms",
        "limit 20 ms",
        "12k pages pending",
        "45.8 MiB on the wire",
        "dirty rate 1000 pages/s",
        "3.81 MiB/s on the wire",
        "bandwidth 95.4 MiB/s",
    ):
        assert number in reason, number


def test_switching_over_says_that_it_fits() -> None:
    assert re.search(r"fits.* 40 ms .*limit 300 ms", outcome().reason)


def test_giving_up_says_why_and_what_to_change() -> None:
    decision = outcome(
        downtime_limit=0.02,
        pending_pages=50_000,
        dirtied_pages=50_000,
        max_rounds=2,
        max_bandwidth=100 * MB,
        timeout_action="cancel",
    )
    assert decision.kind == "give-up"
    assert decision.eta is None
    for number in ("2 rounds", "--max-rounds 2", "2.00 s", "20 ms", "50k pages/s", "191 MiB/s", "95.4 MiB/s"):
        assert number in decision.reason, number
    # 1.5 times 200 MB/s; 50 000 pages and their index; 2.0 s and a tenth
    for option in (
        "--max-bandwidth 287M",
        "--xbzrle-cache-size 197M",
        "--downtime-limit 2200",
        "--timeout-action pause",
    ):
        assert option in decision.hint, option


def test_a_timeout_is_named_with_its_option() -> None:
    decision = outcome(downtime_limit=0.01, timeout=1.5, max_rounds=0)
    assert decision.kind == "give-up"
    assert "2.00 s have passed (--timeout 1.5)" in decision.reason


def test_pausing_above_the_limit_says_so_with_both_numbers() -> None:
    decision = outcome(downtime_limit=0.01, max_rounds=2, timeout_action="pause")
    assert decision.kind == "switchover"
    assert re.search(r"--timeout-action pause accepts a longer pause.* 40 ms .*limit 10 ms", decision.reason)
    assert "--timeout-action" not in decision.hint


def test_where_no_round_can_help_the_least_limit_is_named() -> None:
    decision = outcome(pending_pages=0, dirtied_pages=0, verify=0.5, max_rounds=2)
    assert decision.kind == "give-up"  # a round more cannot make it shorter, but the limit is a promise
    assert "500 ms alone: less than --downtime-limit 550" in decision.hint


@pytest.mark.parametrize(
    ("changes", "option"), [({"max_rounds": 2}, "--max-rounds 4"), ({"timeout": 2.0}, "--timeout 3")]
)
def test_where_the_rounds_shrink_patience_is_advised(changes: dict[str, object], option: str) -> None:
    shrinking = {"downtime_limit": 0.01, "pending_pages": 500, "dirtied_pages": 500}
    assert re.search(f"rounds do shrink: {option}", outcome(**shrinking, **changes).hint)
    growing = {"downtime_limit": 0.01, "pending_pages": 2000, "dirtied_pages": 2000}
    assert "shrink" not in outcome(**growing, **changes).hint


def test_a_limit_of_ours_that_is_not_the_brake_is_left_alone() -> None:
    changes = {"downtime_limit": 0.01, "max_rounds": 2, "dirtied_pages": 500_000, "max_bandwidth": 1000 * MB}
    assert "--max-bandwidth" not in outcome(**changes).hint
    assert "alone" not in outcome(**changes).hint


def test_a_dead_link_is_called_one() -> None:
    decision = outcome(rows=(row(2, 1000, 4_000_000, 0.0),), max_rounds=2)
    assert decision.kind == "give-up"
    assert "nothing comes through" in decision.reason
    assert "link" in decision.hint


def test_a_cache_that_is_large_enough_is_not_advised() -> None:
    changes = {"downtime_limit": 0.01, "max_rounds": 2}
    assert "--xbzrle-cache-size" not in outcome(**changes).hint
    assert "--xbzrle-cache-size 64M" in outcome(**changes, xbzrle_cache_size=0).hint


# --- what always holds ---------------------------------------------------------------------------------

seconds = st.floats(0, 3)
actions: st.SearchStrategy[TimeoutAction] = st.sampled_from(["cancel", "pause"])


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    rows = tuple(
        RoundRow(
            number,
            draw(st.integers(0, 1 << 20)),
            draw(st.integers(0, 1 << 20)),
            draw(st.integers(0, 1 << 32)),
            draw(seconds),
            draw(st.none() | st.just(0.0) | st.floats(1, 1e10)),
        )
        for number in range(1, draw(st.integers(0, 5)) + 1)
    )
    return Situation(
        rows=rows,
        pending_pages=draw(st.integers(0, 1 << 20)),
        dirtied_pages=draw(st.integers(0, 1 << 20)),
        dirtied_seconds=draw(seconds),
        harvest_seconds=draw(seconds),
        in_flight=draw(st.integers(0, 1 << 24)),
        elapsed=draw(st.floats(0, 1000)),
        page_size=4096,
        costs=PauseCosts(*(draw(st.floats(0, 0.2)) for _ in range(6))),
    )


limits = st.builds(
    Limits,
    downtime_limit=st.floats(0, 10),
    max_rounds=st.integers(0, 6),
    timeout=st.just(0.0) | st.floats(0.1, 1000),
    timeout_action=actions,
    max_bandwidth=st.just(0.0) | st.floats(4096, 1e10),
    switchover_bandwidth=st.just(0.0) | st.floats(4096, 1e10),
    xbzrle_cache_size=st.integers(0, 1 << 32),
)


def ran_out(situation: Situation, limits: Limits) -> bool:
    return bool(limits.max_rounds and situation.rounds >= limits.max_rounds) or bool(
        limits.timeout and situation.elapsed >= limits.timeout
    )


@given(situations(), limits)
def test_the_limit_is_kept_unless_the_pause_was_asked_for(situation: Situation, limits: Limits) -> None:
    decision = decide(situation, limits)
    fits = decision.expected_downtime is not None and decision.expected_downtime <= limits.downtime_limit
    if fits:
        assert decision.kind == "switchover"
    elif not ran_out(situation, limits):
        assert decision.kind == "round"
    else:
        assert decision.kind == ("switchover" if limits.timeout_action == "pause" else "give-up")


@given(situations(), limits, st.integers(0, 1 << 20))
def test_fewer_pages_never_speak_against_switching_over(
    situation: Situation, limits: Limits, fewer: int
) -> None:
    less = dataclasses.replace(situation, pending_pages=min(fewer, situation.pending_pages))
    before, after = decide(situation, limits), decide(less, limits)
    if before.expected_downtime is not None:
        assert after.expected_downtime is not None
        assert after.expected_downtime <= before.expected_downtime
    assert not (before.kind == "switchover" and after.kind != "switchover")


@given(situations(), limits)
def test_parts_sum_up_and_times_left_are_ordered(situation: Situation, limits: Limits) -> None:
    decision = decide(situation, limits)
    assert all(value >= 0 and math.isfinite(value) for value in decision.parts.values())
    if decision.expected_downtime is not None:
        assert decision.expected_downtime == pytest.approx(sum(decision.parts.values()))
    if decision.eta is not None:
        assert 0 <= decision.eta[0] <= decision.eta[1]
    assert bool(decision.hint) == (not decision.reason.startswith("it "))


@given(situations(), limits)
def test_slower_never_looks_better(situation: Situation, limits: Limits) -> None:
    halved = tuple(
        dataclasses.replace(r, bandwidth=None if r.bandwidth is None else r.bandwidth / 2)
        for r in situation.rows
    )
    unlimited = dataclasses.replace(limits, max_bandwidth=0.0)
    fast = decide(situation, unlimited).expected_downtime
    slow = decide(dataclasses.replace(situation, rows=halved), unlimited).expected_downtime
    assert (fast is None) == (slow is None)
    if fast is not None and slow is not None:
        assert slow >= fast * (1 - 1e-12)


# --- time left -----------------------------------------------------------------------------------------


def shrinking(ratio: float, **changes: object) -> Decision:
    """Rounds that each dirty `ratio` of the one before."""
    pages = [100_000 * ratio**i for i in range(4)]
    rows = tuple(row(i + 1, round(n), round(n) * 4000) for i, n in enumerate(pages[:3]))
    duration = pages[2] * 4000 / (100 * MB)
    return outcome(
        rows=rows,
        pending_pages=round(pages[3]),
        dirtied_pages=round(pages[3]),
        dirtied_seconds=duration,
        downtime_limit=0.05,
        **changes,
    )


def test_time_left_follows_the_shrinking_rounds() -> None:
    decision = shrinking(0.5)  # 12 500 pages pending: 0.5 s, 0.25, 0.125, 0.0625, then 0.03125 s of pause
    assert decision.eta is not None
    low, high = decision.eta
    exact = 0.5 + 0.25 + 0.125 + 0.0625 + 0.03125
    assert low <= exact * 1.001
    assert exact * 1.25 <= high <= 2 * exact


def test_the_range_spans_what_the_last_rounds_showed() -> None:
    """Rounds that shrank to a half twice, then to a third; at 100 MB/s, once at 50."""
    decision = outcome(
        rows=(row(1, 150_000, 600 * MB), row(2, 75_000, 300 * MB, 50 * MB), row(3, 37_500, 150 * MB)),
        pending_pages=12_500,
        dirtied_pages=12_500,
        dirtied_seconds=1.5,
        downtime_limit=0.2,
    )
    slowly = math.sqrt(1 / 2)  # twice as many rounds to halve it
    low = 0.5 + 0.5 / 3
    high = 1 + slowly + slowly**2 + 0.5 * slowly**3  # rounds at 50 MB/s, the pause at 100
    assert decision.eta == pytest.approx((low, high))


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_rounds_that_do_not_shrink_have_no_end(ratio: float) -> None:
    assert shrinking(ratio).eta == (math.inf, math.inf)


def test_an_end_that_lies_behind_the_limits_is_none() -> None:
    assert shrinking(0.5, max_rounds=5).eta == (math.inf, math.inf)
    assert shrinking(0.5, timeout=2.3).eta == (math.inf, math.inf)


def test_with_pause_the_limits_themselves_are_an_end() -> None:
    decision = shrinking(1.0, timeout=10.0, max_rounds=0, timeout_action="pause")
    assert decision.eta == pytest.approx((8.0 + 4.0, 8.0 + 4.0))
    assert shrinking(1.0, timeout=9.0, timeout_action="pause").eta == pytest.approx((7.0 + 4.0, 7.0 + 4.0))
    assert shrinking(1.5, timeout=9.0, timeout_action="pause").eta == pytest.approx((7.0 + 13.5, 7.0 + 13.5))
    decision = shrinking(1.0, timeout=10_000.0, max_rounds=0, timeout_action="pause")
    assert decision.eta == pytest.approx((9998.0 + 4.0, 9998.0 + 4.0))
    decision = shrinking(1.0, max_rounds=5, timeout_action="pause")
    assert decision.eta == pytest.approx((2 * 4.0 + 4.0, 2 * 4.0 + 4.0))
    assert shrinking(1.0, max_rounds=0, timeout_action="pause").eta == (math.inf, math.inf)


def test_at_switchover_the_pause_is_what_is_left() -> None:
    assert outcome().eta == pytest.approx((0.04, 0.04))


def test_without_numbers_there_is_no_forecast() -> None:
    assert outcome(rows=(), pending_pages=1000, elapsed=0.0).eta is None


# --- whole migrations ----------------------------------------------------------------------------------


def play(
    *, ram_pages: int, writes: float, working_set: int, bandwidth: float, bytes_per_page: int, limits: Limits
) -> tuple[Decision, list[tuple[float, Decision]], float]:
    """A guest that writes `writes` random pages/s of a working set, moved over an ideal link.

    Returns the last decision, all decisions with their times, and the downtime that came of it.
    """
    now, pending = 0.0, ram_pages
    rows: list[RoundRow] = []
    trail: list[tuple[float, Decision]] = []
    costs = PauseCosts(pause=0.001, harvest=0.02, verify=0.01, journals=0.005, round_trip=0.002)

    def dirtied(duration: float) -> int:
        return round(working_set * -math.expm1(-writes * duration / working_set))

    while True:
        size = bytes_per_page if rows else 4104
        sending = pending * size / bandwidth
        number = len(rows) + 1
        rows.append(RoundRow(number, pending, pending, pending * size, sending, bandwidth))
        duration, harvest = sending + 0.02, 0.02
        now += duration
        pending = dirtied(duration)
        situation = Situation(tuple(rows), pending, pending, duration, harvest, 0, now, 4096, costs)
        decision = decide(situation, limits)
        trail.append((now, decision))
        if decision.kind != "round":
            late = dirtied(harvest + costs.pause)
            copied = (pending + late) * bytes_per_page / bandwidth
            return decision, trail, copied + 0.001 + 0.02 + 0.01 + 0.005 + 0.002


@pytest.mark.parametrize("bandwidth", [20 * MB, 100 * MB, 1000 * MB])
@pytest.mark.parametrize("writes", [0, 100, 3000])
def test_a_migration_that_can_converge_keeps_its_limit_and_its_promises(
    bandwidth: float, writes: float
) -> None:
    decision, trail, downtime = play(
        ram_pages=262_144,
        writes=writes,
        working_set=50_000,
        bandwidth=bandwidth,
        bytes_per_page=4104,
        limits=LIMITS,
    )
    assert decision.kind == "switchover", decision.reason
    assert downtime <= LIMITS.downtime_limit
    assert decision.expected_downtime == pytest.approx(downtime, rel=0.05)
    end = trail[-1][0] + downtime
    for moment, earlier in trail:
        assert earlier.eta is not None
        assert earlier.eta[0] <= (end - moment) * 1.05
        assert earlier.eta[1] >= (end - moment) * 0.95
        assert math.isfinite(earlier.eta[1]) or moment == trail[0][0]


def test_deltas_decide_whether_a_slow_link_is_enough() -> None:
    guest = {
        "ram_pages": 65_536,
        "writes": 20_000,
        "working_set": 40_000,
        "bandwidth": 50 * MB,
        "limits": LIMITS,
    }
    whole, trail, _ = play(**guest, bytes_per_page=4104)  # type: ignore[arg-type]
    assert whole.kind == "give-up"
    assert len(trail) == LIMITS.max_rounds
    assert "--downtime-limit" in whole.hint
    deltas, trail, downtime = play(**guest, bytes_per_page=90)  # type: ignore[arg-type]
    assert deltas.kind == "switchover"
    assert len(trail) <= 5
    assert downtime <= LIMITS.downtime_limit


def test_the_forecast_is_what_the_decision_was_made_of() -> None:
    view = forecast(SITUATION, LIMITS)
    assert (view.dirty_rate, view.bytes_per_page, view.bandwidth) == (1000, 4000, 100 * MB)
    assert decide(SITUATION, LIMITS).expected_downtime == view.downtime(SITUATION.pending_pages)
