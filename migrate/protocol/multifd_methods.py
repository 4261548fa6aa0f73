"""How pages in multifd packets may be packed (qemu-ram-stream.md 8.3).

One stream of zlib, or one frame of zstd, goes through all packets of a channel and never ends; each packet
ends with a flush, so that exactly its pages come out. What comes out is bounded before memory is taken.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_ZSTD_WINDOW_LOG = 25
"""QEMU's highest level, 20, uses windows of 32 MiB."""


class Unpacker(Protocol):
    """The state of one channel."""

    def unpack(self, data: bytes | memoryview, length: int) -> bytes:
        """The next packet's pages. Raises ValueError: they are not exactly so many bytes."""


class ZlibUnpacker:
    """Method zlib."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()

    def unpack(self, data: bytes | memoryview, length: int) -> bytes:
        """The next packet's pages. Raises ValueError."""
        try:
            pages = self._stream.decompress(data, length + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(pages) != length or self._stream.unconsumed_tail or self._stream.eof:
            raise ValueError(f"{len(pages)} bytes, not {length}, or the stream ends")
        return pages


class ZstdUnpacker:
    """Method zstd."""

    def __init__(self) -> None:
        limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._stream = zstd.ZstdDecompressor(options=limit)

    def unpack(self, data: bytes | memoryview, length: int) -> bytes:
        """The next packet's pages. Raises ValueError."""
        try:
            pages = self._stream.decompress(data, max_length=length + 1)
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from error
        if len(pages) != length or not self._stream.needs_input or self._stream.eof:
            raise ValueError(f"{len(pages)} bytes, not {length}, or the frame ends")
        return pages


METHODS: dict[int, Callable[[], Unpacker]] = {0x02: ZlibUnpacker, 0x04: ZstdUnpacker}
"""By their flag in a packet."""
