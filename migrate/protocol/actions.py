"""What the migration machines ask their shell to do. The shell does it and answers with the named input."""

from __future__ import annotations

from dataclasses import dataclass, field

from migrate import kernel
from migrate.errors import MigrateError
from migrate.protocol.journal_record import Step
from migrate.protocol.messages import LaneOpen
from migrate.protocol.schema import Message
from migrate.ram.bitmap import DirtyBitmap


class Action:
    """Base of all actions."""


@dataclass(frozen=True)
class Send(Action):
    """Put a message on the control connection; without one, drop it."""

    message: Message


@dataclass(frozen=True)
class Connect(Action):
    """Source: open a control connection after `delay` seconds → `connected` or `connection_lost`."""

    delay: float


@dataclass(frozen=True)
class Disconnect(Action):
    """Close the control connection once what was sent is out. No input follows."""


@dataclass(frozen=True)
class OpenLane(Action):
    """Source: open a lane connection, say `opening` on it, send batches → `lane_broken` if it fails."""

    lane: int
    opening: LaneOpen


@dataclass(frozen=True)
class StopLane(Action):
    """Shut the lane's connection down and join its thread → `lane_stopped`."""

    lane: int


@dataclass(frozen=True)
class StartRound(Action):
    """Source: hand the lane its pages of a round, in its own thread if it has one."""

    lane: int
    number: int
    stage: int
    dirty: DirtyBitmap


@dataclass(frozen=True)
class PassAck(Action):
    """Source: tell the lane what was applied, in its own thread."""

    lane: int
    epoch: int
    sequence: int


@dataclass(frozen=True)
class AllocateCaches(Action):
    """Have the memory for page caches of `share` bytes, one a lane → `caches_allocated`."""

    number: int
    share: int
    lanes: int


@dataclass(frozen=True)
class ResizeCache(Action):
    """Source: hand the lane a cache of another size (None: no XBZRLE), in its own thread if it has one."""

    lane: int
    number: int
    cache_bytes: int
    cache: kernel.PageCache | None


@dataclass(frozen=True)
class SetRate(Action):
    """Source: the bandwidth limit from now on, bytes a second, 0 for none."""

    rate: int


@dataclass(frozen=True)
class Throttle(Action):
    """Source: let the guest lose that share of its time, per cent; 0: none, before anything that follows.

    → `throttle_failed` if it cannot be done.
    """

    percent: int


@dataclass(frozen=True)
class StartTracker(Action):
    """Source: start dirty tracking, then find the pages of round 1 → `tracking`."""


@dataclass(frozen=True)
class Harvest(Action):
    """Source: fetch and clear what is dirty → `harvested`."""

    stopped: bool


@dataclass(frozen=True)
class PauseGuest(Action):
    """Source → `paused` or `pause_failed`."""


@dataclass(frozen=True)
class ResumeGuest(Action):
    """Source: let the guest run, whatever state the pause is in → `resumed` or `resume_failed`."""


@dataclass(frozen=True)
class WriteJournal(Action):
    """Put that on disk → `journalled`, in the order of the actions; at the source never beside a pause or a
    resume that is under way."""

    step: Step
    number: int
    attempt: int
    root: bytes


@dataclass(frozen=True)
class RemoveJournal(Action):
    """The handover is settled: the journal is not needed any more. No input follows."""


@dataclass(frozen=True)
class Claim(Action):
    """Destination: ask the arbiter for the guest → `claimed`."""


@dataclass(frozen=True)
class CollectState(Action):
    """Source: run the state command → `state_collected`."""


@dataclass(frozen=True)
class Confirm(Action):
    """Source, paused: is the guest still paused and, with `ram`, RAM still what was sent? → `confirmed`."""

    ram: bool


@dataclass(frozen=True)
class LookAgain(Action):
    """Source, in the background: compare these pages with what was sent, from `start` on → `looked`.

    Until about `most_pages` were read. Nobody changes `candidates`.
    """

    candidates: DirtyBitmap
    start: int
    most_pages: int


@dataclass(frozen=True)
class Distrust(Action):
    """Source: so many pages, this one first, changed and were not reported; the tracker must not be believed.

    Before the next harvest. No input follows.
    """

    page: int
    pages: int


@dataclass(frozen=True)
class Reread(Action):
    """Source, after `running`: read all RAM once more, then let go of the guest as configured → `reread`."""


@dataclass(frozen=True)
class RunLane(Action):
    """Destination: start the thread that reads the lane connection of this epoch."""

    lane: int
    epoch: int


@dataclass(frozen=True)
class Verify(Action):
    """Destination: compare RAM with the root; at level `full` read all of it first → `verified`."""

    root: int


@dataclass(frozen=True)
class RunPrepare(Action):
    """Destination: the on-prepare command → `hook_ended`."""

    number: int


@dataclass(frozen=True)
class RunCommit(Action):
    """Destination: the guest is ours: unmark RAM, run the on-commit command → `hook_ended`."""


@dataclass(frozen=True)
class StopHook(Action):
    """Destination: the pause was given up: end a running on-prepare command."""


@dataclass(frozen=True)
class ReadDigests(Action):
    """Destination: read what the RAM files hold → `held_ram_read`."""


@dataclass(frozen=True)
class SendDigests(Action):
    """Destination: send these digests in chunks, for the pause or the attempt of that number."""

    number: int
    digests: bytearray


@dataclass(frozen=True)
class Report(Action):
    """Tell the person or program in front."""

    name: str
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Finish(Action):
    """The machine is finished; nothing follows. `error` is None after success."""

    error: MigrateError | None
