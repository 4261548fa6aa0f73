"""Is the peer still there? Shared by both ends of a control connection."""

from __future__ import annotations

LONGEST_PING_INTERVAL = 1.0


class Keepalive:
    """Says when to ping and when the silence has lasted too long; measures the round trip on the way.

    Args:
        timeout: seconds of silence after which the peer counts as gone.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.round_trip: float | None = None
        """Seconds of the last answered ping, None before the first answer."""
        self._interval = min(LONGEST_PING_INTERVAL, timeout / 4)
        self._heard = 0.0
        self._pinged = 0.0
        self._number = 0
        self._asked = 0.0

    def start(self, now: float) -> None:
        """The connection is up."""
        self._heard = now
        self._pinged = now

    def heard(self, now: float) -> None:
        """Anything came from the peer."""
        self._heard = now

    def ping_due(self, now: float) -> int | None:
        """The number of a ping to send now, or None."""
        if now - self._pinged < self._interval:
            return None
        self._pinged = now
        self._number += 1
        return self._number

    def ponged(self, now: float, number: int) -> None:
        """The answer to a ping; one to an older ping says nothing about the round trip."""
        if number == self._number:
            self.round_trip = now - self._pinged

    def silent(self, now: float) -> bool:
        """The peer counts as gone. Ask often: after a stop of our own, what came meanwhile is unread yet."""
        slept, self._asked = now - self._asked, now
        if slept > self.timeout / 4:
            self._heard = max(self._heard, now - self.timeout / 2)
        return now - self._heard > self.timeout
