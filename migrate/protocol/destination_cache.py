"""Another size for the page caches while the migration runs, as the destination sees it.

cache-resize ──within the limit──→ allocating ──memory is there──→ laid ready for each lane, cache-agreed
     └ cache-refused                    └ cache-refused             (taken by the lane's own batch)

The source asks for one at a time, and asks again after a reconnect: the same question gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.destination_lanes import DestinationLanes
from migrate.protocol.handshake import Agreement, cache_is_of_use, lane_cache_bytes
from migrate.protocol.schema import Message
from migrate.protocol.stats import MigrationStats


class DestinationCache:
    """The size of the page caches of one destination machine.

    Args:
        send: to the source, if it is there.
    """

    def __init__(
        self,
        agreement: Agreement,
        page_size: int,
        lanes: DestinationLanes,
        emit: Callable[[a.Action], None],
        send: Callable[[Message], None],
        stats: MigrationStats,
    ) -> None:
        self._agreement = agreement
        self._page_size = page_size
        self._lanes = lanes
        self._emit = emit
        self._send = send
        self._stats = stats
        self._question = m.CacheResize(0, agreement.cache_bytes)
        self._answer: m.CacheAgreed | m.CacheRefused | None = None
        """None: the memory is being allocated."""
        self._changing = False

    def requested(self, message: m.CacheResize) -> None:
        """The source wants another size. Raises ProtocolError: it is not its turn."""
        if message == self._question:
            if self._answer is not None:
                self._send(self._answer)
            return
        if message.number <= self._question.number:
            raise ProtocolError("the source asks again for page caches of another size, or for old ones")
        waits = self._question.number and self._answer is None
        if waits or self._lanes.resizing:
            raise ProtocolError("the source asks for page caches before it has the last ones")
        self._question = message
        refusal = self._refusal(message)
        if refusal is not None:
            self._reply(refusal)
            return
        self._answer = None
        lanes = self._agreement.lanes
        share = lane_cache_bytes(message.cache_bytes, lanes)
        self._emit(a.AllocateCaches(message.number, share, lanes))

    def allocated(self, caches: Sequence[kernel.PageCache | None] | None) -> None:
        """The shell has the memory, or (None) there is none."""
        number = self._question.number
        if caches is None:
            reason = "the destination's host has no memory for it"
            self._reply(m.CacheRefused(number, reason, "--xbzrle-cache-size", "source"))
            return
        self._changing = True
        self._lanes.prepare_caches(
            number, lane_cache_bytes(self._question.cache_bytes, self._agreement.lanes), caches
        )
        self._reply(m.CacheAgreed(number))

    def check(self) -> None:
        """Tell once every lane has its new cache."""
        if self._changing and not self._lanes.resizing:
            self._changing = False
            size = self._question.cache_bytes
            self._emit(a.Report("cache-resized", {"size": size, "before": self._stats.cache_size}))
            self._stats.cache_size = size

    def _reply(self, answer: m.CacheAgreed | m.CacheRefused) -> None:
        self._answer = answer
        self._send(answer)

    def _refusal(self, message: m.CacheResize) -> m.CacheRefused | None:
        size, limit = message.cache_bytes, self._agreement.cache_limit
        if size > limit:
            reason = f"{size} bytes are wanted, the destination allows {limit}"
            return m.CacheRefused(message.number, reason, "--xbzrle-cache-limit", "destination")
        if size and not cache_is_of_use(size, self._agreement.lanes, self._page_size):
            reason = f"{size} bytes hold no page on each lane, or XBZRLE cannot do such pages"
            return m.CacheRefused(message.number, reason, "--xbzrle-cache-size", "source")
        return None
