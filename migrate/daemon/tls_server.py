"""The destination's end of TLS: who may come in."""

from __future__ import annotations

import os
import socket
import ssl

from migrate.config import DestinationConfig
from migrate.daemon.nonblocking import receive_frame, send
from migrate.daemon.tls import SERVER, PeerIdentity, Token, certificate_files, make_context, read_certificate
from migrate.errors import ProtocolError
from migrate.protocol import frames
from migrate.protocol import messages as m
from migrate.protocol.token import token_proved

MAX_PROOF_BYTES = 256


class TlsServer:
    """Certificate, key and who is let in; made once, at the start."""

    def __init__(self, config: DestinationConfig) -> None:
        """Read the files. Raises UsageError."""
        assert config.tls_dir is not None
        self._token = Token(config.token_file) if config.token_file is not None else None
        self._allow = config.tls_allow
        self._certificate = read_certificate(certificate_files(config.tls_dir, SERVER)[0])
        self._context = make_context(
            config.tls_dir, SERVER, shows_certificate=True, verifies=self._token is None
        )

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The socket, whose handshake is still to be done; the plain one is empty afterwards."""
        return self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def refusal(self, identity: PeerIdentity) -> m.Reject | None:
        """Why somebody with that certificate is not let in, if so."""
        if not self._allow or identity.has_one_of(self._allow):
            return None
        return m.Reject(
            f"its --tls-allow does not list the source's certificate ({identity})",
            f"--tls-allow {identity.names[0]}" if identity.names else "--tls-allow",
            "destination",
        )

    async def welcome(self, sock: ssl.SSLSocket) -> m.Reject | None:
        """Greet a source, and have it prove that it knows the token, if there is one.

        Returns why it is not let in. Raises ProtocolError, EOFError, OSError.
        """
        nonce = os.urandom(32)
        await send(sock, frames.encode_frame(m.Welcome(nonce, token=self._token is not None)))
        if self._token is None:
            return None
        answer = await receive_frame(sock, MAX_PROOF_BYTES)
        if not isinstance(answer, m.TokenProof):
            raise ProtocolError(f"{answer.TYPE} came instead of a proof of the token")
        secret, certificate = self._token.secret, self._certificate
        if token_proved(secret, certificate, nonce, answer.nonce, answer.proof):
            return None
        return m.Reject("the source's token is not the destination's", "--token-file", "source")
