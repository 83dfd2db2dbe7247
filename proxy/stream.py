"""A connection to a server while the loop serves it: plaintext or encrypted, with the same two verbs."""

from __future__ import annotations

import asyncio
import socket
import ssl

from pgshunt.config.tls import connecting
from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, ServerProtocolError
from pgshunt.proxy.tls import TlsEnd
from pgshunt.routing.table import Endpoint

RECEIVE_BYTES = 16_384
CANNOT_CONNECT = "08001"


class TlsRefused(PgError):
    """The server does not encrypt, or not as the configuration asks for (08001)."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, sqlstate=CANNOT_CONNECT, hint=hint)


class Stream:
    """A connected, non-blocking socket, and its TLS end if it is encrypted."""

    __slots__ = ("_loop", "socket", "tls")

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self._loop = loop
        self.socket = connection
        self.tls: TlsEnd | None = None

    async def send(self, data: bytes) -> None:
        """Raises OSError."""
        await self._loop.sock_sendall(self.socket, self.tls.encrypt(data) if self.tls else data)

    async def receive(self) -> bytes:
        """Some bytes; none at the end. Raises OSError, ssl.SSLError among it."""
        if self.tls is None:
            return await self._loop.sock_recv(self.socket, RECEIVE_BYTES)
        while received := await self._loop.sock_recv(self.socket, RECEIVE_BYTES):
            data, ended = self.tls.decrypt(received)
            if data or ended:
                return data
        return b""

    async def encrypt(self, endpoint: Endpoint) -> None:
        """Asks the server for TLS and shakes hands, as far as the endpoint's `tls` wants that.

        Raises TlsRefused; ServerProtocolError for anything but S and N; OSError.
        """
        try:
            context = connecting(endpoint.tls)
        except OSError as problem:
            raise TlsRefused(
                f"the TLS files of {endpoint.database} cannot be used: {problem}", "Mend them, then reload."
            ) from problem
        if context is None or endpoint.host.startswith("/"):  # as in libpq: unix sockets need none
            return
        await self._loop.sock_sendall(self.socket, messages.ssl_request())
        # More than the one byte would stand before the handshake, from whoever sent it (CVE-2021-23222); and
        # an error in place of it is from nobody that is known yet (CVE-2024-10977).
        answer = await self._loop.sock_recv(self.socket, RECEIVE_BYTES)
        match answer:
            case b"S":
                await self._shake_hands(context, endpoint.host)
            case b"N" if endpoint.tls.mode == "prefer":
                return
            case b"N":
                raise TlsRefused(
                    f"{endpoint.name} does not support TLS, and tls.mode is {endpoint.tls.mode}",
                    "Set ssl = on at the server, or tls.mode: prefer.",
                )
            case b"":
                raise ConnectionResetError("server closed the connection")
            case _:
                raise ServerProtocolError(
                    f"server answered SSLRequest with {len(answer)} bytes that begin with {answer[:1]!r}"
                )

    async def _shake_hands(self, context: ssl.SSLContext, host: str) -> None:
        end = TlsEnd.connecting(context, host)
        try:
            done = end.shake_hands()
            while not done:
                await self._loop.sock_sendall(self.socket, end.outgoing.read())
                received = await self._loop.sock_recv(self.socket, RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError("server closed the connection during the TLS handshake")
                end.incoming.write(received)
                done = end.shake_hands()
        except ssl.SSLError as failure:
            await self._loop.sock_sendall(self.socket, end.outgoing.read())  # the alert that says why
            reason = (
                failure.verify_message
                if isinstance(failure, ssl.SSLCertVerificationError)
                else (failure.reason or str(failure)).lower().replace("_", " ")
            )
            raise TlsRefused(
                f"TLS with {host} failed: {reason}",
                "Check tls.mode, tls.ca_file and the server's certificate.",
            ) from failure
        await self._loop.sock_sendall(self.socket, end.outgoing.read())
        self.tls = end
