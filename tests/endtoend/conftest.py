"""A laboratory per test: real guest, real daemons, real sockets on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab import Lab


@pytest.fixture
def lab(shm_dir: Path) -> Iterator[Lab]:
    """One block of 16 MiB on tmpfs at both sides."""
    with Lab(shm_dir, shm_dir) as made:
        yield made
