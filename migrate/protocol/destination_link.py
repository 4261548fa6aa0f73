"""The destination's connection to its source: attempts, silence, and how long the source may be away.

    up ──lost──→ down ──resume──→ resuming ──lanes at rest──→ up        a new attempt of the source
     ↑             └─asked (a question about the handover)──┐
     └──────────────────────────────────────────────────────┘

An attempt is accepted once no lane of the one before can write any more; until then nothing but pings is
expected, and nothing about lanes is said. See source_link.py for the other end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from migrate import __version__
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handshake import Agreement
from migrate.protocol.keepalive import Keepalive
from migrate.protocol.schema import Message


class DestinationLink:
    """The control connection of one migration.

    Args:
        hello: of the first attempt.
        secret: what a lane has to know.
        free_bytes: for the source's information.
        keepalive_timeout: seconds of silence after which the source counts as gone.
        reconnect_timeout: seconds it may take to come back.
        emit: takes the actions.
    """

    def __init__(
        self,
        hello: m.Hello,
        agreement: Agreement,
        secret: bytes,
        free_bytes: int,
        keepalive_timeout: float,
        reconnect_timeout: float,
        emit: Callable[[a.Action], None],
    ) -> None:
        self.hello = hello
        """Of the newest attempt."""
        self.up = False
        self.resuming = False
        """There is a connection, whose attempt is not accepted yet."""
        self.reason = ""
        """Why it is down."""
        self.secret = secret
        self.reconnect_timeout = reconnect_timeout
        self.keepalive = Keepalive(keepalive_timeout)
        self._agreement = agreement
        self._free_bytes = free_bytes
        self._emit = emit
        self._down_since = 0.0

    def send(self, message: Message) -> None:
        """Send if there is somebody to send to."""
        if self.up:
            self._emit(a.Send(message))

    def send_of_lanes(self, message: Message) -> None:
        """Not between two attempts: acknowledgements of the old one's lanes are not for the new one, whose
        accept says it all; and what the source asked for, it asks again.
        """
        if not self.resuming:
            self.send(message)

    def begin(self, now: float) -> None:
        """There is a connection."""
        self.up = True
        self.keepalive.start(now)

    def lost(self, now: float, reason: str) -> None:
        """It is gone."""
        self.down()
        self._down_since = now
        self.reason = reason

    def down(self) -> None:
        """Nothing more is said on it."""
        self.up = self.resuming = False

    def away(self, now: float, since: float = 0.0) -> bool:
        """The source has not come back in time.

        Args:
            since: when it was first waited for, if that is later than the break.
        """
        return not self.up and now - max(self._down_since, since) >= self.reconnect_timeout

    def wrong_attempt(self, hello: m.Hello, *, begun: bool) -> m.Reject | None:
        """Why this hello is none that goes on with the migration.

        Args:
            begun: a lane was open already.
        """
        old = self.hello
        if hello.attempt <= old.attempt:
            return m.Reject(f"attempt {hello.attempt} is over", "", "source")
        same = (hello.blocks, hello.page_size, hello.digest_seed) == (
            old.blocks,
            old.page_size,
            old.digest_seed,
        )
        if (begun and not hello.resume) or not same:
            return m.Reject("the resumed migration is not the one that began", "", "source")
        return None

    def resume(self, now: float, hello: m.Hello) -> None:
        """A new attempt; it is accepted later."""
        self.hello = hello
        self.begin(now)
        self.resuming = True

    def accept(self, positions: Sequence[tuple[int, int]]) -> None:
        """Say yes to the attempt.

        Args:
            positions: (epoch, sequence) up to which each lane was applied.
        """
        self.resuming = False
        agreed, hello = self._agreement, self.hello
        known = positions if hello.resume else []
        self.send(
            m.Accept(
                agreed.version,
                f"migrate {__version__}",
                agreed.cache_bytes,
                agreed.cache_rule,
                agreed.lanes,
                agreed.codec,
                agreed.verify,
                self.secret,
                [m.LanePosition(epoch, sequence) for epoch, sequence in known],
                self._free_bytes,
                agreed.warm and hello.warm,
            )
        )

    def ping(self, now: float) -> None:
        """Ask for a sign of life, if it is time to."""
        number = self.keepalive.ping_due(now)
        if number is not None and not self.resuming:
            self.send(m.Ping(number))
