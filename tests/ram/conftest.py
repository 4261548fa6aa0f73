"""RAM files on both kinds of file system, and small helpers to write into them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate import kernel
from migrate.ram.digests import DigestTable
from migrate.ram.image import RamImage, RamSpec


@pytest.fixture(params=["tmpfs", "disk"])
def directory(request: pytest.FixtureRequest, shm_dir: Path, tmp_path: Path) -> Path:
    """A directory on tmpfs, then one on the disk's file system."""
    return shm_dir if request.param == "tmpfs" else tmp_path


@pytest.fixture
def keys() -> kernel.Keys:
    return kernel.Keys(bytes(range(32)), PAGE)


@contextmanager
def _open_ram(path: Path, pages: int, page_size: int = PAGE) -> Iterator[Ram]:
    ram = Ram(path, pages, page_size)
    try:
        yield ram
    finally:
        os.close(ram.fd)


@pytest.fixture
def ram(directory: Path) -> Iterator[Ram]:
    """A RAM file of 200 pages, all hole."""
    with _open_ram(directory / "guest.ram", 200) as ram:
        yield ram


@pytest.fixture
def small_ram(shm_dir: Path) -> Iterator[Ram]:
    """The same, on tmpfs only."""
    with _open_ram(shm_dir / "guest.ram", 200) as ram:
        yield ram


@pytest.fixture
def image(small_ram: Ram) -> Iterator[RamImage]:
    """`small_ram` as a source."""
    with RamImage.open_source([RamSpec("pc.ram", small_ram.path)], PAGE) as image:
        yield image


@pytest.fixture
def table(keys: kernel.Keys, image: RamImage) -> DigestTable:
    """Digests of `image`, all of zeros: nothing was sent."""
    return DigestTable(keys, image.layout)
