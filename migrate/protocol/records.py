"""RAM records as QEMU writes them, as far as they are not pages (those are the kernel's).

    record   = be64 (offset | flags) payload
    MEM_SIZE = be64 (total bytes | 0x004), then for each block: u8 length, name, be64 block bytes
    EOS      = be64 0x010

Source of the layout: qemu-ram-stream.md 2.1, 2.2. The MEM_SIZE list has no count: it ends when the
lengths add up, so overshoot is checked here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from migrate.errors import RecordError

RAM_SAVE_FLAG_ZERO = 0x002
RAM_SAVE_FLAG_MEM_SIZE = 0x004
RAM_SAVE_FLAG_PAGE = 0x008
RAM_SAVE_FLAG_EOS = 0x010
RAM_SAVE_FLAG_CONTINUE = 0x020
RAM_SAVE_FLAG_XBZRLE = 0x040
RAM_SAVE_FLAG_HOOK = 0x080
RAM_SAVE_FLAG_COMPRESS_PAGE = 0x100

MAX_NAME_BYTES = 255

_WORD = struct.Struct(">Q")
EOS = _WORD.pack(RAM_SAVE_FLAG_EOS)


def encode_block_list(blocks: Sequence[tuple[str, int]], page_size: int) -> bytes:
    """The MEM_SIZE record for (name, length in bytes) of every block, closed by EOS (a START body)."""
    total = sum(length for _, length in blocks)
    parts = [_WORD.pack(total | RAM_SAVE_FLAG_MEM_SIZE)]
    for name, length in blocks:
        raw = name.encode()
        if not 1 <= len(raw) <= MAX_NAME_BYTES or length % page_size:
            raise ValueError(f"block {name!r} of {length} bytes cannot be listed")
        parts += (bytes((len(raw),)), raw, _WORD.pack(length))
    parts.append(EOS)
    return b"".join(parts)


def decode_block_list(body: bytes | memoryview, page_size: int) -> list[tuple[str, int]]:
    """Read what `encode_block_list` wrote; the whole body must be used up.

    Raises:
        RecordError: rules "truncated", "unknown-flags", "block-list" (lengths or names do not fit).
    """
    data = bytes(body)

    def word(at: int) -> int:
        if at + 8 > len(data):
            raise RecordError("truncated", min(at, len(data)), "the block list is cut short")
        return int(_WORD.unpack_from(data, at)[0])

    head = word(0)
    if head & (page_size - 1) != RAM_SAVE_FLAG_MEM_SIZE:
        raise RecordError("unknown-flags", 0, f"expected MEM_SIZE, found flags {head & (page_size - 1):#x}")
    left = head & ~(page_size - 1)
    blocks: list[tuple[str, int]] = []
    at = 8
    while left:
        if at >= len(data):
            raise RecordError("truncated", at, "the block list is cut short")
        end = at + 1 + data[at]
        try:
            name = data[at + 1 : end].decode()
        except UnicodeDecodeError as error:
            raise RecordError("block-list", at, "a block name is not UTF-8") from error
        length = word(end)
        if not name or not length or length % page_size or length > left:
            raise RecordError("block-list", at, f"block {name!r} of {length} bytes does not fit the list")
        blocks.append((name, length))
        left -= length
        at = end + 8
    if data[at:] != EOS:
        raise RecordError("block-list", at, "the block list is not closed by EOS")
    return blocks
