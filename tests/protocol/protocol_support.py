"""What the protocol tests share: messages to begin with, and RAM files of a few pages in several blocks."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from migrate import kernel
from migrate.config import RamSpec
from migrate.protocol import messages as m
from migrate.ram.digests import zero_digests
from migrate.ram.image import RamImage

PAGE = 1024
SEED = bytes(range(32))
MIGRATION = bytes(range(16))
SECRET = bytes(range(100, 132))
STRIPE = 1024
"""Pages of a stripe when a page has 1 KiB; each block begins one, so block k belongs to lane k % lanes."""


def make_hello(ram: Sequence[tuple[str, int]] = (("pc.ram", 8 * PAGE),), **changes: object) -> m.Hello:
    """A hello that every destination accepts."""
    hello = m.Hello(
        versions=[m.PROTOCOL_VERSION],
        migration=MIGRATION,
        attempt=1,
        resume=False,
        check=False,
        software="migrate test",
        page_size=PAGE,
        blocks=[m.Block(name, length) for name, length in ram],
        data_bytes=0,
        cache_bytes=1 << 16,
        cache_rule="default",
        lanes=1,
        codec="none",
        verify="ram",
        digest_seed=SEED,
    )
    return replace(hello, **changes)  # type: ignore[arg-type]


class RamFiles:
    """The RAM of one side: blocks `b0`, `b1` … in files of a directory."""

    def __init__(self, directory: Path, pages: Sequence[int], page_size: int = PAGE) -> None:
        directory.mkdir(parents=True)
        self.page_size = page_size
        self.pages = list(pages)
        self.on_write: Callable[[int, int], None] | None = None
        """Told of every write: (block, page)."""
        self.specs = [RamSpec(f"b{number}", directory / f"b{number}.ram") for number in range(len(pages))]

    @property
    def lengths(self) -> dict[str, int]:
        """Block name → bytes."""
        return {spec.name: count * self.page_size for spec, count in zip(self.specs, self.pages, strict=True)}

    @property
    def exist(self) -> bool:
        """Whether any of the files has content."""
        return any(spec.path.exists() and spec.path.stat().st_size for spec in self.specs)

    def create(self) -> None:
        """Make the files: all holes."""
        for spec, count in zip(self.specs, self.pages, strict=True):
            with spec.path.open("xb") as file:
                os.truncate(file.fileno(), count * self.page_size)

    def write(self, block: int, page: int, content: bytes, offset: int = 0) -> None:
        """As a guest does, within one page."""
        with self.specs[block].path.open("r+b") as file:
            file.seek(page * self.page_size + offset)
            file.write(content)
        if self.on_write is not None:
            self.on_write(block, page)

    def read(self) -> list[bytes]:
        """All of it, block by block."""
        return [spec.path.read_bytes() for spec in self.specs]

    def dirty_randomly(self, rng: random.Random, count: int, *, only_small: bool = False) -> None:
        """Change pages in the ways guests do: a few bytes, whole pages, pages of zeros."""
        for _ in range(count):
            block = rng.randrange(len(self.pages))
            page = rng.randrange(self.pages[block])
            kind = rng.random()
            if kind < 0.5 or only_small:
                some = rng.randbytes(rng.randrange(1, 8))
                self.write(block, page, some, rng.randrange(self.page_size - 8))
            else:
                self.write(
                    block, page, bytes(self.page_size) if kind < 0.6 else rng.randbytes(self.page_size)
                )


@contextmanager
def two_images(
    directory: Path, pages: Sequence[int], page_size: int = PAGE
) -> Iterator[tuple[RamFiles, RamImage, RamFiles, RamImage]]:
    """Source and destination: files and open images, the destination marked as incoming."""
    here, there = (RamFiles(directory / side, pages, page_size) for side in ("source", "destination"))
    here.create()
    with (
        RamImage.open_source(here.specs, page_size) as source,
        RamImage.open_destination(there.specs, here.lengths, page_size) as destination,
    ):
        destination.mark(MIGRATION.hex())
        yield here, source, there, destination


def digests_now(image: RamImage, keys: kernel.Keys) -> bytearray:
    """Digests of all RAM as it is; what `read_digests` finds, without its threads."""
    digests = zero_digests(keys, image.layout)
    for block in image.layout.blocks:
        out = memoryview(digests)[16 * block.first_page : 16 * (block.first_page + block.pages)]
        kernel.digest_range(image.kernel_ram, keys, block.first_page, block.pages, out)
    return digests


def flipped(data: bytes | bytearray | memoryview, bit: int) -> bytearray:
    """The data with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return changed
