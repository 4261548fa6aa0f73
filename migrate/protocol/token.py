"""The proof that a source knows the token, which stands in for a certificate of its own.

proof = HMAC-SHA-256 (token, "migrate token 1\\0" ‖ SHA-256 of the destination's certificate, DER
                      ‖ nonce of `welcome` ‖ nonce of `token-proof`)

Bound to the certificate: another server that got hold of a proof, even one of the same CA that a source
connected to on purpose, cannot pass it on, since its own certificate is another. The nonces make every proof
a new one. The token itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac

_PURPOSE = b"migrate token 1\0"


def token_proof(token: bytes, certificate: bytes, welcome_nonce: bytes, proof_nonce: bytes) -> bytes:
    """The proof, 32 bytes. `certificate` is the destination's, DER; the nonces have 32 bytes each."""
    text = _PURPOSE + hashlib.sha256(certificate).digest() + welcome_nonce + proof_nonce
    return hmac.digest(token, text, "sha256")


def token_proved(
    token: bytes, certificate: bytes, welcome_nonce: bytes, proof_nonce: bytes, proof: bytes
) -> bool:
    """Whether that proof was made with this token, for this certificate and these nonces."""
    return hmac.compare_digest(token_proof(token, certificate, welcome_nonce, proof_nonce), proof)
