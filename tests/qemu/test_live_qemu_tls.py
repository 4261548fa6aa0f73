"""A real QEMU comes over its own TLS (object tls-creds-x509), or is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_qemu import Qemu

from bench.lab import Program, program
from tests.tls.certificates import Authority, write_token


@pytest.fixture
def qemu(shm_dir: Path) -> Iterator[Qemu]:
    with Qemu(shm_dir) as running:
        running.wait_passes(1)
        yield running


@pytest.fixture
def tls_dir(tmp_path: Path) -> Path:
    authority = Authority("test CA")
    directory = authority.write(tmp_path / "tls")
    authority.sign(directory, "server", "destination", ["127.0.0.1", "localhost"])
    authority.sign(directory, "client", "qemu-host")
    return directory


def start(*options: str) -> tuple[Program, str]:
    """migrate-dst, and QEMU's name for where it listens."""
    destination = Program([program("migrate-dst"), "--listen=127.0.0.1:0", *options, "--json"])
    return destination, f"tcp:127.0.0.1:{destination.wait_event('listening')['port']}"


def use_tls(qemu: Qemu, directory: Path) -> None:
    """Migrate with these certificates from now on."""
    creds = {"dir": str(directory), "endpoint": "client", "verify_peer": True}
    qemu.do("object-add", qom_type="tls-creds-x509", id="tls0", **creds)
    qemu.do("migrate-set-parameters", tls_creds="tls0", tls_hostname="localhost")


@pytest.mark.parametrize("channels", [0, 2])
def test_over_tls_with_a_certificate(qemu: Qemu, tls_dir: Path, shm_dir: Path, channels: int) -> None:
    """One connection with return path and deltas, or several with multifd: each has a handshake."""
    if channels:
        qemu.capabilities("multifd")
        qemu.do("migrate-set-parameters", multifd_channels=channels)
    else:
        qemu.capabilities("return-path", "xbzrle")
    qemu.do("stop")
    mem = shm_dir / "mem-at-destination"
    destination, uri = start(
        "--once",
        f"--output-dir={shm_dir / 'out'}",
        f"--ram=mem={mem}",
        f"--tls-dir={tls_dir}",
        "--tls-allow=qemu-host",
        f"--multifd-channels={channels}",
    )
    try:
        use_tls(qemu, tls_dir)
        qemu.do("migrate", uri=uri)
        assert qemu.wait_migrated()["status"] == "completed", destination.story()
        assert destination.wait() == 0, destination.story()
    finally:
        destination.kill()
    assert mem.read_bytes() == qemu.ram_file.read_bytes()
    out = shm_dir / "out"
    assert not [path for path in (out, mem, *out.iterdir()) if path.stat().st_mode & 0o077], (
        "for its owner only"
    )
    qemu.goes_on()


def test_without_a_certificate_it_is_taken_only_where_allowed(
    qemu: Qemu, tls_dir: Path, shm_dir: Path, tmp_path: Path
) -> None:
    """A token is nothing that a QEMU could show, and a plain stream is nobody's."""
    qemu.do("stop")
    token = f"--token-file={write_token(tmp_path / 'token')}"
    common = (f"--output-dir={shm_dir / 'out'}", f"--tls-dir={tls_dir}")
    for options, words in ((common, "--allow-qemu"), ((*common, token), "--allow-qemu")):
        destination, uri = start(*options)
        try:
            qemu.do("migrate", uri=uri)
            destination.wait_event("warning", lambda event, words=words: words in event["message"])  # type: ignore[misc]
            qemu.wait_migrated()
            qemu.do("cont")
            qemu.do("stop")
        finally:
            destination.kill()
    destination, uri = start("--once", *common, "--allow-qemu")
    try:
        qemu.do("migrate", uri=uri)
        assert qemu.wait_migrated()["status"] == "completed"
        assert destination.wait() == 0, destination.story()
    finally:
        destination.kill()
