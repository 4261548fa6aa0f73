"""The README's lines for making certificates, run as they stand there."""

from __future__ import annotations

import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.config import Address, DestinationConfig, RamSpec, SourceConfig, parse_fingerprint
from migrate.daemon.tls import PeerIdentity
from migrate.daemon.tls_client import TlsClient
from migrate.daemon.tls_server import TlsServer

README = Path(__file__).parents[2] / "README.md"
RAM = (RamSpec("pc.ram", Path("ram")),)


def recipe() -> str:
    """The indented block that makes a CA."""
    [found] = [block for block in README.read_text().split("\n\n") if "openssl req -x509" in block]
    assert all(line.startswith("    ") for line in found.splitlines())
    return found


def meet(client: TlsClient, server: TlsServer) -> PeerIdentity:
    """Both handshakes, over a pair of sockets; returns who the client is to the server."""
    here, there = socket.socketpair()
    with server.wrap(here) as accepted, ThreadPoolExecutor(1) as thread, client.wrap(there) as connected:
        accepting = thread.submit(accepted.do_handshake)
        connected.do_handshake()
        client.check(connected)
        accepting.result()
        return PeerIdentity.of(accepted)


def test_the_lines_make_what_both_daemons_take(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-euc", recipe()], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    )
    made = tmp_path / "tls"
    assert made.stat().st_mode & 0o077 == 0
    destination = DestinationConfig(Address("::", 0), RAM, tls_dir=made, tls_allow=("src.example",))
    server = TlsServer(destination)
    source = SourceConfig(Address("dst.example", 4444), RAM, tls_dir=made)
    by_address = replace(source, to=Address("192.0.2.7", 4444))
    fingerprint = parse_fingerprint(done.stdout.splitlines()[-1])
    pinned = replace(source, to=Address("anything", 4444), tls_fingerprint=fingerprint)
    for config in (source, by_address, pinned):
        identity = meet(TlsClient(config), server)
        assert server.refusal(identity) is None
    token = replace(destination, tls_allow=(), token_file=made / "token")
    assert meet(TlsClient(replace(pinned, tls_dir=None, token_file=made / "token")), TlsServer(token)) == (
        PeerIdentity()
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(TlsClient(replace(source, to=Address("192.0.2.8", 4444))), TlsServer(token))
