"""One direction of a connection through the fault proxy: a pump, and the toxics that sit on it."""

from __future__ import annotations

import asyncio
import fcntl
import random
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from migrate.daemon.fault_steps import StepReader
from migrate.daemon.toxics import Direction, Effect, Ending, Toxic

READ_BYTES = 1 << 20
LAG_BYTES = 8 << 20
"""What may be on its way on a link with latency; then the sender waits."""
DRAIN_SECONDS = 1.0
DRAIN_STEP = 0.001


class Link:
    """Reads from one socket and writes to another, with one buffer: no more is read before that is delivered.

    Attributes:
        direction: which of the two of a connection.
        received: bytes read from the sender.
        delivered: bytes handed to the receiver's socket.
    """

    def __init__(
        self,
        direction: Direction,
        end: Callable[[Ending], None],
        changed: Callable[[], None],
        step: Callable[[str], Awaitable[None]],
    ) -> None:
        self.direction = direction
        self.received = 0
        self.delivered = 0
        self._end = end
        self._changed = changed
        self._step = step
        self._offset = 0  # bytes that went past the toxics
        self._waiting: dict[Toxic, random.Random] = {}  # until their byte has come
        self._effects: dict[Toxic, Effect] = {}
        self._timers: dict[Toxic, asyncio.TimerHandle] = {}
        self._removed = asyncio.Event()
        self._late = _LateDelivery(self._send)
        self._sink: socket.socket | None = None
        self.steps: StepReader | None = None
        """Of the connection, where something is to happen at a step; set before `run`."""

    def add(self, toxic: Toxic, rng: random.Random) -> None:
        """Let a toxic act from its byte on, which may have passed already."""
        self._waiting[toxic] = rng
        self._start_toxics()
        if (ending := self._ending()) is not None:
            self._end(ending)

    def remove(self, toxic: Toxic) -> None:
        """Let it act no more."""
        self._waiting.pop(toxic, None)
        self._effects.pop(toxic, None)
        if (timer := self._timers.pop(toxic, None)) is not None:
            timer.cancel()
        self._removed.set()

    def stop(self) -> None:
        """Stop the clocks of the toxics."""
        for timer in self._timers.values():
            timer.cancel()

    async def run(self, source: socket.socket, sink: socket.socket) -> None:
        """Carry bytes to the end of the stream, and pass that on. A broken socket resets the connection."""
        self._sink = sink
        delivering = asyncio.create_task(self._late.run())
        pumping = asyncio.create_task(self._pump(source))
        try:
            await asyncio.wait((delivering, pumping), return_when=asyncio.FIRST_COMPLETED)
            (delivering if delivering.done() else pumping).result()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._end("reset")
        finally:
            for task in (delivering, pumping):
                task.cancel()
            await asyncio.wait((delivering, pumping))

    async def _pump(self, source: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(READ_BYTES))
        while count := await loop.sock_recv_into(source, buffer):
            self.received += count
            self._changed()
            if self.steps is None:
                await self._pass_all_on(buffer[:count])
            else:
                await self._pass_steps_on(self.steps.feed(self.direction, bytes(buffer[:count])))
            await asyncio.sleep(0)  # both calls may succeed at once for ever; others want their turn
        if self.steps is not None:
            await self._pass_steps_on(self.steps.rest(self.direction))
        if self._effects or not self._late.is_empty:
            await self._late.put(self._lag(), b"")
            await self._late.empty()
            await asyncio.sleep(sum(effect.close_delay for effect in self._effects.values()))

    async def _pass_steps_on(self, pieces: Iterable[tuple[bytes, str]]) -> None:
        for piece, message in pieces:
            if message:
                await self._step(message)
            await self._pass_all_on(memoryview(bytearray(piece)))  # toxics change it in place

    async def _pass_all_on(self, rest: memoryview) -> None:
        while rest:
            rest = rest[await self._pass_on(rest) :]

    async def _pass_on(self, rest: memoryview) -> int:
        """Deliver the beginning of `rest`, up to where a toxic wants a piece to end; returns its length."""
        if not self._waiting and not self._effects and self._late.is_empty:
            self._offset += len(rest)
            await self._send(rest)
            return len(rest)
        await self._while_held()
        piece = rest[: self._piece_end(len(rest)) - self._offset]
        for effect in tuple(self._effects.values()):
            effect.change(self._offset, piece)
            if seconds := effect.wait(time.monotonic(), len(piece)):
                await asyncio.sleep(seconds)
        lag = self._lag()
        self._offset += len(piece)
        if lag or not self._late.is_empty:
            await self._late.put(lag, bytes(piece))
        else:
            await self._send(piece)
        self._start_toxics()
        if (ending := self._ending()) is not None:
            await self._late.empty()
            await self._drain()
            self._end(ending)
            await asyncio.Future()  # nothing more; the connection cancels us
        return len(piece)

    async def _while_held(self) -> None:
        while any(effect.holds for effect in self._effects.values()):
            self._removed.clear()
            await self._removed.wait()

    async def _send(self, piece: memoryview | bytes) -> None:
        assert self._sink is not None
        await asyncio.get_running_loop().sock_sendall(self._sink, piece)
        self.delivered += len(piece)
        self._changed()

    async def _drain(self) -> None:
        """Wait until the receiver's kernel has everything, as an RST throws away what is still ours.

        A receiver that takes nothing for DRAIN_SECONDS is not waited for any longer.
        """
        assert self._sink is not None
        before, deadline = -1, 0.0
        while unsent := struct.unpack("i", fcntl.ioctl(self._sink, termios.TIOCOUTQ, bytes(4)))[0]:
            if unsent != before:
                before, deadline = unsent, time.monotonic() + DRAIN_SECONDS
            elif time.monotonic() > deadline:
                return
            await asyncio.sleep(DRAIN_STEP)

    def _start_toxics(self) -> None:
        """Begin those whose byte has come."""
        for toxic, rng in tuple(self._waiting.items()):
            if toxic.after <= self._offset:
                del self._waiting[toxic]
                effect = self._effects[toxic] = toxic.effect(rng, self._offset)
                if effect.ends_after is not None:
                    self._timers[toxic] = asyncio.get_running_loop().call_later(
                        effect.ends_after[0], self._end, effect.ends_after[1]
                    )

    def _ending(self) -> Ending | None:
        """How the connection ends, if its last byte has passed."""
        for effect in self._effects.values():
            if effect.ends is not None and effect.ends[0] <= self._offset:
                return effect.ends[1]
        return None

    def _piece_end(self, length: int) -> int:
        """Offset where the next piece ends: the nearest that a toxic names."""
        ends = [self._offset + length]
        ends += [toxic.after for toxic in self._waiting]
        for effect in self._effects.values():
            if (boundary := effect.boundary(self._offset)) is not None:
                ends.append(boundary)
            if effect.ends is not None:
                ends.append(effect.ends[0])
        return min(ends)

    def _lag(self) -> float:
        return sum(effect.lag() for effect in self._effects.values())


class _LateDelivery:
    """Pieces that are on their way: sent in order, each when its time has come."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._came = asyncio.Event()
        self._went = asyncio.Event()

    @property
    def is_empty(self) -> bool:
        return not self._pieces

    async def put(self, lag: float, piece: bytes) -> None:
        """Send a piece `lag` seconds from now; waits while too much is on its way."""
        due = time.monotonic() + lag
        while self._bytes >= LAG_BYTES:
            self._went.clear()
            await self._went.wait()
        self._pieces.append((due, piece))
        self._bytes += len(piece)
        self._came.set()

    async def empty(self) -> None:
        """Wait until everything has been sent."""
        while self._pieces:
            self._went.clear()
            await self._went.wait()

    async def run(self) -> None:
        """Send, until cancelled."""
        while True:
            while not self._pieces:
                self._came.clear()
                await self._came.wait()
            due, piece = self._pieces[0]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._send(piece)
            self._pieces.popleft()  # only now: while it is being sent, nothing may overtake it
            self._bytes -= len(piece)
            self._went.set()
