"""The lanes as the destination's migration machine sees them: who may open one, and how one is reset.

    closed ──lane-open──→ running ──final batch──→ finished
      ↑                      │ cut, bad bytes, lane-broken, new attempt
      └── thread joined, lane-reset sent ──┘

A lane belongs to its thread while `has_thread`; to the machine otherwise. No position is named before the
thread of the old epoch has ended, and a newer connection waits for that too (design 4, Lane reset).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handshake import Agreement, lane_cache_bytes
from migrate.protocol.lane_destination import (
    AppliedBatch,
    DestinationLane,
    PreparedCache,
    ReceiverState,
)
from migrate.protocol.schema import Message
from migrate.protocol.stats import MigrationStats
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage

_SUM = 1 << 128


class _Place:
    """One lane and its thread."""

    def __init__(self, lane: DestinationLane) -> None:
        self.lane = lane
        self.has_thread = False
        self.stopping = False
        self.reason = ""
        self.waiting: m.LaneOpen | None = None
        """A newer connection that waits for the old thread to end."""
        self.reset_due = False
        self.reset_epoch = 0
        """The last epoch whose end the source was told of."""


class DestinationLanes:
    """All lanes of one migration at the destination."""

    def __init__(
        self,
        image: RamImage,
        keys: kernel.Keys,
        digests: DigestTable,
        agreement: Agreement,
        emit: Callable[[a.Action], None],
        send: Callable[[Message], None],
        stats: MigrationStats,
    ) -> None:
        self._image = image
        self._keys = keys
        self._digests = digests
        self._emit = emit
        self._send = send
        self._stats = stats
        self._began: list[int] | None = None
        """Sums of the stripes when the migration began; None: all was zero."""
        share = lane_cache_bytes(agreement.cache_bytes, agreement.lanes)
        self._places = [
            _Place(
                DestinationLane(
                    number,
                    agreement.lanes,
                    image,
                    keys,
                    digests.array,
                    share,
                    agreement.cache_rule,
                    agreement.verify != "stream",
                )
            )
            for number in range(agreement.lanes)
        ]

    def lane(self, number: int) -> DestinationLane:
        """The lane, for its thread."""
        return self._places[number].lane

    @property
    def positions(self) -> list[tuple[int, int]]:
        """(epoch, sequence) applied, of each lane."""
        return [place.lane.position for place in self._places]

    @property
    def sum(self) -> int:
        """What all lanes changed the root by."""
        return sum(place.lane.lane_sum for place in self._places) % _SUM

    @property
    def at_rest(self) -> bool:
        """No lane thread runs any more."""
        return not any(place.has_thread for place in self._places)

    @property
    def all_finished(self) -> bool:
        """Every lane has applied its final batch."""
        return all(place.lane.state is ReceiverState.FINISHED for place in self._places)

    @property
    def resizing(self) -> bool:
        """A lane has not gone over to its new cache yet."""
        return any(place.lane.prepared is not None for place in self._places)

    def prepare_caches(
        self, number: int, cache_bytes: int, caches: Sequence[kernel.PageCache | None]
    ) -> None:
        """Lay a cache of another size ready for each lane, also for those whose threads run."""
        for place, cache in zip(self._places, caches, strict=True):
            place.lane.prepared = PreparedCache(number, cache_bytes, cache)

    def opened(self, opening: m.LaneOpen, secret: bytes) -> None:
        """Take a lane connection that knows the secret; `RunLane` follows, if need be after the old thread.

        Raises:
            ProtocolError: wrong secret, lane or epoch.
        """
        if not hmac.compare_digest(opening.secret, secret):
            raise ProtocolError("a lane was opened with a wrong secret")
        if opening.lane >= len(self._places):
            raise ProtocolError(f"lane {opening.lane} was opened, agreed were {len(self._places)}")
        place = self._places[opening.lane]
        if opening.epoch <= place.lane.epoch:
            raise ProtocolError(f"lane {opening.lane} was opened with the old epoch {opening.epoch}")
        if place.waiting is not None and place.waiting.epoch >= opening.epoch:
            raise ProtocolError(f"lane {opening.lane} was opened twice")
        place.waiting = opening
        if place.has_thread:
            self._stop(place, "a newer connection of the lane came")
        else:
            self._run(place)

    def applied(self, now: float, number: int, batches: Sequence[AppliedBatch]) -> None:
        """Count some batches of one epoch, at least one, and acknowledge them all by the last."""
        for batch in batches:
            self._count(now, batch)
        self._send(m.Ack(number, batches[-1].epoch, batches[-1].sequence))

    def failed(self, number: int, reason: str) -> None:
        """The lane's thread has ended because of bad bytes or a broken connection."""
        place = self._places[number]
        if not place.stopping or place.reset_due:  # the source may have seen no more than that it broke
            place.reason = reason
            place.reset_due = True
        self.stopped(number)

    def stopped(self, number: int) -> None:
        """The lane's thread has ended."""
        place = self._places[number]
        place.has_thread = False
        place.stopping = False
        if place.lane.state is ReceiverState.FINISHED and not place.reset_due:
            return
        place.lane.close()
        self._reset(place)
        if place.waiting is not None:
            self._run(place)

    def broken_by_source(self, message: m.LaneBroken) -> None:
        """The source gave an epoch up. Raises ProtocolError: no such lane."""
        if message.lane >= len(self._places):
            raise ProtocolError(f"lane {message.lane} broke, agreed were {len(self._places)}")
        place = self._places[message.lane]
        lane = place.lane
        if message.epoch < lane.epoch or message.epoch == place.reset_epoch:
            return
        place.reset_due = True
        place.waiting = None
        if place.has_thread:
            self._stop(place, message.reason)
            return
        lane.close()
        if message.epoch > lane.epoch:  # its connection never came here, and must not come later
            lane.epoch, lane.sequence = message.epoch, 0
        place.reason = message.reason
        self._reset(place)

    def stop_all(self, reason: str) -> None:
        """End every thread and every epoch; the positions stand once all are at rest."""
        for place in self._places:
            place.waiting = None
            place.reset_due = False
            if place.has_thread:
                self._stop(place, reason)
            else:
                place.lane.close()

    def release_caches(self) -> None:
        """The migration has ended: let the memory of the page caches go, whoever still knows the machine."""
        for place in self._places:
            place.lane.cache = place.lane.prepared = None

    def begin_with_held_ram(self) -> None:
        """The digest array says what RAM holds before any lane was opened: their sums count from there."""
        self._began = self._digests.stripe_sums()

    def rebase(self) -> None:
        """The digest array was replaced by what RAM holds: compute each lane's sum anew."""
        layout = self._image.layout
        began = self._began or DigestTable(self._keys, layout).stripe_sums()
        held = self._digests.stripe_sums()
        stripes = [
            (block.first_page + at) // layout.stripe_pages
            for block in layout.blocks
            for at in range(0, block.pages, layout.stripe_pages)
        ]
        lanes = len(self._places)
        for place in self._places:
            place.lane.lane_sum = 0
        for stripe, now, before in zip(stripes, held, began, strict=True):
            lane = self._places[stripe % lanes].lane
            lane.lane_sum = (lane.lane_sum + now - before) % _SUM

    def _count(self, now: float, batch: AppliedBatch) -> None:
        if batch.apply is None:
            self._stats.add_wire(batch.wire_bytes)
            return
        row = self._stats.current_round
        if row is None or batch.round > row.round:
            self._stats.round_started(batch.round, 0, now)
        self._stats.add_apply(batch.apply, batch.stage, batch.record_bytes, batch.wire_bytes)

    def _run(self, place: _Place) -> None:
        assert place.waiting is not None
        opening, place.waiting = place.waiting, None
        if place.lane.state is not ReceiverState.CLOSED:
            place.lane.close()
        place.lane.open(opening.epoch)
        place.has_thread = True
        place.reset_due = False
        self._emit(a.RunLane(opening.lane, opening.epoch))

    def _stop(self, place: _Place, reason: str) -> None:
        place.reason = reason
        if not place.stopping:
            place.stopping = True
            self._emit(a.StopLane(place.lane.number))

    def _reset(self, place: _Place) -> None:
        if not place.reset_due:
            return
        place.reset_due = False
        self._stats.lane_resets += 1
        lane = place.lane
        place.reset_epoch = lane.epoch
        self._emit(a.Report("lane-reset", {"lane": lane.number, "epoch": lane.epoch, "reason": place.reason}))
        self._send(m.LaneReset(lane.number, lane.epoch, lane.sequence, place.reason))
