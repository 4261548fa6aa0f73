"""How fast we may send, and how fast the peer takes it: a token bucket and a meter of acknowledged bytes.

Both are told the time (`now`, seconds of one monotonic clock) and do not sleep; the lane threads and the
control loop do that.
"""

from __future__ import annotations

import threading
from collections import deque

BATCH_SECONDS = 0.05
"""How long one batch should occupy a limited link: short enough that a change of the rate, a cancel or a
pause is felt soon, long enough that the header costs nothing."""
MIN_BATCH = 64 * 1024
MAX_BATCH = 1024 * 1024

METER_WINDOW = 2.0
METER_MINIMUM = 0.1


def batch_limit(rate: float) -> int:
    """Largest body of a batch, in bytes, for a lane that may send `rate` bytes/s (0 = unlimited).

    Lanes that share one limit pass their share of it.
    """
    if rate == 0:
        return MAX_BATCH
    return int(min(max(rate * BATCH_SECONDS, MIN_BATCH), MAX_BATCH))


class TokenBucket:
    """Spreads what several lanes send so that together they keep one rate.

    The bucket holds at most `burst` bytes and gains `rate` bytes a second. Sending n bytes waits until
    min(n, burst) are in it, then takes n out, into debt if n is more than the bucket holds: so a batch
    larger than the burst passes, and the next one pays for it. In every window of T seconds at one rate

        bytes sent  <=  rate * T + max(burst, largest batch)

    and a sender that always has something ready gets the rate exactly, even if it wakes up late, as long
    as it is late by less than burst / rate.

    Safe to share between threads.
    """

    def __init__(self, rate: float, burst: int) -> None:
        """Begin with a full bucket.

        Args:
            rate: bytes/s; 0 = unlimited.
            burst: bytes, above 0.

        Raises:
            ValueError: negative rate, or no burst.
        """
        _check_rate(rate)
        if burst <= 0:
            raise ValueError(f"the burst must be above 0 bytes, not {burst}")
        self._lock = threading.Lock()
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._at: float | None = None  # time for which _tokens holds

    @property
    def rate(self) -> float:
        """Bytes/s; 0 = unlimited."""
        return self._rate

    def delay(self, now: float, nbytes: int) -> float:
        """Reserve `nbytes` and return how many seconds to wait before sending them.

        Reservations are served in the order of the calls. A caller that breaks off its wait, because the
        rate was raised meanwhile, may send at once: the bytes are counted already.
        """
        with self._lock:
            if self._rate == 0:
                return 0.0
            self._refill(now)
            missing = min(nbytes, self._burst) - self._tokens
            self._tokens -= nbytes
            return max(0.0, missing) / self._rate

    def set_rate(self, now: float, rate: float) -> None:
        """Change the rate from `now` on. A debt stays and is paid at the new rate; unlimited forgives it.

        Raises:
            ValueError: negative rate.
        """
        _check_rate(rate)
        with self._lock:
            if self._rate == 0:
                self._tokens, self._at = float(self._burst), now
            else:
                self._refill(now)
            self._rate = rate

    def _refill(self, now: float) -> None:
        """Make `_tokens` hold for `now`.

        Backwards too, if another thread read the clock after us and came first: it took for granted what
        comes in until then.
        """
        if self._at is not None:
            self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now


class RateMeter:
    """Bytes per second that the peer acknowledged, over the last seconds in which it had something to do.

    A sender that waits for its guest to write says nothing about the link, so time counts only between
    `busy` (the first byte is out that is not acknowledged yet) and `idle` (everything is acknowledged).
    Both may be called again in the same state. The window lies over this busy time: after a pause of any
    length the meter goes on where it was.

    The first acknowledgement takes a round trip of busy time with nothing to show for it, so the measure
    errs on the slow side, never on the fast one. Memory is bounded: the window is kept in a hundred steps.
    """

    def __init__(self, window: float = METER_WINDOW, minimum: float = METER_MINIMUM) -> None:
        """Begin idle.

        Args:
            window: seconds of busy time that count.
            minimum: seconds of busy time before there is an answer.
        """
        self._window = window
        self._minimum = minimum
        self._busy_since: float | None = None
        self._busy_before = 0.0  # busy seconds up to _busy_since
        self._steps: deque[tuple[float, int]] = deque()  # (busy seconds at the step's begin, bytes)
        self._bytes = 0  # sum over _steps
        self._any = False

    def busy(self, now: float) -> None:
        """Something is on its way now."""
        if self._busy_since is None:
            self._busy_since = now

    def idle(self, now: float) -> None:
        """Everything is acknowledged."""
        self._busy_before = self._clock(now)
        self._busy_since = None

    def add(self, now: float, nbytes: int) -> None:
        """`nbytes` were acknowledged."""
        clock = self._clock(now)
        self._any = True
        self._bytes += nbytes
        if self._steps and clock - self._steps[-1][0] < self._window / 100:
            begin, earlier = self._steps[-1]
            self._steps[-1] = (begin, earlier + nbytes)
        else:
            self._steps.append((clock, nbytes))
        self._forget(clock)

    def rate(self, now: float) -> float | None:
        """Bytes/s over the window; None before the first acknowledgement and in the first moments."""
        clock = self._clock(now)
        if not self._any or clock < self._minimum:
            return None
        self._forget(clock)
        return self._bytes / min(clock, self._window)

    def _clock(self, now: float) -> float:
        """Busy seconds until `now`."""
        if self._busy_since is None:
            return self._busy_before
        return self._busy_before + max(0.0, now - self._busy_since)

    def _forget(self, clock: float) -> None:
        while self._steps and self._steps[0][0] <= clock - self._window:
            self._bytes -= self._steps.popleft()[1]


def _check_rate(rate: float) -> None:
    if rate < 0:
        raise ValueError(f"a rate must be 0 (unlimited) or above, not {rate}")
