"""XBZRLE: the delta of a page against a copy that the other side holds too (qemu-ram-stream.md section 3)."""

from __future__ import annotations

import re

LONGEST_RUN = 16383  # LEB128 of 14 bits


def xbzrle_encode(old: bytes, new: bytes, limit: int, gap: int) -> bytes | None:
    """Delta that makes `new` out of `old`.

    Layout: pairs of (unchanged run: length; changed run: length and the new bytes), lengths as LEB128 of
    14 bits; what is unchanged at the end is left out. Unchanged stretches of up to `gap` bytes between two
    changes stay inside the changed run; gap 0 is QEMU's own form.

    Returns:
        b"" if the pages are equal, None if the delta does not fit into `limit` bytes by the rules A, B and
        C of qemu-ram-stream.md 3.3 (A also strikes when only an unchanged tail is left).

    Raises:
        ValueError: lengths differ, or are above 16383, which no run length can express.
    """
    size = len(new)
    if len(old) != size:
        raise ValueError(f"pages of different length: {len(old)} and {size} bytes")
    if size > LONGEST_RUN:
        raise ValueError(f"XBZRLE cannot express pages of {size} bytes")
    difference = (int.from_bytes(old, "little") ^ int.from_bytes(new, "little")).to_bytes(size, "little")
    delta = b""
    end = 0
    for run in re.finditer(rb"[^\0]+(?:\0{1,%d}[^\0]+)*" % gap if gap else rb"[^\0]+", difference):
        if len(delta) + 2 > limit:
            return None  # rule A
        delta += _length(run.start() - end)
        if len(delta) + 2 > limit:
            return None  # rule B
        delta += _length(len(run[0]))
        if len(delta) + len(run[0]) > limit:
            return None  # rule C
        end = run.end()
        delta += new[run.start() : end]
    if end < size and len(delta) + 2 > limit:
        return None  # rule A, before the unchanged tail
    return delta


def xbzrle_decode(delta: bytes | bytearray | memoryview, page: bytearray) -> int:
    """Apply a delta in place (qemu-ram-stream.md 3.4).

    Returns:
        The end of the last change, 0 for an empty delta.

    Raises:
        ValueError: the delta is malformed or leaves the page; `page` is then as before.
    """
    source = bytes(delta)
    changes = []
    at = place = 0
    while at < len(source):
        unchanged, at = _read_length(source, at, may_be_zero=at == 0)
        place += unchanged
        changed, at = _read_length(source, at, may_be_zero=False)
        if place + changed > len(page):
            raise ValueError("a run leaves the page")
        if at + changed > len(source):
            raise ValueError("the delta ends inside a run")
        changes.append((place, source[at : at + changed]))
        at += changed
        place += changed
    for start, content in changes:
        page[start : start + len(content)] = content
    return place


def _length(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def _read_length(source: bytes, at: int, *, may_be_zero: bool) -> tuple[int, int]:
    """A length at `at` and where it ends. More must follow it: an unchanged run never ends a delta."""
    if len(source) - at < 2:
        raise ValueError("the delta ends inside a pair of runs")
    value = source[at]
    at += 1
    if value & 128:
        if source[at] & 128:
            raise ValueError("a run length of more than 14 bits")
        value = value & 127 | source[at] << 7
        at += 1
    if value == 0 and not may_be_zero:
        raise ValueError("an empty run")
    return value, at
