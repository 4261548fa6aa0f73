"""What trackers ask of the kernel, in C and in its twin: suspects compared, holes searched, logs taken.

RAM is two blocks of memory files with a gap between them in page space; hypothesis draws what is data, what
was sent and what is asked.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from kernel_support import Side, content, examples

from migrate.kernel import _native as native
from migrate.kernel import reference

LAYOUT = ((b"a", 0, 70), (b"b", 128, 20))
PAGES = st.sets(st.integers(0, 69) | st.integers(128, 147), max_size=40)
RANGES = st.sampled_from([(0, 70), (0, 0), (3, 61), (64, 6), (128, 20), (130, 1)])


def bitmap_of(pages: set[int], size: int = 24) -> bytearray:
    return bytearray(sum(1 << page for page in pages).to_bytes(size, "little"))


def side_with(kernel: Any, page_size: int, data: set[int], sent: set[int]) -> Side:
    """RAM with that data, of which some pages were sent as they are."""
    side = Side(kernel, page_size=page_size, layout=LAYOUT)
    for page in data:
        side.write(page, content(page, page_size), dirty=False)
        if page in sent:
            digest = side.keys.page_digest(content(page, page_size))
            kernel.set_digests(side.digests, page, 1, digest)
    return side


@examples(80)
@given(PAGES, PAGES, PAGES, RANGES, st.sampled_from([1024, 4096]))
def test_scan_pages(
    data: set[int], sent: set[int], suspects: set[int], stretch: tuple[int, int], page_size: int
) -> None:
    results = []
    for kernel in (native, reference):
        side = side_with(kernel, page_size, data, sent)
        dirty, asked = bitmap_of({5}), bitmap_of(suspects)
        count = kernel.scan_pages(side.ram, side.keys, side.digests, *stretch, asked, dirty)
        results.append((count, dirty, asked))
        side.close()
    assert results[0] == results[1]
    first, pages = stretch
    differing = (data - sent) & suspects & set(range(first, first + pages))
    assert results[0] == (len(differing), bitmap_of(differing | {5}), bitmap_of(suspects))


@examples(80)
@given(PAGES, PAGES, RANGES, st.sampled_from([4096, 8192]))
def test_data_pages(data: set[int], suspects: set[int], stretch: tuple[int, int], page_size: int) -> None:
    results = []
    for kernel in (native, reference):
        side = side_with(kernel, page_size, data, set())
        found = bitmap_of({5})
        kernel.data_pages(side.ram, *stretch, bitmap_of(suspects), found)
        results.append(found)
        side.close()
    assert results[0] == results[1]
    first, pages = stretch
    assert results[0] == bitmap_of(data & suspects & set(range(first, first + pages)) | {5})


@examples(150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 400),
    st.sampled_from([1024, 4096, 16384]),
    st.sampled_from([0, 64, 128]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_take_log(seed: int, log_pages: int, page_size: int, first: int, share: float) -> None:
    """Whole pages of RAM; bits of the log beyond them mean nothing, and are taken all the same."""
    rng = random.Random(seed)
    length = -(-log_pages * 4096 // page_size) * page_size
    words = -(-length // 4096 // 64)
    start = bytes(sum((rng.random() < share) << bit for bit in range(8)) for _ in range(8 * max(words, 1)))
    results = []
    for kernel in (native, reference):
        log, bitmap = (
            bytearray(start + bytes(8)),
            bytearray(64 + kernel.bitmap_bytes(first + length // page_size)),
        )
        count = kernel.take_log(log, length, page_size, first, bitmap)
        results.append((count, log, bitmap))
    assert results[0] == results[1]
    marked = [bit for bit in range(-(-length // 4096)) if start[bit >> 3] >> (bit & 7) & 1]
    pages = {first + at // page_size for bit in marked for at in range(bit * 4096, bit * 4096 + 4096, 1024)}
    count, log, bitmap = results[0]
    assert count == len(marked)
    assert not any(log)
    assert {page for page in range(8 * len(bitmap)) if bitmap[page >> 3] >> (page & 7) & 1} == pages
