"""The destination daemon: listens, agrees, and serves one migration at a time."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from migrate.config import DestinationConfig
from migrate.daemon.arbiter import FileArbiter, ask
from migrate.daemon.arrival import Arrival, CommandArrival
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.destination_start import begin
from migrate.daemon.greeting import Admission
from migrate.daemon.handed_over import HandedOver
from migrate.daemon.incoming import Incoming
from migrate.daemon.listener import Listener
from migrate.daemon.own_guest import ArrivingGuest, OwnArrival
from migrate.daemon.qemu_arrival import QemuArrival
from migrate.daemon.qemu_incoming import QemuIncoming
from migrate.daemon.reporter import Reporter
from migrate.daemon.settlement import open_settlement
from migrate.daemon.socket_guest import SocketArrival
from migrate.daemon.tls import PeerIdentity
from migrate.daemon.tls_server import TlsServer
from migrate.daemon.uninterrupted import uninterrupted
from migrate.daemon.waiting_channels import WaitingChannels
from migrate.errors import CancelledMigration, MigrateError, ProtocolError, RamError, UsageError
from migrate.protocol import messages as m
from migrate.protocol.journal_record import Step
from migrate.protocol.qemu_multifd import Opening
from migrate.protocol.stats import MigrationStats

CLOSE_SECONDS = 2.0


async def serve(config: DestinationConfig, reporter: Reporter, own: ArrivingGuest | None = None) -> None:
    """Take migrations: one with `--once`, else until cancelled; a failed one does not end it then.

    `own` is a guest in this process, which the configuration cannot name.

    Raises:
        MigrateError: the failure of the one migration, or that listening is impossible.
    """
    await DestinationDaemon(config, reporter, own).run()


class DestinationDaemon:
    """Answers hellos and hands connections to the migration that runs."""

    def __init__(
        self, config: DestinationConfig, reporter: Reporter, own: ArrivingGuest | None = None
    ) -> None:
        named = (config.on_prepare, config.on_commit, config.guest_qmp, config.guest_socket)
        if own is not None and any(value is not None for value in named):
            raise UsageError(
                "a guest in this process excludes on_prepare, on_commit, guest_qmp and guest_socket",
                side="destination",
            )
        self._config = config
        self._own = own
        self._reporter = reporter
        tls = TlsServer(config) if config.tls_dir is not None else None
        admission = Admission(tls, config.allow_qemu)
        self._loopback_only = tls is None and not config.insecure
        self._listener = Listener(self, reporter, config.keepalive_timeout, admission)
        self._waiting_channels = WaitingChannels(config.keepalive_timeout)
        self.incoming: Incoming | QemuIncoming | None = None
        """The migration under way."""
        self.last_stats: MigrationStats | None = None
        self.last_error: MigrateError | None = None
        self.last_outcome = ""
        """Of the last migration that was not refused."""
        self._stop_wanted = False
        self._handed_over = HandedOver()
        self._arrived = asyncio.Event()
        self._greeting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve. Raises MigrateError."""
        try:
            address = await self._listener.open(self._config.listen, loopback_only=self._loopback_only)
            self._reporter.event("listening", host=address.host, port=address.port)
            while True:
                await self._wait_for_hello()
                if self.incoming is None:
                    return  # `quit`
                error = await self._serve_one()
                if self._config.once or self._stop_wanted:
                    if error is not None:
                        raise error
                    return
                if isinstance(error, CancelledMigration) and error.side is None:
                    raise error
                if error is not None:
                    self._reporter.error(error)
        finally:
            await uninterrupted(self._close())

    async def _close(self) -> None:
        await self._listener.close()
        self._waiting_channels.close()
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
        for task in list(self._closing):
            await task

    async def _wait_for_hello(self) -> None:
        try:
            await self._arrived.wait()
        except asyncio.CancelledError:
            raise CancelledMigration(
                "cancelled while no migration was under way", guest="none was under way to this host"
            ) from None
        self._arrived.clear()

    async def _serve_one(self) -> MigrateError | None:
        incoming = self.incoming
        assert incoming is not None
        identities = incoming.identities
        self.last_stats, self.last_error = incoming.stats, None
        try:
            await incoming.run()
        except MigrateError as error:
            self.last_error = error
            return error
        finally:
            self.last_outcome = incoming.outcome
            if incoming.handed_over:
                self._handed_over.add(identities, incoming.migration)
            self.incoming = None
            self._stop_wanted = incoming.stop_wanted
        return None

    def quit(self, reason: str) -> None:
        """End, after the migration under way, which is cancelled if that is still possible."""
        if self.incoming is not None:
            self.incoming.stop_wanted = True
            self.incoming.cancel(reason)
        else:
            self._arrived.set()

    # --- connections -------------------------------------------------------------------------------------

    def lane_came(self, opening: m.LaneOpen, sock: socket.socket, identity: PeerIdentity | None) -> None:
        """A lane connection (ListenerEvents)."""
        if not isinstance(self.incoming, Incoming):
            raise ProtocolError("a lane came, but no migration is under way")
        self.incoming.lane_came(opening, sock, identity)

    def probe_came(self) -> None:
        """Somebody wants to measure the link (ListenerEvents)."""
        if self.incoming is not None:
            raise ProtocolError("the link is not measured while a migration is under way")

    def qemu_came(self, head: bytes, sock: socket.socket, peer: str) -> None:
        """A QEMU's stream (ListenerEvents)."""
        channels = self._waiting_channels.take(_host(peer))
        try:
            incoming = self.incoming = self._begin_qemu(head, sock, peer)
        except ProtocolError:
            for _, channel in channels:
                channel.close()
            raise
        self._arrived.set()
        for opening, channel in channels:
            try:
                incoming.channel_came(opening, channel)
            except ProtocolError as error:
                channel.close()
                self._reporter.event("warning", message=f"a channel from {peer} refused: {error}")

    def multifd_came(self, opening: Opening, sock: socket.socket, peer: str) -> None:
        """A page channel of a QEMU (ListenerEvents)."""
        if not self._config.multifd_channels:
            raise ProtocolError(
                "this is a multifd channel of a QEMU; to take one, start with --multifd-channels N"
            )
        if self.incoming is None:
            self._waiting_channels.add(_host(peer), opening, sock)
        elif isinstance(self.incoming, QemuIncoming) and _host(self.incoming.peer) == _host(peer):
            self.incoming.channel_came(opening, sock)
        else:
            raise ProtocolError(f"another migration ({self.incoming.migration}) is under way here")

    def _begin_qemu(self, head: bytes, sock: socket.socket, peer: str) -> QemuIncoming:
        """Raises ProtocolError."""
        if self._config.output_dir is None:
            raise ProtocolError("this is a QEMU migration stream; to take one, start with --output-dir DIR")
        if self.incoming is not None:
            raise ProtocolError(f"another migration ({self.incoming.migration}) is under way here")
        try:
            self._handed_over.check(self._config.ram)
            return QemuIncoming(self._config, self._reporter, sock, head, peer)
        except RamError as error:
            raise ProtocolError(f"{error}; {error.hint}" if error.hint else str(error)) from error

    async def hello_came(self, hello: m.Hello, channel: ControlChannel) -> None:
        """A control connection that said hello (ListenerEvents)."""
        async with self._greeting:
            await self._answer_hello(hello, channel)

    async def _answer_hello(self, hello: m.Hello, channel: ControlChannel) -> None:
        current = self.incoming
        answer: m.Accept | m.Reject | None
        if isinstance(current, Incoming) and current.migration == hello.migration.hex():
            answer = current.resume(hello, channel)
        elif hello.resume and current is None:
            reason = "no such migration is under way here; migrate-dst may have been started anew"
            answer = m.Reject(reason, "", "destination", anew=True)
        elif current is not None:
            answer = m.Reject(
                f"another migration ({current.migration}) is under way here",
                "wait until it has ended, or cancel it",
                "destination",
            )
        else:
            answer = await self._look_and_begin(hello, channel)
        if answer is not None:
            self._answer(channel, answer)

    def question_came(self, question: m.Question, channel: ControlChannel) -> None:
        """A control connection that asks how far a handover is (ListenerEvents)."""
        current = self.incoming
        if isinstance(current, Incoming) and current.migration == question.migration.hex():
            verdict = current.ask(question, channel)
            if verdict is not None:
                self._answer(channel, verdict)
            return
        task = asyncio.ensure_future(self._settle(question, channel))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, question: m.Question, channel: ControlChannel) -> None:
        """Answer from the journal of a migration that is not under way here any more."""
        settlement = await open_settlement(self._config, self._reporter, question)
        if isinstance(settlement, m.Verdict):
            self._answer(channel, settlement)
            return
        try:
            await settlement.serve(question, channel)
        finally:
            if settlement.handover.step in (Step.STARTING, Step.RUNNING):
                files = [(place.device, place.inode) for place in settlement.record.ram]
                self._handed_over.add(files, settlement.record.migration)
            await settlement.close()
            channel.close()

    async def _look_and_begin(self, hello: m.Hello, channel: ControlChannel) -> m.Accept | m.Reject | None:
        """Look at the QEMU that waits, if one should, then `_begin`."""
        migration = hello.migration.hex()
        if hello.arbiter and self._config.arbiter is not None:
            try:
                await ask(FileArbiter(self._config.arbiter, migration).look)
            except MigrateError as error:
                return m.Reject(error.message[:4000], (error.hint or "")[:4000], "destination")
            if channel.lost:  # it did not wait so long
                return None
        places = {spec.name: spec.path for spec in self._config.ram}
        ram = {block.name: places[block.name] for block in hello.blocks if block.name in places}
        if self._own is not None:
            return self._begin(hello, channel, OwnArrival(self._own, self._config.hook_timeout))
        if self._config.guest_socket is not None:
            return await self._ask_and_begin(hello, channel, self._config.guest_socket)
        if self._config.guest_qmp is None:
            return self._begin(hello, channel, CommandArrival(self._config, migration, ram))
        arrival = QemuArrival(self._config, migration, ram, self._config.guest_qmp)
        try:
            machine = await arrival.check()
            if channel.lost:  # it did not wait so long
                return None
            answer = self._begin(hello, channel, arrival, machine)
        except MigrateError as error:
            answer = m.Reject(error.message[:4000], (error.hint or "")[:4000], "destination")
        finally:
            if self.incoming is None:
                await arrival.leave()
        return answer

    async def _ask_and_begin(
        self, hello: m.Hello, channel: ControlChannel, path: Path
    ) -> m.Accept | m.Reject | None:
        """Ask the guest that waits at its socket for RAM, then `_begin`."""
        arrival: SocketArrival | None = None
        try:
            arrival = await SocketArrival.connect(path, self._config.ram, self._config.hook_timeout)
            return None if channel.lost else self._begin(hello, channel, arrival)
        except MigrateError as error:
            return m.Reject(error.message[:4000], (error.hint or "")[:4000], "destination")
        finally:
            if arrival is not None and self.incoming is None:
                arrival.close()

    def _begin(
        self, hello: m.Hello, channel: ControlChannel, arrival: Arrival, qemu: m.QemuMachine | None = None
    ) -> m.Accept | m.Reject | None:
        begun = begin(self._config, self._reporter, self._handed_over, hello, channel, arrival, qemu)
        if not isinstance(begun, Incoming):
            return begun
        self.incoming = begun
        self._arrived.set()
        return None

    def _answer(self, channel: ControlChannel, message: m.Accept | m.Reject | m.Verdict) -> None:
        if isinstance(message, m.Reject):
            self._reporter.event("warning", message=f"{channel.peer} was refused: {message.reason}")
        channel.send(message)
        channel.close()
        task = asyncio.ensure_future(channel.closed(CLOSE_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _host(peer: str) -> str:
    """Of `HOST:PORT`."""
    return peer.rpartition(":")[0]
