"""Token bucket and meter: bytes counted over passed-in time, no clock and no sleep anywhere."""

from __future__ import annotations

import random
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.protocol.bandwidth import MAX_BATCH, MIN_BATCH, RateMeter, TokenBucket, batch_limit

# --- TokenBucket ---------------------------------------------------------------------------------------

requests = st.lists(
    st.tuples(st.floats(0, 2), st.integers(0, 500_000)),  # seconds since the request before, bytes
    min_size=1,
    max_size=60,
)


@given(rate=st.floats(1_000, 1e7), burst=st.integers(1, 200_000), requests=requests)
def test_no_window_carries_more_than_rate_and_burst(
    rate: float, burst: int, requests: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst)
    now, sent = 1000.0, []
    for gap, nbytes in requests:
        now += gap
        sent.append((now + bucket.delay(now, nbytes), nbytes))
    largest = max(burst, *(nbytes for _, nbytes in requests))
    for first in range(len(sent)):
        total = 0
        for moment, nbytes in sent[first:]:
            total += nbytes
            assert total <= rate * (moment - sent[first][0]) + largest + 1e-3


@given(
    rate=st.floats(1_000, 1e8),
    burst=st.integers(1, 200_000),
    sizes=st.lists(st.integers(1, 2_000_000), min_size=1, max_size=50),
)
def test_a_sender_that_always_has_something_gets_the_rate_exactly(
    rate: float, burst: int, sizes: list[int]
) -> None:
    bucket = TokenBucket(rate, burst)
    now = 50.0
    for nbytes in sizes:
        now += bucket.delay(now, nbytes)
    # Everything up to the last batch is paid for, except what the bucket held at the start.
    assert rate * (now - 50.0) == pytest.approx(
        max(0, sum(sizes[:-1]) + min(sizes[-1], burst) - burst), rel=1e-9, abs=1e-3
    )


@given(late=st.lists(st.floats(0, 0.009), min_size=200, max_size=200))
def test_waking_up_late_costs_no_throughput(late: list[float]) -> None:
    rate, burst, batch = 1e6, 20_000, 10_000  # late by less than (burst - batch) / rate
    bucket = TokenBucket(rate, burst)
    now = 0.0
    for delay in late:
        now += bucket.delay(now, batch) + delay
    assert now <= (len(late) * batch - burst) / rate + 0.009 + 1e-6


def test_a_batch_larger_than_the_burst_goes_at_once_and_the_next_one_pays() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    assert bucket.delay(0.0, 1100) == 0
    assert bucket.delay(0.0, 50) == pytest.approx(1.05)
    assert bucket.delay(5.0, 100) == 0


def test_reservations_are_served_in_order() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    assert [bucket.delay(0.0, 100) for _ in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_an_idle_bucket_saves_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    bucket.delay(0.0, 100)
    assert bucket.delay(3600.0, 100) == 0
    assert bucket.delay(3600.0, 100) == pytest.approx(0.1)


def test_a_clock_read_before_another_threads_turn_does_not_earn_twice() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    bucket.delay(10.0, 100)
    assert bucket.delay(9.9, 100) == pytest.approx(0.2)  # not before 10.1


def test_unlimited_never_waits() -> None:
    bucket = TokenBucket(rate=0, burst=1)
    assert all(bucket.delay(0.0, 1 << 30) == 0 for _ in range(5))


def test_a_debt_is_paid_at_the_new_rate() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    bucket.delay(0.0, 1100)  # 1000 in debt
    bucket.set_rate(0.5, 10_000)  # 500 in debt
    assert bucket.delay(0.5, 100) == pytest.approx(0.06)


def test_lifting_the_limit_forgives_the_debt_and_setting_it_again_begins_with_a_full_bucket() -> None:
    bucket = TokenBucket(rate=1000, burst=100)
    bucket.delay(0.0, 100_000)
    bucket.set_rate(1.0, 0)
    assert bucket.delay(1.0, 100_000) == 0
    bucket.set_rate(2.0, 1000)
    assert bucket.rate == 1000
    assert bucket.delay(2.0, 100) == 0
    assert bucket.delay(2.0, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(("rate", "burst"), [(-1, 1), (1, 0), (1, -1)])
def test_nonsense_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match=r"rate|burst"):
        TokenBucket(rate, burst)
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(1, 1).set_rate(0.0, -1)


def test_threads_together_get_one_rate(rng: random.Random) -> None:
    bucket = TokenBucket(rate=1e6, burst=1000)
    sizes = [[rng.randrange(1, 5000) for _ in range(2000)] for _ in range(4)]
    moments: list[float] = []

    def lane(mine: list[int]) -> None:
        moments.extend(bucket.delay(0.0, nbytes) for nbytes in mine)

    threads = [threading.Thread(target=lane, args=(mine,)) for mine in sizes]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # make a missing lock show
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    total = sum(map(sum, sizes))
    # Whichever reservation was the last: everything before it had to be paid.
    assert total - 1000 - 5000 <= max(moments) * 1e6 <= total - 1000 + 1e-3


# --- batch_limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "body"),
    [
        (0, MAX_BATCH),
        (1, MIN_BATCH),
        (MIN_BATCH * 20, MIN_BATCH),
        (10_000_000, 500_000),
        (MAX_BATCH * 20, MAX_BATCH),
        (1e12, MAX_BATCH),
    ],
)
def test_a_batch_lasts_fifty_milliseconds_within_its_bounds(rate: float, body: int) -> None:
    assert batch_limit(rate) == body


# --- RateMeter -----------------------------------------------------------------------------------------


def steady(meter: RateMeter, begin: float, seconds: float, rate: float, step: float = 0.01) -> float:
    """Acknowledge `rate` bytes/s for a while; returns the time after it."""
    for i in range(1, round(seconds / step) + 1):
        meter.add(begin + i * step, round(rate * step))
    return begin + seconds


def test_no_answer_before_there_is_enough() -> None:
    meter = RateMeter(window=2, minimum=0.1)
    assert meter.rate(0.0) is None
    meter.busy(0.0)
    assert meter.rate(5.0) is None  # busy for long, but nothing acknowledged: not known, not 0
    meter = RateMeter(window=2, minimum=0.1)
    meter.busy(0.0)
    meter.add(0.05, 1000)
    assert meter.rate(0.05) is None
    assert meter.rate(0.1) == pytest.approx(10_000)


def test_a_steady_stream_is_measured() -> None:
    meter = RateMeter(window=2)
    meter.busy(10.0)
    now = steady(meter, 10.0, 5, 50_000_000)
    assert meter.rate(now) == pytest.approx(50_000_000, rel=0.02)


def test_the_window_follows_a_change() -> None:
    meter = RateMeter(window=2)
    meter.busy(0.0)
    now = steady(meter, 0.0, 5, 50_000_000)
    now = steady(meter, now, 2.1, 5_000_000)
    assert meter.rate(now) == pytest.approx(5_000_000, rel=0.02)


def test_a_silent_link_decays_to_nothing() -> None:
    meter = RateMeter(window=2)
    meter.busy(0.0)
    now = steady(meter, 0.0, 3, 1_000_000)
    assert meter.rate(now + 1) == pytest.approx(500_000, rel=0.03)
    assert meter.rate(now + 2.1) == 0


@given(
    pauses=st.lists(st.floats(0, 1000), min_size=1, max_size=10),
    rate=st.integers(100_000, 1_000_000_000),
)
def test_idle_time_does_not_count(pauses: list[float], rate: int) -> None:
    with_pauses, without = RateMeter(window=2), RateMeter(window=2)
    without.busy(0.0)
    now, plain = 0.0, 0.0
    for pause in pauses:
        with_pauses.busy(now)
        now, plain = steady(with_pauses, now, 0.2, rate), steady(without, plain, 0.2, rate)
        with_pauses.idle(now)
        now += pause
    assert with_pauses.rate(now) == pytest.approx(without.rate(plain), rel=0.02)


def test_saying_busy_or_idle_twice_changes_nothing() -> None:
    meter = RateMeter(window=2)
    meter.idle(0.0)
    meter.busy(1.0)
    meter.busy(1.5)
    meter.add(2.0, 1_000_000)
    meter.idle(2.0)
    meter.idle(3.0)
    assert meter.rate(4.0) == pytest.approx(1_000_000)


@given(st.lists(st.tuples(st.floats(0.0001, 0.5), st.integers(1, 10_000_000)), min_size=1, max_size=200))
def test_the_rate_is_never_above_what_was_acknowledged(acks: list[tuple[float, int]]) -> None:
    meter = RateMeter(window=2, minimum=0.1)
    meter.busy(0.0)
    now, total = 0.0, 0
    for gap, nbytes in acks:
        now += gap
        total += nbytes
        meter.add(now, nbytes)
        rate = meter.rate(now)
        assert rate is None or rate * min(now, 2) <= total * (1 + 1e-9)


def test_memory_is_bounded_however_many_acknowledgements_come() -> None:
    meter = RateMeter(window=2)
    meter.busy(0.0)
    steady(meter, 0.0, 4, 1_000_000, step=0.0002)
    assert len(meter._steps) <= 101
