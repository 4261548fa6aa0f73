"""The faults that the fault proxy can put on a connection, with toxiproxy's names and meanings.

A `Toxic` says what goes wrong and where: in which direction, on which connections, from which byte on.
For every link (one direction of one connection) it makes an `Effect`, which holds the state and is asked
by the proxy. Offsets are bytes of that link since the connection began, so a fault hits the same byte in
every run, however the stream happens to be cut into pieces. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from migrate.protocol.bandwidth import TokenBucket

Direction = Literal["upstream", "downstream"]
"""upstream: from the client, who connects, to the target."""
Ending = Literal["close", "reset", "silent"]
"""How both halves of a connection end: FIN; RST; or without a word, the sockets staying open."""

PACED_SECONDS = 0.02  # a limited link carries pieces of this length, so that it flows instead of stuttering


def every(index: int) -> bool:
    """Selects all connections."""
    del index
    return True


class Effect:
    """What one toxic does to one link. The base does nothing."""

    holds = False
    """Nothing is delivered any more."""
    close_delay = 0.0
    """Seconds by which the end of the stream is passed on late."""
    ends: tuple[int, Ending] | None = None
    """The connection ends when this offset is reached."""
    ends_after: tuple[float, Ending] | None = None
    """The connection ends so many seconds after the toxic began to act."""

    def boundary(self, offset: int) -> int | None:
        """Next offset behind `offset` at which a piece must end."""
        del offset
        return None

    def change(self, offset: int, piece: memoryview) -> None:
        """Alter the bytes of a piece in place."""

    def wait(self, now: float, nbytes: int) -> float:
        """Seconds to hold up this piece and all that follow; called once for each piece."""
        del now, nbytes
        return 0.0

    def lag(self) -> float:
        """Seconds that this piece is on its way, while others follow."""
        return 0.0


@dataclass(kw_only=True, eq=False)
class Toxic:
    """A fault; the subclasses say which."""

    direction: Direction | Literal["both"] = "upstream"
    connections: Callable[[int], bool] = every
    """Which connections, by number in the order of their coming, from 0."""
    after: int = 0
    """Bytes of a link that pass untouched before it acts."""

    def effect(self, rng: random.Random, start: int) -> Effect:
        """Make the state for one link.

        Args:
            rng: the link's own, seeded.
            start: offset from which it acts: `after`, or later if the toxic came later.
        """
        raise NotImplementedError


@dataclass(eq=False)
class Latency(Toxic):
    """Everything arrives later, by `latency` give or take `jitter`, in order; the rate stays what it was."""

    latency: float
    jitter: float = 0.0

    def effect(self, rng: random.Random, start: int) -> Effect:
        del start
        return _Lag(self.latency, self.jitter, rng)


@dataclass(eq=False)
class Bandwidth(Toxic):
    """At most `rate` bytes/s on each link, or on all links of the toxic together if `shared`."""

    rate: float
    shared: bool = False
    _bucket: TokenBucket | None = field(default=None, init=False, repr=False)

    def effect(self, rng: random.Random, start: int) -> Effect:
        del rng, start
        if self._bucket is None or not self.shared:
            self._bucket = TokenBucket(self.rate, self._piece())
        return _Paced(self._bucket, self._piece())

    def _piece(self) -> int:
        return max(1, math.ceil(self.rate * PACED_SECONDS))


@dataclass(eq=False)
class Timeout(Toxic):
    """Nothing is delivered any more until the toxic is removed; after `timeout` the connection closes.

    0: it never closes.
    """

    timeout: float = 0.0

    def effect(self, rng: random.Random, start: int) -> Effect:
        del rng, start
        effect = Effect()
        effect.holds = True
        effect.ends_after = (self.timeout, "close") if self.timeout else None
        return effect


@dataclass(eq=False)
class ResetPeer(Toxic):
    """RST to both sides after exactly `after` bytes, or `timeout` later."""

    timeout: float = 0.0

    def effect(self, rng: random.Random, start: int) -> Effect:
        del rng
        effect = Effect()
        if self.timeout:
            effect.ends_after = (self.timeout, "reset")
        else:
            effect.ends = (start, "reset")
        return effect


@dataclass(eq=False)
class LimitData(Toxic):
    """The connection closes in good order after `bytes` more bytes."""

    bytes: int

    def effect(self, rng: random.Random, start: int) -> Effect:
        del rng
        effect = Effect()
        effect.ends = (start + self.bytes, "close")
        return effect


@dataclass(eq=False)
class SlowClose(Toxic):
    """The end of the stream is passed on `delay` late."""

    delay: float

    def effect(self, rng: random.Random, start: int) -> Effect:
        del rng, start
        effect = Effect()
        effect.close_delay = self.delay
        return effect


@dataclass(eq=False)
class Slicer(Toxic):
    """Sends slices of `average_size` give or take `size_variation`, each `delay` after the one before."""

    average_size: int
    size_variation: int = 0
    delay: float = 0.0

    def effect(self, rng: random.Random, start: int) -> Effect:
        return _Slices(self, rng, start)


@dataclass(eq=False)
class Corrupt(Toxic):
    """Flips one bit in the bytes at `offsets`, and in every other byte with `probability`.

    `bit` 0…7 names the bit, 0 the lowest; None: drawn for each byte.
    """

    offsets: tuple[int, ...] = ()
    probability: float = 0.0
    bit: int | None = None

    def effect(self, rng: random.Random, start: int) -> Effect:
        return _Flips(self, rng, start)


class _Lag(Effect):
    def __init__(self, latency: float, jitter: float, rng: random.Random) -> None:
        self._latency, self._jitter, self._rng = latency, jitter, rng

    def lag(self) -> float:
        return max(0.0, self._latency + self._rng.uniform(-self._jitter, self._jitter))


class _Paced(Effect):
    def __init__(self, bucket: TokenBucket, piece: int) -> None:
        self._bucket, self._piece = bucket, piece

    def boundary(self, offset: int) -> int:
        return offset + self._piece

    def wait(self, now: float, nbytes: int) -> float:
        return self._bucket.delay(now, nbytes)


class _Slices(Effect):
    def __init__(self, toxic: Slicer, rng: random.Random, start: int) -> None:
        self._toxic, self._rng = toxic, rng
        self._end = start

    def boundary(self, offset: int) -> int:
        while self._end <= offset:
            variation = self._rng.randint(-self._toxic.size_variation, self._toxic.size_variation)
            self._end += max(1, self._toxic.average_size + variation)
        return self._end

    def wait(self, now: float, nbytes: int) -> float:
        del now, nbytes
        return self._toxic.delay


class _Flips(Effect):
    """Random flips are drawn as gaps between them, so that they do not depend on how the stream is cut."""

    def __init__(self, toxic: Corrupt, rng: random.Random, start: int) -> None:
        self._rng, self._bit, self._probability = rng, toxic.bit, toxic.probability
        self._named = {offset: self._mask() for offset in sorted(toxic.offsets)}
        self._next: float = start - 1
        self._next_mask = 0
        self._draw()

    def change(self, offset: int, piece: memoryview) -> None:
        end = offset + len(piece)
        for place, mask in self._named.items():
            if offset <= place < end:
                piece[place - offset] ^= mask
        while self._next < end:
            if self._next not in self._named:
                piece[int(self._next) - offset] ^= self._next_mask
            self._draw()

    def _draw(self) -> None:
        if self._probability <= 0:
            self._next = math.inf
        elif self._probability >= 1:
            self._next += 1
        else:
            gap = math.log(1.0 - self._rng.random()) / math.log(1.0 - self._probability)
            self._next += 1 + math.floor(gap)
        self._next_mask = self._mask()

    def _mask(self) -> int:
        return 1 << (self._rng.randrange(8) if self._bit is None else self._bit)
