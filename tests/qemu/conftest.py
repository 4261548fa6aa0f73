"""A real QEMU and the folder its checkpoint goes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_qemu import Qemu


@pytest.fixture
def qemu(shm_dir: Path) -> Iterator[Qemu]:
    with Qemu(shm_dir) as started:
        started.wait_passes(3)
        yield started


@pytest.fixture
def output(shm_dir: Path) -> Path:
    return shm_dir / "out"
