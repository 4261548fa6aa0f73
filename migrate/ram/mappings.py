"""Where a process has the RAM files mapped: /proc/PID/maps, read as proc(5) describes it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from migrate.ram.image import RamImage
from migrate.ram.regions import Stretch

_LINE = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<mode>\S+) (?P<offset>[0-9a-f]+)"
    r" (?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+) (?P<inode>\d+)"
)


class Mapping(NamedTuple):
    """A stretch of a process's addresses through which it can write RAM."""

    start: int
    """Address."""
    length: int
    """Bytes."""
    origin: int
    """Place of the first byte in page space, in bytes."""


def parts(mapping: Mapping, stretches: Sequence[Stretch]) -> Iterator[Mapping]:
    """What of a mapping lies in the stretches, in pieces."""
    for first, length in stretches:
        begin = max(mapping.origin, first)
        end = min(mapping.origin + mapping.length, first + length)
        if begin < end:
            yield Mapping(mapping.start + begin - mapping.origin, end - begin, begin)


def ram_mappings(maps: str, image: RamImage) -> tuple[Mapping, ...]:
    """The shared, writable mappings of the image's files, ascending, neighbours joined.

    What is mapped beyond the end of a block is left out. The kernel cuts and joins mappings as it likes; the
    result depends on what is mapped where, and on nothing else.

    Args:
        maps: the text of /proc/PID/maps.
        image: an open source.

    Raises OSError: a file's identity cannot be found out.
    """
    places = {}
    for block in image.layout.blocks:
        status = os.fstat(image.fds[block.name])
        places[os.major(status.st_dev), os.minor(status.st_dev), status.st_ino] = block
    joined: list[Mapping] = []
    for match in _writable(maps):
        block_of_file = places.get((int(match["major"], 16), int(match["minor"], 16), int(match["inode"])))
        if block_of_file is None:
            continue
        start, offset = int(match["start"], 16), int(match["offset"], 16)
        length = min(int(match["end"], 16) - start, block_of_file.length - offset)
        if length <= 0:
            continue
        origin = block_of_file.first_page * image.layout.page_size + offset
        before = joined[-1] if joined else Mapping(0, 0, 0)
        if before.start + before.length == start and before.origin + before.length == origin:
            joined[-1] = Mapping(before.start, before.length + length, before.origin)
        else:
            joined.append(Mapping(start, length, origin))
    return tuple(joined)


def _writable(maps: str) -> Iterator[re.Match[str]]:
    for line in maps.splitlines():
        match = _LINE.match(line)
        if match is not None and match["mode"].startswith("s", 3) and match["mode"].startswith("w", 1):
            yield match
