"""The two ends of the lane benchmark, a process each: the product's lane threads, and nothing else of it.

    source                                        destination
    SourceLane + LaneSender    ── lane ─────────→ LaneReceiver + DestinationLane → RAM file
    ControlChannel             ←──────── acks ──  ControlChannel

No machine, no rounds, no guest: one bulk round of a RAM file, acknowledged batch by batch over the second
connection. The clock runs at the source, from the start of the round to the acknowledgement of its end;
connections stand by then, and the destination's file is as the run wants it.

    python -m bench.lane_ends destination FD PATH BYTES warm|cold CACHE
    python -m bench.lane_ends source PORT PATH CACHE
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from functools import partial
from pathlib import Path

import uvloop

from bench.figures import MIB
from migrate import kernel
from migrate.config import RamSpec
from migrate.daemon.control_channel import ControlChannel
from migrate.daemon.lane_receiver import LaneReceiver
from migrate.daemon.lane_sender import LaneSender
from migrate.kernel.results import STAGE_BULK
from migrate.protocol import messages as m
from migrate.protocol.bandwidth import TokenBucket
from migrate.protocol.batch import Codec, Kind
from migrate.protocol.lane_destination import AppliedBatch, DestinationLane
from migrate.protocol.lane_source import SourceLane
from migrate.protocol.schema import Message
from migrate.ram.bitmap import DirtyBitmap
from migrate.ram.digests import zero_digests
from migrate.ram.image import RamImage

BLOCK = "pc.ram"
PAGE = 4096
SEED = bytes(range(32))
RULE = "default"


class Destination:
    """Acknowledges batches as the destination machine does."""

    def __init__(self, channel: ControlChannel) -> None:
        self._channel = channel
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def batches_applied(self, lane: int, batches: list[AppliedBatch]) -> None:
        """ReceiverEvents."""
        self._channel.send(m.Ack(lane, batches[-1].epoch, batches[-1].sequence))

    def receiver_ended(self, lane: int, problem: Exception | None) -> None:
        """ReceiverEvents: the source hangs up when it has what it wants."""
        if not self.ended.done():
            self.ended.set_result(None)


async def receive(
    listener: socket.socket, path: Path, length: int, warm: bool, cache_bytes: int
) -> dict[str, float]:
    """Take one control and one lane connection, in this order, until they are closed."""
    loop = asyncio.get_running_loop()
    with RamImage.open_destination([RamSpec(BLOCK, path)], {BLOCK: length}, PAGE) as image:
        image.mark("bench")
        if warm:
            fill_with_other_content(image.fds[BLOCK], length)
        keys = kernel.Keys(SEED, PAGE)
        digests = zero_digests(keys, image.layout)
        lane = DestinationLane(0, 1, image, keys, digests, cache_bytes, RULE, readback=True)
        lane.open(1)
        channel = ControlChannel(lambda message: None, lambda reason: None)
        control, _ = listener.accept()
        control.setblocking(False)
        await loop.connect_accepted_socket(lambda: channel, control)
        channel.send(m.Pong(0))  # ready: what came before is not measured
        listener.setblocking(False)
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(True)
        ends = Destination(channel)
        receiver = LaneReceiver(lane, sock, ends)
        cpu = time.process_time()
        receiver.start()
        await ends.ended
        receiver.join()
        cpu = time.process_time() - cpu
        channel.close()
        image.unmark()
        return {"cpu_seconds": cpu}


class Source:
    """Hands acknowledgements to the lane, and sees when the round is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[float] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.wire_bytes = 0
        self._last: int | None = None
        self._sender: LaneSender | None = None
        self._lane: SourceLane | None = None

    def run(self, lane: SourceLane, sender: LaneSender) -> None:
        """Start the thread."""
        self._lane, self._sender = lane, sender
        sender.start()

    def message(self, message: Message) -> None:
        """From the destination."""
        self.batches_noted(0)
        if isinstance(message, m.Pong):
            self.ready.set_result(None)
        elif isinstance(message, m.Ack):
            assert self._sender is not None and self._lane is not None
            self._sender.post(partial(self._lane.acknowledge, message.epoch, message.sequence))
            if message.sequence == 1:
                self.opened.set_result(None)
            if message.sequence == self._last:
                self.done.set_result(time.perf_counter())

    def lost(self, reason: str) -> None:
        """The destination is gone."""
        for future in (self.ready, self.opened, self.done):
            if not future.done():
                future.set_exception(ConnectionError(reason))

    def batches_noted(self, lane: int) -> None:
        """LaneEvents."""
        if self._sender is None:
            return
        for batch in self._sender.take_sent():
            self.wire_bytes += batch.wire_bytes
            if batch.kind is Kind.ROUND_END:
                self._last = batch.sequence

    def lane_ended(self, lane: int, problem: Exception | None) -> None:
        """LaneEvents."""
        if problem is not None:
            self.lost(str(problem))
        self.ended.set_result(None)


async def send(port: int, path: Path, cache_bytes: int) -> dict[str, float]:
    """Send the whole file as one bulk round; seconds and bytes."""
    loop = asyncio.get_running_loop()
    source = Source()
    with RamImage.open_source([RamSpec(BLOCK, path)], PAGE) as image:
        keys = kernel.Keys(SEED, PAGE)
        digests = zero_digests(keys, image.layout)
        lane = SourceLane(0, 1, image, keys, digests, cache_bytes, RULE, Codec.NONE)
        lane.open(1)
        channel = ControlChannel(source.message, source.lost)
        await loop.create_connection(lambda: channel, "127.0.0.1", port)
        await source.ready
        sender = LaneSender(lane, ("127.0.0.1", port), b"", TokenBucket(0, MIB), 1, 10.0, source)
        source.run(lane, sender)
        await source.opened
        dirty = DirtyBitmap(image.layout.total_pages)
        dirty.set_all(image.layout)
        begin, cpu = time.perf_counter(), time.process_time()
        sender.post(partial(lane.start_round, 1, STAGE_BULK, dirty))
        seconds = await source.done - begin
        cpu = time.process_time() - cpu
        sender.stop()
        await source.ended
        sender.join()
        channel.close()
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "ram_bytes": image.layout.ram_bytes,
            "wire_bytes": source.wire_bytes,
        }


def fill_with_other_content(fd: int, length: int) -> None:
    """Give every page of the file a page in memory."""
    piece = os.urandom(MIB)
    for at in range(0, length, MIB):
        os.pwrite(fd, piece[: length - at], at)


def main() -> None:
    """One end; prints its numbers as JSON."""
    role, where, path, *more = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if role == "destination":
            with socket.socket(fileno=where) as listener:
                numbers = runner.run(receive(listener, path, int(more[0]), more[1] == "warm", int(more[2])))
        else:
            numbers = runner.run(send(where, path, int(more[0])))
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
