"""The source's connections: greeting, reconnecting with back-off, and the reset of lanes.

    control:  down → connecting → greeting → up     a broken link is tried again, with growing delays, until
                         ↑───────────┴────────┘     --reconnect-timeout
    a lane:   see lane_link.py

Losing the control connection takes all lanes along: what they had in flight is only known again when the
destination has accepted the next attempt and named each lane's position. The guest runs through all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from migrate.errors import NetworkError, ProtocolError, RefusedError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.keepalive import Keepalive
from migrate.protocol.lane_link import LaneLink, LinkState
from migrate.protocol.schema import Message
from migrate.protocol.stats import MigrationStats
from migrate.ram.bitmap import DirtyBitmap

FIRST_RECONNECT_DELAY = 0.1
LONGEST_RECONNECT_DELAY = 3.0
LANE_STALL_FACTOR = 3  # a slow link may need longer for a batch than for a ping
MAX_FRUITLESS_RESETS = 10


class ControlState(Enum):
    """Where the control connection stands."""

    DOWN = "down"
    CONNECTING = "connecting"
    GREETING = "greeting"
    UP = "up"


class SourceLink:
    """Control connection and lanes of one migration.

    Args:
        hello: the wish of the first attempt.
        emit: takes the actions.
        stats: gets resets, reconnects and owed pages.
    """

    def __init__(
        self,
        hello: m.Hello,
        keepalive_timeout: float,
        reconnect_timeout: float,
        emit: Callable[[a.Action], None],
        stats: MigrationStats,
    ) -> None:
        self.hello = hello
        self.control = ControlState.DOWN
        self.agreed: m.Accept | None = None
        self.lanes: list[LaneLink] = []
        self.keepalive = Keepalive(keepalive_timeout)
        self.repair: DirtyBitmap | None = None
        """Pages to owe when the lanes are reset the next time."""
        self._reconnect_timeout = reconnect_timeout
        self._emit = emit
        self._stats = stats
        self._greeting_since = 0.0
        self._lost_at: float | None = None
        self._lost_reason = ""
        self._delay = FIRST_RECONNECT_DELAY

    @property
    def up(self) -> bool:
        """Messages reach the destination, as far as one can know."""
        return self.control is ControlState.UP

    def settled(self, now: float) -> bool:
        """Every lane has a connection that is known to work: the guest may be stopped."""
        return self.up and all(link.settled(now) for link in self.lanes)

    @property
    def working(self) -> bool:
        """Every lane has carried something in its present connection; on a slow link maybe long ago."""
        return self.up and all(link.working for link in self.lanes)

    @property
    def at_rest(self) -> bool:
        """No lane thread runs any more."""
        return not any(link.has_thread for link in self.lanes)

    @property
    def in_flight_bytes(self) -> int:
        """Sent and not acknowledged, over all lanes."""
        return sum(link.in_flight_bytes for link in self.lanes)

    def begin_anew(self, cache_bytes: int) -> None:
        """The destination knows nothing of this migration: ask as at first, for caches of that size.

        `connect` follows when no lane thread runs any more.
        """
        self.control = ControlState.CONNECTING
        self.agreed = None
        self.repair = None
        attempt = self.hello.attempt + 1
        self.hello = replace(self.hello, attempt=attempt, resume=False, warm=True, cache_bytes=cache_bytes)
        self._emit(a.Disconnect())

    def knows_held_ram(self) -> None:
        """What the destination holds is known, and need not be told again."""
        self.hello = replace(self.hello, warm=False)

    def connect(self) -> None:
        """Open a connection, the first one or that of a new beginning."""
        self.control = ControlState.CONNECTING
        self._emit(a.Connect(0.0))

    def send(self, message: Message) -> None:
        """Send if the link is up; else the message is pointless."""
        if self.up:
            self._emit(a.Send(message))

    def send_last(self, message: Message) -> None:
        """Say why the migration ends: also to a destination that has not answered the hello yet."""
        if self.control in (ControlState.GREETING, ControlState.UP):
            self._emit(a.Send(message))

    def greet(self, now: float) -> None:
        """The connection is open: say hello."""
        if self.control is not ControlState.CONNECTING:
            return
        self.control = ControlState.GREETING
        self._greeting_since = now
        self.keepalive.start(now)
        self._emit(a.Send(self.hello))

    def accepted(self, now: float, accept: m.Accept) -> None:
        """The destination agreed.

        Raises:
            ProtocolError: no hello is open, a resumed attempt got other values than the first, or the values
                are none that were asked for.
        """
        if self.control is not ControlState.GREETING:
            raise ProtocolError("an accept came that answers no hello")
        if self.agreed is None:
            self._check_agreed(accept)
        else:
            self._check_unchanged(self.agreed, accept)
        self.agreed = accept
        self.control = ControlState.UP
        self.keepalive.start(now)
        self._delay = FIRST_RECONNECT_DELAY
        if self._lost_at is not None:
            self._stats.reconnects += 1
            self._emit(a.Report("reconnected", {"seconds": round(now - self._lost_at, 3)}))
            self._lost_at = None
        for link, position in zip(self.lanes, accept.positions, strict=False):
            link.position_known(position.epoch, position.sequence)

    def lost(self, now: float, reason: str) -> None:
        """The control connection is gone: stop all lanes, try again later.

        Raises:
            NetworkError: the destination did not come back in time.
        """
        if self.control is ControlState.DOWN:
            return
        for link in self.lanes:
            self._break(link, reason)
        self.hello = replace(self.hello, attempt=self.hello.attempt + 1, resume=self.agreed is not None)
        self._connect_again(now, reason)

    def reopen(self, now: float, reason: str) -> None:
        """The control connection is gone in the handover: another one for questions, without hello and lanes.

        Raises:
            NetworkError: the destination did not come back in time.
        """
        self._connect_again(now, reason)

    def reopened(self, now: float) -> None:
        """That connection is open. The time allowed runs on until it has brought a decision."""
        self.control = ControlState.UP
        self.keepalive.start(now)

    def _connect_again(self, now: float, reason: str) -> None:
        if self._lost_at is None:
            self._lost_at = now
            self._lost_reason = reason
        self.control = ControlState.CONNECTING
        if now - self._lost_at + self._delay > self._reconnect_timeout:
            self.control = ControlState.DOWN
            raise NetworkError(
                f"the connection to the destination broke ({self._lost_reason}) and did not come back"
                f" within {self._reconnect_timeout:g} s (last attempt: {reason})",
                side="source",
                hint="check the network and migrate-dst's log, then start both sides again",
            )
        fields = {"attempt": self.hello.attempt, "delay": self._delay, "reason": reason}
        self._emit(a.Disconnect())
        self._emit(a.Report("reconnecting", fields))
        self._emit(a.Connect(self._delay))
        self._delay = min(2 * self._delay, LONGEST_RECONNECT_DELAY)

    def tick(self, now: float) -> str | None:
        """Pings and deadlines; returns why the connection must be given up, if it must."""
        if self.control is ControlState.GREETING and now - self._greeting_since > self.keepalive.timeout:
            return f"no answer to the hello for {self.keepalive.timeout:g} s"
        if not self.up:
            return None
        if self.keepalive.silent(now):
            return f"the destination was silent for {self.keepalive.timeout:g} s"
        number = self.keepalive.ping_due(now)
        if number is not None:
            self.send(m.Ping(number))
        return None

    def stalled_lane(self, now: float) -> LaneLink | None:
        """A lane on which nothing was acknowledged for too long."""
        limit = LANE_STALL_FACTOR * self.keepalive.timeout
        return next((link for link in self.lanes if link.stalled(now, limit)), None)

    # --- lanes ------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Reset lanes whose two ends are at rest and open those that are down, when it is time.

        Raises:
            NetworkError: a lane was reset again and again without getting anything across.
        """
        if not self.up or self.hello.warm:
            return
        for link in self.lanes:
            if link.resettable:
                self._reset(link, now)
            if link.state is LinkState.DOWN and now >= link.open_not_before:
                self._open(link, now)
        if all(link.state is LinkState.UP for link in self.lanes):
            self.repair = None

    def lane_failed(self, number: int, reason: str) -> None:
        """The lane's thread has ended by itself: its connection is unusable."""
        link = self.lanes[number]
        link.has_thread = False
        if link.state is LinkState.UP:
            self._break(link, reason)
            link.reason_is_vague = True
            self.send(m.LaneBroken(number, link.lane.epoch, reason))

    def break_lane(self, link: LaneLink, reason: str) -> None:
        """This side gives the lane up (it stalls, or the pause is abandoned)."""
        if link.state is LinkState.UP:
            self._break(link, reason)
            self.send(m.LaneBroken(link.lane.number, link.lane.epoch, reason))

    def lane_reset(self, message: m.LaneReset) -> None:
        """The destination ended an epoch of a lane. Raises ProtocolError: no such lane, epoch or batch."""
        if message.lane >= len(self.lanes):
            raise ProtocolError(f"the destination reset lane {message.lane}, which does not exist")
        link = self.lanes[message.lane]
        _check_position(link, message.epoch, message.sequence)
        if message.epoch < link.lane.epoch:
            return
        if link.reason_is_vague:
            link.reason = message.reason
        self._break(link, message.reason)
        link.position_known(message.epoch, message.sequence)

    def stop(self) -> None:
        """Stop every lane thread; nothing is opened again."""
        for link in self.lanes:
            link.broken("the migration ended")
            if link.has_thread:
                self._emit(a.StopLane(link.lane.number))
        self.control = ControlState.DOWN

    def release_caches(self) -> None:
        """The migration has ended: let the memory of the page caches go, whoever still knows the machine."""
        for link in self.lanes:
            link.lane.cache = None

    def _break(self, link: LaneLink, reason: str) -> None:
        if link.state is not LinkState.UP:
            return
        link.broken(reason)
        if link.has_thread:
            self._emit(a.StopLane(link.lane.number))

    def _check_agreed(self, accept: m.Accept) -> None:
        hello = self.hello
        if not 1 <= accept.lanes <= hello.lanes or accept.cache_bytes > hello.cache_bytes:
            raise ProtocolError("the destination accepted more than was asked for")
        if accept.warm and not hello.warm:
            raise ProtocolError("the destination kept its RAM, which was not asked for")
        asked = (hello.cache_rule, hello.codec, hello.verify)
        if accept.version not in hello.versions or (accept.cache_rule, accept.codec, accept.verify) != asked:
            raise ProtocolError("the destination accepted something else than was asked for")

    def _check_unchanged(self, agreed: m.Accept, accept: m.Accept) -> None:
        unchanged = replace(
            accept, positions=agreed.positions, free_bytes=agreed.free_bytes, warm=agreed.warm
        )
        if unchanged != replace(agreed, secret=accept.secret):
            raise ProtocolError("the destination accepted the resumed migration with other values")
        if len(accept.positions) != len(self.lanes):
            raise ProtocolError("the destination did not name the position of every lane")
        for link, position in zip(self.lanes, accept.positions, strict=True):
            _check_position(link, position.epoch, position.sequence)

    def _reset(self, link: LaneLink, now: float) -> None:
        before = link.lane.remaining
        if self.repair is not None:
            link.lane.owe(self.repair)
        owed = link.reset(now)
        self._stats.lane_resets += 1
        self._stats.remaining_pages += link.lane.remaining - before
        fields: dict[str, object] = {
            "lane": link.lane.number,
            "epoch": link.lane.epoch,
            "reason": link.reason,
            "owed_pages": owed,
        }
        self._emit(a.Report("lane-reset", fields))
        if link.fruitless_resets > MAX_FRUITLESS_RESETS:
            raise NetworkError(
                f"lane {link.lane.number} broke {link.fruitless_resets} times in a row and got nothing"
                f" across; the last time: {link.reason}",
                hint="look for what cuts or changes the connections between the two hosts",
            )

    def _open(self, link: LaneLink, now: float) -> None:
        assert self.agreed is not None
        epoch = link.open(now)
        opening = m.LaneOpen(
            self.hello.migration, self.hello.attempt, link.lane.number, epoch, self.agreed.secret
        )
        self._emit(a.OpenLane(link.lane.number, opening))


def _check_position(link: LaneLink, epoch: int, sequence: int) -> None:
    """Raise ProtocolError if the destination claims what was never sent."""
    sent = link.lane.epoch, link.lane.sequence
    if (epoch, sequence) > sent:
        raise ProtocolError(
            f"the destination has applied batch {sequence} of lane {link.lane.number}, epoch {epoch};"
            f" sent were {sent[1]} of epoch {sent[0]}"
        )


def rejected(message: m.Reject) -> RefusedError:
    """The error for a refused hello."""
    change = f"change {message.option} at the {message.side}" if message.option else None
    if message.option and not message.option.startswith("--"):
        change = f"at the {message.side}: {message.option}"
    return RefusedError(
        f"the destination refused the migration: {message.reason}", side=message.side, hint=change
    )
