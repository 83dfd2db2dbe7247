"""Receives a client from its first byte to the end of authentication.

`Handshake` takes bytes and returns actions; it never touches a socket. Its answers are those of
PostgreSQL's ProcessStartupPacket (backend_startup.c) and CheckSASLAuth (auth-sasl.c), texts included, with
one difference: where PostgreSQL closes without a word because a length is impossible, the client is told
08P01 first.

What the startup packet asks for is collected, never applied: before authentication nobody has asked anything.

A client may ask for TLS first (SSLRequest), or begin with it (PostgreSQL 17's direct connections). Then the
handshake here pauses at StartTls, and goes on with what comes through the tunnel after `secured`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from pgshunt.protocol import messages
from pgshunt.protocol.actions import Action, Cancel, Close, NeedVerifier, NeedWelcome, Send, StartTls
from pgshunt.protocol.authentication import Authenticator
from pgshunt.protocol.buffer import ReceiveBuffer
from pgshunt.protocol.errors import (
    FEATURE_NOT_SUPPORTED,
    INVALID_AUTHORIZATION,
    INVALID_PARAMETER_VALUE,
    INVALID_PASSWORD,
    PROTOCOL_VIOLATION,
    ClientProtocolError,
    PgError,
)
from pgshunt.protocol.messages import CancelRequest, GSSENCRequest, SSLRequest, StartupRequest
from pgshunt.protocol.phases import FRONTEND, SASL_BYTES_MAX, Phase
from pgshunt.protocol.scram import MECHANISM, MECHANISM_PLUS, ScramServer, ScramVerifier

# The newest protocol 3.x there is (PostgreSQL 18). It differs from 3.0 in the length of cancel keys.
MINOR_NEWEST = 2
# TLSPlaintext.type of a handshake (RFC 8446, section 5.1). No startup packet is so long as to begin with it.
TLS_HANDSHAKE = 0x16
# pg_config_manual.h: NAMEDATALEN counts the NUL; longer user and database names are cut, not refused.
NAME_BYTES_MAX = 63


@dataclass(frozen=True, slots=True)
class Encryption:
    """What clients are offered. `is_required`: nobody logs in without.

    `binding` is what SCRAM with channel binding is bound to, None where the certificate does not allow it.
    """

    is_required: bool = False
    binding: bytes | None = None


class State(Enum):
    """What the handshake waits for."""

    STARTUP = "startup packet"
    TLS = "nothing: the TLS handshake is others' work"
    VERIFIER = "nothing: the user's verifier is being looked up"
    SASL_INITIAL_RESPONSE = "SASLInitialResponse"
    SASL_CLIENT_FIRST = "SASLResponse with client-first-message"
    SASL_CLIENT_FINAL = "SASLResponse with client-final-message"
    WELCOME = "nothing: authenticated"
    CLOSED = "nothing: closed"


class Handshake:
    """One client connection's login.

    Feed `receive()` until it returns NeedWelcome or Close. After NeedWelcome the connection is the
    caller's, beginning with `leftover`, which a client in a hurry has sent behind its last message.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        minor_newest: int = MINOR_NEWEST,
        encryption: Encryption | None = None,
    ) -> None:
        """`minor_newest`: the newest protocol 3.x to agree to. Without `encryption`, TLS is declined."""
        self.state = State.STARTUP
        self._authenticator = authenticator
        self._minor_newest = minor_newest
        self._encryption = encryption
        self._is_direct = False
        self._is_secure = False
        self._certificate_name: str | None = None
        self._buffer = ReceiveBuffer()
        self._declined: set[type[SSLRequest | GSSENCRequest]] = set()
        self._welcome: NeedWelcome | None = None
        self._scram: ScramServer | None = None

    @property
    def leftover(self) -> bytes:
        """Received, but not part of the handshake."""
        return bytes(self._buffer)

    def receive(self, data: bytes) -> list[Action]:
        """What to do about these bytes, in order; everything behind a Close is dropped."""
        if self.state in (State.WELCOME, State.TLS):
            raise RuntimeError("the handshake is over or paused: what arrives now is not its own")
        actions: list[Action] = []
        if self.state is State.CLOSED:
            return actions
        self._buffer += data
        if self.state is State.VERIFIER and len(self._buffer) > SASL_BYTES_MAX:
            return list(
                self._close(ClientProtocolError("received more than a SASL response before the request"))
            )
        try:
            while self.state in _STEPS:
                read, handle = _STEPS[self.state]
                body = read(self)
                if body is None:
                    break
                for action in handle(self, body):
                    actions.append(action)
        except PgError as error:
            actions += self._close(error)
        return actions

    def secured(self, alpn: str | None, certificate_name: str | None) -> list[Action]:
        """The TLS handshake is over: what to do about it.

        `alpn` is the protocol that was agreed on, `certificate_name` the common name in the client's verified
        certificate, None without one.
        """
        assert self.state is State.TLS
        self.state = State.STARTUP
        self._is_secure = True
        self._certificate_name = certificate_name
        if self._is_direct and alpn is None:
            # Somebody may be leading another protocol's client here, with cookies and all (ALPACA).
            refusal = PgError(
                "received direct SSL connection request without ALPN protocol negotiation extension",
                sqlstate=PROTOCOL_VIOLATION,
                hint='Offer the protocol "postgresql", or begin with an SSLRequest.',
            )
            return list(self._close(refusal))
        return []

    def found(self, verifier: ScramVerifier | None) -> list[Action]:
        """The answer to NeedVerifier; None if the user cannot log in: then any proof will be wrong."""
        assert self.state is State.VERIFIER
        return [*self._challenge(verifier), *self.receive(b"")]

    def _close(self, error: PgError | None = None) -> Iterator[Action]:
        self.state = State.CLOSED
        self._buffer.clear()
        if error is not None:
            yield Send(error.frame())
        yield Close(error)

    # --- cutting: the body of the next message, None while it is incomplete ---------------------------------

    def _read_startup_packet(self) -> bytes | None:
        if self._may_encrypt() and not self._declined and self._buffer.kind() == TLS_HANDSHAKE:
            return b""
        length = self._buffer.body_length(0)
        if length is None:
            return None
        messages.check_startup_length(length)
        return self._buffer.take(4, length)

    def _read_sasl_response(self) -> bytes | None:
        kind, length = self._buffer.kind(), self._buffer.body_length(1)
        if kind is None:
            return None
        bounds = FRONTEND[Phase.SASL].get(kind)
        if bounds is None:
            raise ClientProtocolError(f"expected SASL response, got message type {kind}")
        if length is None:
            return None
        if not bounds.body_bytes_min <= length <= bounds.body_bytes_max:
            raise ClientProtocolError("invalid message length")
        return self._buffer.take(5, length)

    # --- the first packet -----------------------------------------------------------------------------------

    def _may_encrypt(self) -> bool:
        return self._encryption is not None and not self._is_secure

    def _on_startup_packet(self, body: bytes) -> Iterator[Action]:
        if not body:
            self._is_direct = True
            yield from self._start_tls()
            return
        request = messages.read_startup(body)
        match request:
            case CancelRequest(process_id, secret_key):
                yield Cancel(process_id, secret_key)
                yield from self._close()
            case SSLRequest() if self._may_encrypt():
                yield from self._accept(request)
            case SSLRequest() | GSSENCRequest():
                yield from self._decline(request)
            case StartupRequest():
                yield from self._on_startup_message(request)

    def _accept(self, request: SSLRequest) -> Iterator[Action]:
        """Answers `S`. What was sent without waiting for it is refused before anything is encrypted."""
        self._refuse_unencrypted(request)
        yield Send(b"S")
        yield from self._start_tls()

    def _start_tls(self) -> Iterator[Action]:
        self.state = State.TLS
        received = bytes(self._buffer)
        self._buffer.clear()
        yield StartTls(received)

    def _decline(self, request: SSLRequest | GSSENCRequest) -> Iterator[Action]:
        """Answers a request for encryption with `N`, each kind once."""
        _, code = _ENCRYPTION_REQUESTS[type(request)]
        if type(request) in self._declined or self._is_secure:
            raise self._unsupported(code >> 16, code & 0xFFFF)
        self._declined.add(type(request))
        yield Send(b"N")
        self._refuse_unencrypted(request)

    def _refuse_unencrypted(self, request: SSLRequest | GSSENCRequest) -> None:
        """Whoever has sent more without waiting for the answer is refused, as by PostgreSQL.

        Those bytes were meant for an encrypted stream, or are an attacker's who wants them taken for part of
        one (CVE-2021-23214).
        """
        if self._buffer:
            name, _ = _ENCRYPTION_REQUESTS[type(request)]
            raise ClientProtocolError(
                f"received unencrypted data after {name} request",
                detail="This could be either a client-software bug or evidence of an attempted"
                " man-in-the-middle attack.",
            )

    def _on_startup_message(self, request: StartupRequest) -> Iterator[Action]:
        if request.major != messages.PROTOCOL_MAJOR:
            raise self._unsupported(request.major, request.minor)
        if self._encryption is not None and self._encryption.is_required and not self._is_secure:
            raise PgError(
                "connections without TLS are not accepted",
                sqlstate=INVALID_AUTHORIZATION,
                hint="Set sslmode=require, or a stronger one, in the client's connection string.",
            )
        parameters = dict(request.parameters)
        replication = _replication(parameters.pop(b"replication", b"false"))
        protocol_minor = min(request.minor, self._minor_newest)
        if protocol_minor < request.minor or request.protocol_options:
            yield Send(messages.negotiate_protocol_version(protocol_minor, request.protocol_options))
        user = parameters.pop(b"user", b"")[:NAME_BYTES_MAX]
        if not user:
            raise PgError(
                "no PostgreSQL user name specified in startup packet", sqlstate=INVALID_AUTHORIZATION
            )
        database = parameters.pop(b"database", b"")[:NAME_BYTES_MAX] or user
        self._welcome = NeedWelcome(_text(user), _text(database), parameters, protocol_minor, replication)
        yield from self._authenticate(self._welcome)

    def _unsupported(self, major: int, minor: int) -> PgError:
        return PgError(
            f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{self._minor_newest}",
            sqlstate=FEATURE_NOT_SUPPORTED,
        )

    # --- authentication -------------------------------------------------------------------------------------

    def _authenticate(self, welcome: NeedWelcome) -> Iterator[Action]:
        if self._authenticator.method == "trust":
            self.state = State.WELCOME
            yield Send(messages.authentication_ok())
            yield welcome
            return
        if self._authenticator.method == "cert":
            yield from self._check_certificate(welcome)
            return
        verifier = self._authenticator.verifier(welcome.user)
        if verifier is None and self._authenticator.looks_up:
            self.state = State.VERIFIER
            yield NeedVerifier(welcome.user)
            return
        yield from self._challenge(verifier)

    def _check_certificate(self, welcome: NeedWelcome) -> Iterator[Action]:
        if self._certificate_name is None:
            raise PgError("connection requires a valid client certificate", sqlstate=INVALID_AUTHORIZATION)
        if not self._authenticator.admits(self._certificate_name, welcome.user):
            raise PgError(
                f'certificate authentication failed for user "{welcome.user}"', sqlstate=INVALID_AUTHORIZATION
            )
        self.state = State.WELCOME
        yield Send(messages.authentication_ok())
        yield welcome

    def _challenge(self, verifier: ScramVerifier | None) -> Iterator[Action]:
        assert self._welcome is not None
        binding = self._encryption.binding if self._encryption is not None and self._is_secure else None
        self._scram = ScramServer(
            verifier or self._authenticator.mock_verifier(self._welcome.user),
            doomed=verifier is None,
            binding=binding,
        )
        self.state = State.SASL_INITIAL_RESPONSE
        yield Send(messages.authentication_sasl([MECHANISM_PLUS, MECHANISM] if binding else [MECHANISM]))

    def _on_sasl_initial_response(self, body: bytes) -> Iterator[Action]:
        assert self._scram is not None
        mechanism, client_first = messages.read_sasl_initial_response(body)
        self._scram.choose(mechanism)
        if client_first is None:
            self.state = State.SASL_CLIENT_FIRST
            yield Send(messages.authentication_sasl_continue(b""))
        else:
            yield from self._on_client_first(client_first)

    def _on_client_first(self, body: bytes) -> Iterator[Action]:
        assert self._scram is not None
        self.state = State.SASL_CLIENT_FINAL
        yield Send(messages.authentication_sasl_continue(self._scram.first(body)))

    def _on_client_final(self, body: bytes) -> Iterator[Action]:
        assert self._scram is not None and self._welcome is not None
        server_final = self._scram.final(body)
        if server_final is None:
            raise PgError(
                f'password authentication failed for user "{self._welcome.user}"', sqlstate=INVALID_PASSWORD
            )
        self.state = State.WELCOME
        yield Send(messages.authentication_sasl_final(server_final) + messages.authentication_ok())
        yield replace(self._welcome, proof=self._scram.proof)


# What is read in each state, and what is made of it. A state without a row reads nothing more.
_STEPS: dict[
    State, tuple[Callable[[Handshake], bytes | None], Callable[[Handshake, bytes], Iterator[Action]]]
] = {
    State.STARTUP: (Handshake._read_startup_packet, Handshake._on_startup_packet),
    State.SASL_INITIAL_RESPONSE: (Handshake._read_sasl_response, Handshake._on_sasl_initial_response),
    State.SASL_CLIENT_FIRST: (Handshake._read_sasl_response, Handshake._on_client_first),
    State.SASL_CLIENT_FINAL: (Handshake._read_sasl_response, Handshake._on_client_final),
}

_ENCRYPTION_REQUESTS: dict[type[SSLRequest | GSSENCRequest], tuple[str, int]] = {
    SSLRequest: ("SSL", messages.SSL_REQUEST_CODE),
    GSSENCRequest: ("GSSAPI encryption", messages.GSSENC_REQUEST_CODE),
}


# PostgreSQL's parse_bool: any spelling, and any beginning of one that leaves no doubt.
_TRUTH: dict[bytes, bool] = {
    word[:length]: truth
    for word, shortest, truth in (
        (b"true", 1, True),
        (b"yes", 1, True),
        (b"on", 2, True),
        (b"1", 1, True),
        (b"false", 1, False),
        (b"no", 1, False),
        (b"off", 2, False),
        (b"0", 1, False),
    )
    for length in range(shortest, len(word) + 1)
}


def _replication(value: bytes) -> bytes | None:
    """The kind of replication connection that is asked for, in the server's words; None: an ordinary one."""
    if value == b"database":
        return value
    wanted = _TRUTH.get(value.lower())
    if wanted is None:
        raise PgError(
            f'invalid value for parameter "replication": "{_text(value)}"',
            sqlstate=INVALID_PARAMETER_VALUE,
            hint='Valid values are: "false", 0, "true", 1, "database".',
        )
    return b"true" if wanted else None


def _text(name: bytes) -> str:
    """A name of undeclared encoding; what is not UTF-8 survives the way back."""
    return name.decode("utf-8", "surrogateescape")
