"""The thread behind a source lane: opens the connection, makes batches, sends them at the allowed rate.

While it runs the lane is its own: whatever others want of the lane goes through `post`. It tells what happens
by calls into the event loop. A batch is noted *before* its first byte leaves, and `take_sent` fetches the
notes: who does that before looking at an acknowledgement is never overtaken by one. The loop is woken for a
few notes at a time, since a wake-up costs more than most of them are worth.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from migrate.daemon.sockets import shut_down, tune_lane
from migrate.daemon.tls_client import TlsClient
from migrate.errors import MigrateError
from migrate.protocol.bandwidth import TokenBucket, batch_limit
from migrate.protocol.batch import Kind
from migrate.protocol.lane_source import SentBatch, SourceLane

HELD_BATCHES = 8
HELD_SECONDS = 0.01
"""So many notes, or for so long, may wait before the loop is woken for them."""


class LaneEvents(Protocol):
    """What the thread tells; called in the event loop."""

    def batches_noted(self, lane: int) -> None:
        """`take_sent` has something."""

    def lane_ended(self, lane: int, problem: Exception | None) -> None:
        """The thread has ended; None: because it was stopped."""


class LaneSender:
    """One connection (one epoch) of a source lane.

    Args:
        opening: bytes that begin the connection.
        bucket: the bandwidth limit, shared by all lanes.
        lanes: how many share it.
        tls: makes the connection a TLS one.
    """

    def __init__(
        self,
        lane: SourceLane,
        address: tuple[str, int],
        opening: bytes,
        bucket: TokenBucket,
        lanes: int,
        connect_timeout: float,
        events: LaneEvents,
        tls: TlsClient | None = None,
    ) -> None:
        self._lane = lane
        self._address = address
        self._opening = opening
        self._bucket = bucket
        self._lanes = lanes
        self._connect_timeout = connect_timeout
        self._events = events
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._socket: socket.socket | None = None
        self._stopping = False
        self._sent: deque[SentBatch] = deque()
        self._woken_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"lane-{lane.number}", daemon=True)

    def start(self) -> None:
        """Run the thread."""
        self._thread.start()

    def post(self, call: Callable[[], object]) -> None:
        """Have something done to the lane by its own thread, between two batches."""
        self._inbox.put(call)

    def wake(self) -> None:
        """The bandwidth limit changed: do not wait for what was right before."""
        self._inbox.put(_nothing)

    def stop(self) -> None:
        """End the thread, even one that is blocked in the socket; `lane_ended` follows."""
        self._stopping = True
        sock = self._socket
        if sock is not None:
            shut_down(sock)
        self._inbox.put(None)

    def take_sent(self) -> Iterator[SentBatch]:
        """Batches that are about to leave or have left, in their order, each once."""
        while self._sent:
            yield self._sent.popleft()

    def do_rest(self) -> None:
        """Do what was posted after the thread's last look; for after `lane_ended`, in the event loop.

        A round must not get lost because the connection broke in the same moment.
        """
        while not self._inbox.empty():
            call = self._inbox.get_nowait()
            if call is not None:
                call()

    def join(self) -> None:
        """Wait until the thread has ended; it must have been stopped."""
        self._thread.join()

    def _run(self) -> None:
        problem: Exception | None = None
        try:
            self._send_batches()
        except (OSError, MigrateError) as error:
            problem = error
        except Exception as error:  # a fault of ours must end the migration, not just this thread
            problem = MigrateError(f"unexpected {type(error).__name__} in a lane thread: {error}")
            problem.__cause__ = error
        finally:
            if self._socket is not None:
                self._socket.close()
        self._tell(self._events.lane_ended, self._lane.number, None if self._stopping else problem)

    def _send_batches(self) -> None:
        sock = self._connect()
        sock.sendall(self._opening)
        self._lane.commit_cache()
        while True:
            self._work_off(block=self._lane.window_full)
            if self._stopping:
                return
            if self._lane.window_full:
                continue
            made = self._lane.next_batch(batch_limit(self._bucket.rate / self._lanes))
            if made is None:
                self._work_off(block=True)
                continue
            view, batch = made
            self._wait_for_rate(len(view))
            if self._stopping:
                return
            self._note(batch)
            sock.sendall(view)

    def _connect(self) -> socket.socket:
        """The connection, blocking from here on. Raises OSError, RefusedError."""
        sock = self._socket = socket.create_connection(self._address, self._connect_timeout)
        if self._tls is not None:
            secured = self._tls.wrap(sock)
            sock = self._socket = secured
            if self._stopping:  # who stops it shut down what was there before
                raise ConnectionAbortedError("the lane was stopped")
            secured.do_handshake()
            self._tls.check(secured)
        sock.settimeout(None)
        tune_lane(sock, sends=True)
        return sock

    def _note(self, batch: SentBatch) -> None:
        self._sent.append(batch)
        now = time.monotonic()
        if (
            batch.kind is not Kind.RECORDS
            or len(self._sent) >= HELD_BATCHES
            or now - self._woken_at >= HELD_SECONDS
        ):
            self._woken_at = now
            self._tell(self._events.batches_noted, self._lane.number)

    def _wait_for_rate(self, nbytes: int) -> None:
        rate = self._bucket.rate
        until = time.monotonic() + self._bucket.delay(time.monotonic(), nbytes)
        while not self._stopping and self._bucket.rate == rate:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._work_off(block=True, timeout=left)

    def _work_off(self, *, block: bool, timeout: float | None = None) -> None:
        """Do what was posted; with `block` wait for at least one."""
        try:
            call = self._inbox.get(block, timeout)
            while call is not None:
                call()
                call = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(call, *arguments)


def _nothing() -> None:
    pass
