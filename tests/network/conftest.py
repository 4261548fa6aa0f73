"""Network tests run through `bin/test-network`: they need root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.two_hosts import TwoHosts


@pytest.fixture
def hosts(shm_dir: Path) -> Iterator[TwoHosts]:
    """Two hosts, a cable, one block of 16 MiB."""
    with TwoHosts(shm_dir) as made:
        yield made
