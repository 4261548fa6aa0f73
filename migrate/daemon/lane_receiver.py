"""The thread behind a destination lane: reads batches into private memory and has the lane apply them.

One way only: acknowledgements go over the control connection. The thread ends with the final batch, at the
first error, and when it is stopped; it says which.

What was applied is told a few batches at a time, since waking the event loop for each would cost more than
its acknowledgement is worth: as soon as nothing more is waiting in the socket, at the latest after
`HELD_BATCHES` or `HELD_SECONDS`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from typing import Protocol

from migrate.daemon.sockets import has_arrived, shut_down, tune_lane
from migrate.errors import MigrateError
from migrate.protocol.batch import HEADER_BYTES, MAX_BODY_BYTES, Kind
from migrate.protocol.lane_destination import AppliedBatch, DestinationLane

HELD_BATCHES = 8
"""A quarter of the source's window (`MAX_UNACKNOWLEDGED_BATCHES`)."""
HELD_SECONDS = 0.01


class ReceiverEvents(Protocol):
    """What the thread tells; called in the event loop."""

    def batches_applied(self, lane: int, batches: list[AppliedBatch]) -> None:
        """These batches are in RAM, in this order."""

    def receiver_ended(self, lane: int, problem: Exception | None) -> None:
        """The thread has ended; None: it was stopped, or its lane is finished."""


class LaneReceiver:
    """One connection (one epoch) of a destination lane.

    Args:
        sock: connected, blocking; this object owns it from here on.
    """

    def __init__(self, lane: DestinationLane, sock: socket.socket, events: ReceiverEvents) -> None:
        self._lane = lane
        self._socket = sock
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._held: list[AppliedBatch] = []
        self._held_since = 0.0
        self._thread = threading.Thread(target=self._run, name=f"lane-{lane.number}", daemon=True)

    def start(self) -> None:
        """Run the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, even one that is blocked in the socket; `receiver_ended` follows."""
        self._stopping = True
        shut_down(self._socket)

    def join(self) -> None:
        """Wait until the thread has ended; it must have been stopped."""
        self._thread.join()

    def _run(self) -> None:
        problem: Exception | None = None
        try:
            tune_lane(self._socket, sends=False)
            self._lane.commit_cache()
            self._receive_batches()
        except (OSError, MigrateError) as error:
            problem = error
        except Exception as error:  # a fault of ours must end the migration, not just this thread
            problem = MigrateError(f"unexpected {type(error).__name__} in a lane thread: {error}")
            problem.__cause__ = error
        finally:
            self._socket.close()
        self._tell_held()
        self._loop.call_soon_threadsafe(
            self._events.receiver_ended, self._lane.number, None if self._stopping else problem
        )

    def _receive_batches(self) -> None:
        header = memoryview(bytearray(HEADER_BYTES))
        body = memoryview(bytearray(MAX_BODY_BYTES))
        while not self._stopping:
            self._receive_header(header)
            length = self._lane.header(header)
            self._receive(body[:length])
            applied = self._lane.body(body[:length])
            self._hold(applied)
            if applied.kind is Kind.FINAL:
                return

    def _hold(self, applied: AppliedBatch) -> None:
        now = time.monotonic()
        if not self._held:
            self._held_since = now
        self._held.append(applied)
        if (
            applied.kind is not Kind.RECORDS
            or len(self._held) >= HELD_BATCHES
            or now - self._held_since >= HELD_SECONDS
        ):
            self._tell_held()

    def _tell_held(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._loop.call_soon_threadsafe(self._events.batches_applied, self._lane.number, held)

    def _receive_header(self, header: memoryview) -> None:
        """The next header; what is held is told before waiting for it."""
        here = 0
        if isinstance(self._socket, ssl.SSLSocket):
            if self._held and not has_arrived(self._socket):
                self._tell_held()
        elif self._held:
            try:
                here = self._socket.recv_into(header, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._tell_held()
        self._receive(header[here:])

    def _receive(self, view: memoryview) -> None:
        """Fill the whole view. Raises ConnectionError at the end of the stream."""
        flags = 0 if isinstance(self._socket, ssl.SSLSocket) else socket.MSG_WAITALL  # TLS takes none
        while view:
            count = self._socket.recv_into(view, len(view), flags)
            if count == 0:
                raise ConnectionError("the source closed the lane")
            view = view[count:]
