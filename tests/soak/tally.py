"""What a part of the soak counted, and the table that is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one part; those in `wrong` must be zero."""

    done: int = 0
    seconds: float = 0.0
    facts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    sent_again: Counter[int] = field(default_factory=Counter)
    """Kibibytes that one reset of a lane cost, rounded up to a power of two → how often."""
    stories: list[str] = field(default_factory=list)
    """Of what was wrong: how to repeat it."""

    def add(self, other: Tally) -> None:
        """Take over another's counts."""
        self.done += other.done
        self.facts += other.facts
        self.wrong += other.wrong
        self.sent_again += other.sent_again
        self.stories += other.stories

    def reset_cost(self, nbytes: int) -> None:
        """A lane was reset, and so much goes out again."""
        kib = -(-nbytes // 1024)
        self.sent_again[1 << (kib - 1).bit_length() if kib else 0] += 1

    def went_wrong(self, what: str, story: str) -> None:
        """Something that must not be."""
        self.wrong[what] += 1
        self.stories.append(f"{what}: {story}")


def table(parts: Iterable[tuple[str, Tally]]) -> str:
    """Markdown: a row a part."""
    rows = ["| part | done | seconds | must be zero | |", "|---|---:|---:|---|---|"]
    for name, tally in parts:
        bad = ", ".join(f"{count} {what}" for what, count in tally.wrong.items()) or "0"
        facts = ", ".join(f"{count} {what}" for what, count in sorted(tally.facts.items()))
        rows.append(f"| {name} | {tally.done} | {tally.seconds:.0f} | {bad} | {facts} |")
    return "\n".join(rows)


def histogram(sent_again: Counter[int]) -> str:
    """One line a power of two."""
    most = max(sent_again.values(), default=1)
    lines = [
        f"  ≤ {kib:6d} KiB {count:7d} {'#' * max(1, 40 * count // most)}"
        for kib, count in sorted(sent_again.items())
    ]
    return "\n".join(lines)
