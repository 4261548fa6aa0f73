"""Another size for the page caches while the migration runs, as the source sees it.

    idle ──wanted──→ allocating ──here it fits──→ asked ──cache-agreed──→ changing ──every lane's batch
      ↑                  │ no memory                │ cache-refused           │       was applied
      └──────────────────┴──────────────────────────┴─────────────────────────┘

One at a time; of several wishes the last counts. Both sides have the memory before either lane changes, so
what can fail has failed by then. Until a lane has changed, the old cache and the new one are both there.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from migrate import kernel
from migrate.errors import ProtocolError
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.handshake import lane_cache_bytes
from migrate.protocol.source_states import LIVE

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine

Caches = Sequence[kernel.PageCache | None]
"""One a lane; None: no XBZRLE."""


class _Phase(Enum):
    IDLE = "idle"
    ALLOCATING = "allocating"
    ASKED = "asked"
    CHANGING = "changing"


class SourceCache:
    """The size of the page caches of one source machine."""

    def __init__(self, machine: SourceMachine) -> None:
        self._machine = machine
        self._phase = _Phase.IDLE
        self._in_force = 0
        self._wanted: int | None = None
        self._asked = 0
        self._number = 0
        self._caches: Caches = ()

    def want(self, cache_bytes: int) -> None:
        """A person wants this size, data and index of all lanes together; 0: no XBZRLE."""
        self._wanted = cache_bytes
        self.check()

    def accepted(self, hello: m.Hello, accept: m.Accept) -> None:
        """The first attempt was accepted; what was wanted for it need not be asked for again."""
        self._in_force = accept.cache_bytes
        if self._wanted == hello.cache_bytes:
            self._wanted = None

    def reconnected(self) -> None:
        """A question or its answer may have been lost."""
        if self._phase is _Phase.ASKED:
            self._ask()

    def begin_anew(self) -> int:
        """The destination's caches are gone. Returns the size to ask for in a new hello."""
        size = self._in_force if self._phase is _Phase.IDLE else self._asked
        if self._wanted is not None:
            size = self._wanted
        self._phase = _Phase.IDLE
        self._caches = ()
        self._wanted = size
        return size

    def check(self) -> None:
        """Go on where that is possible now; call it when something may have changed."""
        machine = self._machine
        if self._phase is _Phase.CHANGING and not any(link.resizing for link in machine.link.lanes):
            self._changed()
        if self._phase is not _Phase.IDLE or self._wanted is None or not self._possible:
            return
        wanted, self._wanted = self._wanted, None
        if wanted != self._in_force:
            self._phase = _Phase.ALLOCATING
            self._asked = wanted
            self._number += 1
            lanes = len(machine.link.lanes)
            machine.emit(a.AllocateCaches(self._number, lane_cache_bytes(wanted, lanes), lanes))

    def allocated(self, caches: Caches | None) -> None:
        """The shell has the memory here, or (None) there is none."""
        if self._phase is not _Phase.ALLOCATING:
            return
        if caches is None:
            self._refused("this host has no memory for it", "--xbzrle-cache-size", "source")
            return
        self._caches = caches
        self._phase = _Phase.ASKED
        self._ask()

    def message(self, message: m.CacheAgreed | m.CacheRefused) -> None:
        """The destination's answer. Raises ProtocolError: to a question that was not asked."""
        if message.number > self._number:
            raise ProtocolError("the destination answers a question about page caches that was not asked")
        if message.number < self._number or self._phase is not _Phase.ASKED:
            return  # asked twice because of a broken connection, answered twice
        if isinstance(message, m.CacheRefused):
            self._refused(message.reason, message.option, message.side)
        elif self._possible:
            self._change()

    @property
    def _possible(self) -> bool:
        return self._machine.state in LIVE and bool(self._machine.link.lanes)

    def _ask(self) -> None:
        if self._possible:
            self._machine.link.send(m.CacheResize(self._number, self._asked))

    def _change(self) -> None:
        self._phase = _Phase.CHANGING
        caches, self._caches = self._caches, ()
        share = lane_cache_bytes(self._asked, len(caches))
        for link, cache in zip(self._machine.link.lanes, caches, strict=True):
            link.resizing = True
            self._machine.emit(a.ResizeCache(link.lane.number, self._number, share, cache))

    def _changed(self) -> None:
        self._phase = _Phase.IDLE
        self._machine.emit(a.Report("cache-resized", {"size": self._asked, "before": self._in_force}))
        self._in_force = self._machine.stats.cache_size = self._asked

    def _refused(self, reason: str, option: str, side: str) -> None:
        self._phase = _Phase.IDLE
        self._caches = ()
        fields = {"size": self._asked, "in_force": self._in_force, "reason": reason}
        if option:
            fields["hint"] = f"change {option} at the {side}"
        self._machine.emit(a.Report("cache-refused", fields))
        self.check()
