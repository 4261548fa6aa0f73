"""The migration machine of the destination: what may come when, and every way to end.

States: destination_states.py; the connection to the source: destination_link.py; lanes and their resets:
destination_lanes.py; proof, hooks and the handover: destination_pause.py. Sans I/O: inputs are the public
methods, each with the time; outputs are the actions that `take_actions` returns. The shell makes one machine
per migration, after the handshake (`handshake.negotiate`) has agreed.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrate import kernel
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
from migrate.protocol.destination_link import DestinationLink
from migrate.protocol.destination_pause import DestinationPause
from migrate.protocol.destination_states import BEFORE_COMMIT, EXPECTED, STATUS, TRANSITIONS, DestinationState
from migrate.protocol.destination_warm import DestinationWarm
from migrate.protocol.handshake import Agreement
from migrate.protocol.journal_record import Step
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
        self.agreement = agreement
        self.outcome = "failed"
        self.stats = MigrationStats(
            side="destination", page_size=hello.page_size, total=image.layout.ram_bytes
        )
        self.stats.verify = agreement.verify
        self.stats.cache_size = agreement.cache_bytes
        self.keys = kernel.Keys(hello.digest_seed, hello.page_size)
        self.digests = DigestTable(self.keys, image.layout)
        self._actions: list[a.Action] = []
        self._link = DestinationLink(
            hello, agreement, secret, free_bytes, keepalive_timeout, reconnect_timeout, self.emit
        )
        self._running_since = 0.0
        self._source_gave_up = False
        """It has ended the migration by itself: it runs the guest, and will not ask."""
        self._error: MigrateError | None = None
        self.lanes = DestinationLanes(
            image, self.keys, self.digests, agreement, self.emit, self._link.send_of_lanes, self.stats
        )
        self._cache = DestinationCache(
            agreement, hello.page_size, self.lanes, self.emit, self._link.send_of_lanes, self.stats
        )
        self.pause = DestinationPause(self, image)
        self._warm = DestinationWarm(self.digests, self.emit)

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
        self._link.send(message)

    @property
    def hello(self) -> m.Hello:
        """Of the newest attempt."""
        return self._link.hello

    @property
    def root(self) -> int:
        """The root over what was applied."""
        return (self.digests.root + self.lanes.sum) % _SUM

    @property
    def guest_place(self) -> str:
        """One clause: where the guest runs now."""
        if self.outcome == "completed":
            return "the guest runs here"
        if (
            self.state in (DestinationState.STARTING, DestinationState.RUNNING)
            or self.outcome == "start-failed"
        ):
            return "the guest is stopped at the source; it was handed over and may run here"
        return "the guest was not started here and will not be: it is the source's"

    # --- inputs: connection -----------------------------------------------------------------------

    def start(self, now: float) -> None:
        """The hello was answered with yes."""
        self.stats.start(now)
        self.stats.status = "setup"
        self.stats.setup_done(now)
        self._link.begin(now)
        if self.agreement.warm:
            self._warm.begin()
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
        reject = self._link.wrong_attempt(hello, begun=any(epoch for epoch, _ in self.lanes.positions))
        if reject is not None:
            return reject
        self.stats.reconnects += 1
        self.pause.back_to_active(now, "the source made its connection anew")
        self.lanes.stop_all("the connection was made anew")
        self._link.resume(now, hello)
        self._check_resumed()
        return None

    def connection_lost(self, now: float, reason: str) -> None:
        """The control connection broke. Unless the guest is ours already, the source may come back."""
        link = self._link
        if not link.up:
            return
        link.lost(now, reason)
        if self.state in BEFORE_COMMIT:
            if self.state is not DestinationState.PREPARED:  # else the source may have committed already
                self.pause.back_to_active(now, reason)
            self.lanes.stop_all(reason)
            self.emit(a.Disconnect())
            self.emit(a.Report("waiting", {"reason": reason, "seconds": link.reconnect_timeout}))
            if link.reconnect_timeout <= 0:
                self.tick(now)

    def asked(self, now: float, question: m.Question) -> m.Verdict | None:
        """A new connection that opens with a question: from now on the connection of this machine.

        Returns the last answer on it, where it cannot be that.
        """
        if self.state not in (
            DestinationState.PREPARED,
            DestinationState.STARTING,
            DestinationState.RUNNING,
        ):
            return m.Verdict(question.number, "busy", f"this migration is {self.state.value}")
        self._link.begin(now)
        self.pause.asked(now, question)
        return None

    def message(self, now: float, message: Message) -> None:
        """A message came from the source. A forbidden one fails the migration."""
        if self.state is DestinationState.ENDED:
            return
        self._link.keepalive.heard(now)
        try:
            self._message(now, message)
        except ProtocolError as error:
            self.fail(now, error.with_context(side="source"))

    def tick(self, now: float) -> None:
        """Time passes; call it at least ten times a second."""
        if self.state is DestinationState.RUNNING:
            self._check_settled(now)
        if self.state not in BEFORE_COMMIT:
            return
        self.stats.tick(now)
        link = self._link
        if not link.up:
            if link.away(now):
                text = (
                    f"the connection to the source broke ({link.reason}) and the source did not"
                    f" come back within {link.reconnect_timeout:g} s"
                )
                hint = "start migrate-src again, --warm keeps what has come; it says where the guest runs"
                self.fail(now, NetworkError(text, side="destination", hint=hint))
        elif link.keepalive.silent(now):
            self.connection_lost(now, f"the source was silent for {link.keepalive.timeout:g} s")
        else:
            link.ping(now)

    # --- inputs: lanes ----------------------------------------------------------------------------

    def lane_opened(self, opening: m.LaneOpen) -> None:
        """Somebody opened a lane connection. Raises ProtocolError: it is not wanted, close it."""
        if self.state is not DestinationState.ACTIVE or not self._link.up or self._link.resuming:
            raise ProtocolError(f"a lane was opened while the destination is {self.state.value}")
        if (opening.migration, opening.attempt) != (self.hello.migration, self.hello.attempt):
            raise ProtocolError("a lane was opened for another migration or attempt")
        self.lanes.opened(opening, self._link.secret)

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
        self.pause.check_at_rest(now)

    def caches_allocated(self, now: float, caches: Sequence[kernel.PageCache | None] | None) -> None:
        """There is memory for page caches of another size, one a lane; None: there is not."""
        del now
        if self.state is not DestinationState.ENDED:
            self._cache.allocated(caches)

    def held_ram_read(self, now: float, digests: bytearray) -> None:
        """What the RAM files held when the migration began."""
        del now
        if self.state is DestinationState.ACTIVE:
            self._warm.read(digests, self.hello)
            self.lanes.begin_with_held_ram()

    # --- inputs: the journal, ends ------------------------------------------------------------------

    def journalled(self, now: float, step: Step, error: MigrateError | None) -> None:
        """That step is in the journal, or could not be written."""
        if self.state is not DestinationState.ENDED:
            self.pause.journalled(now, step, error)

    def claimed(self, now: float, won: bool | None, error: MigrateError | None) -> None:
        """Whether the arbiter gives the guest to this side; None: it does not answer."""
        if self.state is not DestinationState.ENDED:
            self.pause.claimed(now, won, error)

    def failed(self, now: float, error: MigrateError) -> None:
        """The shell met an error of this side."""
        if self.state is DestinationState.STARTING:
            self.pause.start_ended(now, error, 0.0)
        else:
            self.fail(now, error)

    def cancel(self, now: float, reason: str) -> bool:
        """A person wants to stop. False once the guest is ours: then it cannot be stopped."""
        if self.state is DestinationState.RUNNING:
            self._wait_no_longer(now, reason)
        if self.state not in BEFORE_COMMIT:
            return False
        self.fail(now, CancelledMigration(reason))
        return True

    def fail(self, now: float, error: MigrateError) -> None:
        """End without taking the guest; tells the source why. Later errors are dropped."""
        if self.state not in BEFORE_COMMIT:
            return
        self.outcome = "cancelled" if isinstance(error, CancelledMigration) else "failed"
        self._error = error
        wait = self.pause.promised
        self.pause.void(now, error.message, given_up=self._source_gave_up)
        if wait and not self._source_gave_up:
            self.enter(DestinationState.DECLINING)
        else:
            self.declined(now)

    def declined(self, now: float) -> None:
        """Whatever was promised is taken back, on disk: end, and tell the source why."""
        assert self._error is not None
        if isinstance(self._error, CancelledMigration):
            self.send(m.Cancel(self._error.message))
        else:
            self.send(m.Failed(self._error.exit_code, self._error.message))
        self.lanes.stop_all("the migration ended")
        self._finish(now)

    def running(self, now: float) -> None:
        """The guest runs here: what is left is that the source knows."""
        self.outcome = "completed"
        self._running_since = now
        self.emit(a.Report("running"))

    def start_failed(self, now: float, problem: MigrateError) -> None:
        """The guest is this side's, but nobody knows whether it runs."""
        self.outcome = "start-failed"
        self._error = GuestError(
            f"the guest was handed over, but could not be started: {problem.message}",
            side="destination",
            hint="its RAM here is whole, and the source keeps its guest stopped: mend what failed, then"
            " `migrate-dst recover` here or `migrate-src recover` there",
        )
        self._finish(now)

    def settled(self, now: float) -> None:
        """The source knows where the guest runs."""
        self._finish(now)

    # --- inside -----------------------------------------------------------------------------------

    def _message(self, now: float, message: Message) -> None:
        match message:
            case m.Ping():
                self.send(m.Pong(message.number))
            case m.Pong():
                self._link.keepalive.ponged(now, message.number)
            case m.Cancel():
                self._link.down()
                self._source_gave_up = True
                self.fail(now, CancelledMigration(f"the source cancelled: {message.reason}", side="source"))
            case m.Failed():
                self._link.down()
                self._source_gave_up = True
                text = f"the source gave up: {message.reason}"
                self.fail(now, peer_error(message.exit_code, text, "source"))
            case _:
                self._expected_message(now, message)

    def _expected_message(self, now: float, message: Message) -> None:
        if self._link.resuming or self.state not in EXPECTED.get(type(message), frozenset()):
            raise ProtocolError(f"the source sent {message.TYPE} while the destination is {self.state.value}")
        match message:
            case m.LaneBroken():
                self.lanes.broken_by_source(message)
            case m.CacheResize():
                self._cache.requested(message)
            case m.StateBlob():
                self.pause.take_blob(message)
            case m.Prepare():
                self.pause.take_prepare(now, message)
            case m.Resumed():
                self.emit(a.Report("resumed", {"reason": message.reason}))
                self.pause.take_resumed(now, message)
            case m.Commit():
                self.pause.commit(now, message)
            case m.Settled():
                self.pause.settled(now, message)

    def _check_settled(self, now: float) -> None:
        """The source is to confirm; one that has lost the connection comes back and asks."""
        timeout = self._link.keepalive.timeout
        if self._link.up and now - self._running_since > timeout:
            self._wait_no_longer(now, f"no answer for {timeout:g} s")
        elif self._link.away(now, self._running_since):
            self._wait_no_longer(now, self._link.reason)

    def _wait_no_longer(self, now: float, reason: str) -> None:
        text = f"the journal stays, since the source did not confirm that the guest runs here: {reason}"
        hint = "`migrate-src recover` there mends that"
        self.emit(a.Report("warning", {"message": f"{text}; {hint}"}))
        self._finish(now)

    def _accept(self) -> None:
        self._link.accept(self.lanes.positions)
        self._warm.tell(self.hello)

    def _check_resumed(self) -> None:
        if self._link.resuming and self.lanes.at_rest:
            self._accept()

    def enter(self, state: DestinationState) -> None:
        """Change the state; only along the table."""
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
        self._link.down()
        self.emit(a.Disconnect())
        done = {"completed": "completed", "cancelled": "cancelled"}
        self._set_status(done.get(self.outcome, "failed"))
        self.enter(DestinationState.ENDED)
        self.stats.finish(now)
        self.emit(a.Finish(self._error))
