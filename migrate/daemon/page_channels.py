"""The page channels of a running migration with multifd: a thread each; they meet at the main one's barriers.

    main channel's thread               thread of a channel
    synchronise: waits for all   ←──    packet with SYNC: says so, reads nothing more
                 lets them go    ──→    next packet

The first barrier belongs to the list of RAM blocks; threads start there, once all channels are here.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from migrate.daemon.sockets import probe_peer, shut_down, tune_lane
from migrate.errors import MigrateError, NetworkError, ProtocolError, as_error
from migrate.protocol.qemu_multifd import OPENING_BYTES, MultifdChannel, Opening, Packet
from migrate.protocol.qemu_ram import PageLander, QemuRam


class _Channel:
    """One of them. What several threads look at is changed under the lock of `PageChannels`."""

    def __init__(self, number: int, sock: socket.socket, ram: QemuRam) -> None:
        self.machine = MultifdChannel(ram.layout.page_size, number)
        self.barriers = 0
        """How many it has reached."""
        self.ended = False
        self.received = OPENING_BYTES
        self._socket = sock
        self._lander: PageLander = ram.page_channel()
        self._unsynchronised = False

    @property
    def is_loose(self) -> bool:
        """Pages came behind the last SYNC; empty packets may."""
        return self._unsynchronised or self.machine.within_packet

    def next_packet(self) -> Packet | None:
        """Receive one and land it; None: the channel ended between two. Raises MigrateError, OSError."""
        while True:
            within = self.machine.within_packet
            wanted = self.machine.wanted
            done = 0
            while done < len(wanted):
                count = self._socket.recv_into(wanted[done:])
                if not count:
                    if done or within:
                        raise self.machine.error("truncated", "it ends inside a packet")
                    return None
                done += count
                self.received += count
            packet = self.machine.filled()
            if packet is not None:
                self._lander.land(packet)
                self._unsynchronised = (self._unsynchronised or bool(packet.offsets)) and not packet.sync
                return packet


class PageChannels:
    """All channels of one migration.

    Args:
        count: how many there will be.
        timeout: seconds for another one to come, and for anything to come while a barrier is due.
        failed: called by the thread that found an error: the main channel's must be woken up.

    Attributes:
        error: the first one that a channel had.
    """

    def __init__(self, count: int, timeout: float, failed: Callable[[], None]) -> None:
        self.error: MigrateError | None = None
        self._count = count
        self._timeout = timeout
        self._failed = failed
        self._uuid: bytes | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._channels: list[_Channel] = []
        self._threads: list[threading.Thread] = []
        self._passed = 0
        """Barriers behind us."""
        self._closing = False
        self._news = threading.Condition()

    @property
    def received(self) -> int:
        """Bytes of all channels together."""
        return sum(channel.received for channel in self._channels)

    def came(self, opening: Opening, sock: socket.socket) -> None:
        """One more channel, blocking. Raises ProtocolError: it is not wanted, and the caller's to close."""
        with self._news:
            if opening.number >= self._count:
                message = f"the source has a multifd channel {opening.number}, {self._count} are awaited here"
                self._fail(ProtocolError(message, hint="--multifd-channels says as many as the source has"))
                raise ProtocolError(message)
            if self._closing or opening.number in self._sockets:
                raise ProtocolError(f"multifd channel {opening.number} is here already, or too late")
            if self._uuid not in (None, opening.uuid):
                raise ProtocolError(f"multifd channel {opening.number} is another machine's")
            self._uuid = opening.uuid
            tune_lane(sock, sends=False)
            probe_peer(sock, self._timeout)
            self._sockets[opening.number] = sock
            self._news.notify_all()

    def synchronise(self, ram: QemuRam) -> None:
        """Land everything up to the next SYNC of every channel. Raises MigrateError."""
        with self._news:
            if not self._channels:
                self._start(ram)
            self._wait(lambda: all(channel.barriers > self._passed for channel in self._channels))
            self._passed += 1
            self._news.notify_all()

    def finish(self) -> None:
        """No more barriers come. Raises MigrateError: a channel failed, or has pages behind the last one."""
        self.close()
        if self.error is not None:
            raise self.error
        for channel in self._channels:
            if channel.is_loose:
                raise channel.machine.error("multifd-barrier", "pages behind the last barrier")

    def stop(self) -> None:
        """Let every thread end; whoever waits for a barrier gets an error."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        for sock in self._sockets.values():
            shut_down(sock)

    def close(self) -> None:
        """End every thread and close every socket: nothing lands any more when this returns."""
        self.stop()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets.values():
            sock.close()

    # --- under the lock ----------------------------------------------------------------------------------

    def _start(self, ram: QemuRam) -> None:
        self._wait(lambda: len(self._sockets) == self._count)
        for number, sock in sorted(self._sockets.items()):
            channel = _Channel(number, sock, ram)
            thread = threading.Thread(
                target=self._run, args=(channel,), name=f"multifd {number}", daemon=True
            )
            self._channels.append(channel)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Until it is so, as long as anything moves. Raises MigrateError."""
        while not ready():
            if self.error is not None:
                raise self.error
            if self._closing:
                raise ProtocolError("the multifd channels were closed")
            for channel in self._channels:
                if channel.ended and channel.barriers == self._passed:
                    raise channel.machine.error("truncated", "it ends before SYNC")
            before = self.received
            if not self._news.wait(self._timeout) and self.received == before and not ready():
                raise self._overdue()

    def _overdue(self) -> NetworkError:
        if not self._channels:
            return NetworkError(
                f"{len(self._sockets)} of {self._count} multifd channels came within {self._timeout:g} s",
                hint="is multifd on at the source, with as many multifd-channels?",
            )
        late = [str(channel.machine.number) for channel in self._channels if channel.barriers == self._passed]
        return NetworkError(
            f"multifd channels {', '.join(late)}: nothing for {self._timeout:g} s, and the main channel waits"
            " for their SYNC"
        )

    def _fail(self, error: MigrateError) -> None:
        self.error = self.error or error
        self._news.notify_all()
        self._failed()

    # --- the thread of a channel -------------------------------------------------------------------------

    def _run(self, channel: _Channel) -> None:
        try:
            while packet := channel.next_packet():
                if packet.sync and not self._pass_barrier(channel):
                    return
        except Exception as problem:
            with self._news:
                if not self._closing:
                    self._fail(_in_words(channel, problem))
        with self._news:
            channel.ended = True
            self._news.notify_all()

    def _pass_barrier(self, channel: _Channel) -> bool:
        """False: this is the end."""
        with self._news:
            channel.barriers += 1
            self._news.notify_all()
            self._news.wait_for(lambda: self._closing or self._passed >= channel.barriers)
            return not self._closing


def _in_words(channel: _Channel, problem: Exception) -> MigrateError:
    if isinstance(problem, OSError):
        return NetworkError(f"multifd channel {channel.machine.number} broke: {problem.strerror or problem}")
    return as_error(problem)
