"""The source's end of TLS: whom it trusts, and how it shows who it is."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl

from migrate.config import SourceConfig
from migrate.daemon.nonblocking import receive_frame, retry, send
from migrate.daemon.tls import CLIENT, Token, certificate_files, make_context
from migrate.daemon.tls_refusals import handshake_error
from migrate.errors import ProtocolError, RefusedError
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.source_link import rejected
from migrate.protocol.token import token_proof

MAX_WELCOME_BYTES = 16 << 10
"""A reject has three texts of at most 4 KiB."""


class TlsClient:
    """CA or fingerprint, our certificate or token; made once, at the start."""

    def __init__(self, config: SourceConfig) -> None:
        """Read the files. Raises UsageError."""
        self._fingerprint = config.tls_fingerprint
        self._name = config.tls_hostname
        """What the destination's certificate has to say; as the person named the destination."""
        if self._name is None and config.to is not None:
            self._name = config.to.host.partition("%")[0]  # a scope is this host's business
        self._token = Token(config.token_file) if config.token_file is not None else None
        shows = config.tls_dir is not None
        if shows and self._token is not None:  # then a certificate is welcome, not needed
            assert config.tls_dir is not None
            shows = certificate_files(config.tls_dir, CLIENT)[0].exists()
        self._context = make_context(
            config.tls_dir, CLIENT, shows_certificate=shows, verifies=self._fingerprint is None
        )

    def describe(self) -> str:
        """How the two sides know each other, for a person."""
        how = f"its CA and name ({self._name})" if self._fingerprint is None else "its fingerprint"
        us = "our token" if self._token is not None else "our certificate"
        return f"TLS 1.3; the destination is known by {how}, this source by {us}"

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The socket, whose handshake is still to be done; the plain one is empty afterwards."""
        return self._context.wrap_socket(sock, server_hostname=self._name, do_handshake_on_connect=False)

    def check(self, sock: ssl.SSLSocket) -> None:
        """After the handshake: compare with the fingerprint, if one is given. Raises RefusedError."""
        if self._fingerprint is None:
            return  # OpenSSL has compared CA and name
        found = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").digest()
        if not hmac.compare_digest(found, self._fingerprint):
            raise RefusedError(
                f"the destination's certificate is not the one of --tls-fingerprint: its SHA-256 is"
                f" {found.hex()}",
                side="source",
                hint="if migrate-dst has a new certificate, look at its fingerprint there before you change"
                " --tls-fingerprint",
            )

    async def greet(self, sock: socket.socket, preface: bytes) -> ssl.SSLSocket:
        """Open a connection up to where a hello, or a probe, goes.

        Args:
            sock: connected, non-blocking; it is closed after any failure.
            preface: what it is to be.

        Raises:
            RefusedError: the certificates do not fit, or the destination says no.
            NetworkError: the handshake broke.
            ProtocolError, EOFError, OSError
        """
        secured = self.wrap(sock)
        try:
            await retry(secured, secured.do_handshake)
            self.check(secured)
            await send(secured, preface)
            await self._answer(secured)
        except ssl.SSLError as error:
            secured.close()
            raise handshake_error(error) from error
        except BaseException:
            secured.close()
            raise
        return secured

    async def _answer(self, sock: ssl.SSLSocket) -> None:
        welcome = await receive_frame(sock, MAX_WELCOME_BYTES)
        if isinstance(welcome, m.Reject):
            raise rejected(welcome)
        if not isinstance(welcome, m.Welcome):
            raise ProtocolError(f"the destination greets with {welcome.TYPE}")
        if not welcome.token:
            return
        if self._token is None:
            raise RefusedError(
                "the destination wants to see that this source knows its token",
                side="destination",
                hint="give the file with its token by --token-file",
            )
        nonce = os.urandom(32)
        certificate = sock.getpeercert(binary_form=True) or b""
        proof = token_proof(self._token.secret, certificate, welcome.nonce, nonce)
        await send(sock, frames.encode_frame(m.TokenProof(nonce, proof)))
