"""A TLS socket as a transport of asyncio, from the end of its handshake on.

The loops' own TLS begins with the handshake and never gives the socket back; here a connection says only
after the handshake whether the loop (control) or a thread (lane) gets it.
"""

from __future__ import annotations

import asyncio
import ssl

from migrate.daemon.sockets import shut_down_writing

READ_BYTES = 1 << 16
READS_A_TURN = 16
"""So much of one connection, then it is the turn of others."""
WRITE_BYTES = 1 << 16
HIGH_WATER_BYTES = 1 << 20
"""The protocol is asked to pause when more waits, and to go on when a quarter of it does."""


class TlsTransport(asyncio.Transport):
    """Carries one protocol.

    The end of the connection needs no proof that the peer meant it (close_notify): it means nothing but that
    the connection is lost.

    Args:
        sock: non-blocking, handshake done; this object owns it from here on.
    """

    def __init__(self, sock: ssl.SSLSocket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": sock, "peername": sock.getpeername()})
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._buffer = bytearray()
        self._paused = False
        self._write_ends = False
        """Nothing is written after what waits."""
        self._closing = False
        """Nothing happens after what waits is written."""
        self._ended = False
        protocol.connection_made(self)
        self._loop.add_reader(self._fd, self._read)
        self._loop.call_soon(self._read)  # what came behind the greeting is in OpenSSL already

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or keep until there is room."""
        if self._write_ends or self.is_closing():
            return
        self._buffer += data
        self._flush()
        if not self._paused and len(self._buffer) > HIGH_WATER_BYTES:
            self._paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return len(self._buffer)

    def write_eof(self) -> None:
        """Close our direction after what waits."""
        self._write_ends = True
        self._flush()

    def can_write_eof(self) -> bool:
        """Yes: it is the end of the TCP stream."""
        return True

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closing or self._ended

    def close(self) -> None:
        """End after what waits is written."""
        self._closing = True
        self._flush()

    def abort(self) -> None:
        """End now."""
        self._end(None)

    def _read(self) -> None:
        if self._ended:
            return
        try:
            for _ in range(READS_A_TURN):
                data = self._sock.recv(READ_BYTES)
                if self._ended:
                    return
                if not data:
                    self._loop.remove_reader(self._fd)
                    if not self._protocol.eof_received():
                        self.close()
                    return
                self._protocol.data_received(data)
            self._loop.call_soon(self._read)  # the rest may be in OpenSSL, where the loop does not see it
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:  # an answer of TLS's own that found no room
            self._loop.add_writer(self._fd, self._writable)
        except OSError as error:
            self._end(error)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._read()
        self._flush()

    def _flush(self) -> None:
        if self._ended:
            return
        try:
            while self._buffer:
                # Tried again it begins with the same bytes, as OpenSSL demands.
                del self._buffer[: self._sock.send(bytes(self._buffer[:WRITE_BYTES]))]
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._loop.add_writer(self._fd, self._writable)
        except OSError as error:
            self._end(error)
            return
        if self._paused and len(self._buffer) <= HIGH_WATER_BYTES // 4:
            self._paused = False
            self._protocol.resume_writing()
        if not self._buffer and self._closing:
            self._end(None)
        elif not self._buffer and self._write_ends:
            shut_down_writing(self._sock)

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        self._sock.close()
