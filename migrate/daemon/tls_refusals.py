"""What OpenSSL says of a handshake, in words for the person who has to mend it.

A destination that does not take a source's certificate tells so by an alert, which a source of TLS 1.3 finds
where it expects `welcome`: for it the handshake was over.
"""

from __future__ import annotations

import ssl

from migrate.errors import MigrateError, NetworkError, RefusedError

ALERT_PROTOCOL_VERSION = bytes.fromhex("15 0303 0002 02 46")
"""A TLS record, fatal alert 70 (RFC 8446, section 6): the answer of a destination without TLS."""

_NO_TLS = (
    "the destination does not speak TLS",
    "start migrate-dst with --tls-dir, or leave --tls-dir and --tls-fingerprint away here",
)
_CERTIFICATE_WANTED = (
    "the destination wants a certificate of this source",
    "put client-cert.pem and client-key.pem, signed by a CA of its ca-cert.pem, into --tls-dir here",
)
_SOURCE_UNKNOWN_CA = (
    "the destination does not know the CA that signed this source's certificate",
    "have client-cert.pem signed by a CA of the destination's ca-cert.pem",
)
_SOURCE_EXPIRED = (
    "this source's certificate has expired, by the destination's clock",
    "have a new client-cert.pem signed, or set the clocks",
)
_SOURCE_UNFIT = (
    "the destination does not take this source's certificate",
    "is client-cert.pem made for TLS clients, valid now and not revoked? migrate-dst says what it misses",
)
_ALERTS = {
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _CERTIFICATE_WANTED,
    "TLSV1_ALERT_UNKNOWN_CA": _SOURCE_UNKNOWN_CA,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _SOURCE_EXPIRED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _SOURCE_UNFIT,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _SOURCE_UNFIT,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _SOURCE_UNFIT,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _SOURCE_UNFIT,
}
"""OpenSSL's reason → what it means, what to do at the source."""

_HINTS = {
    "expired": "have a new server-cert.pem signed for the destination, or set the clock here",
    "not yet valid": "set the clocks of both hosts",
    "mismatch": "give --to the name that the certificate has, or say that name by --tls-hostname",
    "revoked": "have a new server-cert.pem signed for the destination",
    "issuer": "is ca-cert.pem in --tls-dir that of the destination's CA?",
    "self": "is ca-cert.pem in --tls-dir that of the destination's CA?",
}
"""A word of OpenSSL's verdict on the destination's certificate → what helps."""


def handshake_error(error: ssl.SSLError) -> MigrateError:
    """The error for a source whose TLS handshake, or whose first read after it, failed.

    A RefusedError where the two do not fit; a NetworkError where bytes were lost or changed on the way.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        verdict = error.verify_message.rstrip(".")
        hint = next((hint for word, hint in _HINTS.items() if word in verdict.casefold()), None)
        text = f"the destination's certificate was not accepted: {verdict}"
        return RefusedError(text, side="source", hint=hint)
    known = _ALERTS.get(error.reason or "")
    if known is not None:
        return RefusedError(known[0], side="destination", hint=known[1])
    return NetworkError(f"the TLS handshake with the destination failed: {tls_text(error)}")


def tls_text(error: ssl.SSLError) -> str:
    """One line without the names of OpenSSL's source files."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: its certificate was not accepted: {error.verify_message}"
    return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
