"""From the destination's accept to lanes that may be opened.

    hello ──accept──→ lanes are made ──(warm: every digest is known)──→ they are opened
      ↑                                                                     │ the connection breaks, and who
      └──── no thread runs any more: what the lanes had is kept ←───────────┘ answers knows of nothing

The second way round is a destination whose daemon was killed and started again: its caches and its order are
gone, but its RAM files are there. It begins anew, this side does not: the tracker and the guest go on, and
after the digests only what differs is sent (design 4, Resume in precopy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.batch import CODECS
from migrate.protocol.handshake import lane_cache_bytes
from migrate.protocol.lane_link import LaneLink
from migrate.protocol.lane_source import SourceLane
from migrate.protocol.source_states import LIVE, SourceState
from migrate.protocol.source_warm import SourceWarm
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.image import RamImage

if TYPE_CHECKING:
    from migrate.protocol.source import SourceMachine


class SourceSetup:
    """The beginnings of one source machine."""

    def __init__(self, machine: SourceMachine, image: RamImage) -> None:
        self._machine = machine
        self._image = image
        self._warm = SourceWarm(machine.digests, image.layout.ram_bytes)
        self._lanes_end = False
        """A new hello waits until no lane thread runs."""

    @property
    def waiting(self) -> bool:
        """It is not known yet what the destination holds."""
        return self._warm.waiting or self._lanes_end

    def accepted(self, now: float, accept: m.Accept) -> None:
        """The destination agreed, to the first attempt or to another. Raises ProtocolError."""
        machine = self._machine
        resumed = machine.link.agreed is not None
        machine.link.accepted(now, accept)
        if resumed:
            machine.cache.reconnected()
        else:
            self._agreed(accept)
            if machine.config.check:
                machine.ending.checked(now)
                return
            self._make_lanes(accept)
        if accept.warm:
            self._warm.begin(now, machine.link.hello.attempt)
        elif not resumed and machine.link.hello.warm:
            self._known(self._warm.empty())
        if machine.state is SourceState.SETUP:
            machine.enter(SourceState.TRACKING)
            machine.emit(a.StartTracker())

    def digests(self, message: m.Digests) -> None:
        """A piece of what the destination holds. Raises ProtocolError."""
        differing = self._warm.message(message)
        if differing is not None:
            self._known(differing)

    def begin_anew(self) -> None:
        """The destination has nothing to resume: say hello as at first, once no lane thread runs."""
        link = self._machine.link
        link.begin_anew(self._machine.cache.begin_anew())
        self._lanes_end = True
        self._check_lanes()

    def check(self, now: float) -> None:
        """Go on where that is possible now. Raises NetworkError: the destination takes too long."""
        self._check_lanes()
        if self._machine.link.up:
            self._warm.check(now)

    def _check_lanes(self) -> None:
        machine = self._machine
        if not self._lanes_end or not machine.link.at_rest or machine.state not in LIVE:
            return
        self._lanes_end = False
        for link in machine.link.lanes:
            machine.rounds.add(link.lane.waiting())
        machine.link.lanes.clear()
        machine.link.connect()

    def _known(self, differing: DirtyBitmap) -> None:
        """What the destination holds in another way than the table said is dirty; lanes may be opened."""
        machine = self._machine
        machine.rounds.add(differing)
        machine.reread.forget()
        machine.link.knows_held_ram()
        begun = machine.state not in (SourceState.SETUP, SourceState.TRACKING)
        machine.emit(a.Report("begun-anew" if begun else "warm", {"pages": differing.count()}))
        if begun:
            machine.rounds.begin_anew()

    def _agreed(self, accept: m.Accept) -> None:
        machine = self._machine
        machine.stats.cache_size = accept.cache_bytes
        machine.cache.accepted(machine.link.hello, accept)
        fields = {
            "cache_size": accept.cache_bytes,
            "cache_rule": accept.cache_rule,
            "lanes": accept.lanes,
            "compression": accept.codec,
            "verify": accept.verify,
            "peer": accept.software,
            "free_bytes": accept.free_bytes,
        }
        machine.emit(a.Report("negotiated", fields))

    def _make_lanes(self, accept: m.Accept) -> None:
        machine = self._machine
        for number in range(accept.lanes):
            lane = SourceLane(
                number,
                accept.lanes,
                self._image,
                machine.keys,
                machine.digests.array,
                lane_cache_bytes(accept.cache_bytes, accept.lanes),
                accept.cache_rule,
                CODECS[accept.codec],
            )
            machine.link.lanes.append(LaneLink(lane))
