"""How fast the link to a migrate-dst is: a connection that it reads, counts, throws away and answers.

    source                                destination
    "MIGRATE" 3                           over TLS: then welcome and proof, as a control connection begins
    be32 n, n bytes, for a second      →  reads
    be32 0                             →
                                       ←  "MIGRATE" 3, be64: how many bytes of n it has read
                                          | a frame: reject

The destination takes at most MOST_SECONDS of it, one at a time, and none while a migration is under way.
Over TLS the rate is that of one lane's encryption, too, as it will be in the migration.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from migrate.config import Address
from migrate.daemon.nonblocking import connect, send
from migrate.daemon.sockets import shut_down, smoothed_round_trip, tune_lane
from migrate.daemon.tls_client import TlsClient
from migrate.errors import NetworkError, ProtocolError
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.plan import PlannedLink
from migrate.protocol.source_link import rejected

SEND_SECONDS = 1.0
MOST_SECONDS = 5.0
CONNECT_SECONDS = 10.0
PIECE_BYTES = 1 << 20
T = TypeVar("T")
_LENGTH_BYTES = 4
_COUNT_BYTES = 8


async def measure_link(to: Address, tls: TlsClient | None) -> PlannedLink:
    """Bandwidth and round trip.

    Raises:
        NetworkError: nobody answers.
        ProtocolError: somebody else does.
        RefusedError: the certificates do not fit, or the destination says no.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await connect(to)
            round_trip = smoothed_round_trip(sock)
            if tls is not None:
                sock = await tls.greet(sock, frames.PREFACE_PROBE)
            else:
                await send(sock, frames.PREFACE_PROBE)
        return await _in_thread(sock, lambda: _measure(sock, round_trip))
    except (OSError, EOFError) as error:
        raise NetworkError(
            f"the link to {to} cannot be measured: {error or 'no answer'}",
            side="destination",
            hint="does migrate-dst listen there, with no migration under way? --bandwidth RATE needs none",
        ) from error


def _measure(sock: socket.socket, round_trip: float) -> PlannedLink:
    sock.settimeout(CONNECT_SECONDS)
    tune_lane(sock, sends=True)
    piece = PIECE_BYTES.to_bytes(_LENGTH_BYTES, "big") + bytes(PIECE_BYTES)
    began = time.monotonic()
    while time.monotonic() - began < SEND_SECONDS:
        sock.sendall(piece)
    sock.sendall(bytes(_LENGTH_BYTES))
    counted = _answer(sock)
    seconds = time.monotonic() - began - round_trip
    return PlannedLink(counted / max(seconds, 1e-3), round_trip)


def _answer(sock: socket.socket) -> int:
    """How much was read. Raises RefusedError, ProtocolError, EOFError, OSError."""
    head = _receive(sock, frames.PREFACE_BYTES)
    if head == frames.PREFACE_PROBE:
        return int.from_bytes(_receive(sock, _COUNT_BYTES), "big")
    reader = frames.FrameReader()
    said = list(reader.feed(head))
    while not said:
        said += reader.feed(_receive(sock, 1))
    if isinstance(said[0], m.Reject):
        raise rejected(said[0])
    raise ProtocolError(f"the destination answers with {said[0].TYPE}, not with a number")


async def take_probe(sock: socket.socket) -> None:
    """At the destination: read to the end and say how much it was; the socket blocks from here on.

    Raises:
        ProtocolError: a piece of more than PIECE_BYTES, or no end in time.
        EOFError, OSError
    """
    await _in_thread(sock, lambda: _take(sock))


def _take(sock: socket.socket) -> None:
    sock.settimeout(MOST_SECONDS)
    tune_lane(sock, sends=False)
    buffer = memoryview(bytearray(PIECE_BYTES))
    total, end = 0, time.monotonic() + MOST_SECONDS
    while True:
        length = int.from_bytes(_receive(sock, _LENGTH_BYTES), "big")
        if length > PIECE_BYTES or time.monotonic() > end:
            raise ProtocolError(f"it measures the link with a piece of {length} bytes, or without an end")
        if not length:
            break
        _fill(sock, buffer[:length])
        total += length
    sock.sendall(frames.PREFACE_PROBE + total.to_bytes(_COUNT_BYTES, "big"))


def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    _fill(sock, memoryview(data))
    return bytes(data)


def _fill(sock: socket.socket, view: memoryview) -> None:
    """Fill the whole view. Raises EOFError, OSError."""
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError("it was closed before its end")
        view = view[count:]


async def _in_thread(sock: socket.socket, work: Callable[[], T]) -> T:
    """Work that blocks in the socket, which is closed afterwards; cancelling ends it."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        shut_down(sock)
        await asyncio.wait([running])
        raise
    finally:
        sock.close()
