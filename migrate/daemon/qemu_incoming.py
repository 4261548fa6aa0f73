"""A migration that a real QEMU sends: its stream into files, its return path answered.

The source is told the end (SHUT) only when everything is stored, so `completed` there means that. Until then,
and after any failure, the guest is QEMU's; after success it is too, until somebody starts another one from
what is here: QEMU keeps its guest paused, and `cont` lets it go on.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from functools import partial

from migrate.config import DestinationConfig
from migrate.daemon.page_channels import PageChannels
from migrate.daemon.qemu_receiver import QemuReceiver
from migrate.daemon.reporter import Reporter
from migrate.daemon.sockets import probe_peer, shut_down, shut_down_reading, shut_down_writing, tune_lane
from migrate.errors import (
    CancelledMigration,
    MigrateError,
    NetworkError,
    ProtocolError,
    StreamError,
    as_error,
)
from migrate.protocol.qemu_multifd import Opening
from migrate.protocol.qemu_wire import Command, encode_pong, encode_shut, encode_switchover_ack
from migrate.protocol.stats import MigrationStats

CHUNK = 1 << 20
LINGER_SECONDS = 2.0
"""How long the source may take to read the last word on the return path."""
LOADED, FAILED = 0, 1
MULTIFD_RULES = ("multifd", "pages-missing")
"""What a stream breaks whose pages travel in channels that nobody takes."""
GUEST = "at the source; if QEMU shows it as paused, `cont` lets it go on"


class QemuIncoming:
    """One stream of a QEMU, received by a thread of its own, and one for each page channel of multifd.

    Args:
        sock: blocking; closed here.
        head: bytes of the stream that were read already.

    Attributes:
        identities: (device, inode) of every RAM file, once all is stored.
        outcome: completed, failed or cancelled.
        peer: HOST:PORT of the main channel.
    """

    def __init__(
        self, config: DestinationConfig, reporter: Reporter, sock: socket.socket, head: bytes, peer: str
    ) -> None:
        self.stats: MigrationStats | None = None
        """None: what came is told in migration.json."""
        self.outcome = "failed"
        self.handed_over = False
        self.stop_wanted = False
        self.identities: list[tuple[int, int]] = []
        self.peer = peer
        self._channels: PageChannels | None = None
        if config.multifd_channels:
            wake = partial(shut_down_reading, sock)
            self._channels = PageChannels(config.multifd_channels, config.keepalive_timeout, wake)
        self._receiver = QemuReceiver(
            config.ram, config.output_dir, on_command=self._command, channels=self._channels
        )
        self.migration = self._receiver.migration
        self._config = config
        self._reporter = reporter
        self._socket = sock
        self._head = head
        self._return_path = False
        self._too_slow = False
        self._stored = False
        self._cancelled = ""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[dict[str, object] | MigrateError] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="qemu", daemon=True)

    async def run(self) -> None:
        """Receive to the end. Raises MigrateError."""
        self._reporter.event("connected", peer=self.peer, migration=self.migration, format="qemu")
        self._thread.start()
        self._loop.call_later(self._config.keepalive_timeout, self._look_at_start)
        while True:
            try:
                result = await asyncio.shield(self._ended)
                break
            except asyncio.CancelledError:
                self.stop_wanted = True
                self.cancel("cancelled")
        await asyncio.to_thread(self._thread.join)
        if isinstance(result, MigrateError):
            if isinstance(result, CancelledMigration):
                self.outcome = "cancelled"
            raise result.with_context(side="destination", guest=GUEST)
        self.handed_over = True
        self.outcome = "completed"
        directory = self._config.output_dir
        self._reporter.event(
            "stored",
            output_dir=str(directory) if directory is not None else None,
            blocks=result["blocks"],
            device_state_bytes=result["device_state_bytes"],
            received_bytes=result["bytes"],
            guest=GUEST,
        )

    def channel_came(self, opening: Opening, sock: socket.socket) -> None:
        """A page channel from the same host. Raises ProtocolError: not wanted, and the caller's to close."""
        if self._channels is None:
            raise ProtocolError("this migration has no multifd channels")
        self._channels.came(opening, sock)

    def cancel(self, reason: str) -> bool:
        """End it; `run` raises soon. False: all is stored already."""
        if self._ended.done() or self._stored:
            return False
        self._cancelled = self._cancelled or reason
        shut_down_reading(self._socket)
        if self._channels is not None:
            self._channels.stop()
        return True

    def _look_at_start(self) -> None:
        """Who only says that he is a QEMU must not keep others out."""
        if not self._ended.done() and not self._receiver.started:
            self._too_slow = True
            shut_down_reading(self._socket)

    # --- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        outcome: dict[str, object] | MigrateError
        try:
            outcome = self._receive()
            self._stored = True
        except Exception as problem:
            outcome = self._in_words(problem)
        if self._channels is not None:
            self._channels.close()
        self._say_goodbye(LOADED if self._stored else FAILED)
        if not isinstance(outcome, MigrateError):
            try:  # now that nobody waits for it
                self._receiver.add_digests(outcome)
            except Exception as problem:
                outcome = as_error(problem)
        self._receiver.close()
        self._loop.call_soon_threadsafe(self._ended.set_result, outcome)

    def _receive(self) -> dict[str, object]:
        self._tune()
        self._receiver.feed(self._head)
        while not self._receiver.finished:
            if self._receiver.in_device_state:
                self._socket.settimeout(self._config.keepalive_timeout)
            try:
                count = self._socket.recv_into(self._receiver.wanted)
            except TimeoutError:
                if self._receiver.silent():
                    break
                raise
            if count == 0:
                self._receiver.end_of_input()
            self._receiver.filled(count)
        result = self._receiver.complete()
        found = [path.stat() for path in self._receiver.paths]
        self.identities += [(status.st_dev, status.st_ino) for status in found]
        return result

    def _tune(self) -> None:
        """A silent source may be a paused one; one whose host is gone is found by the kernel's probes."""
        tune_lane(self._socket, sends=False)
        probe_peer(self._socket, self._config.keepalive_timeout)

    def _command(self, command: Command, payload: bytes) -> None:
        if command is Command.OPEN_RETURN_PATH:
            self._return_path = True
            if self._config.switchover_ack:
                self._socket.sendall(encode_switchover_ack())
        elif command is Command.PING:
            self._socket.sendall(encode_pong(payload))

    def _in_words(self, problem: Exception) -> MigrateError:
        if self._cancelled:
            return CancelledMigration(self._cancelled)
        if self._too_slow:
            return NetworkError(f"no list of RAM blocks within {self._config.keepalive_timeout:g} s")
        if self._channels is not None and self._channels.error is not None:
            return self._channels.error
        if isinstance(problem, TimeoutError):
            return NetworkError(f"nothing for {self._config.keepalive_timeout:g} s within the device state")
        if isinstance(problem, OSError):
            return NetworkError(f"the connection from QEMU broke: {problem.strerror or problem}")
        error = as_error(problem)
        if isinstance(error, StreamError) and error.rule in MULTIFD_RULES and self._channels is None:
            error.with_context(hint="if multifd is on at the source: --multifd-channels N")
        return error

    def _say_goodbye(self, status: int) -> None:
        """SHUT if there is a return path, then close. What still comes is read, or a reset would eat SHUT."""
        with suppress(OSError):
            if self._return_path:
                self._socket.sendall(encode_shut(status))
                shut_down_writing(self._socket)
                until = time.monotonic() + LINGER_SECONDS
                self._socket.settimeout(LINGER_SECONDS)
                while time.monotonic() < until and self._socket.recv(CHUNK):
                    pass
        shut_down(self._socket)
        self._socket.close()
