"""What a migration would be like: against a model page by page, against a measured run, and by tables."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from migrate.protocol.forecast import Limits
from migrate.protocol.plan import QUEUE_BYTES, RECORD_HEAD, PlannedLink, predict
from migrate.protocol.plan_advice import advise
from migrate.protocol.plan_workload import Curve, Workload

PAGE = 4096
RECORD = PAGE + RECORD_HEAD
MIB = 1 << 20
LINK = PlannedLink(50e6, 0.0005)
LIMITS = Limits(
    downtime_limit=0.3,
    max_rounds=20,
    timeout=0.0,
    timeout_action="cancel",
    max_bandwidth=0.0,
    switchover_bandwidth=0.0,
    xbzrle_cache_size=64 * MIB,
)


def at_random(places: float, rate: float, end: float = 5.0, most: float = 1e9) -> Curve:
    """Places that are met at random `rate` times a second, measured for some seconds."""
    times = [end * step / 50 for step in range(1, 51)]
    return Curve(tuple((t, places * -math.expm1(-rate * t / places)) for t in times), most)


def evenly(value: float) -> Curve:
    """Always the same."""
    return Curve(((0.001, value),), value)


def workload(**values: object) -> Workload:
    """128 MiB of data, of which 12288 pages are written at random, 6000 a second; deltas of 200 bytes."""
    made = Workload(
        page_size=PAGE,
        data_pages=32768,
        zero_share=0.0,
        written=at_random(12288, 6000),
        written_zero_share=0.0,
        delta_bytes=evenly(200.0),
        early_share=tuple(min((part + 1) / 96, 1.0) for part in range(256)),
        harvest_seconds=0.002,
        page_seconds=1e-6,
        read_bytes_per_second=4e9,
        compares_all=False,
        settle_seconds=2.0,
        start_seconds=0.004,
    )
    return replace(made, **values)  # type: ignore[arg-type]


IDLE = workload(written=Curve(((1.0, 2.0),), 2.0))
THRASH = workload(written=at_random(12288, 20000), delta_bytes=evenly(PAGE))


# --- curves -----------------------------------------------------------------------------------------------


def test_a_curve_goes_through_its_points() -> None:
    curve = Curve(((1.0, 100.0), (3.0, 200.0)), 1e6)
    assert [curve(t) for t in (0.0, 0.5, 1.0, 2.0, 3.0)] == [0.0, 50.0, 100.0, 150.0, 200.0]
    assert curve.scaled(0.5)(6.0) == 200.0
    assert Curve((), 10.0)(5.0) == 0.0


@pytest.mark.parametrize("rate", [500, 3000, 20000, 200_000])
def test_a_curve_goes_on_as_random_writes_do(rate: float) -> None:
    curve = at_random(12288, rate)
    for seconds in (7.0, 15.0, 60.0):
        assert curve(seconds) == pytest.approx(12288 * -math.expm1(-rate * seconds / 12288), rel=0.03)


def test_a_straight_curve_stays_straight_up_to_all_of_ram() -> None:
    curve = Curve(tuple((t / 10, t * 100.0) for t in range(1, 51)), 20_000.0)
    assert curve(10.0) == pytest.approx(10_000)
    assert curve(60.0) == 20_000.0


# --- rounds -----------------------------------------------------------------------------------------------


def played(
    places: int, rate: float, bandwidth: float, rounds: int, rng: random.Random
) -> list[tuple[int, int]]:
    """(pages found, pages sent) of rounds, page by page: a guest that writes whole pages at random."""
    step = RECORD / bandwidth
    written = [-1.0] * places
    copied = [0.0] * places
    dirty = list(range(places))
    now, next_write, harvest = 0.0, 0.0, 0.0
    found = []

    def write_until(instant: float) -> None:
        nonlocal next_write
        while next_write < instant:
            written[rng.randrange(places)] = next_write
            next_write += 1 / rate

    for number in range(rounds):
        sent = 0
        for page in dirty:
            write_until(now)
            if number and written[page] < copied[page]:
                continue
            copied[page] = now
            now += step
            sent += 1
        write_until(now)
        found.append((len(dirty), sent))
        dirty = [page for page in range(places) if written[page] >= harvest]
        harvest = now
    return found


@pytest.mark.parametrize("rate", [1500.0, 5000.0, 9000.0])
def test_rounds_are_those_of_a_model_page_by_page(rng: random.Random, rate: float) -> None:
    places, bandwidth = 6000, 20e6
    real = played(places, rate, bandwidth, 5, rng)
    guest = workload(
        data_pages=places,
        written=at_random(places, rate, 3.0),
        delta_bytes=evenly(PAGE),
        early_share=tuple((part + 1) / 256 for part in range(256)),
        harvest_seconds=0.0,
    )
    limits = replace(LIMITS, downtime_limit=0.0, max_rounds=5, xbzrle_cache_size=0)
    planned = predict(guest, PlannedLink(bandwidth, 0.0), limits).rounds
    assert len(planned) == 5
    for (found, sent), row in zip(real, planned, strict=True):
        assert row.pages == pytest.approx(found, rel=0.13, abs=60)
        assert row.wire_bytes / RECORD == pytest.approx(sent, rel=0.13, abs=60)


def test_a_measured_run_is_met() -> None:
    """`thrash`, 20000 pages a second on 48 of 128 MiB, over a token bucket of 50 MB/s: found and sent."""
    measured = [
        (32768, 134.5e6),
        (12170, 49.35e6),
        (9951, 34.4e6),
        (8515, 28.8e6),
        (7820, 26.6e6),
        (7401, 25.7e6),
    ]
    planned = predict(THRASH, PlannedLink(50e6 * 0.95), replace(LIMITS, downtime_limit=0.1))
    for row, (pages, wire) in zip(planned.rounds, measured, strict=False):
        assert row.pages == pytest.approx(pages, rel=0.1)
        assert row.wire_bytes == pytest.approx(wire, rel=0.12)
    assert not planned.converges and len(planned.rounds) == 20


# --- how it ends ------------------------------------------------------------------------------------------


def test_an_idle_guest() -> None:
    found = predict(IDLE, LINK, LIMITS)
    assert found.converges and found.moves and len(found.rounds) == 2
    assert found.wire_bytes == pytest.approx(32768 * RECORD, rel=1e-4)
    assert found.total_seconds == pytest.approx(found.wire_bytes / 50e6, rel=0.08)
    assert found.downtime_seconds is not None and 0.005 < found.downtime_seconds < 0.15


def test_zero_pages_cost_next_to_nothing() -> None:
    found = predict(replace(IDLE, zero_share=0.75), LINK, LIMITS)
    assert found.wire_bytes == pytest.approx(8192 * RECORD + 24576 * 9, rel=1e-3)


@pytest.mark.parametrize(
    ("guest", "changes", "bandwidth", "converges"),
    [
        (workload(), {}, 50e6, True),
        (workload(), {"xbzrle_cache_size": 0}, 15e6, False),
        (workload(), {}, 15e6, True),
        (THRASH, {}, 50e6, False),
        (THRASH, {}, 200e6, True),
        (THRASH, {"downtime_limit": 5.0}, 50e6, True),
        (THRASH, {"max_bandwidth": 20e6}, 200e6, False),
        (workload(written=evenly(9000.0), delta_bytes=evenly(PAGE)), {}, 50e6, False),
        (replace(IDLE, compares_all=True, settle_seconds=0.0, harvest_seconds=0.4), {}, 50e6, False),
        (replace(IDLE, compares_all=True, settle_seconds=0.0, harvest_seconds=0.05), {}, 50e6, True),
    ],
)
def test_whether_it_converges(
    guest: Workload, changes: dict[str, float], bandwidth: float, converges: bool
) -> None:
    found = predict(guest, PlannedLink(bandwidth), replace(LIMITS, **changes))  # type: ignore[arg-type]
    assert found.converges == converges
    assert (found.downtime_seconds is not None) == converges
    assert bool(found.hint) != converges
    assert math.fsum(row.wire_bytes for row in found.rounds) == pytest.approx(found.wire_bytes)


def test_the_first_harvest_of_a_large_guest_waits_until_its_pages_have_settled() -> None:
    large = replace(IDLE, data_pages=100_000)
    fast = PlannedLink(4e9)
    assert predict(large, fast, LIMITS).total_seconds > 2.0
    assert predict(replace(large, settle_seconds=0.0), fast, LIMITS).total_seconds < 1.0


def test_a_pause_that_comes_anyway_is_a_move_that_does_not_converge() -> None:
    found = predict(THRASH, LINK, replace(LIMITS, timeout_action="pause", max_rounds=5))
    assert found.moves and not found.converges
    assert found.downtime_seconds is not None and found.downtime_seconds > 0.3
    assert len(found.rounds) == 6


def test_a_small_cache_holds_the_beginning_of_ram() -> None:
    """A quarter of the data, where the guest writes, or where it does not."""
    small = replace(LIMITS, xbzrle_cache_size=32768 // 4 * (PAGE + 32))
    first = workload(early_share=(1.0,) * 256)
    last = workload(early_share=tuple(max(part - 127, 0) / 128 for part in range(256)))
    whole = replace(LIMITS, xbzrle_cache_size=256 * MIB)

    def hits(guest: Workload, limits: Limits) -> float:
        return predict(guest, LINK, limits).rounds[1].hits

    assert hits(first, small) > 0.9 * hits(first, whole) > 0
    assert hits(last, small) < 0.1 * hits(last, whole)


def test_pages_that_were_written_once_are_in_the_cache_from_then_on() -> None:
    """It has room for what the guest writes, and holds none of it after round 1."""
    guest = workload(early_share=tuple(max(part - 127, 0) / 128 for part in range(256)))
    limits = replace(LIMITS, xbzrle_cache_size=14000 * (PAGE + 32), downtime_limit=0.0, max_rounds=4)
    second, third = predict(guest, PlannedLink(20e6), limits).rounds[1:3]
    assert second.hits == 0
    assert third.hits > 0.4 * third.pages > 0
    assert third.wire_bytes < 0.6 * third.pages * RECORD


@pytest.mark.parametrize("limit", [0.1, 0.2])
def test_what_is_on_its_way_when_a_round_ends_is_through_within_the_limit(limit: float) -> None:
    """A slow link: buffers hold more than the limit allows, so the round waits; the pause finds the rest."""
    guest = replace(IDLE, settle_seconds=0.0)  # nothing else happens at the end of a round
    found = predict(guest, PlannedLink(10e6), replace(LIMITS, downtime_limit=limit))
    assert found.rounds[0].seconds == pytest.approx(found.wire_bytes / 10e6 - limit, rel=0.02)
    assert found.rounds[-1].seconds == pytest.approx(limit, abs=0.03)


# --- advice -----------------------------------------------------------------------------------------------


def test_what_is_needed_is_enough_and_not_much_more() -> None:
    advice = advise(THRASH, LINK, LIMITS)
    assert (
        advice.bandwidth is not None and advice.downtime_limit is not None and advice.guest_speed is not None
    )

    def converges(guest: Workload = THRASH, bandwidth: float = 50e6, limit: float = 0.3) -> bool:
        return predict(guest, PlannedLink(bandwidth), replace(LIMITS, downtime_limit=limit)).converges

    assert converges(bandwidth=advice.bandwidth) and not converges(bandwidth=advice.bandwidth * 0.93)
    assert converges(limit=advice.downtime_limit) and not converges(limit=advice.downtime_limit * 0.93)
    assert converges(THRASH.slower(advice.guest_speed))
    assert not converges(THRASH.slower(min(advice.guest_speed * 1.07, 1.0)))


def test_a_cache_is_worth_what_it_saves() -> None:
    assert advise(IDLE, LINK, LIMITS).cache_size == 0
    size = advise(workload(), PlannedLink(25e6), LIMITS).cache_size
    assert 32 * MIB <= size <= 128 * MIB
    with_it = predict(workload(), PlannedLink(25e6), replace(LIMITS, xbzrle_cache_size=size))
    assert with_it.converges


def test_nothing_helps_a_pause_that_reads_too_much() -> None:
    slow = replace(IDLE, compares_all=True, settle_seconds=0.0, harvest_seconds=0.4)
    advice = advise(slow, LINK, LIMITS)
    assert advice.bandwidth is None and advice.guest_speed is None
    assert advice.downtime_limit is not None and advice.downtime_limit > 0.6


def test_any_guest_gets_an_answer(rng: random.Random) -> None:
    for _ in range(200):
        pages = rng.randrange(1, 1 << rng.randrange(1, 24))
        guest = workload(
            data_pages=pages,
            zero_share=rng.random(),
            written=at_random(rng.uniform(1, pages), rng.uniform(0, 1e6), most=pages),
            written_zero_share=rng.random(),
            delta_bytes=evenly(rng.uniform(0, PAGE)),
            harvest_seconds=rng.uniform(0, 0.1),
            settle_seconds=rng.choice([0.0, 2.0]),
        )
        limits = replace(
            LIMITS,
            xbzrle_cache_size=rng.choice([0, 1 << 13, 1 << 26, 1 << 34]),
            downtime_limit=rng.choice([0.0, 0.001, 0.3, 10.0]),
            max_rounds=rng.choice([1, 3, 30]),
        )
        link = PlannedLink(10 ** rng.uniform(5, 10), rng.uniform(0, 0.1))
        found = predict(guest, link, limits)
        assert 1 <= len(found.rounds) <= limits.max_rounds + 1
        assert math.isfinite(found.total_seconds) and found.total_seconds > 0
        assert 0 < found.wire_bytes <= found.total_seconds * link.bandwidth * 1.001 + QUEUE_BYTES
        assert all(0 <= row.hits <= row.pages * 1.0001 for row in found.rounds)
