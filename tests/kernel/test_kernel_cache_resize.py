"""A cache that takes over another one: what stays, what goes, and that both kernels come to the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_support import BULK, ROUND, RULES, SEED, SLOT_BYTES, examples

from migrate.kernel import _native as native
from migrate.kernel import reference

PAGE_SIZE = 1024
A, B, C = (bytes([n]) * PAGE_SIZE for n in (1, 2, 3))


def make(kernel: Any, keys: Any, slots: int, rule: str) -> Any:
    return kernel.PageCache(keys, slots * (PAGE_SIZE + SLOT_BYTES), rule)


def ages(cache: Any) -> list[tuple[int, int]]:
    return [(page, age) for page, age, _ in cache.items()]


@pytest.mark.parametrize("rule", RULES)
def test_a_larger_cache_keeps_everything(kernel: Any, rule: str) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    small, large = make(kernel, keys, 16, rule), make(kernel, keys, 64, rule)
    for number, page in enumerate((3, 40, 7, 21, 9)):
        assert small.put(page, (A, B, C)[number % 3], 2 + number, ROUND)
    assert large.put(50, A, 1, ROUND)
    held, digest = sorted(small.items()), small.digest
    large.take_over(small)
    assert sorted(large.items()) == sorted(small.items()) == held, "and what it held itself is gone"
    assert (large.digest, large.entries) == (digest, 5)
    assert large.get(40) == B
    assert large.put(40, C, 9, ROUND) and small.get(40) == B, "neither knows the other any more"


def test_qemus_rule_keeps_the_younger_of_two_in_one_slot(kernel: Any) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    large, small = make(kernel, keys, 8, "qemu"), make(kernel, keys, 4, "qemu")
    for page, age in ((0, 5), (4, 6), (1, 6), (5, 5), (2, 5), (6, 5), (7, 1)):
        assert large.put(page, bytes([page]) * PAGE_SIZE, age, ROUND)
    small.take_over(large)
    assert ages(small) == [(4, 6), (1, 6), (2, 5), (7, 1)]
    assert all(small.get(page) == bytes([page]) * PAGE_SIZE for page in (4, 1, 2, 7))


def test_the_default_rule_keeps_the_youngest_of_a_set(kernel: Any) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    large, small = make(kernel, keys, 24, "default"), make(kernel, keys, 3, "default")
    for page, age in ((0, 0), (3, 4), (1, 3), (4, 9), (2, 4), (5, 3)):  # three sets: 0 3, 1 4, 2 5
        assert large.put(page, A, age, BULK if age == 0 else ROUND)
    small.take_over(large)
    assert ages(small) == [(4, 9), (3, 4), (2, 4)]


def test_the_score_of_the_duel_is_taken_along(kernel: Any) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    large, small = make(kernel, keys, 168, "default"), make(kernel, keys, 88, "default")
    for page in range(152):  # 19 full sets
        assert large.put(page, A, 1, ROUND)
    assert not large.put(1900, A, 2, ROUND)  # set 0 lost a page: the long lifetime
    small.take_over(large)
    assert small.entries == 88
    assert not small.put(1101, A, 16, ROUND)
    assert small.put(1101, A, 17, ROUND)


@pytest.mark.parametrize("rule", RULES)
def test_to_nothing_and_back(kernel: Any, rule: str) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    cache, none = make(kernel, keys, 8, rule), make(kernel, keys, 0, rule)
    assert cache.put(1, A, 2, ROUND)
    none.take_over(cache)
    assert (none.items(), none.digest, none.entries) == ([], 0, 0)
    cache.take_over(none)
    assert (cache.items(), cache.digest, cache.entries) == ([], 0, 0)


def test_what_cannot_be_taken_over(kernel: Any) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    cache = make(kernel, keys, 8, "default")
    assert cache.put(1, A, 2, ROUND)
    for other in (
        cache,
        make(kernel, keys, 8, "qemu"),
        make(kernel, kernel.Keys(SEED, PAGE_SIZE), 8, "default"),
    ):
        with pytest.raises(ValueError):
            cache.take_over(other)
    assert cache.items() == [(1, 2, A)]


@examples(80)
@given(
    st.sampled_from(RULES),
    st.lists(st.sampled_from([0, 1, 3, 8, 9, 16, 24, 90, 150]), min_size=2, max_size=5),
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from([BULK, ROUND, ROUND])),
        min_size=1,
        max_size=120,
    ),
)
def test_both_kernels_come_to_the_same(
    rule: str, sizes: list[int], writes: list[tuple[int, int, int]]
) -> None:
    """Some writes, another size, and so on. The digest is what the entries say, whatever the way there."""
    contents = [bytes([n]) * PAGE_SIZE for n in range(4)]
    made = {kernel: kernel.Keys(SEED, PAGE_SIZE) for kernel in (native, reference)}
    caches = [make(kernel, keys, sizes[0], rule) for kernel, keys in made.items()]
    share = len(writes) // len(sizes) + 1
    for number, slots in enumerate(sizes):
        larger = [make(kernel, keys, slots, rule) for kernel, keys in made.items()]
        for new, old in zip(larger, caches, strict=True):
            new.take_over(old)
        caches = larger
        for page, which, stage in writes[number * share : (number + 1) * share]:
            assert caches[0].put(page, contents[which], number * 3 + which, stage) == caches[1].put(
                page, contents[which], number * 3 + which, stage
            )
        assert caches[0].items() == caches[1].items()
        assert caches[0].digest == caches[1].digest
        assert caches[0].entries == caches[1].entries == len(caches[1].items())
