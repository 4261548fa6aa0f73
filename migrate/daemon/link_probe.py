"""How fast the link to a migrate-dst is: a connection that it reads, counts, throws away and answers.

    source                                destination
    "MIGRATE" 3, then bytes for a second  →   reads
    end of sending                        →   ← be64: how many bytes it has read

The destination takes at most MOST_SECONDS of it, one at a time, and none while a migration is under way.
"""

from __future__ import annotations

import asyncio
import socket
import time

from migrate.config import Address
from migrate.daemon.sockets import tune_lane
from migrate.errors import NetworkError
from migrate.protocol import messages as m
from migrate.protocol.plan import PlannedLink

SEND_SECONDS = 1.0
MOST_SECONDS = 5.0
CONNECT_SECONDS = 10.0
PIECE_BYTES = 1 << 20
_ANSWER_BYTES = 8


async def measure_link(to: Address) -> PlannedLink:
    """Bandwidth and round trip. Raises NetworkError: nobody answers."""
    try:
        return await asyncio.to_thread(_measure, to)
    except (OSError, EOFError) as error:
        raise NetworkError(
            f"the link to {to} cannot be measured: {error}",
            side="destination",
            hint="does migrate-dst listen there, with no migration under way? --bandwidth RATE needs none",
        ) from error


def _measure(to: Address) -> PlannedLink:
    began = time.monotonic()
    with socket.create_connection((to.host, to.port), CONNECT_SECONDS) as sock:
        round_trip = time.monotonic() - began
        sock.settimeout(CONNECT_SECONDS)
        tune_lane(sock, sends=True)
        piece = bytes(PIECE_BYTES)
        began = time.monotonic()
        sock.sendall(m.PREFACE_PROBE)
        while time.monotonic() - began < SEND_SECONDS:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(_ANSWER_BYTES, socket.MSG_WAITALL)
        seconds = time.monotonic() - began - round_trip
    if len(answer) != _ANSWER_BYTES:
        raise EOFError("it was closed before it answered")
    return PlannedLink(int.from_bytes(answer, "big") / max(seconds, 1e-3), round_trip)


async def take_probe(sock: socket.socket) -> None:
    """At the destination: read to the end, say how much it was, and close. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    tune_lane(sock, sends=False)
    buffer = bytearray(PIECE_BYTES)
    total = 0
    async with asyncio.timeout(MOST_SECONDS):
        while count := await loop.sock_recv_into(sock, buffer):
            total += count
        await loop.sock_sendall(sock, total.to_bytes(_ANSWER_BYTES, "big"))
