"""The background re-read at the source: pages that the tracker calls clean are compared with what was sent.

A page that differs and that no harvest reports is a lie of the tracker, or something that it is blind to
(design 8; LMT 2.4). Why an honest tracker is never accused:

* Looked at are only pages that no harvest has reported since they were copied (`SourceRounds.unsent`), as far
  as is known when the look is asked for. So what was written to them after the copy is reported by a harvest
  whose result comes later. Pages that are owed after a reset may be copied during the look, which changes
  digests under it; but into another one only if the page was written, and then that is reported too.
* Pages that may change without another report (DMA in flight) are left out, as the harvest names them.
* A page is acquitted if any harvest reports it whose result comes after the look was asked for; and accused
  only by a harvest that began to fetch when the look was over: it knows of every write that the look saw.
* A mark may be late: an emulator that keeps a log stores first and marks afterwards. So the harvest that
  accuses begins LATE_SECONDS after the look; in the pause no mark is late, or its page would be lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrate.protocol import actions as a
from migrate.protocol.source_states import SourceState
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.layout import PageLayout
from migrate.ram.reread import Look

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine
    from migrate.protocol.source_rounds import HarvestResult

LOOK_BYTES = 16 << 20
RATE = 256 << 20
"""At most that many bytes a second are read again: 1 GiB in 4 s."""
CPU_SHARE = 0.05
"""At most this share of one CPU is used."""
PASS_SECONDS = 1.0
"""A pass over all of RAM takes at least this long."""
LATE_SECONDS = 1.0
"""So late may a write be reported."""


@dataclass(slots=True)
class _Suspects:
    first: float
    last: float
    """When the looks were over that found these pages to differ."""
    pages: DirtyBitmap


class SourceReread:
    """Looks and verdicts of one source machine.

    Args:
        wanted: False where RAM is never read again (`--verify stream`).
    """

    def __init__(self, machine: SourceMachine, layout: PageLayout, *, wanted: bool) -> None:
        self._machine = machine
        self._wanted = wanted
        self._layout = layout
        self._most_pages = LOOK_BYTES // layout.page_size
        self._unsettled: DirtyBitmap | None = None
        self._reported = DirtyBitmap(layout.total_pages)  # since the look under way was asked for
        self._suspects: deque[_Suspects] = deque()
        self._position = 0
        self._under_way = False
        self._counts = False
        self._began = 0.0
        self._pass_began = 0.0
        self._next = 0.0

    def forget(self) -> None:
        """What the destination holds is known anew: a look that is under way compared with something else."""
        self._counts = False

    def tick(self, now: float) -> None:
        """Look, if it is time."""
        machine = self._machine
        if not self._wanted or self._unsettled is None or self._under_way or now < self._next:
            return
        if machine.state not in (SourceState.SENDING, SourceState.HARVESTING) or not machine.knows_held_ram:
            return
        candidates = DirtyBitmap(self._layout.total_pages)
        candidates.set_all(self._layout)
        candidates.remove(machine.rounds.unsent)
        candidates.remove(self._unsettled)
        self._under_way = self._counts = True
        self._reported.clear()
        self._began = now
        machine.emit(a.LookAgain(candidates, self._position, self._most_pages))

    def looked(self, now: float, look: Look) -> None:
        """The shell has looked."""
        if not self._under_way:
            return
        self._under_way = False
        nbytes = look.pages_read * self._layout.page_size
        self._next = self._began + max(nbytes / RATE, look.seconds / CPU_SHARE)
        self._machine.stats.reread_pages += look.pages_read
        self._position = look.next_page
        if look.next_page == 0:
            self._next = self._pass_began = max(self._next, self._pass_began + PASS_SECONDS)
        if look.differing is not None and self._counts:
            look.differing.remove(self._reported)
            self._suspect(now, look.differing)

    def judge(self, result: HarvestResult) -> bool:
        """Whether this harvest shows that the tracker cannot be trusted; the shell is told so then."""
        self._unsettled = result.unsettled
        if result.unsettled is None:  # it compares content itself
            self._suspects.clear()
            self._counts = False
            return False
        if self._under_way:
            self._reported.union(result.dirty)
        stopped = self._machine.state is SourceState.LAST_HARVEST
        before = result.began - (0.0 if stopped else LATE_SECONDS)
        lies = DirtyBitmap(self._layout.total_pages)
        for group in list(self._suspects):
            group.pages.remove(result.dirty)
            if group.last <= before:
                lies.union(group.pages)
                self._suspects.remove(group)
        pages = lies.count()
        if not pages:
            return False
        self._unsettled = None
        self._suspects.clear()
        self._counts = False
        self._machine.stats.unreported_pages += pages
        self._machine.emit(a.Distrust(lies.next(), pages))
        return True

    def _suspect(self, now: float, differing: DirtyBitmap) -> None:
        """Keep three groups at most: two looks of the same group are less than LATE_SECONDS apart."""
        groups = self._suspects
        if groups and now - groups[-1].first < LATE_SECONDS:
            groups[-1].pages.union(differing)
            groups[-1].last = now
            return
        groups.append(_Suspects(now, now, differing))
        if len(groups) > 3:  # the second one is ripe as well by now
            oldest = groups.popleft()
            groups[0].pages.union(oldest.pages)
