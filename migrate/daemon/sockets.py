"""Socket options shared by both daemons (LMT section 8), and how a socket's thread is woken.

A TLS socket is shut down by the call of its base class: `SSLSocket.shutdown` takes TLS off first, and a
thread at work in it might then send plain text, or take what is encrypted for plain text.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys

LANE_BUFFER_BYTES = 2 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_TCPI_RTT = 68
"""Where `struct tcp_info` has tcpi_rtt, 32 bits, in microseconds (tcp(7), TCP_INFO)."""


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


def smoothed_round_trip(sock: socket.socket) -> float:
    """Seconds, as TCP has measured them, the handshake included."""
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_RTT + 4)
    return int.from_bytes(information[_TCPI_RTT:], sys.byteorder) / 1e6


def shut_down(sock: socket.socket) -> None:
    """Wake up a thread that is blocked in the socket; a bare close would leave it there."""
    _shut_down(sock, socket.SHUT_RDWR)


def shut_down_reading(sock: socket.socket) -> None:
    """Wake up the thread that reads; it can still write its last word."""
    _shut_down(sock, socket.SHUT_RD)


def shut_down_writing(sock: socket.socket) -> None:
    """No more will come from here; what the peer still says can be read."""
    _shut_down(sock, socket.SHUT_WR)


def has_arrived(sock: ssl.SSLSocket) -> bool:
    """Whether a read of its own thread would find something, in OpenSSL or in the kernel."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return sock.pending() > 0 or bool(poll.poll(0))


def _shut_down(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, how)
