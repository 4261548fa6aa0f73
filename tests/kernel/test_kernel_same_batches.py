"""The batch calls of the C kernel against those of its twin: whole migrations, and bodies nobody would send.

Structure is hypothesis's, so that a failure shrinks; bulk content comes from a seed that it draws.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st
from kernel_support import (
    BULK,
    CHANGES,
    HOOK,
    LAST,
    PAGE,
    ROUND,
    SEED,
    XBZRLE,
    ZERO,
    Batch,
    Side,
    change,
    content,
    examples,
    record,
    sides,
)

from migrate.errors import RecordError
from migrate.kernel import _native as native
from migrate.kernel import reference

STAGES = st.sampled_from([BULK, ROUND, ROUND, LAST])
PAGES = st.integers(0, 14)
LAYOUTS = (
    ((b"a", 0, 15),),
    ((b"a", 64, 7), (b"bb", 0, 5)),
    ((b"n" * 255, 0, 3), (b"m" * 255, 64, 8), (b"x", 128, 1)),
)


@dataclass(frozen=True)
class Round:
    """What a guest and the machine do before a round, and how the round is cut. Pages modulo their number."""

    stage: int
    writes: list[tuple[int, str]]
    marked: list[int]
    owed: list[int]
    gap_bits: bool
    limit: int


ROUNDS = st.lists(
    st.builds(
        Round,
        stage=STAGES,
        writes=st.lists(
            st.tuples(PAGES, st.sampled_from(("1", "8", "run", *CHANGES))), min_size=3, max_size=12
        ),
        marked=st.lists(PAGES, max_size=6),
        owed=st.lists(PAGES, max_size=3),
        gap_bits=st.booleans(),
        limit=st.integers(0, 9000),
    ),
    min_size=2,
    max_size=5,
)


@examples(90)
@given(
    st.data(),
    st.integers(0, 2**32),
    st.sampled_from(LAYOUTS),
    st.sampled_from([1024] * 5 + [4096] * 2 + [16384]),
    st.sampled_from(
        [(3, "default"), (4, "qemu"), (16, "default"), (16, "qemu")] * 3 + [(0, "qemu"), (None, "")]
    ),
    st.sampled_from([BULK, ROUND]),
    ROUNDS,
)
def test_fill_and_apply(
    data: st.DataObject,
    seed: int,
    layout: tuple[tuple[bytes, int, int], ...],
    page_size: int,
    cache: tuple[int | None, str],
    first_stage: int,
    rounds: list[Round],
) -> None:
    """Both fill from the same RAM; each batch goes to a destination of either kernel."""
    rng = random.Random(seed)
    options: dict[str, Any] = {"page_size": page_size, "layout": layout, "slots": cache[0], "rule": cache[1]}
    with sides(native, 2, **options) as [source, target], sides(reference, **options) as [twin_target]:
        twin = Side(reference, files=source.files, **options)
        pages = source.pages
        every = list(range(len(pages)))
        begin = Round(first_stage, [(n, "random") for n in every[::2]], every, [], False, 0)
        for number, round in enumerate([begin, *rounds], 1):
            for index, kind in round.writes:
                page = pages[index % len(pages)]
                source.write(page, change(rng, source.read(page), kind))
            source.mark(*[pages[index % len(pages)] for index in round.marked])
            source.mark(*[pages[index % len(pages)] for index in round.owed], owed=True)
            if round.gap_bits:
                source.mark(*[page for page in range(source.ram.total_pages) if page not in pages])
            twin.pending[:], twin.owed[:] = source.pending, source.owed
            limit = 8 + 1 + 255 + page_size + round.limit
            start = 0
            finished = False
            while not finished:
                ours = source.fill(number, round.stage, start=start, limit=limit)
                theirs = twin.fill(number, round.stage, start=start, limit=limit)
                assert ours == theirs
                assert_same(source, twin)
                same_apply(data, target, twin_target, ours, number, round.stage)
                for counter in ("xbzrle", "overflow", "cache_miss", "unchanged", "zero"):
                    if getattr(ours.result, counter):
                        event(counter)
                finished, start = ours.result.finished, ours.result.next_page
        assert target.image() == source.image() == twin_target.image()


def same_apply(data: st.DataObject, ours: Side, theirs: Side, batch: Batch, round: int, stage: int) -> None:
    readback = data.draw(st.booleans())
    results = [side.apply(batch, round, stage, readback=readback) for side in (ours, theirs)]
    assert results[0] == results[1]
    assert_same(ours, theirs)


def assert_same(one: Side, two: Side) -> None:
    assert (one.digests, one.pending, one.owed) == (two.digests, two.pending, two.owed)
    assert one.held() == two.held()
    assert one.cache_digest() == two.cache_digest()
    assert one.root == two.root


APPLY_LAYOUT = ((b"a", 0, 6), (b"bb", 64, 70))
KNOWN = {b"a": (0, 2), b"bb": (64, 65, 69)}  # pages with content, and cached
DELTAS = (b"\0\1\1", b"\5\2\1\2\xf0\7\1\3", b"\xff\x07\x01\x09", b"\x80\0\x84\0\1\2\3\4")
NO_DELTAS = (b"\0", b"\5\1", b"\xff\x07\x02\1\1", b"\0\0\1", b"\0\1\1\0\1\1", b"\0\1\1\7")
FLAWS = (
    "flags",
    "name",
    "no name",
    "place",
    "fill",
    "encoding",
    "length",
    "delta",
    "empty",
    "not held",
    "short",
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Records that are mostly legal; about every second body has a flaw somewhere, or damage."""
    body = b""
    name = b""
    for _ in range(draw(st.integers(1, 8))):
        flaw = draw(st.sampled_from(["none"] * 60 + list(FLAWS)))
        named = not name or draw(st.booleans())
        name = draw(st.sampled_from(list(KNOWN))) if named else name
        flags = draw(st.sampled_from([ZERO, PAGE, XBZRLE, XBZRLE]))
        first = 0 if name == b"a" else 64
        page = draw(
            st.sampled_from(KNOWN[name])
            if flags == XBZRLE and flaw != "not held"
            else st.integers(first, first + 5)
        )
        offset = (page - first if flaw != "place" else draw(st.sampled_from([6, 70, 1 << 50]))) * 1024
        delta = draw(st.sampled_from(NO_DELTAS if flaw == "delta" else DELTAS))
        delta = draw(st.sampled_from([delta] * 9 + [b""])) if flaw != "empty" else b""
        length = len(delta) if flaw != "length" else draw(st.sampled_from([1024, 1025, 60000]))
        payload = {
            ZERO: b"\7" if flaw == "fill" else b"\0",
            PAGE: draw(st.sampled_from([bytes(1024), content(1), content(2)])),
            XBZRLE: struct.pack(">BH", draw(st.integers(0, 255)) if flaw == "encoding" else 1, length)
            + delta,
        }[flags]
        if flaw == "flags":
            flags = draw(st.sampled_from([HOOK, HOOK, 0x10, ZERO | PAGE, 0x200, 0]))
        said = draw(st.sampled_from([b"", b"b", b"bbb"])) if flaw == "name" else name
        body += record(flags, offset, said if named and flaw != "no name" else None, payload)
        body = body[:-1] if flaw == "short" else body
    damage = draw(st.sampled_from(["none"] * 9 + ["cut", "flip", "insert"]))
    at = draw(st.integers(0, len(body) - 1))
    if damage == "cut":
        return body[:at]
    if damage == "flip":
        return body[:at] + bytes([body[at] ^ 1 << draw(st.integers(0, 7))]) + body[at + 1 :]
    return body[:at] + draw(st.binary(min_size=1, max_size=3)) + body[at:] if damage == "insert" else body


class RecordingKeys(reference.Keys):
    """Remembers every term it was asked for: what an honest sender of a strange body would have promised."""

    def __init__(self) -> None:
        super().__init__(SEED, 1024)
        self.terms: list[int] = []

    def term(self, page: int, digest: int) -> int:
        self.terms.append(super().term(page, digest))
        return self.terms[-1]


def prepare(side: Side) -> None:
    """RAM, digests and cache in the middle of a migration; one cached copy is not what RAM has."""
    for page in sum(KNOWN.values(), ()):
        side.write(page, content(page), dirty=False)
        side.kernel.set_digests(side.digests, page, 1, side.keys.page_digest(content(page)))
        if side.cache is not None:
            side.cache.put(page, content(page if page != 64 else 99), 2, ROUND)


@examples(300)
@given(
    bodies(),
    st.sampled_from([(None, "default"), (8, "default"), (8, "qemu"), (2, "default")]),
    STAGES,
    st.sampled_from([(0, 1)] * 10 + [(0, 2), (1, 2)]),
    st.sampled_from([0] * 10 + [1, -1]),
    st.booleans(),
)
def test_apply_of_strange_bodies(
    body: bytes, cache: tuple[int | None, str], stage: int, lane: tuple[int, int], extra: int, readback: bool
) -> None:
    """The same result and RAM, or the same rule at the same offset and RAM as it was."""
    options: dict[str, Any] = {"layout": APPLY_LAYOUT, "slots": cache[0], "rule": cache[1]}

    def run(kernel: Any, records: int, total: int, keys: Any = None) -> tuple[Any, ...]:
        with sides(kernel, **options) as [side]:
            prepare(side)
            side.keys = keys or side.keys
            image, digests = side.image(), bytes(side.digests)
            try:
                result = side.apply_body(
                    body, records, total, 3, stage, lane=lane[0], lanes=lane[1], readback=readback
                )
            except RecordError as error:
                assert (side.image(), side.digests) == (image, digests)
                return error.rule, error.offset
            return result, side.image(), bytes(side.digests), side.held(), side.cache_digest()

    keys = RecordingKeys()
    run(reference, 2**31, 0, keys)
    records, total = len(keys.terms) + extra, sum(keys.terms) % 2**128
    ours, theirs = (run(kernel, max(records, 0), total) for kernel in (native, reference))
    event(ours[0] if isinstance(ours[0], str) else "accepted")
    assert ours == theirs
