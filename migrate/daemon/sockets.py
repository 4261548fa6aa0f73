"""Socket options shared by both daemons (LMT section 8)."""

from __future__ import annotations

import contextlib
import socket

LANE_BUFFER_BYTES = 2 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def tune_control(sock: socket.socket) -> None:
    """Small messages go out at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def tune_lane(sock: socket.socket, *, sends: bool) -> None:
    """Large buffers for batches of a mebibyte.

    Where the system's limit is lower than that and may not be exceeded, the kernel's own tuning is better
    than a small fixed size, so nothing is set then.
    """
    tune_control(sock)
    forced = _SO_SNDBUFFORCE if sends else _SO_RCVBUFFORCE
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, forced, LANE_BUFFER_BYTES)


def shut_down(sock: socket.socket) -> None:
    """Wake up a thread that is blocked in the socket; a bare close would leave it there."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
