"""The page cache: geometry, QEMU's rule by its published trace, the default rule case by case."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_support import BULK, LAST, ROUND, RULES, SEED, SLOT_BYTES

PAGE_SIZE = 1024
A, B, C = (bytes([n]) * PAGE_SIZE for n in (1, 2, 3))


def make(kernel: Any, slots: int, rule: str, page_size: int = PAGE_SIZE) -> Any:
    return kernel.PageCache(kernel.Keys(SEED, page_size), slots * (page_size + SLOT_BYTES), rule)


def ages(cache: Any) -> list[tuple[int, int]]:
    return [(page, age) for page, age, _ in cache.items()]


@pytest.mark.parametrize(
    ("room", "default", "qemu"),
    [
        (0, 0, 0), (1, 1, 1), (3, 3, 2), (7, 7, 4), (8, 8, 8), (15, 8, 8), (16, 16, 16), (24, 24, 16),
        (31, 24, 16), (32, 24, 32), (33, 24, 32), (40, 40, 32), (63, 56, 32), (64, 56, 64),
        (72, 56, 64), (1000, 904, 512), (1024, 1016, 1024), (2040, 2008, 1024),
    ],
)  # fmt: skip
def test_geometry(kernel: Any, room: int, default: int, qemu: int) -> None:
    """A prime number of sets of 8; a power of two. Never above the budget."""
    for rule, slots in (("default", default), ("qemu", qemu)):
        for more in (0, PAGE_SIZE + SLOT_BYTES - 1):
            budget = room * (PAGE_SIZE + SLOT_BYTES) + more
            cache = kernel.PageCache(kernel.Keys(SEED, PAGE_SIZE), budget, rule)
            assert (cache.slots, cache.entries, cache.rule) == (slots, 0, rule)
            assert cache.bytes_allocated == slots * (PAGE_SIZE + SLOT_BYTES) <= budget
            assert (cache.digest, cache.items()) == (0, [])


def test_other_rules_are_refused(kernel: Any) -> None:
    with pytest.raises(ValueError):
        make(kernel, 8, "lru")


@pytest.mark.parametrize("rule", RULES)
def test_a_cache_without_slots_holds_nothing(kernel: Any, rule: str) -> None:
    cache = make(kernel, 0, rule)
    assert not cache.put(3, A, 2, ROUND)
    assert cache.get(3) is None
    assert not cache.touch(3, 2)
    cache.clear()
    assert (cache.slots, cache.entries, cache.digest) == (0, 0, 0)


def test_qemus_trace(kernel: Any) -> None:
    """qemu-ram-stream.md 13.2: 4 KiB pages, two slots; a hit is a touch."""
    cache = make(kernel, 2, "qemu", 4096)
    content = bytes(4096)
    trace = [
        ("lookup", 0x0, 2, False, []),
        ("insert", 0x0, 2, True, [(0x0, 2)]),
        ("insert", 0x2000, 2, False, [(0x0, 2)]),
        ("insert", 0x2000, 3, False, [(0x0, 2)]),
        ("insert", 0x2000, 4, True, [(0x2000, 4)]),
        ("insert", 0x0, 5, False, [(0x2000, 4)]),
        ("lookup", 0x2000, 5, True, [(0x2000, 5)]),
        ("insert", 0x0, 6, False, [(0x2000, 5)]),
        ("insert", 0x0, 7, True, [(0x0, 7)]),
    ]
    for operation, address, round, expected, slot in trace:
        if operation == "lookup":
            assert cache.touch(address // 4096, round) is expected
        else:
            assert cache.put(address // 4096, content, round, ROUND) is expected
        assert [(page * 4096, age) for page, age in ages(cache)] == slot


def test_qemu_writes_in_the_rounds_only(kernel: Any) -> None:
    cache = make(kernel, 4, "qemu")
    for stage in (BULK, LAST):
        assert not cache.put(1, A, 5, stage)
        assert cache.items() == []
    assert cache.put(1, A, 5, ROUND)
    assert cache.put(1, B, 6, ROUND)  # a held page is replaced at any age
    for stage in (BULK, LAST):
        assert not cache.put(1, C, 7, stage)
        assert cache.put(1, B, 7, stage)  # held with this content, though nothing was done
    assert cache.items() == [(1, 6, B)]


def test_qemu_stores_zero_pages_too(kernel: Any) -> None:
    cache = make(kernel, 4, "qemu")
    assert cache.put(1, bytes(PAGE_SIZE), 2, ROUND, zero=True)
    assert cache.items() == [(1, 2, bytes(PAGE_SIZE))]
    assert not cache.put(5, bytes(PAGE_SIZE), 3, ROUND, zero=True)
    assert cache.put(5, bytes(PAGE_SIZE), 4, ROUND, zero=True)
    assert ages(cache) == [(5, 4)]


def test_qemu_slots_are_in_address_order(kernel: Any) -> None:
    cache = make(kernel, 4, "qemu")
    for page in (7, 4, 2, 1):
        assert cache.put(page, A, 1, ROUND)
    assert ages(cache) == [(4, 1), (1, 1), (2, 1), (7, 1)]


def test_default_bulk_fills_empty_ways_with_age_0(kernel: Any) -> None:
    cache = make(kernel, 3, "default")  # one set of three ways
    for page in (10, 5, 7):
        assert cache.put(page, A, 9, BULK)
    assert ages(cache) == [(10, 0), (5, 0), (7, 0)]
    assert not cache.put(8, A, 9, BULK)
    assert cache.put(5, B, 9, BULK)  # held: new content, and now it has an age
    assert cache.items() == [(10, 0, A), (5, 9, B), (7, 0, A)]


def test_default_round_replaces_the_oldest_if_it_is_old_enough(kernel: Any) -> None:
    cache = make(kernel, 3, "default")
    for page in (1, 2):
        assert cache.put(page, A, 0, BULK)
    assert cache.put(3, A, 2, ROUND)  # the empty way first
    assert cache.put(4, A, 2, ROUND)  # then the first of age 0, whatever the round
    assert ages(cache) == [(4, 2), (2, 0), (3, 2)]
    assert cache.put(5, A, 2, ROUND)
    assert not cache.put(6, A, 3, ROUND)  # 2 + 2 > 3
    assert cache.put(5, B, 3, ROUND)
    assert cache.put(6, A, 4, ROUND)  # 2 + 2 <= 4: the first of the two of age 2
    assert cache.items() == [(6, 4, A), (5, 3, B), (3, 2, A)]
    assert cache.put(7, A, 4, ROUND)
    assert not cache.put(8, A, 4, ROUND)
    assert cache.put(8, A, 5, ROUND)
    assert ages(cache) == [(6, 4), (8, 5), (7, 4)]


def test_default_last_updates_and_never_stores(kernel: Any) -> None:
    cache = make(kernel, 3, "default")
    assert not cache.put(1, A, 2, LAST)
    assert cache.put(1, A, 2, ROUND)
    assert cache.put(1, B, 3, LAST)
    assert not cache.put(2, A, 9, LAST)
    assert cache.items() == [(1, 3, B)]


@pytest.mark.parametrize("stage", [BULK, ROUND, LAST])
def test_default_never_stores_zero_pages(kernel: Any, stage: int) -> None:
    zero = bytes(PAGE_SIZE)
    cache = make(kernel, 3, "default")
    assert not cache.put(1, zero, 2, stage, zero=True)
    assert cache.put(2, A, 2, ROUND)
    assert cache.put(2, zero, 3, stage, zero=True)  # but a held page is zero now
    assert cache.items() == [(2, 3, zero)]


def test_default_set_is_page_modulo_a_prime(kernel: Any) -> None:
    cache = make(kernel, 40, "default")  # five sets of eight
    for page in (4, 9, 0, 5, 13):
        assert cache.put(page, A, 1, ROUND)
    assert ages(cache) == [(0, 1), (5, 1), (13, 1), (4, 1), (9, 1)]
    for n in range(2, 10):
        assert cache.put(5 * n, A, 1, ROUND) is (n < 8)  # set 0 has eight ways


def duelling(kernel: Any) -> Any:
    """Eleven full sets, everything of age 1. Pages 1000·11 + set and up are not held."""
    cache = make(kernel, 88, "default")
    for page in range(88):
        assert cache.put(page, A, 1, ROUND)
    return cache


def test_default_sets_that_duel(kernel: Any) -> None:
    """Set 0 gives way after 2 rounds, set 8 after 16, the others as the one that lost fewer pages."""
    cache = duelling(kernel)
    assert not cache.put(11000 + 0, A, 2, ROUND)  # bias -1: refused or not, set 0 lost a page
    assert not cache.put(11000 + 1, A, 3, ROUND)
    assert not cache.put(11000 + 8, A, 16, ROUND)  # bias 0
    assert cache.put(11000 + 1, A, 3, ROUND)
    assert cache.put(12100 + 0, A, 3, ROUND)  # bias -1
    assert not cache.put(11000 + 2, A, 16, ROUND)
    assert cache.put(11000 + 2, A, 17, ROUND)
    assert cache.put(11000 + 8, A, 17, ROUND)  # bias 0
    assert cache.put(11000 + 3, A, 3, ROUND)


def test_default_what_does_not_count_in_the_duel(kernel: Any) -> None:
    cache = duelling(kernel)
    for stage in (BULK, LAST):
        assert not cache.put(11000, A, 9, stage)
    assert not cache.put(11000, bytes(PAGE_SIZE), 9, ROUND, zero=True)
    assert cache.put(11, B, 1, ROUND)  # held
    assert cache.put(11000 + 1, A, 3, ROUND)  # the bias is still 0
    cache = make(kernel, 88, "default")
    for page in range(8):
        assert cache.put(11 * page, A, 1, ROUND)  # an empty way
    for page in range(8):
        assert cache.put(11 * page + 1, A, 1, ROUND)
    assert cache.put(11000 + 1, A, 3, ROUND)


def test_default_the_score_has_limits_and_is_cleared(kernel: Any) -> None:
    cache = duelling(kernel)
    for number in range(1100):
        cache.put(11000 + 11 * number, A, 2, ROUND)
    for number in range(1023):
        cache.put(11000 + 11 * number + 8, A, 2, ROUND)
    assert not cache.put(11000 + 1, A, 3, ROUND)  # -1
    assert not cache.put(99000 + 8, A, 2, ROUND)
    assert cache.put(11000 + 1, A, 3, ROUND)  # 0

    assert not cache.put(11000, A, 2, ROUND)  # -1
    cache.clear()
    for page in range(88):
        assert cache.put(page, A, 1, ROUND)
    assert cache.put(11000 + 1, A, 3, ROUND)

    for number in range(1100):
        cache.put(11000 + 11 * number + 8, A, 2, ROUND)
    for number in range(1024):
        cache.put(11000 + 11 * number, A, 2, ROUND)
    assert cache.put(11000 + 2, A, 3, ROUND)  # 1024 - 1024
    assert not cache.put(99000, A, 2, ROUND)
    assert not cache.put(11000 + 3, A, 3, ROUND)


def test_default_small_caches_do_not_duel(kernel: Any) -> None:
    cache = make(kernel, 56, "default")
    for page in range(56):
        assert cache.put(page, A, 1, ROUND)
    assert not cache.put(7000, A, 2, ROUND)
    assert cache.put(7000 + 1, A, 3, ROUND)


@pytest.mark.parametrize("rule", RULES)
def test_touch_sets_the_age_under_either_rule(kernel: Any, rule: str) -> None:
    cache = make(kernel, 4, rule)
    assert cache.put(1, A, 2, ROUND)
    assert cache.touch(1, 9)
    assert not cache.touch(2, 9)
    assert cache.items() == [(1, 9, A)]
    assert cache.get(1) == A
    assert cache.items() == [(1, 9, A)]  # a look changes nothing


@pytest.mark.parametrize("rule", RULES)
def test_digest_is_the_sum_over_the_entries(kernel: Any, rule: str) -> None:
    keys = kernel.Keys(SEED, PAGE_SIZE)
    cache = make(kernel, 16, rule)
    for page, content, round, stage in (
        (1, A, 2, ROUND), (2, B, 2, ROUND), (1, C, 3, ROUND),
        (17, A, 4, ROUND), (9, B, 4, BULK), (33, C, 8, ROUND),
    ):  # fmt: skip
        cache.put(page, content, round, stage)
        expected = sum(keys.term(p, keys.page_digest(c)) * (2 * a + 1) for p, a, c in cache.items())
        assert cache.digest == expected % 2**128
    cache.touch(2, 2**32 - 1)
    expected = sum(keys.term(p, keys.page_digest(c)) * (2 * a + 1) for p, a, c in cache.items())
    assert cache.digest == expected % 2**128
    entries = cache.entries
    assert entries == len(cache.items()) > 1
    cache.clear()
    assert (cache.digest, cache.items(), cache.entries, cache.get(2)) == (0, [], 0, None)
    assert cache.put(2, A, 1, ROUND)
    assert cache.items() == [(2, 1, A)]


@pytest.mark.parametrize("rule", RULES)
def test_arguments_out_of_range(kernel: Any, rule: str) -> None:
    cache = make(kernel, 4, rule)
    for page, content, round, stage in (
        (-1, A, 1, ROUND), (2**48, A, 1, ROUND), (1, A[:-1], 1, ROUND), (1, A + b"x", 1, ROUND),
        (1, A, -1, ROUND), (1, A, 2**32, ROUND), (1, A, 1, 0), (1, A, 1, 4),
    ):  # fmt: skip
        with pytest.raises((ValueError, OverflowError)):
            cache.put(page, content, round, stage)
    assert cache.items() == []
