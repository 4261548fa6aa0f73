"""Sizes, rates and durations as people type and read them.

Sizes and byte rates are binary: `64M` is 64 * 2**20 bytes. Bit rates are decimal, as links are sold:
`100Mbit` is 100 * 10**6 bits, 12 500 000 bytes, a second. The same rule reads and writes.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LARGEST = 1 << 62  # fits signed 64-bit fields everywhere, with room for sums

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_BIT_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:bit|bps)(?:/s)?", re.IGNORECASE | re.ASCII)


def _scaled(number: str, factor: int, text: str) -> int:
    value = Fraction(number) * factor
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if value > _LARGEST:
        raise ValueError(f"{text!r} is too large")
    return int(value)


def parse_size(text: str) -> int:
    """Bytes of `4096`, `64M`, `1.5G`, `64MiB`, `64MB` (all binary; case does not matter).

    Raises ValueError with a message for the person who typed it.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for instance 4096, 64M or 1.5G (1M = 2^20 bytes)")
    return _scaled(match[1], _BINARY[(match[2] or "").upper()], text)


def parse_rate(text: str) -> int:
    """Bytes a second of `200M` (binary bytes), `200M/s`, `100Mbit` or `1Gbit` (decimal bits).

    A bit rate that is no whole number of bytes a second is rounded down, but never to 0: that would
    mean "unlimited". Raises ValueError with a message for the person who typed it.
    """
    stripped = text.strip()
    if match := _BIT_RATE.fullmatch(stripped):
        bits = Fraction(match[1]) * _DECIMAL[match[2].upper()]
        if bits > 8 * _LARGEST:
            raise ValueError(f"{text!r} is too large")
        return max(int(bits / 8), 1) if bits else 0
    try:
        return parse_size(re.sub(r"/s\Z", "", stripped))
    except ValueError:
        raise ValueError(
            f"{text!r} is not a rate; write for instance 200M (bytes a second, 1M = 2^20) or 100Mbit"
        ) from None


def format_size(size: float) -> str:
    """`0 B`, `512 B`, `1.5 KiB`, `64 MiB`, `1.00 GiB`: three significant digits, binary."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 999.5 or unit == "TiB":  # 999.6 would show as 1000
            return f"{_three_digits(size)} {unit}"
    raise AssertionError("unreachable")


def format_rate(bytes_per_second: float) -> str:
    """As `format_size`, a second: `117 MiB/s`."""
    return f"{format_size(bytes_per_second)}/s"


def format_count(count: float) -> str:
    """A number of pages: `950`, `12.3k`, `1.05M` (decimal)."""
    if count < 9999.5:
        return f"{count:.0f}"
    for unit in "kMGT":
        count /= 1000
        if count < 999.5 or unit == "T":
            return f"{_three_digits(count)}{unit}"
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """`0 ms`, `12 ms`, `1.25 s`, `59.9 s`, `2 min 05 s`, `3 h 02 min`; `∞` if it never ends."""
    if math.isinf(seconds):
        return "∞"
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if 0.05 <= milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def _three_digits(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_time_left(at_best: float, at_worst: float) -> str:
    """A range, roughly: `4 to 9 s`, `under 1 s`, `2 to 15 min`, `12 s or more`, `not converging`."""
    if math.isinf(at_best):
        return "not converging"
    if math.isinf(at_worst):
        return f"{_rough(at_best)} or more"
    if at_worst < 1:
        return "under 1 s"
    low, high = _rough(at_best), _rough(at_worst)
    if low == high:
        return f"about {high}"
    low_number, low_unit = low.split(" ")
    return f"{low_number if low_unit == high.split(' ')[1] else low} to {high}"


def _rough(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"
