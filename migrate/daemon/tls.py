"""TLS 1.3 between the daemons: contexts, keys and identities.

--tls-dir has QEMU's file names (its object tls-creds-x509):

    ca-cert.pem                       who may have signed the peer's certificate
    ca-crl.pem                        if it is there: which of them are revoked
    server-cert.pem, server-key.pem   of migrate-dst
    client-cert.pem, client-key.pem   of migrate-src

The files are read once, at the start. No session tickets are made: a lane's source never reads, and what it
left unread would turn its last close into a reset.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrate.errors import UsageError

CA, CRL = "ca-cert.pem", "ca-crl.pem"
SERVER, CLIENT = "server", "client"
LEAST_TOKEN_BYTES, MOST_TOKEN_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end of a TLS connection."""

    fingerprint: bytes = b""
    """SHA-256 of the certificate; empty: it showed none."""
    names: tuple[str, ...] = ()
    """The subject's common name, then the alternative names, as the certificate has them."""

    @classmethod
    def of(cls, sock: ssl.SSLSocket) -> PeerIdentity:
        """The identity of the peer, whose certificate was verified."""
        certificate = sock.getpeercert(binary_form=True)
        if certificate is None:
            return cls()
        found: dict[str, Any] = sock.getpeercert() or {}
        subject = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
        others = [value for _, value in found.get("subjectAltName", ())]
        return cls(hashlib.sha256(certificate).digest(), tuple(dict.fromkeys(subject + others)))

    def has_one_of(self, allowed: tuple[str, ...]) -> bool:
        """Whether one of these names is its; the case of letters means nothing, as in DNS."""
        own = {name.casefold() for name in self.names}
        return any(name.casefold() in own for name in allowed)

    def __str__(self) -> str:
        return ", ".join(self.names) or self.fingerprint.hex() or "no certificate"


class Token:
    """The pre-shared secret. Its value shows in no text that is made of this object."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises UsageError: missing, too short or long, or others may read it."""
        data = _read_private(path, "--token-file").strip()
        if not LEAST_TOKEN_BYTES <= len(data) <= MOST_TOKEN_BYTES:
            raise UsageError(
                f"--token-file {path}: {len(data)} bytes; {LEAST_TOKEN_BYTES} to {MOST_TOKEN_BYTES} will do",
                hint=f"make one: (umask 077; openssl rand -hex 32 > {path})",
            )
        self.secret = data


def make_context(
    directory: Path | None, role: str, *, shows_certificate: bool, verifies: bool
) -> ssl.SSLContext:
    """The context for one side.

    Args:
        role: SERVER or CLIENT.
        shows_certificate: load our certificate and key.
        verifies: demand a certificate of the CA from the peer.

    Raises:
        UsageError: a file is missing, unfit, or a key that others may read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role == SERVER else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = verifies and role == CLIENT
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if role == SERVER:
        context.num_tickets = 0
    if directory is not None and verifies:
        _load(directory / CA, context.load_verify_locations)
        if (directory / CRL).exists():
            _load(directory / CRL, context.load_verify_locations)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if directory is not None and shows_certificate:
        certificate, key = certificate_files(directory, role)
        _read_private(key, "--tls-dir")
        _load(certificate, lambda path: context.load_cert_chain(path, key, _no_password))
    return context


def certificate_files(directory: Path, role: str) -> tuple[Path, Path]:
    """Certificate and key of a role."""
    return directory / f"{role}-cert.pem", directory / f"{role}-key.pem"


def read_certificate(path: Path) -> bytes:
    """The first certificate of a PEM file, DER. Raises UsageError."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        _, begin, rest = text.partition(ssl.PEM_HEADER)
        body, end, _ = rest.partition(ssl.PEM_FOOTER)
        return ssl.PEM_cert_to_DER_cert(begin + body + end)
    except (OSError, ValueError) as error:
        raise UsageError(f"--tls-dir: {path} has no certificate: {error}") from error


def _load(path: Path, load: Callable[[Path], None]) -> None:
    try:
        load(path)
    except ssl.SSLError as error:
        raise UsageError(f"--tls-dir: {path} does not fit: {_reason(error)}") from error
    except OSError as error:
        raise UsageError(f"--tls-dir: {path} cannot be read: {error.strerror}") from error


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key beside it is another certificate's"
    return (error.reason or "it holds nothing in PEM").lower().replace("_", " ")


def _no_password() -> str:
    raise UsageError("--tls-dir: the key is encrypted; a daemon has nobody to ask for its password")


def _read_private(path: Path, option: str) -> bytes:
    """A file that nobody but its owner may read. Raises UsageError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{option}: {path} is not a file")
            if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o077:
                raise UsageError(
                    f"{option}: others may read {path} (mode {stat.S_IMODE(status.st_mode):04o},"
                    f" owner {status.st_uid})",
                    hint=f"chmod 600 {path}; it has to belong to whom the daemon runs as, or to root",
                )
            return file.read(1 << 20)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be read: {error.strerror}") from error
