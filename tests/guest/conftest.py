"""Guests for the tests, ended whatever happens, and RAM at two times of a guest's life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_support import GuestProcess, live, make_layout

from migrate.guest.ram_files import RamFiles


@pytest.fixture
def start_guest(shm_dir: Path) -> Iterator[Callable[..., GuestProcess]]:
    """Start `migrate-guest` with these arguments and wait until it is ready."""
    guests: list[GuestProcess] = []

    def start(*arguments: object) -> GuestProcess:
        guests.append(GuestProcess(shm_dir, *arguments))
        return guests[-1]

    yield start
    for guest in guests:
        guest.destroy()


@pytest.fixture
def old_and_new(shm_dir: Path) -> Callable[..., tuple[list[Path], list[bytearray]]]:
    """RAM of a guest that has lived, and the same RAM at an earlier time: (files, their earlier contents)."""

    def make(workload: str, *block_pages: int) -> tuple[list[Path], list[bytearray]]:
        paths = [shm_dir / f"block{number}" for number in range(len(block_pages))]
        layout = make_layout(workload, *block_pages)
        with RamFiles.create(paths, layout) as files:
            live(files, layout.data_pages + 200)
            old = [bytearray(path.read_bytes()) for path in paths]
            live(files, 20 * layout.data_pages)
        return paths, old

    return make
