"""Logs in to a server: what a link says until it is ready for its first query.

`Login` takes bytes and returns the bytes to answer; it never touches a socket. It trusts the server with
nothing: sizes are bounded, messages have their order, and a password leaves this process only as a
SCRAM-SHA-256 proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import md5
from typing import NoReturn

from pgshunt.protocol import messages
from pgshunt.protocol.buffer import ReceiveBuffer
from pgshunt.protocol.errors import (
    INVALID_AUTHORIZATION,
    INVALID_PASSWORD,
    PgError,
    ServerProtocolError,
    read_error,
)
from pgshunt.protocol.phases import BACKEND_LOGIN, AuthenticationCode, Backend
from pgshunt.protocol.scram import MECHANISM, MECHANISM_PLUS, Proof, ScramClient, ScramKeys, derive_keys

# All of a login, parameters and notices included: a real one has about 500 bytes.
LOGIN_BYTES_MAX = 1 << 20
# SQLSTATE for a refusal that carries none: "the server rejected the connection".
REJECTED = "08004"

_METHODS = {
    AuthenticationCode.CLEARTEXT_PASSWORD: "a cleartext password",
    AuthenticationCode.MD5_PASSWORD: "an MD5 password",
    AuthenticationCode.GSS: "GSSAPI",
    AuthenticationCode.SSPI: "SSPI",
}


class WeakPassword(str):
    """A password that is also proved by MD5, to a server that asks for that."""

    __slots__ = ()


Credential = str | Proof
"""A password, or what its owner has shown when it was proved to us."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What the login runs through: `binding` of its encryption, None if there is none to bind to."""

    binding: bytes | None = None
    is_required: bool = False


PLAINTEXT = Channel()


class LoginRefused(PgError):
    """The server does not want this login, or wants it in a way that is not acceptable.

    `response` is the server's ErrorResponse as it came, None where the refusal is ours.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str,
        detail: str | None = None,
        hint: str | None = None,
        response: bytes | None = None,
    ) -> None:
        super().__init__(message, sqlstate=sqlstate, detail=detail, hint=hint)
        self.response = response


@dataclass(frozen=True, slots=True)
class LoginResult:
    """What the server said of the session, in its order; `leftover` came behind ReadyForQuery."""

    parameters: dict[bytes, bytes]
    process_id: int
    secret_key: bytes = field(repr=False)
    leftover: bytes


class State(Enum):
    """What the login waits for."""

    AUTHENTICATION = "an authentication request"
    SASL_CONTINUE = "AuthenticationSASLContinue"
    SASL_FINAL = "AuthenticationSASLFinal"
    AUTHENTICATION_OK = "AuthenticationOk"
    READY = "ReadyForQuery"
    DONE = "nothing: ready"


class Login:
    """One link's login: send `start()`, then feed `receive()` and send what it returns, up to a result."""

    def __init__(
        self,
        user: str,
        database: str,
        parameters: Mapping[bytes, bytes] | None = None,
        credential: Credential | None = None,
        *,
        channel: Channel = PLAINTEXT,
    ) -> None:
        """`parameters` go into the startup packet. Without a credential, the server has to trust the user."""
        self.state = State.AUTHENTICATION
        self._user = user
        self._credential = credential
        self._channel = channel
        self._startup = messages.startup_message(
            {b"user": _encode(user), b"database": _encode(database), **(parameters or {})}
        )
        self._scram: ScramClient | None = None
        self._buffer = ReceiveBuffer()
        self._received_bytes = 0
        self._parameters: dict[bytes, bytes] = {}
        self._key: tuple[int, bytes] | None = None

    def start(self) -> bytes:
        """The StartupMessage."""
        return self._startup

    def receive(self, data: bytes) -> tuple[bytes, LoginResult | None]:
        """Bytes to send, and the result once the server is ready.

        Raises LoginRefused, or ServerProtocolError; the connection is of no use after either.
        """
        self._received_bytes += len(data)
        if self._received_bytes > LOGIN_BYTES_MAX:
            raise ServerProtocolError(f"server sent more than {LOGIN_BYTES_MAX} bytes before it was ready")
        self._buffer += data
        answer = b""
        while self.state is not State.DONE and (message := self._read_message()) is not None:
            kind, body = message
            answer += _HANDLERS[kind](self, body)
        return answer, self._result() if self.state is State.DONE else None

    def _result(self) -> LoginResult:
        if self._key is None:
            raise ServerProtocolError("server sent no BackendKeyData: its queries could not be cancelled")
        return LoginResult(self._parameters, *self._key, leftover=bytes(self._buffer))

    def _read_message(self) -> tuple[int, bytes] | None:
        kind, length = self._buffer.kind(), self._buffer.body_length(1)
        if kind is None:
            return None
        bounds = BACKEND_LOGIN.get(kind)
        if bounds is None:
            raise ServerProtocolError(f"server sent message type {kind} during login")
        if length is None:
            return None
        if not bounds.body_bytes_min <= length <= bounds.body_bytes_max:
            if kind == Backend.ERROR_RESPONSE and self._received_bytes == len(self._buffer):
                raise self._ancient_refusal()
            raise ServerProtocolError(f"server sent {bounds.name} with a body of {length} bytes during login")
        body = self._buffer.take(5, length)
        return None if body is None else (kind, body)

    def _ancient_refusal(self) -> LoginRefused:
        """A postmaster that cannot fork says so in protocol 2, without length: libpq looks for that, too."""
        message = bytes(self._buffer[1:]).partition(b"\0")[0].decode("utf-8", "replace").strip()
        return LoginRefused(message, sqlstate=REJECTED)

    # --- handlers: take a body, return what to answer -------------------------------------------------------

    def _on_authentication(self, body: bytes) -> bytes:
        code, payload = messages.read_authentication(body)
        if self.state is State.AUTHENTICATION:
            self._demand_binding(code)
        handle = _AUTHENTICATION.get((self.state, code))
        if handle is not None:
            return handle(self, payload)
        if self.state is State.AUTHENTICATION and code in _METHODS:
            return self._refuse_method(AuthenticationCode(code))
        raise ServerProtocolError(f"server sent authentication code {code}, expected was {self.state.value}")

    def _refuse_method(self, code: AuthenticationCode) -> NoReturn:
        raise LoginRefused(
            f'server wants {_METHODS[code]} of user "{self._user}";'
            " pgshunt gives nothing but a SCRAM-SHA-256 proof",
            sqlstate=INVALID_AUTHORIZATION,
            hint="Use scram-sha-256 in the server's pg_hba.conf. A role whose password is stored as MD5"
            " needs it set again.",
        )

    def _demand_binding(self, code: int) -> None:
        """Where channel binding is required, no server is given or believed anything without."""
        if self._channel.is_required and (code != AuthenticationCode.SASL or self._channel.binding is None):
            raise LoginRefused(
                f'the login of user "{self._user}" cannot be bound to the server\'s certificate, and'
                " tls.channel_binding is require",
                sqlstate=INVALID_AUTHORIZATION,
                hint="It takes TLS, SCRAM, and a certificate whose signature has a hash.",
            )

    def _on_md5(self, salt: bytes) -> bytes:
        if not isinstance(self._credential, WeakPassword) or len(salt) != 4:
            return self._refuse_method(AuthenticationCode.MD5_PASSWORD)
        inner = md5(self._credential.encode() + _encode(self._user), usedforsecurity=False).hexdigest()
        outer = md5(inner.encode() + salt, usedforsecurity=False).hexdigest()
        self.state = State.AUTHENTICATION_OK
        return messages.password_message(b"md5" + outer.encode())

    def _on_sasl(self, payload: bytes) -> bytes:
        mechanisms = messages.read_sasl_mechanisms(payload)
        is_bound = MECHANISM_PLUS in mechanisms and self._channel.binding is not None
        if not is_bound and self._channel.is_required:
            raise LoginRefused(
                f'server offers user "{self._user}" no channel binding, and tls.channel_binding is require',
                sqlstate=INVALID_AUTHORIZATION,
            )
        if not is_bound and MECHANISM not in mechanisms:
            raise LoginRefused(
                f'server offers user "{self._user}" no SCRAM-SHA-256, the only proof pgshunt gives',
                sqlstate=INVALID_AUTHORIZATION,
            )
        if self._credential is None:
            raise LoginRefused(
                f'server wants a password of user "{self._user}", and none is configured',
                sqlstate=INVALID_AUTHORIZATION,
                hint="Give the user a password under auth.users, or let the server trust the proxy.",
            )
        self._scram = ScramClient(
            self._keys,
            binding=self._channel.binding if is_bound else None,
            could_bind=self._channel.binding is not None,
        )
        self.state = State.SASL_CONTINUE
        return messages.sasl_initial_response(MECHANISM_PLUS if is_bound else MECHANISM, self._scram.first())

    def _keys(self, salt: bytes, iterations: int) -> ScramKeys:
        credential = self._credential
        if isinstance(credential, str):
            return derive_keys(credential, salt, iterations)
        assert credential is not None
        if (salt, iterations) != (credential.verifier.salt, credential.verifier.iterations):
            raise LoginRefused(
                f'server keeps another verifier for user "{self._user}" than the one its client logged in by',
                sqlstate=INVALID_PASSWORD,
                hint="Copy it: ALTER ROLE … PASSWORD with rolpassword from pg_authid of the shared database;"
                " or give the user a password under auth.users.",
            )
        return credential.keys

    def _on_sasl_continue(self, payload: bytes) -> bytes:
        assert self._scram is not None
        self.state = State.SASL_FINAL
        return messages.sasl_response(self._scram.final(payload))

    def _on_sasl_final(self, payload: bytes) -> bytes:
        assert self._scram is not None
        self._scram.verify(payload)
        self.state = State.AUTHENTICATION_OK
        return b""

    def _on_authentication_ok(self, payload: bytes) -> bytes:
        self.state = State.READY
        return b""

    def _on_parameter_status(self, body: bytes) -> bytes:
        self._expect(State.READY, "ParameterStatus")
        name, value = messages.read_parameter_status(body)
        self._parameters[name] = value
        return b""

    def _on_backend_key_data(self, body: bytes) -> bytes:
        self._expect(State.READY, "BackendKeyData")
        self._key = messages.read_backend_key_data(body)
        return b""

    def _on_ready_for_query(self, body: bytes) -> bytes:
        self._expect(State.READY, "ReadyForQuery")
        if body != b"I":
            raise ServerProtocolError(f"server is ready with status {body!r} after login, expected was idle")
        self.state = State.DONE
        return b""

    def _on_error_response(self, body: bytes) -> bytes:
        fields = read_error(body)
        raise LoginRefused(
            fields.message or "server refused the login without saying why",
            sqlstate=fields.sqlstate,
            detail=fields.detail,
            hint=fields.hint,
            response=messages.frame(Backend.ERROR_RESPONSE, body),
        )

    def _on_notice(self, body: bytes) -> bytes:
        """Notices, and what of a newer protocol the server does not speak: a link makes do with 3.0."""
        return b""

    def _expect(self, state: State, name: str) -> None:
        if self.state is not state:
            raise ServerProtocolError(f"server sent {name}, expected was {self.state.value}")


_HANDLERS: dict[int, Callable[[Login, bytes], bytes]] = {
    Backend.AUTHENTICATION: Login._on_authentication,
    Backend.BACKEND_KEY_DATA: Login._on_backend_key_data,
    Backend.ERROR_RESPONSE: Login._on_error_response,
    Backend.NEGOTIATE_PROTOCOL_VERSION: Login._on_notice,
    Backend.NOTICE_RESPONSE: Login._on_notice,
    Backend.PARAMETER_STATUS: Login._on_parameter_status,
    Backend.READY_FOR_QUERY: Login._on_ready_for_query,
}

# What the server may ask for in each state. Once SASL has begun, AuthenticationOk counts only behind a
# signature that proves the server knows the password, too.
_AUTHENTICATION: dict[tuple[State, int], Callable[[Login, bytes], bytes]] = {
    (State.AUTHENTICATION, AuthenticationCode.OK): Login._on_authentication_ok,
    (State.AUTHENTICATION, AuthenticationCode.SASL): Login._on_sasl,
    (State.AUTHENTICATION, AuthenticationCode.MD5_PASSWORD): Login._on_md5,
    (State.SASL_CONTINUE, AuthenticationCode.SASL_CONTINUE): Login._on_sasl_continue,
    (State.SASL_FINAL, AuthenticationCode.SASL_FINAL): Login._on_sasl_final,
    (State.AUTHENTICATION_OK, AuthenticationCode.OK): Login._on_authentication_ok,
}


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
