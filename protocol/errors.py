"""Says what went wrong in PostgreSQL's own terms: SQLSTATE, text, and who is at fault.

An error raised here carries its answer: `frame()` is the ErrorResponse to send. Errors read from a server
become `ErrorFields`, in which nothing is required: a peer once crashed on an error without SQLSTATE
(CVE-2026-6666).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PROTOCOL_VIOLATION = "08P01"
FEATURE_NOT_SUPPORTED = "0A000"
INVALID_PARAMETER_VALUE = "22023"
INVALID_AUTHORIZATION = "28000"
INVALID_PASSWORD = "28P01"
INTERNAL_ERROR = "XX000"

Verdict = Literal["infrastructure", "application", "cancelled"]

# Errors that say the database, not the statement, is unfit: the list under "What counts as an error" of the
# guard. Class 28 stands for a link refused at login, XX also for corrupted data and indexes.
_INFRASTRUCTURE_CLASSES = frozenset({"08", "28", "53", "58", "XX"})
_INFRASTRUCTURE_STATES = frozenset(
    # The server is stopping, has crashed, is starting up, or its database was dropped.
    {"57P01", "57P02", "57P03", "57P04"}
    # The target lacks what the source has: database, schema, table, column, function, privilege; or is a
    # standby.
    | {"3D000", "3F000", "42P01", "42703", "42883", "42501", "25006"}
)
_QUERY_CANCELLED = "57014"


class PgError(Exception):
    """An error that a client can be told as it is.

    `severity` is ERROR (the session goes on) or FATAL (the connection is closed behind it).
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str,
        severity: str = "FATAL",
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.severity = severity
        self.detail = detail
        self.hint = hint

    def frame(self) -> bytes:
        """The ErrorResponse, whole."""
        return report_frame(
            b"E",
            severity=self.severity,
            sqlstate=self.sqlstate,
            message=self.message,
            detail=self.detail,
            hint=self.hint,
        )


class ClientProtocolError(PgError):
    """The client broke the protocol; it is told so and its connection is closed."""

    def __init__(
        self, message: str, *, sqlstate: str = PROTOCOL_VIOLATION, detail: str | None = None
    ) -> None:
        super().__init__(message, sqlstate=sqlstate, detail=detail)


class ServerProtocolError(PgError):
    """The server broke the protocol; its link is closed and never used again."""

    def __init__(
        self, message: str, *, sqlstate: str = PROTOCOL_VIOLATION, detail: str | None = None
    ) -> None:
        super().__init__(message, sqlstate=sqlstate, detail=detail)


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """The fields of an ErrorResponse or NoticeResponse that are acted upon; what was missing has its default.

    `severity` is the untranslated one (field V) where the server sent it.
    """

    severity: str = "ERROR"
    sqlstate: str = INTERNAL_ERROR
    message: str = ""
    detail: str | None = None
    hint: str | None = None


def report_frame(
    kind: bytes,
    *,
    severity: str,
    sqlstate: str,
    message: str,
    detail: str | None = None,
    hint: str | None = None,
) -> bytes:
    """An ErrorResponse (kind `E`) or NoticeResponse (`N`) with fields S, V, C, M and, where given, D and H.

    A NUL inside a text would end its field early, so it is replaced: the text may quote what a client sent.
    """
    fields = (
        (b"S", severity),
        (b"V", severity),
        (b"C", sqlstate),
        (b"M", message),
        (b"D", detail),
        (b"H", hint),
    )
    body = b"".join(
        code + text.encode("utf-8", "surrogateescape").replace(b"\0", b"?") + b"\0"
        for code, text in fields
        if text is not None
    )
    return kind + struct.pack("!I", len(body) + 5) + body + b"\0"


def read_error(body: bytes | memoryview) -> ErrorFields:
    """Fields of an ErrorResponse or NoticeResponse body; never raises, whatever the server sent."""
    fields = {field[:1]: field[1:].decode("utf-8", "replace") for field in _fields(bytes(body))}
    sqlstate = fields.get(b"C", "")
    return ErrorFields(
        severity=fields.get(b"V") or fields.get(b"S") or "ERROR",
        sqlstate=sqlstate if _is_sqlstate(sqlstate) else INTERNAL_ERROR,
        message=fields.get(b"M", ""),
        detail=fields.get(b"D"),
        hint=fields.get(b"H"),
    )


def with_hint(body: bytes, hint: str) -> bytes:
    """The ErrorResponse, whole, that says this too; a hint of the server's own stands."""
    fields = list(_fields(body))
    if not any(field.startswith(b"H") for field in fields):
        fields.append(b"H" + hint.encode())
    body = b"".join(field + b"\0" for field in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def classify_sqlstate(sqlstate: str) -> Verdict:
    """Whose failure an SQLSTATE is, for the guard.

    `infrastructure` always counts against the endpoint, `application` only in excess of the baseline's rate,
    `cancelled` never. What is no SQLSTATE at all is the server's fault.
    """
    if sqlstate == _QUERY_CANCELLED:
        return "cancelled"
    if sqlstate[:2] in _INFRASTRUCTURE_CLASSES or sqlstate in _INFRASTRUCTURE_STATES:
        return "infrastructure"
    return "application" if _is_sqlstate(sqlstate) else "infrastructure"


def _fields(body: bytes) -> Iterable[bytes]:
    """The code-and-text runs before the terminator, last one included if its NUL is missing."""
    for field in body.split(b"\0"):
        if not field:
            return
        yield field


def _is_sqlstate(text: str) -> bool:
    return len(text) == 5 and text.isascii() and text.isalnum() and text == text.upper()
