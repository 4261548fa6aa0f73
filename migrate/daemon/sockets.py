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


def probe_peer(sock: socket.socket, seconds: float) -> None:
    """Silence is no fault of the peer's: only a host that is gone is found, by the kernel's own probes."""
    idle = max(1, int(seconds / 2))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 3))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


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
