"""Standard output that neither blocks nor breaks a migration.

A terminal stopped with Ctrl-S, a pager that nobody scrolls or a full pipe blocks whoever writes to it. The
event loop must not wait for it: its keepalives would stop and the peer would give the migration up. So a
thread writes.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

BACKLOG_LIMIT: Final = 16 << 20
"""Bytes kept for a reader that does not read; what comes after them is dropped, and their number told."""


def plain_notice(dropped: int) -> str:
    """What a person reads where text is missing."""
    return f"\n[{dropped} bytes of output were dropped: nobody read them]\n"


class Output:
    """Text stream over a file descriptor: `write` returns at once and never raises.

    Once the descriptor fails (closed pipe, full disk, terminal gone) everything further is dropped. It has
    what `rich.console.Console` wants of a file.
    """

    def __init__(
        self,
        fd: int,
        *,
        encoding: str = "utf-8",
        notice: Callable[[int], str] = plain_notice,
        backlog_limit: int = BACKLOG_LIMIT,
    ) -> None:
        """Args:
        fd: stays the caller's; not closed here.
        encoding: what it cannot express is written as a backslash escape.
        notice: makes the text that stands in for so many dropped bytes.
        backlog_limit: bytes.
        """
        self.encoding = encoding
        self.broken: OSError | None = None
        """Why nothing is written any more."""
        self.backlog = 0
        """Bytes that wait to be written."""
        self._fd = fd
        self._backlog_limit = backlog_limit
        self._notice = notice
        self._dropped = 0
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, stream: TextIO, notice: Callable[[int], str] = plain_notice) -> Output:
        """An output over the descriptor of `sys.stdout` or the like. Raises OSError if it has none."""
        return cls(stream.fileno(), encoding=stream.encoding, notice=notice)

    def fileno(self) -> int:
        """The descriptor written to."""
        return self._fd

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return os.isatty(self._fd)

    def write(self, text: str) -> int:
        """Queue text. Returns its length, as streams do, whether or not it will be seen."""
        data = text.encode(self.encoding, "backslashreplace")
        with self._changed:
            if self.broken is None and not self._closing and data:
                self._enqueue(data)
                if self._thread is None:
                    # A daemon thread: stuck in a stopped terminal it must not keep the process alive.
                    self._thread = threading.Thread(target=self._run, name="output", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        return len(text)

    def _enqueue(self, data: bytes) -> None:
        if self.backlog + len(data) > self._backlog_limit:
            self._dropped += len(data)
            return
        if self._dropped:
            notice = self._notice(self._dropped).encode(self.encoding, "backslashreplace")
            self._dropped = 0
            self._queue.append(notice)
            self.backlog += len(notice)
        self._queue.append(data)
        self.backlog += len(data)

    def flush(self) -> None:
        """Nothing: the thread writes as fast as the reader reads."""

    def drain(self, timeout: float = 2.0) -> bool:
        """Wait until all is written or `timeout` seconds have passed; True if all is written."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.backlog or self.broken is not None, timeout)

    def close(self, timeout: float = 2.0) -> None:
        """`drain`, then end the thread. The descriptor stays open."""
        drained = self.drain(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and drained:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                data = self._queue.popleft()
            try:
                self._write_out(memoryview(data))
            except OSError as error:
                with self._changed:
                    self.broken = error
                    self._queue.clear()
                    self.backlog = 0
                    self._changed.notify_all()
                return
            with self._changed:
                self.backlog -= len(data)
                self._changed.notify_all()

    def _write_out(self, data: memoryview) -> None:
        """Write all of it; with os.write, as a stream's lock held by a stuck thread would break the exit."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                waiter = select.poll()
                waiter.register(self._fd, select.POLLOUT)
                waiter.poll()
