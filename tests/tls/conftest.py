"""One CA and one set of certificates for all tests of TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Pki, fingerprint, write_token

from bench.lab import Lab


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Made once."""
    root = tmp_path_factory.mktemp("pki")
    ca, other = Authority("test CA"), Authority("another CA")
    good = ca.write(root / "good")
    server = ca.sign(good, "server", "destination", ["127.0.0.1", "localhost"])
    client = ca.sign(good, "client", "host-a", ["host-a.example"])
    return Pki(
        root,
        good,
        ca.write(root / "ca-only"),
        write_token(root / "token"),
        fingerprint(server),
        client,
        ca,
        other,
    )


@pytest.fixture
def lab(shm_dir: Path) -> Iterator[Lab]:
    """A guest that may move, on tmpfs."""
    with Lab(shm_dir, shm_dir) as made:
        yield made
