"""The migration machine of the destination: lanes in, acknowledgements out, verification, handover.

States: destination_states.py; lanes and their resets: destination_lanes.py. Sans I/O: inputs are the public
methods, each with the time; outputs are the actions that `take_actions` returns. The shell makes one machine
per migration, after the handshake (`handshake.negotiate`) has agreed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from migrate import __version__, kernel
from migrate.errors import (
    CancelledMigration,
    GuestError,
    MigrateError,
    NetworkError,
    ProtocolError,
    RamError,
    VerifyError,
)
from migrate.protocol import actions as a
from migrate.protocol import messages as m
from migrate.protocol.destination_cache import DestinationCache
from migrate.protocol.destination_lanes import DestinationLanes
from migrate.protocol.destination_states import BEFORE_COMMIT, EXPECTED, STATUS, TRANSITIONS, DestinationState
from migrate.protocol.handshake import Agreement
from migrate.protocol.keepalive import Keepalive
from migrate.protocol.lane_destination import AppliedBatch
from migrate.protocol.peer_errors import peer_error
from migrate.protocol.schema import Message
from migrate.protocol.stats import MigrationStats
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage

_SUM = 1 << 128
_LEFTOVERS = (
    "the unfinished RAM files stay here, each with PATH.migrating beside it:"
    " the next migration overwrites them; or remove both"
)


class DestinationMachine:
    """One migration at the destination.

    Args:
        hello: of the first attempt.
        agreement: what the handshake agreed on.
        image: the RAM, open for writing and marked as incoming.
        secret: 32 random bytes; a lane that does not know them is refused.
        free_bytes: for the source's information.
    """

    def __init__(
        self,
        hello: m.Hello,
        agreement: Agreement,
        image: RamImage,
        secret: bytes,
        free_bytes: int,
        keepalive_timeout: float,
        reconnect_timeout: float,
    ) -> None:
        self.state = DestinationState.ACTIVE
        self.hello = hello
        self.agreement = agreement
        self.outcome = "failed"
        self.stats = MigrationStats(
            side="destination", page_size=hello.page_size, total=image.layout.ram_bytes
        )
        self.stats.verify = agreement.verify
        self.stats.cache_size = agreement.cache_bytes
        self.keys = kernel.Keys(hello.digest_seed, hello.page_size)
        self.digests = DigestTable(self.keys, image.layout)
        self.linked = False
        self.blobs: dict[str, bytes] = {}
        """Device state of the pause that is being prepared."""
        self._image = image
        self._secret = secret
        self._free_bytes = free_bytes
        self._keepalive = Keepalive(keepalive_timeout)
        self._reconnect_timeout = reconnect_timeout
        self._actions: list[a.Action] = []
        self._unlinked_at = 0.0
        self._unlinked_reason = ""
        self._resuming = False
        self._pause = 0
        self._prepare: m.Prepare | None = None
        self._parts: dict[str, bytearray] = {}
        self._verifying = 0
        """Number of the pause whose verification is under way, 0 for none."""
        self._found: bytearray | None = None
        """Digests of RAM as it was read, where they are not what the source sent."""
        self._verify_began = 0.0
        self._verify_us = 0
        self._error: MigrateError | None = None
        self.lanes = DestinationLanes(
            image, self.keys, self.digests, agreement, self.emit, self._send_of_lanes, self.stats
        )
        self._cache = DestinationCache(
            agreement, hello.page_size, self.lanes, self.emit, self._send_of_lanes, self.stats
        )

    # --- for the shell ----------------------------------------------------------------------------

    def take_actions(self) -> list[a.Action]:
        """What is to be done now, in order."""
        taken, self._actions = self._actions, []
        return taken

    def emit(self, action: a.Action) -> None:
        """Ask the shell for something."""
        self._actions.append(action)

    def send(self, message: Message) -> None:
        """Send if there is somebody to send to."""
        if self.linked:
            self.emit(a.Send(message))

    @property
    def root(self) -> int:
        """The root over what was applied."""
        return (self.digests.root + self.lanes.sum) % _SUM

    def _root_of(self, digests: bytearray) -> int:
        blocks = self._image.layout.blocks
        return sum(kernel.root(self.keys, digests, block.first_page, block.pages) for block in blocks) % _SUM

    @property
    def guest_place(self) -> str:
        """One clause: where the guest runs now."""
        if self.outcome == "completed":
            return "the guest runs here"
        if self.state is DestinationState.STARTING or self.outcome == "start-failed":
            return "the guest is stopped at the source; it was handed over and may run here"
        return "the guest was not started here and will not be: it is the source's"

    # --- inputs: connection -----------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The hello was answered with yes."""
        self.stats.start(now)
        self.stats.status = "setup"
        self.stats.setup_done(now)
        self._link(now)
        self._accept()
        self._set_status("active")

    def resume(self, now: float, hello: m.Hello) -> m.Reject | None:
        """A new attempt of this migration: everything of the old one ends, then it is accepted.

        Returns a reject where that cannot be.
        """
        if self.state not in BEFORE_COMMIT:
            ended = self.state is DestinationState.ENDED
            how = f"has ended here ({self.outcome})" if ended else "was committed already"
            return m.Reject(f"this migration {how}", "", "destination")
        if hello.attempt <= self.hello.attempt:
            return m.Reject(f"attempt {hello.attempt} is over", "", "source")
        same = (hello.blocks, hello.page_size, hello.digest_seed) == (
            self.hello.blocks,
            self.hello.page_size,
            self.hello.digest_seed,
        )
        if not hello.resume or not same:
            return m.Reject("the resumed migration is not the one that began", "", "source")
        self.hello = hello
        self.stats.reconnects += 1
        self._back_to_active()
        self.lanes.stop_all("the connection was made anew")
        self._link(now)
        self._resuming = True
        self._check_resumed()
        return None

    def connection_lost(self, now: float, reason: str) -> None:
        """The control connection broke. Unless the guest is ours already, the source may come back."""
        if not self.linked:
            return
        self.linked = False
        self._resuming = False
        self._unlinked_at = now
        self._unlinked_reason = reason
        if self.state in BEFORE_COMMIT:
            self._back_to_active()
            self.lanes.stop_all(reason)
            self.emit(a.Disconnect())
            self.emit(a.Report("waiting", {"reason": reason, "seconds": self._reconnect_timeout}))
            if self._reconnect_timeout <= 0:
                self.tick(now)

    def message(self, now: float, message: Message) -> None:
        """A message came from the source. A forbidden one fails the migration."""
        if self.state is DestinationState.ENDED:
            return
        self._keepalive.heard(now)
        try:
            self._message(now, message)
        except ProtocolError as error:
            self.fail(now, error.with_context(side="source"))

    def tick(self, now: float) -> None:
        """Time passes; call it at least ten times a second."""
        if self.state not in BEFORE_COMMIT:
            return
        self.stats.tick(now)
        if not self.linked:
            if now - self._unlinked_at >= self._reconnect_timeout:
                text = (
                    f"the connection to the source broke ({self._unlinked_reason}) and the source did not"
                    f" come back within {self._reconnect_timeout:g} s"
                )
                hint = "start migrate-src again; it says where the guest runs"
                self.fail(now, NetworkError(text, side="destination", hint=hint))
        elif self._keepalive.silent(now):
            self.connection_lost(now, f"the source was silent for {self._keepalive.timeout:g} s")
        else:
            number = self._keepalive.ping_due(now)
            if number is not None and not self._resuming:
                self.send(m.Ping(number))

    # --- inputs: lanes ----------------------------------------------------------------------------

    def lane_opened(self, opening: m.LaneOpen) -> None:
        """Somebody opened a lane connection. Raises ProtocolError: it is not wanted, close it."""
        if self.state is not DestinationState.ACTIVE or not self.linked or self._resuming:
            raise ProtocolError(f"a lane was opened while the destination is {self.state.value}")
        if (opening.migration, opening.attempt) != (self.hello.migration, self.hello.attempt):
            raise ProtocolError("a lane was opened for another migration or attempt")
        self.lanes.opened(opening, self._secret)

    def batches_applied(self, now: float, lane: int, batches: Sequence[AppliedBatch]) -> None:
        """These batches are in RAM and their digests are recorded: acknowledge them."""
        self.lanes.applied(now, lane, batches)
        self._cache.check()

    def lane_failed(self, now: float, lane: int, error: Exception) -> None:
        """A lane thread has ended.

        A broken connection and bad bytes reset the lane, our own trouble is fatal.
        """
        if self.state is DestinationState.ENDED:
            return
        self.lanes.failed(lane, str(error))
        if isinstance(error, RamError | VerifyError):
            self.fail(now, error)
        self._check_resumed()

    def lane_stopped(self, now: float, lane: int) -> None:
        """A lane thread has ended, as asked or after its final batch."""
        self.lanes.stopped(lane)
        self._check_resumed()
        self._check_at_rest(now)

    def caches_allocated(self, now: float, caches: Sequence[kernel.PageCache | None] | None) -> None:
        """There is memory for page caches of another size, one a lane; None: there is not."""
        del now
        if self.state is not DestinationState.ENDED:
            self._cache.allocated(caches)

    # --- inputs: verification, hooks, ends --------------------------------------------------------

    def verified(self, now: float, digests: bytearray | None) -> None:
        """RAM was read (level `full`: its digest array); otherwise the recorded digests count."""
        number, self._verifying = self._verifying, 0
        if self.state is not DestinationState.PREPARING or self._prepare is None:
            return
        if number != self._prepare.number:  # what was read was the RAM of a pause that was given up
            self._check_at_rest(now)
            return
        root = self.root if digests is None else self._root_of(digests)
        self._verify_us = int((now - self._verify_began) * 1e6)
        if root.to_bytes(16, "big") == self._prepare.root:
            self.emit(a.RunPrepare(number))
            return
        self._found = digests
        self.send(m.Unequal(number, root.to_bytes(16, "big")))
        self.emit(a.SendDigests(number, self.digests.array if digests is None else digests))

    def hook_ended(self, now: float, number: int, error: MigrateError | None, seconds: float) -> None:
        """The on-prepare command of that pause, or (number 0) the on-commit command, has ended."""
        if number == 0 and self.state is DestinationState.STARTING:
            self._started(now, error, seconds)
        elif self.state is DestinationState.PREPARING and number == self._pause:
            if error is not None:
                self.send(m.Refused(number, error.message))
                self.fail(now, error)
                return
            self._enter(DestinationState.PREPARED)
            self.emit(a.Report("prepared", {"root": self.root.to_bytes(16, "big").hex()}))
            root = self.root.to_bytes(16, "big")
            self.send(m.Prepared(number, root, self._verify_us, int(seconds * 1e6)))

    def failed(self, now: float, error: MigrateError) -> None:
        """The shell met an error of this side."""
        if self.state is DestinationState.STARTING:
            self._started(now, error, 0.0)
        else:
            self.fail(now, error)

    def cancel(self, now: float, reason: str) -> bool:
        """A person wants to stop. False once the guest is ours: then it cannot be stopped."""
        if self.state not in BEFORE_COMMIT:
            return False
        self.fail(now, CancelledMigration(reason))
        return True

    def fail(self, now: float, error: MigrateError) -> None:
        """End without taking the guest; tells the source why. Later errors are dropped."""
        if self.state not in BEFORE_COMMIT:
            return
        cancelled = isinstance(error, CancelledMigration)
        self.outcome = "cancelled" if cancelled else "failed"
        self._error = error
        if cancelled:
            self.send(m.Cancel(error.message))
        else:
            self.send(m.Failed(error.exit_code, error.message))
        self._void_pause()
        self.lanes.stop_all("the migration ended")
        self._finish(now)

    # --- inside -----------------------------------------------------------------------------------

    def _message(self, now: float, message: Message) -> None:
        match message:
            case m.Ping():
                self.send(m.Pong(message.number))
            case m.Pong():
                self._keepalive.ponged(now, message.number)
            case m.Cancel():
                self.linked = False
                self.fail(now, CancelledMigration(f"the source cancelled: {message.reason}", side="source"))
            case m.Failed():
                self.linked = False
                text = f"the source gave up: {message.reason}"
                self.fail(now, peer_error(message.exit_code, text, "source"))
            case _:
                self._expected_message(now, message)

    def _expected_message(self, now: float, message: Message) -> None:
        if self._resuming or self.state not in EXPECTED.get(type(message), frozenset()):
            raise ProtocolError(f"the source sent {message.TYPE} while the destination is {self.state.value}")
        match message:
            case m.LaneBroken():
                self.lanes.broken_by_source(message)
            case m.CacheResize():
                self._cache.requested(message)
            case m.StateBlob():
                self._take_blob(message)
            case m.Prepare():
                self._take_prepare(now, message)
            case m.Resumed():
                self.emit(a.Report("resumed", {"reason": message.reason}))
                self._take_resumed(message)
            case m.Commit():
                self._commit(message)

    def _take_resumed(self, message: m.Resumed) -> None:
        """Only a source that sends the differing pages again may find the digests of RAM as it is here.

        To one that has not heard of them, the lanes' sums would seem wrong at the end of every round.
        """
        if message.repair and message.number == self._pause and self._found is not None:
            self.digests.array[:] = self._found
            self.lanes.rebase()
        self._back_to_active()

    def _take_blob(self, message: m.StateBlob) -> None:
        part = self._parts.setdefault(message.name, bytearray())
        part += message.data
        total = sum(map(len, self._parts.values()))
        if len(part) > m.MAX_BLOB_BYTES or total > m.MAX_STATE_BYTES or len(self._parts) > m.MAX_BLOBS:
            raise ProtocolError("the source sends more device state than is allowed")

    def _take_prepare(self, now: float, message: m.Prepare) -> None:
        if message.number <= self._pause:
            raise ProtocolError("the source prepared a pause that is over")
        if [(p.epoch, p.sequence) for p in message.positions] != self.lanes.positions:
            raise ProtocolError("the source prepared other lane positions than were applied")
        if not self.lanes.all_finished:
            raise ProtocolError("the source prepared before the final batch of every lane")
        self.blobs = {}
        for blob in message.blobs:
            data = bytes(self._parts.pop(blob.name, b""))
            if len(data) != blob.length or hashlib.sha256(data).digest() != blob.sha256:
                raise ProtocolError(f"device state {blob.name!r} was damaged on the way")
            self.blobs[blob.name] = data
        if self._parts:
            raise ProtocolError(f"device state {next(iter(self._parts))!r} was not announced")
        self._pause = message.number
        self._prepare = message
        self._enter(DestinationState.PREPARING)
        self._check_at_rest(now)

    def _check_at_rest(self, now: float) -> None:
        """RAM is immutable from here on: every lane thread has ended."""
        if self.state is not DestinationState.PREPARING or not self.lanes.at_rest or self._prepare is None:
            return
        if self._verifying:
            return
        self._verifying = self._prepare.number
        self._verify_began = now
        self.emit(a.Verify(int.from_bytes(self._prepare.root, "big")))

    def _commit(self, message: m.Commit) -> None:
        assert self._prepare is not None
        if (message.migration, message.attempt) != (self.hello.migration, self.hello.attempt):
            raise ProtocolError("the commit is for another migration or attempt")
        if message.root != self._prepare.root:
            raise ProtocolError("the commit names another root than was prepared")
        self._enter(DestinationState.STARTING)
        self.emit(a.Report("committed"))
        self.emit(a.RunCommit())

    def _started(self, now: float, error: MigrateError | None, seconds: float) -> None:
        if error is None:
            self.outcome = "completed"
            self.send(m.Running(int(seconds * 1e6)))
            self.emit(a.Report("running"))
        else:
            self.outcome = "start-failed"
            self._error = GuestError(
                f"the guest was handed over, but could not be started: {error.message}",
                side="destination",
                hint="its RAM here is whole: look whether it runs; if not, run the on-commit command by hand,"
                " or resume the guest at the source and never start it here",
            )
            self.send(m.StartFailed(error.message))
        self._finish(now)

    def _back_to_active(self) -> None:
        """The pause is void, the rounds go on."""
        self._void_pause()
        if self.state in (DestinationState.PREPARING, DestinationState.PREPARED):
            self._enter(DestinationState.ACTIVE)

    def _void_pause(self) -> None:
        """Forget what was prepared."""
        if self.state in (DestinationState.PREPARING, DestinationState.PREPARED):
            self.emit(a.StopHook())
        self._prepare = None
        self._found = None
        self._parts = {}
        self.blobs = {}

    def _link(self, now: float) -> None:
        self.linked = True
        self._keepalive.start(now)

    def _accept(self) -> None:
        agreed = self.agreement
        positions: Sequence[tuple[int, int]] = self.lanes.positions if self.hello.resume else []
        self.send(
            m.Accept(
                agreed.version,
                f"migrate {__version__}",
                agreed.cache_bytes,
                agreed.cache_rule,
                agreed.lanes,
                agreed.codec,
                agreed.verify,
                self._secret,
                [m.LanePosition(epoch, sequence) for epoch, sequence in positions],
                self._free_bytes,
            )
        )

    def _send_of_lanes(self, message: Message) -> None:
        """Not between two attempts: acknowledgements of the old one's lanes are not for the new one, whose
        accept says it all; and what the source asked for, it asks again.
        """
        if not self._resuming:
            self.send(message)

    def _check_resumed(self) -> None:
        if self._resuming and self.lanes.at_rest:
            self._resuming = False
            self._accept()

    def _enter(self, state: DestinationState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state.value} to {state.value}")
        self.state = state
        if state in STATUS:
            self._set_status(STATUS[state])

    def _set_status(self, status: str) -> None:
        if status != self.stats.status:
            self.emit(a.Report("status", {"old": self.stats.status, "new": status}))
            self.stats.status = status

    def _finish(self, now: float) -> None:
        if self._error is not None:
            hint = _LEFTOVERS if self.outcome in ("failed", "cancelled") else None
            self._error.with_context(guest=self.guest_place, hint=hint)
        self.linked = False
        self._resuming = False
        self.emit(a.Disconnect())
        done = {"completed": "completed", "cancelled": "cancelled"}
        self._set_status(done.get(self.outcome, "failed"))
        self._enter(DestinationState.ENDED)
        self.stats.finish(now)
        self.emit(a.Finish(self._error))
