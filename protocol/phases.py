"""Names PostgreSQL's messages and says which may come when, and how long they may be.

The names are those of "Message Formats" in PostgreSQL's documentation of its protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum

# pqcomm.h: MAX_STARTUP_PACKET_LENGTH bounds what follows the length word.
STARTUP_BODY_BYTES_MAX = 10_000
# libpq/auth.h: PG_MAX_AUTH_TOKEN_LENGTH, and PG_MAX_SASL_MESSAGE_LENGTH for a client's SASL messages; both
# count the length word.
AUTHENTICATION_BYTES_MAX = 65_535
SASL_BYTES_MAX = 1_024
# libpq.h: PQ_SMALL_MESSAGE_LIMIT and PQ_LARGE_MESSAGE_LIMIT (MaxAllocSize - 1), which count the length word.
SMALL_BODY_BYTES_MAX = 10_000 - 4
LARGE_BODY_BYTES_MAX = 0x3FFFFFFE - 4
# Protocol 3.2 allows a cancel key of 4 to 256 bytes; before, it is 4.
SECRET_KEY_BYTES_MIN = 4
SECRET_KEY_BYTES_MAX = 256


class Frontend(IntEnum):
    """Type bytes of what clients send."""

    BIND = ord("B")
    CLOSE = ord("C")
    COPY_DATA = ord("d")
    COPY_DONE = ord("c")
    COPY_FAIL = ord("f")
    DESCRIBE = ord("D")
    EXECUTE = ord("E")
    FLUSH = ord("H")
    FUNCTION_CALL = ord("F")
    PARSE = ord("P")
    PASSWORD = ord("p")
    """PasswordMessage, SASLInitialResponse, SASLResponse and GSSResponse: the phase tells which."""
    QUERY = ord("Q")
    SYNC = ord("S")
    TERMINATE = ord("X")


class Backend(IntEnum):
    """Type bytes of what servers send."""

    AUTHENTICATION = ord("R")
    BACKEND_KEY_DATA = ord("K")
    BIND_COMPLETE = ord("2")
    CLOSE_COMPLETE = ord("3")
    COMMAND_COMPLETE = ord("C")
    COPY_BOTH_RESPONSE = ord("W")
    COPY_DATA = ord("d")
    COPY_DONE = ord("c")
    COPY_IN_RESPONSE = ord("G")
    COPY_OUT_RESPONSE = ord("H")
    DATA_ROW = ord("D")
    EMPTY_QUERY_RESPONSE = ord("I")
    ERROR_RESPONSE = ord("E")
    FUNCTION_CALL_RESPONSE = ord("V")
    NEGOTIATE_PROTOCOL_VERSION = ord("v")
    NO_DATA = ord("n")
    NOTICE_RESPONSE = ord("N")
    NOTIFICATION_RESPONSE = ord("A")
    PARAMETER_DESCRIPTION = ord("t")
    PARAMETER_STATUS = ord("S")
    PARSE_COMPLETE = ord("1")
    PORTAL_SUSPENDED = ord("s")
    READY_FOR_QUERY = ord("Z")
    ROW_DESCRIPTION = ord("T")


class AuthenticationCode(IntEnum):
    """First word of an Authentication message."""

    OK = 0
    CLEARTEXT_PASSWORD = 3
    MD5_PASSWORD = 5
    GSS = 7
    SSPI = 9
    SASL = 10
    SASL_CONTINUE = 11
    SASL_FINAL = 12


class Phase(Enum):
    """What a client may send depends on where its session stands."""

    AUTHENTICATION = "authentication"
    SASL = "sasl"
    READY = "ready"
    COPY_IN = "copy_in"


@dataclass(frozen=True, slots=True)
class Bounds:
    """A message's name and the smallest and largest body, in bytes, that PostgreSQL reads."""

    name: str
    body_bytes_min: int
    body_bytes_max: int


_COPY: dict[int, Bounds] = {
    Frontend.COPY_DATA: Bounds("CopyData", 0, LARGE_BODY_BYTES_MAX),
    Frontend.COPY_DONE: Bounds("CopyDone", 0, SMALL_BODY_BYTES_MAX),
    Frontend.COPY_FAIL: Bounds("CopyFail", 1, SMALL_BODY_BYTES_MAX),
}

# What a client may send, phase by phase. A message missing from its row is a protocol error: SQLSTATE 08P01,
# then close. So is a body above its maximum (PostgreSQL's SocketBackend gives up there, too). A body below
# its minimum cannot be well formed: PostgreSQL answers 08P01 as an ERROR and the session goes on.
FRONTEND: Mapping[Phase, Mapping[int, Bounds]] = {
    Phase.AUTHENTICATION: {Frontend.PASSWORD: Bounds("PasswordMessage", 1, AUTHENTICATION_BYTES_MAX - 4)},
    Phase.SASL: {Frontend.PASSWORD: Bounds("SASLResponse", 0, SASL_BYTES_MAX - 4)},
    Phase.READY: {
        Frontend.QUERY: Bounds("Query", 1, LARGE_BODY_BYTES_MAX),
        Frontend.PARSE: Bounds("Parse", 4, LARGE_BODY_BYTES_MAX),
        Frontend.BIND: Bounds("Bind", 8, LARGE_BODY_BYTES_MAX),
        Frontend.DESCRIBE: Bounds("Describe", 2, SMALL_BODY_BYTES_MAX),
        Frontend.EXECUTE: Bounds("Execute", 5, SMALL_BODY_BYTES_MAX),
        Frontend.CLOSE: Bounds("Close", 2, SMALL_BODY_BYTES_MAX),
        # PostgreSQL reads a Flush or Sync with a body, and then answers 08P01. Nobody sends one.
        Frontend.FLUSH: Bounds("Flush", 0, 0),
        Frontend.SYNC: Bounds("Sync", 0, 0),
        Frontend.FUNCTION_CALL: Bounds("FunctionCall", 10, LARGE_BODY_BYTES_MAX),
        Frontend.TERMINATE: Bounds("Terminate", 0, SMALL_BODY_BYTES_MAX),
        # A client goes on sending rows after its COPY has failed; PostgreSQL drops them outside a COPY.
        **_COPY,
    },
    Phase.COPY_IN: {
        **_COPY,
        # Accepted and ignored, for clients that send Execute and Sync without looking.
        Frontend.FLUSH: Bounds("Flush", 0, SMALL_BODY_BYTES_MAX),
        Frontend.SYNC: Bounds("Sync", 0, SMALL_BODY_BYTES_MAX),
        # PostgreSQL ends the COPY with an error on anything else; a client that leaves is no reason for one.
        Frontend.TERMINATE: Bounds("Terminate", 0, SMALL_BODY_BYTES_MAX),
    },
}

# What a server may send before its first ReadyForQuery. libpq reads an error of up to 30,000 bytes here
# (MAX_ERRLEN).
BACKEND_LOGIN: Mapping[int, Bounds] = {
    Backend.AUTHENTICATION: Bounds("Authentication", 4, AUTHENTICATION_BYTES_MAX - 4),
    Backend.BACKEND_KEY_DATA: Bounds("BackendKeyData", 4 + SECRET_KEY_BYTES_MIN, 4 + SECRET_KEY_BYTES_MAX),
    Backend.ERROR_RESPONSE: Bounds("ErrorResponse", 0, AUTHENTICATION_BYTES_MAX - 4),
    Backend.NEGOTIATE_PROTOCOL_VERSION: Bounds("NegotiateProtocolVersion", 8, AUTHENTICATION_BYTES_MAX - 4),
    Backend.NOTICE_RESPONSE: Bounds("NoticeResponse", 0, AUTHENTICATION_BYTES_MAX - 4),
    Backend.PARAMETER_STATUS: Bounds("ParameterStatus", 2, AUTHENTICATION_BYTES_MAX - 4),
    Backend.READY_FOR_QUERY: Bounds("ReadyForQuery", 1, 1),
}
