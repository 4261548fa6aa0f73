"""Who signs a receipt, and whether that can be believed.

by            what line 2 holds
key           algorithm, certificates (DER in hex: the signer's, then what it was sent with), value
token         value: HMAC-SHA-256 (token, "migrate receipt 1\\0" ‖ line 1)
nobody        value: SHA-256 of line 1, against accidents only

The key is that of TLS, the destination's or the source's own; where there is none, the token signs.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from migrate.daemon.tls import CA, CLIENT, CRL, SERVER, Token, certificate_files
from migrate.errors import MigrateError, UsageError, VerifyError
from migrate.protocol.receipt import Receipt

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

_PURPOSE = b"migrate receipt 1\0"
_ROLE = {"source": CLIENT, "destination": SERVER}
MOST_CERTIFICATES = 8


class Signer:
    """The key or the token of one side, read at the start: what is wrong with it shows in time."""

    def __init__(self, side: str, tls_dir: Path | None, token_file: Path | None) -> None:
        """Raises UsageError: the key or token cannot be read, or not be used."""
        self._key: PrivateKeyTypes | None = None
        self._chain: list[str] = []
        self._token: Token | None = None
        if tls_dir is not None:
            certificate, key = certificate_files(tls_dir, _ROLE[side])
            if key.exists():
                self._key, self._chain = _read_key(certificate, key)
                self.sign(b"")
                return
        if token_file is not None:
            self._token = Token(token_file)

    def sign(self, text: bytes) -> dict[str, object]:
        """Line 2 for line 1."""
        if self._key is not None:
            algorithm, value = _signature(self._key, _PURPOSE + text)
            return {
                "by": "key",
                "algorithm": algorithm,
                "certificates": self._chain,
                "value": value.hex(),
            }
        if self._token is not None:
            return {"by": "token", "value": _mac(self._token, text)}
        return {"by": "nobody", "value": hashlib.sha256(text).hexdigest()}


def verify(
    receipt: Receipt,
    text: bytes,
    signature: Mapping[str, object],
    tls_dir: Path | None,
    token_file: Path | None,
) -> str:
    """Who signed it, for a person.

    Args:
        tls_dir: its ca-cert.pem (and ca-crl.pem) say whose certificates count.

    Raises:
        VerifyError: nobody did whom these files tell to believe, or it was changed.
        UsageError: there is nothing given that this signature could be checked with.
    """
    by = signature.get("by")
    if by == "nobody":
        whole = signature == {"by": by, "value": hashlib.sha256(text).hexdigest()}
        raise VerifyError("it is not signed" if whole else "it is not signed, and it was changed")
    if by == "token":
        if token_file is None:
            raise UsageError("the token signed it: give --token-file")
        value = signature.get("value")
        if not isinstance(value, str) or not hmac.compare_digest(
            value.encode(), _mac(Token(token_file), text).encode()
        ):
            raise VerifyError("it was changed, or signed by another token")
        return "who knows the token"
    if by == "key":
        if tls_dir is None:
            raise UsageError("the key of TLS signed it: give --tls-dir, with ca-cert.pem")
        try:
            return _verify_by_key(receipt, text, signature, tls_dir)
        except MigrateError:
            raise
        except Exception as error:  # the library raises half a dozen unrelated classes for bad certificates
            raise VerifyError(f"its signature is not whole: {error}") from error
    raise VerifyError("nobody knows how it is signed")


def _mac(token: Token, text: bytes) -> str:
    return hmac.digest(token.secret, _PURPOSE + text, "sha256").hex()


def _read_key(certificate: Path, key: Path) -> tuple[PrivateKeyTypes, list[str]]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    try:
        private = load_pem_private_key(key.read_bytes(), None)
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--tls-dir: {key} cannot sign the receipt: {error}") from error
    return private, [one.public_bytes(Encoding.DER).hex() for one in chain[:MOST_CERTIFICATES]]


def _signature(private: PrivateKeyTypes, data: bytes) -> tuple[str, bytes]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    if isinstance(private, ec.EllipticCurvePrivateKey):
        return "ecdsa-sha256", private.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(private, rsa.RSAPrivateKey):
        return "rsa-pkcs1-sha256", private.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519", private.sign(data)
    raise UsageError("--tls-dir: a receipt is signed by an EC, RSA or Ed25519 key only")


def _check_signature(public: PublicKeyTypes, algorithm: object, value: bytes, data: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    try:
        if isinstance(public, ec.EllipticCurvePublicKey) and algorithm == "ecdsa-sha256":
            public.verify(value, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey) and algorithm == "rsa-pkcs1-sha256":
            public.verify(value, data, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey) and algorithm == "ed25519":
            public.verify(value, data)
        else:
            raise VerifyError("its signature is not of the kind that its certificate's key makes")
    except InvalidSignature:
        raise VerifyError("it was changed: the signature does not fit") from None


def _verify_by_key(receipt: Receipt, text: bytes, signature: Mapping[str, object], tls_dir: Path) -> str:
    from cryptography import x509

    if set(signature) != {"by", "algorithm", "certificates", "value"}:
        raise VerifyError("its signature is not whole")
    shown, value = signature["certificates"], signature["value"]
    if not isinstance(shown, list) or not 1 <= len(shown) <= MOST_CERTIFICATES or not isinstance(value, str):
        raise VerifyError("its signature is not whole")
    chain = [x509.load_der_x509_certificate(_hex(one)) for one in shown]
    try:
        trusted = x509.load_pem_x509_certificates((tls_dir / CA).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--tls-dir: {tls_dir / CA} cannot be read: {error}") from error
    signer = chain[0]
    _check_signature(signer.public_key(), signature["algorithm"], _hex(value), _PURPOSE + text)
    _check_chain(chain, trusted)
    _check_use(signer, receipt)
    _check_revoked(signer, tls_dir / CRL, trusted)
    return signer.subject.rfc4514_string()


def _hex(text: object) -> bytes:
    """Lower case only: one form for one value."""
    if not isinstance(text, str) or text != text.lower():
        raise ValueError("not hex as it is written here")
    return bytes.fromhex(text)


def _check_chain(chain: list[x509.Certificate], trusted: list[x509.Certificate]) -> None:
    """From the signer by its own intermediates, each used once, to a CA that is trusted."""
    current, rest = chain[0], chain[1:]
    while True:
        if any(_issued(current, authority) for authority in trusted):
            return
        following = next((one for one in rest if _issued(current, one)), None)
        if following is None:
            raise VerifyError("it is signed by somebody whose CA is not in ca-cert.pem")
        rest.remove(following)
        current = following


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True


def _check_use(signer: x509.Certificate, receipt: Receipt) -> None:
    """A certificate of its time, and of its side: a source must not sign as the destination."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    when = datetime.datetime.fromtimestamp(receipt.completed_at, datetime.UTC)
    if not signer.not_valid_before_utc <= when <= signer.not_valid_after_utc:
        raise VerifyError("its signer's certificate was not valid when the move was completed")
    try:
        usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    wanted = {"source": ExtendedKeyUsageOID.CLIENT_AUTH, "destination": ExtendedKeyUsageOID.SERVER_AUTH}
    if wanted.get(receipt.side) not in usage:
        raise VerifyError(f"its signer's certificate is not one of a {receipt.side}")


def _check_revoked(signer: x509.Certificate, path: Path, trusted: list[x509.Certificate]) -> None:
    from cryptography import x509

    if not path.exists():
        return
    try:
        revoked = x509.load_pem_x509_crl(path.read_bytes())
        authentic = any(revoked.is_signature_valid(one.public_key()) for one in trusted)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--tls-dir: {path} cannot be read: {error}") from error
    if not authentic:
        raise UsageError(f"--tls-dir: {path} is not of the CA beside it")
    if revoked.get_revoked_certificate_by_serial_number(signer.serial_number) is not None:
        raise VerifyError("its signer's certificate is revoked")
