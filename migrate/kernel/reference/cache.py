"""The page cache that source and destination keep in step by applying the same rules to the same stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from migrate.kernel.reference.arguments import check_page, check_round, check_stage
from migrate.kernel.reference.digest import MASK128, Keys
from migrate.kernel.results import STAGE_BULK, STAGE_ROUND

INDEX_BYTES = 32  # page, age, flags and the 128-bit term of one slot
WAYS = 8
LIFETIME_ROUNDS = 2  # QEMU's constant: an entry used in this or the last round is not replaced
LONG_LIFETIME_ROUNDS = 16
DUEL_SETS = 16  # one set of these always uses the short lifetime, another one the long one
DUEL_SHORT = 0
DUEL_LONG = 8
BIAS_LIMIT = 1024


@dataclass
class _Entry:
    page: int
    age: int
    content: bytes
    term: int


class PageCache:
    """The page cache of one lane, at either end.

    Rule "default": sets of 8 ways (one smaller set below 8 slots), a prime number of sets, so that every
    stride uses all of them, set = page % sets. An entry of a full set is safe for 2 or for 16 rounds,
    whichever loses fewer pages in the sets that always use the one or the other (set duelling; Qureshi and
    others, "Adaptive insertion policies for high performance caching", ISCA 2007).
    Rule "qemu" (qemu-ram-stream.md 3.6-3.8): direct-mapped, a power of two of slots, slot = page % slots.
    """

    def __init__(self, keys: Keys, budget: int, rule: str) -> None:
        """Raises ValueError: rule not "default" or "qemu", or a negative budget."""
        if budget < 0:
            raise ValueError(f"a cache of {budget} bytes")
        fit = budget // (keys.page_size + INDEX_BYTES)
        if rule == "default":
            self._ways = min(fit, WAYS)
            self._sets = _largest_prime(fit // WAYS) if fit >= WAYS else min(fit, 1)
        elif rule == "qemu":
            self._ways = 1
            self._sets = 1 << fit.bit_length() - 1 if fit else 0
        else:
            raise ValueError(f'the cache rule is "default" or "qemu", not {rule!r}')
        self._keys = keys
        self._rule = rule
        self._bias = 0  # below 0: the sets with the long lifetime lose fewer pages
        self._slots: list[_Entry | None] = [None] * (self._sets * self._ways)

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._keys.page_size

    @property
    def slots(self) -> int:
        """How many pages there is room for."""
        return len(self._slots)

    @property
    def entries(self) -> int:
        """How many pages are held."""
        return sum(entry is not None for entry in self._slots)

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all slots, data and index."""
        return self.slots * (self._keys.page_size + INDEX_BYTES)

    @property
    def rule(self) -> str:
        """ "default" or "qemu"."""
        return self._rule

    @property
    def digest(self) -> int:
        """sum(term * (2 * age + 1)) over the entries, modulo 2**128."""
        return sum(entry.term * (2 * entry.age + 1) for entry in self._slots if entry) & MASK128

    def get(self, page: int) -> bytes | None:
        """Content held for the page; changes nothing."""
        check_page(page)
        slot = self._find(page)
        return None if slot is None else self._entry(slot).content

    def put(self, page: int, content: bytes, round: int, stage: int, *, zero: bool = False) -> bool:
        """Apply the rule to a page that is in the stream. True if it is held afterwards *with this
        content*, also where the rule wrote nothing and the same content was held before.

        Raises ValueError: content not of page_size bytes.
        """
        check_round(round)
        check_stage(stage)
        term = self._keys.term(page, self._keys.page_digest(content))
        if self._rule == "qemu" and stage != STAGE_ROUND:
            return self.get(page) == content
        age = round
        slot = self._find(page)
        if slot is None and self._rule == "qemu":
            slot = self._choose_direct(page, round)
        elif slot is None and not zero:
            slot = self._choose_way(page, round, stage)
            age = 0 if stage == STAGE_BULK else round
        if slot is None:
            return False
        self._slots[slot] = _Entry(page, age, bytes(content), term)
        return True

    def touch(self, page: int, round: int) -> bool:
        """Set the age of a held page to `round`, in every stage (rule "qemu": the record of length 0).

        False if not held.
        """
        check_page(page)
        check_round(round)
        slot = self._find(page)
        if slot is None:
            return False
        self._entry(slot).age = round
        return True

    def commit(self, most: int) -> None:
        """Python's memory comes when it comes."""

    def clear(self) -> None:
        """Forget every page."""
        self._slots = [None] * self.slots
        self._bias = 0

    def take_over(self, other: PageCache) -> None:
        """Hold what `other` holds, as far as there is room; of two in one place the younger, else the first.

        Raises ValueError: other keys or another rule.
        """
        if other is self or other._keys is not self._keys or other._rule != self._rule:
            raise ValueError("a cache takes over another one with the same keys and the same rule")
        self.clear()
        self._bias = other._bias
        for entry in filter(None, other._slots):
            slot = self._room_for(entry)
            if slot is not None:
                self._slots[slot] = replace(entry)

    def items(self) -> list[tuple[int, int, bytes]]:
        """(page, age, content) of every entry in slot order."""
        return [(entry.page, entry.age, entry.content) for entry in self._slots if entry]

    def _slots_of(self, page: int) -> range:
        """The slots where the page may be, in the order in which they are looked at."""
        if not self._sets:
            return range(0)
        first = page % self._sets * self._ways
        return range(first, first + self._ways)

    def _find(self, page: int) -> int | None:
        """The slot that holds the page."""
        for slot in self._slots_of(page):
            entry = self._slots[slot]
            if entry and entry.page == page:
                return slot
        return None

    def _entry(self, slot: int) -> _Entry:
        entry = self._slots[slot]
        assert entry is not None
        return entry

    def _room_for(self, moved: _Entry) -> int | None:
        """The slot for an entry of another cache: an empty one, else that of the oldest if it is older."""
        oldest: tuple[int, int] | None = None
        for slot in self._slots_of(moved.page):
            entry = self._slots[slot]
            if entry is None:
                return slot
            if oldest is None or entry.age < oldest[0]:
                oldest = entry.age, slot
        return oldest[1] if oldest is not None and oldest[0] < moved.age else None

    def _choose_direct(self, page: int, round: int) -> int | None:
        """QEMU's insert: the one slot, unless it has another page that is still young."""
        if not self.slots:
            return None
        slot = page % self.slots
        entry = self._slots[slot]
        return slot if entry is None or entry.age + LIFETIME_ROUNDS <= round else None

    def _choose_way(self, page: int, round: int, stage: int) -> int | None:
        """The slot for a page not held: an empty way, else (in the rounds) the oldest if it is old enough."""
        if not self._slots or stage not in (STAGE_BULK, STAGE_ROUND):
            return None
        oldest: int | None = None
        oldest_age = 0
        for slot in self._slots_of(page):
            entry = self._slots[slot]
            if entry is None:
                return slot
            if oldest is None or entry.age < oldest_age:
                oldest, oldest_age = slot, entry.age
        if stage == STAGE_BULK:
            return None
        lifetime = self._lifetime(page % self._sets)
        return oldest if oldest_age == 0 or oldest_age + lifetime <= round else None

    def _lifetime(self, number: int) -> int:
        """How long an entry of this full set is safe from a page not held; a duelling set keeps score."""
        if self._sets <= DUEL_LONG:
            return LIFETIME_ROUNDS
        if number % DUEL_SETS == DUEL_SHORT:
            self._bias = max(self._bias - 1, -BIAS_LIMIT)
            return LIFETIME_ROUNDS
        if number % DUEL_SETS == DUEL_LONG:
            self._bias = min(self._bias + 1, BIAS_LIMIT)
            return LONG_LIFETIME_ROUNDS
        return LONG_LIFETIME_ROUNDS if self._bias < 0 else LIFETIME_ROUNDS


def _largest_prime(limit: int) -> int:
    """The largest prime not above `limit`; 1 for 1."""
    number = limit
    while number > 3 and any(number % divisor == 0 for divisor in range(2, math.isqrt(number) + 1)):
        number -= 1
    return number
