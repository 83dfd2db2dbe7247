"""Builds and reads PostgreSQL's messages.

Layouts follow "Message Formats" of PostgreSQL's documentation of its protocol. A reader takes the body of
one message (what follows the length word) and raises `ClientProtocolError` or `ServerProtocolError`,
depending on who sends it. Texts are bytes, since the client encoding is not the proxy's concern.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pgshunt.protocol.errors import ClientProtocolError, ServerProtocolError, report_frame
from pgshunt.protocol.phases import (
    LARGE_BODY_BYTES_MAX,
    SECRET_KEY_BYTES_MAX,
    SECRET_KEY_BYTES_MIN,
    STARTUP_BODY_BYTES_MAX,
    AuthenticationCode,
    Backend,
    Frontend,
)

PROTOCOL_MAJOR = 3
CANCEL_REQUEST_CODE = (1234 << 16) | 5678
SSL_REQUEST_CODE = (1234 << 16) | 5679
GSSENC_REQUEST_CODE = (1234 << 16) | 5680

_INT16 = struct.Struct("!H")
_INT32 = struct.Struct("!I")


# --- what a client's first packet can be --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartupRequest:
    """A StartupMessage; `protocol_options` are the `_pq_.` ones. Both are empty unless `major` is 3."""

    major: int
    minor: int
    parameters: dict[bytes, bytes]
    protocol_options: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class SSLRequest:
    """The client asks for TLS."""


@dataclass(frozen=True, slots=True)
class GSSENCRequest:
    """The client asks for GSSAPI encryption."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Another connection's statement is to be cancelled."""

    process_id: int
    secret_key: bytes


def check_startup_length(body_length: int) -> None:
    """Raises ClientProtocolError unless a first packet may have so many bytes behind its length word."""
    if not 4 <= body_length <= STARTUP_BODY_BYTES_MAX:
        raise ClientProtocolError("invalid length of startup packet")


def read_startup(body: bytes) -> StartupRequest | SSLRequest | GSSENCRequest | CancelRequest:
    """What a client's first packet asks for; `body` is what follows the length word.

    Follows PostgreSQL's ProcessStartupPacket (backend_startup.c): pairs up to an empty name, which must be
    the packet's last byte; of a parameter given twice the last one counts.
    """
    (code,) = _INT32.unpack_from(body)
    if code == CANCEL_REQUEST_CODE:
        if not 8 + SECRET_KEY_BYTES_MIN <= len(body) <= 8 + SECRET_KEY_BYTES_MAX:
            raise ClientProtocolError("invalid length of startup packet")
        return CancelRequest(_INT32.unpack_from(body, 4)[0], body[8:])
    if code == SSL_REQUEST_CODE:
        return SSLRequest()
    if code == GSSENC_REQUEST_CODE:
        return GSSENCRequest()
    major, minor = code >> 16, code & 0xFFFF
    if major != PROTOCOL_MAJOR:
        return StartupRequest(major, minor, {}, {})
    pairs = dict(_startup_pairs(body[4:]))
    options = {name: value for name, value in pairs.items() if name.startswith(b"_pq_.")}
    return StartupRequest(major, minor, {n: v for n, v in pairs.items() if n not in options}, options)


def _startup_pairs(body: bytes) -> list[tuple[bytes, bytes]]:
    fields = body.split(b"\0")
    # Well formed, it reads name, NUL, value, NUL, …, NUL: the split leaves the terminator as two empty fields
    # at the end, or as the only two if there is no pair.
    names, values = fields[:-2:2], fields[1:-2:2]
    if len(fields) % 2 or fields[-2:] != [b"", b""] or b"" in names:
        raise ClientProtocolError("invalid startup packet layout: expected terminator as last byte")
    return list(zip(names, values, strict=True))


# --- what else is read --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parse:
    """A Parse message: statement name, its text, and the parameter types the client fixed."""

    name: bytes
    sql: bytes
    oids: tuple[int, ...]


def read_parse(body: bytes | memoryview) -> Parse:
    """Body of a client's Parse."""
    fields = bytes(body).split(b"\0", 2)
    if len(fields) != 3:
        raise ClientProtocolError("invalid string in message")
    name, sql, types = fields
    if len(types) < 2 or len(types) != 2 + 4 * _INT16.unpack_from(types)[0]:
        raise ClientProtocolError("invalid message format")
    return Parse(name, sql, struct.unpack(f"!{len(types) // 4}I", types[2:]))


def read_sasl_initial_response(body: bytes | memoryview) -> tuple[bytes, bytes | None]:
    """Mechanism and data of a client's SASLInitialResponse; the data is None if the client sent none (-1)."""
    mechanism, nul, rest = bytes(body).partition(b"\0")
    if not nul:
        raise ClientProtocolError("invalid string in message")
    if len(rest) < 4:
        raise ClientProtocolError("insufficient data left in message")
    (length,), data = struct.unpack("!i", rest[:4]), rest[4:]
    if length < -1 or length > len(data):
        raise ClientProtocolError("insufficient data left in message")
    if max(length, 0) < len(data):
        raise ClientProtocolError("invalid message format")
    return mechanism, None if length == -1 else data


def read_authentication(body: bytes | memoryview) -> tuple[int, bytes]:
    """Body of a server's Authentication message: its code and what follows."""
    if len(body) < 4:
        raise ServerProtocolError("Authentication message without a code")
    return _INT32.unpack_from(body)[0], bytes(body[4:])


def read_sasl_mechanisms(payload: bytes) -> list[bytes]:
    """Mechanisms that an AuthenticationSASL offers, most wanted first."""
    names = payload.split(b"\0")
    if len(names) < 2 or names[-2:] != [b"", b""]:
        raise ServerProtocolError("AuthenticationSASL without terminator")
    return names[:-2]


def read_parameter_status(body: bytes | memoryview) -> tuple[bytes, bytes]:
    """Name and value of a server's ParameterStatus."""
    fields = bytes(body).split(b"\0")
    if len(fields) != 3 or fields[2] or not fields[0]:
        raise ServerProtocolError("malformed ParameterStatus")
    return fields[0], fields[1]


def read_backend_key_data(body: bytes | memoryview) -> tuple[int, bytes]:
    """Process id and secret key of a server's BackendKeyData."""
    if not 4 + SECRET_KEY_BYTES_MIN <= len(body) <= 4 + SECRET_KEY_BYTES_MAX:
        raise ServerProtocolError(f"BackendKeyData with a key of {len(body) - 4} bytes")
    return _INT32.unpack_from(body)[0], bytes(body[4:])


# --- builders: what the proxy says to clients ---------------------------------------------------------------


def frame(kind: int, body: bytes = b"") -> bytes:
    """One message: type byte, length, body. Raises ValueError for a body no peer would read."""
    if len(body) > LARGE_BODY_BYTES_MAX:
        raise ValueError(f"message body of {len(body)} bytes")
    return bytes((kind,)) + _INT32.pack(len(body) + 4) + body


def text(value: bytes) -> bytes:
    """A NUL-terminated text. Raises ValueError if it holds a NUL: the rest would be read as another field."""
    if b"\0" in value:
        raise ValueError("NUL inside a protocol text")
    return value + b"\0"


def authentication_ok() -> bytes:
    return _authentication(AuthenticationCode.OK)


def authentication_sasl(mechanisms: Iterable[bytes]) -> bytes:
    return _authentication(AuthenticationCode.SASL, b"".join(map(text, mechanisms)) + b"\0")


def authentication_sasl_continue(data: bytes) -> bytes:
    return _authentication(AuthenticationCode.SASL_CONTINUE, data)


def authentication_sasl_final(data: bytes) -> bytes:
    return _authentication(AuthenticationCode.SASL_FINAL, data)


def _authentication(code: AuthenticationCode, payload: bytes = b"") -> bytes:
    return frame(Backend.AUTHENTICATION, _INT32.pack(code) + payload)


def negotiate_protocol_version(minor: int, unrecognised: Iterable[bytes]) -> bytes:
    """The newest version 3.`minor` that is spoken, and the `_pq_.` options that were not understood."""
    names = list(unrecognised)
    version = _INT32.pack((PROTOCOL_MAJOR << 16) | minor)
    return frame(
        Backend.NEGOTIATE_PROTOCOL_VERSION, version + _INT32.pack(len(names)) + b"".join(map(text, names))
    )


def parameter_status(name: bytes, value: bytes) -> bytes:
    return frame(Backend.PARAMETER_STATUS, text(name) + text(value))


def backend_key_data(process_id: int, secret_key: bytes) -> bytes:
    return frame(Backend.BACKEND_KEY_DATA, _INT32.pack(process_id) + _checked_key(secret_key))


def ready_for_query(status: bytes) -> bytes:
    """`status` is I (idle), T (in a transaction) or E (in a failed one)."""
    return frame(Backend.READY_FOR_QUERY, status)


def command_complete(tag: bytes) -> bytes:
    return frame(Backend.COMMAND_COMPLETE, text(tag))


def parse_complete() -> bytes:
    return frame(Backend.PARSE_COMPLETE)


def bind_complete() -> bytes:
    return frame(Backend.BIND_COMPLETE)


def close_complete() -> bytes:
    return frame(Backend.CLOSE_COMPLETE)


def no_data() -> bytes:
    return frame(Backend.NO_DATA)


def parameter_description(oids: Iterable[int]) -> bytes:
    types = tuple(oids)
    return frame(Backend.PARAMETER_DESCRIPTION, struct.pack(f"!H{len(types)}I", len(types), *types))


def empty_query_response() -> bytes:
    return frame(Backend.EMPTY_QUERY_RESPONSE)


def error_response(
    sqlstate: str,
    message: str,
    *,
    severity: str = "ERROR",
    detail: str | None = None,
    hint: str | None = None,
) -> bytes:
    return report_frame(b"E", severity=severity, sqlstate=sqlstate, message=message, detail=detail, hint=hint)


def notice_response(
    message: str,
    *,
    sqlstate: str = "00000",
    severity: str = "NOTICE",
    detail: str | None = None,
    hint: str | None = None,
) -> bytes:
    return report_frame(b"N", severity=severity, sqlstate=sqlstate, message=message, detail=detail, hint=hint)


# --- builders: what the proxy says to servers ---------------------------------------------------------------


def startup_message(parameters: Mapping[bytes, bytes], minor: int = 0) -> bytes:
    """A StartupMessage of protocol 3.`minor`. Raises ValueError for what no server would read."""
    if b"" in parameters:
        raise ValueError("startup parameter without a name")
    pairs = b"".join(text(name) + text(value) for name, value in parameters.items())
    return _untyped(_INT32.pack((PROTOCOL_MAJOR << 16) | minor) + pairs + b"\0")


def ssl_request() -> bytes:
    return _untyped(_INT32.pack(SSL_REQUEST_CODE))


def gssenc_request() -> bytes:
    return _untyped(_INT32.pack(GSSENC_REQUEST_CODE))


def cancel_request(process_id: int, secret_key: bytes) -> bytes:
    return _untyped(struct.pack("!II", CANCEL_REQUEST_CODE, process_id) + _checked_key(secret_key))


def _untyped(body: bytes) -> bytes:
    """The oldest kind of packet has no type byte."""
    if len(body) > STARTUP_BODY_BYTES_MAX:
        raise ValueError(f"startup packet of {len(body)} bytes, at most {STARTUP_BODY_BYTES_MAX} are read")
    return _INT32.pack(len(body) + 4) + body


def _checked_key(secret_key: bytes) -> bytes:
    if not SECRET_KEY_BYTES_MIN <= len(secret_key) <= SECRET_KEY_BYTES_MAX:
        raise ValueError(f"cancel key of {len(secret_key)} bytes")
    return secret_key


def password_message(password: bytes) -> bytes:
    return frame(Frontend.PASSWORD, text(password))


def sasl_initial_response(mechanism: bytes, data: bytes) -> bytes:
    return frame(Frontend.PASSWORD, text(mechanism) + _INT32.pack(len(data)) + data)


def sasl_response(data: bytes) -> bytes:
    return frame(Frontend.PASSWORD, data)


def query(sql: bytes) -> bytes:
    return frame(Frontend.QUERY, text(sql))


def parse(name: bytes, sql: bytes, oids: Iterable[int] = ()) -> bytes:
    types = tuple(oids)
    counted = struct.pack(f"!H{len(types)}I", len(types), *types)
    return frame(Frontend.PARSE, text(name) + text(sql) + counted)


def close_statement(name: bytes) -> bytes:
    return frame(Frontend.CLOSE, b"S" + text(name))


def sync() -> bytes:
    return frame(Frontend.SYNC)


def flush() -> bytes:
    return frame(Frontend.FLUSH)


def terminate() -> bytes:
    return frame(Frontend.TERMINATE)
