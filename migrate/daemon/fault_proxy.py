"""A TCP proxy that breaks things on purpose: for the tests, and to see how a migration bears a bad network.

    async with FaultProxy("127.0.0.1", port, seed=7) as proxy:
        proxy.add(ResetPeer(after=1_000_000, connections=lambda index: index == 1))
        ...                                   # connect to proxy.port instead
        await proxy.wait_for(lambda: proxy.connections[1].ended)
        proxy.at("commit", kill_the_source)
        await proxy.cut("silent")
        await proxy.restore()

Connections are numbered in the order of their coming, over the whole life of the proxy; with a migration 0
is the control connection and the lanes follow. Each has two links, `upstream` (from the client to the
target) and `downstream`. What the toxics draw at random depends on the seed, on the number of the toxic and
on the link only, so a run can be repeated.

A proxy cannot drop packets. While it delivers nothing, the kernel still acknowledges what fits into the
socket buffers, and answers TCP's own keep-alive probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self

from migrate.daemon.fault_link import Link
from migrate.daemon.fault_steps import StepReader
from migrate.daemon.toxics import Ending, Toxic

BACKLOG = 128


class Connection:
    """A client's connection and the one to the target that belongs to it.

    Attributes:
        index: its number.
        upstream: the link from the client to the target.
        downstream: the link back.
        ended: how it ended, once both halves have; "silent" leaves them open with nobody behind.
    """

    def __init__(
        self, index: int, changed: Callable[[], None], step: Callable[[str], Awaitable[None]]
    ) -> None:
        self.index = index
        self.upstream = Link("upstream", self.end, changed, step)
        self.downstream = Link("downstream", self.end, changed, step)
        self.ended: Ending | None = None
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def watch_steps(self) -> None:
        """Look at the messages that go past; before any byte does."""
        self.upstream.steps = self.downstream.steps = StepReader()

    def end(self, ending: Ending) -> None:
        """Begin to end it; the first word counts."""
        if not self._ending.done():
            self._ending.set_result(ending)

    async def serve(self, client: socket.socket, target: socket.socket, address: tuple[str, int]) -> None:
        """Carry bytes both ways until it ends by itself or by `end`, and do what the ending says."""
        carrying = asyncio.create_task(self._carry(client, target, address))
        try:
            await asyncio.wait((carrying, self._ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            carrying.cancel()  # before the sockets are closed: their numbers may come back at once
            await asyncio.wait((carrying,))
            self.upstream.stop()
            self.downstream.stop()
            self.ended = self._ending.result() if self._ending.done() else "close"
            if self.ended != "silent":
                close(client, reset=self.ended == "reset")
                close(target, reset=self.ended == "reset")
        if not carrying.cancelled():
            carrying.result()  # raises what is a mistake of ours

    async def _carry(self, client: socket.socket, target: socket.socket, address: tuple[str, int]) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(target, address)
        except OSError:
            self.end("reset")
            return
        async with asyncio.TaskGroup() as links:
            links.create_task(self.upstream.run(client, target))
            links.create_task(self.downstream.run(target, client))


class FaultProxy:
    """Listens on a port (0: a free one), passes everything on to the target, and lets toxics have their way.

    Attributes:
        port: where to connect to; the same for the proxy's whole life.
        connections: all there ever were, by number.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        seed: int = 0,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
    ) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        self._target = (target_host, target_port)
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._seed = seed
        self._toxics: dict[Toxic, int] = {}
        self._numbers = itertools.count()
        self._at: dict[str, list[Callable[[], Awaitable[None]]]] = {}
        """What is to be done at the next message of a name."""
        self._actions: set[asyncio.Task[None]] = set()
        """Those that run: a connection that breaks meanwhile does not end them."""
        self._reserved: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._serving: dict[Connection, asyncio.Task[None]] = {}
        self._silent: list[socket.socket] = []
        self._mistakes: list[Exception] = []  # of a toxic or of ours: not what happens to connections
        self._waiters: list[tuple[Callable[[], object], asyncio.Future[None]]] = []

    async def __aenter__(self) -> Self:
        # Bound, but never listening: keeps the port ours while the partition lasts.
        self._reserved = self._bound(self._listen_host, self._listen_port)
        self.port = self._reserved.getsockname()[1]
        await self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut("close")
        for sock in self._silent:
            close(sock, reset=True)
        for action in self._actions:
            action.cancel()
        if self._actions:
            await asyncio.wait(self._actions)
        if self._reserved is not None:
            self._reserved.close()
        if self._mistakes and error is None:
            raise self._mistakes[0]

    def add(self, toxic: Toxic) -> Toxic:
        """Put a toxic on the connections there are and those to come."""
        number = self._toxics[toxic] = next(self._numbers)
        for connection in tuple(self._serving):
            self._apply(toxic, number, connection)
        return toxic

    def at(self, message: str, action: Callable[[], Awaitable[None]]) -> None:
        """Do something once, when a control message of that name was sent and has not arrived.

        It is held until the action is over; other connections, and the other direction, go on. Call it before
        anybody connects. Messages under TLS are not seen.
        """
        self._at.setdefault(message, []).append(action)

    def remove(self, toxic: Toxic) -> None:
        """Take a toxic off again; what it held up goes on."""
        del self._toxics[toxic]
        for connection in self._serving:
            connection.upstream.remove(toxic)
            connection.downstream.remove(toxic)

    async def cut(self, how: Literal["reset", "silent", "close"] = "reset") -> None:
        """Cut the network: end every connection, and refuse new ones until `restore`.

        "reset" tells both sides at once. "silent" tells neither: nothing is delivered on these connections
        any more, not even after `restore`, and only a deadline of their own will tell them.
        Returns when it is done.
        """
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.wait((self._accepting,))
            self._listener.close()
            self._accepting = self._listener = None
        serving = tuple(self._serving.items())
        for connection, _ in serving:
            connection.end(how)
        for _, task in serving:
            await task

    async def restore(self) -> None:
        """Accept connections again."""
        if self._listener is None:
            self._listener = self._bound(self._listen_host, self.port)
            self._listener.listen(BACKLOG)
            self._accepting = asyncio.create_task(self._accept(self._listener))

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until the predicate holds; it is asked again whenever bytes or connections come or go.

        One that asks for a connection that is not there yet (IndexError) does not hold.
        """
        if not _holds(predicate):
            waiter = (predicate, asyncio.get_running_loop().create_future())
            self._waiters.append(waiter)
            try:
                await waiter[1]
            finally:
                self._waiters.remove(waiter)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            target = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            for sock in (client, target):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(len(self.connections), self._changed, self._step)
            if self._at:
                connection.watch_steps()
            self.connections.append(connection)
            for toxic, number in self._toxics.items():
                self._apply(toxic, number, connection)
            self._serving[connection] = asyncio.create_task(self._serve(connection, client, target))
            self._changed()

    async def _serve(self, connection: Connection, client: socket.socket, target: socket.socket) -> None:
        try:
            await connection.serve(client, target, self._target)
        except Exception as mistake:
            self._mistakes.append(mistake)
        finally:
            del self._serving[connection]
            if connection.ended == "silent":
                self._silent += (client, target)
            self._changed()

    async def _step(self, message: str) -> None:
        for action in self._at.pop(message, ()):
            task = asyncio.ensure_future(self._act(action))
            self._actions.add(task)
            task.add_done_callback(self._actions.discard)
            await asyncio.shield(task)

    async def _act(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except Exception as mistake:
            self._mistakes.append(mistake)

    def _apply(self, toxic: Toxic, number: int, connection: Connection) -> None:
        for link in (connection.upstream, connection.downstream):
            if toxic.direction in (link.direction, "both") and toxic.connections(connection.index):
                seed = f"{self._seed} {number} {connection.index} {link.direction}"
                link.add(toxic, random.Random(seed))

    def _changed(self) -> None:
        for predicate, waiter in self._waiters:
            if not waiter.done() and _holds(predicate):
                waiter.set_result(None)

    @staticmethod
    def _bound(host: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        return sock


def close(sock: socket.socket, *, reset: bool) -> None:
    """Close with a FIN, or with an RST that throws away what is on its way."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _holds(predicate: Callable[[], object]) -> bool:
    with contextlib.suppress(IndexError):
        return bool(predicate())
    return False
