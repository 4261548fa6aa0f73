"""Sizes, rates and durations: what people type is what they get, and what they read is close enough."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.units import (
    format_count,
    format_duration,
    format_rate,
    format_size,
    format_time_left,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1K", 1024),
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MiB", 64 << 20),
        ("64MB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("1G", 1 << 30),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("2T", 2 << 40),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1X", "1Mbit", "0x10", "1e6", "1,5G", "1.", ".5G", "0.3", "64M x", "٤", "9999999999T"],
)
def test_what_is_no_size_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("0Mbit", 0),
        ("200M", 200 << 20),
        ("200MiB/s", 200 << 20),
        ("200M/s", 200 << 20),
        ("100Mbit", 12_500_000),
        ("100Mbit/s", 12_500_000),
        ("100mbps", 12_500_000),
        ("1Gbit", 125_000_000),
        ("2.5Gbit", 312_500_000),
        ("8bit", 1),
        ("1bit", 1),  # never 0, that would be "unlimited"
    ],
)
def test_byte_rates_are_binary_and_bit_rates_decimal(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "100Mbits", "-1M", "100/s/s", "1Mbit/h", "99999999999Tbit"])
def test_what_is_no_rate_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_rate(text)


@given(st.integers(0, 1 << 62))
def test_a_number_of_bytes_reads_back(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_rate(str(size)) == size


@given(st.integers(0, 1 << 49))
def test_a_formatted_size_reads_back_within_its_three_digits(size: int) -> None:
    text = format_size(size).removesuffix("B").removesuffix("i").replace(" ", "")
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", text).groups()  # type: ignore[union-attr]
    back = float(number) * parse_size(f"1{unit}")
    assert abs(back - size) <= 0.0051 * size
    assert len(number.replace(".", "").lstrip("0")) <= 4  # 1000 to 1023 B have no smaller unit to go to


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1_023_590, "0.98 MiB"),  # not 1000 KiB
        (64 << 20, "64 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (999 << 20, "999 MiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_formatted_sizes(size: int, text: str) -> None:
    assert format_size(size) == text
    assert format_rate(size) == f"{text}/s"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9999, "9999"), (12345, "12.3k"), (999_900, "1M"), (2_500_000, "2.5M")]
)
def test_formatted_counts(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.25, "1.25 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (10_920, "3 h 02 min"),
        (math.inf, "∞"),
    ],
)
def test_formatted_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("at_best", "at_worst", "text"),
    [
        (0.1, 0.9, "under 1 s"),
        (4.2, 9.1, "4 to 9 s"),
        (4.2, 4.3, "about 4 s"),
        (45, 600, "45 s to 10 min"),
        (120, 900, "2 to 15 min"),
        (7200, 36000, "2 to 10 h"),
        (12, math.inf, "12 s or more"),
        (math.inf, math.inf, "not converging"),
    ],
)
def test_time_left_is_a_range(at_best: float, at_worst: float, text: str) -> None:
    assert format_time_left(at_best, at_worst) == text
