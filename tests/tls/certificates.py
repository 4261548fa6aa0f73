"""Certificates made at run time: a CA, and what it signs, in directories as --tls-dir takes them."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
USAGE = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Authority:
    """A CA of the tests."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name))
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * DAY)
            .not_valid_after(now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def write(self, directory: Path) -> Path:
        """ca-cert.pem into a directory, which is made; returns the directory."""
        directory.mkdir(exist_ok=True)
        _write(directory / "ca-cert.pem", self.certificate.public_bytes(serialization.Encoding.PEM))
        return directory

    def sign(
        self,
        directory: Path,
        role: str,
        common_name: str,
        names: Sequence[str] = (),
        *,
        expired: bool = False,
        usage: str | None = None,
    ) -> x509.Certificate:
        """ROLE-cert.pem and ROLE-key.pem into a directory.

        Args:
            names: alternative names, DNS or addresses.
            usage: of another role.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.datetime.now(datetime.UTC) + (-DAY if expired else 7 * DAY)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - 7 * DAY)
            .not_valid_after(end)
            .add_extension(x509.ExtendedKeyUsage([USAGE[usage or role]]), critical=False)
        )
        if names:
            found = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(found, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        directory.mkdir(exist_ok=True)
        _write(directory / f"{role}-cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(directory / f"{role}-key.pem", private)
        return certificate

    def revoke(self, directory: Path, certificate: x509.Certificate) -> None:
        """ca-crl.pem into a directory."""
        now = datetime.datetime.now(datetime.UTC)
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
        revoked = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - DAY)
            .next_update(now + DAY)
            .add_revoked_certificate(entry.build())
            .sign(self._key, hashes.SHA256())
        )
        _write(directory / "ca-crl.pem", revoked.public_bytes(serialization.Encoding.PEM))


@dataclass(frozen=True)
class Pki:
    """What the tests have: directories for --tls-dir, a token."""

    root: Path
    good: Path
    """Everything of both sides: the server is 127.0.0.1 and localhost, the client host-a."""
    ca_only: Path
    token: Path
    server_fingerprint: str
    client: x509.Certificate
    ca: Authority
    other_ca: Authority


def fingerprint(certificate: x509.Certificate) -> str:
    """As --tls-fingerprint takes it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":")


def write_token(path: Path, text: str = "correct horse battery staple") -> Path:
    """A file for --token-file; returns its path."""
    _write(path, text.encode() + b"\n")
    return path


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
