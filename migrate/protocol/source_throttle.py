"""The throttle of one source machine: on while the rounds are under way, off for the pause and at every end.

off ──first round──→ on (fixed, or raised after rounds that gain too little) ──pause──→ off ──resumed──→ on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.config import SourceConfig
from migrate.protocol import actions as a
from migrate.protocol.throttle import ThrottleRule, is_high, next_throttle

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine


class SourceThrottle:
    """What share of its time the guest loses, and when."""

    def __init__(self, machine: SourceMachine) -> None:
        self._machine = machine
        self._on = False
        self._failed = False
        self._percent = 0
        """What the rounds need; in force while `_on`."""
        self._high_rounds = 0

    def begin(self) -> None:
        """The guest runs and pages are on their way: the first round, or after a pause that was given up."""
        self._on = True
        self._decide()

    def round_ended(self, sent_pages: int, dirty_pages: int) -> None:
        """Another round follows one that had `sent_pages` to send and leaves `dirty_pages`."""
        self._high_rounds = self._high_rounds + 1 if is_high(sent_pages, dirty_pages) else 0
        self._decide(after_round=True)

    def configured(self) -> None:
        """The parameters have changed."""
        self._decide()

    def lift(self) -> None:
        """The guest is to have all of its time, and nothing may touch it: before a pause and at the end."""
        self._on = False
        self._put(0)

    def failed(self, reason: str) -> None:
        """It cannot be done; the migration goes on without."""
        self._failed = True
        self._machine.stats.throttle_percent = 0
        self._machine.emit(a.Report("warning", {"message": reason}))

    def _decide(self, *, after_round: bool = False) -> None:
        rule = _rule(self._machine.config)
        if after_round or rule.mode != "auto":
            self._percent = next_throttle(self._percent, self._high_rounds, rule)
        else:
            self._percent = min(self._percent, rule.maximum)
        if self._on:
            self._put(self._percent)

    def _put(self, percent: int) -> None:
        stats = self._machine.stats
        if self._failed or percent == stats.throttle_percent:
            return
        stats.throttle_percent = percent
        self._machine.emit(a.Throttle(percent))
        self._machine.emit(a.Report("throttle", {"percent": percent}))


def _rule(config: SourceConfig) -> ThrottleRule:
    return ThrottleRule(
        config.throttle,
        config.cpu_throttle_initial,
        config.cpu_throttle_increment,
        config.max_cpu_throttle,
    )
