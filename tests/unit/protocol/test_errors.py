"""Errors travel as ErrorResponse, and what is read from a server is never trusted to be complete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol.errors import (
    ClientProtocolError,
    ErrorFields,
    PgError,
    classify_sqlstate,
    read_error,
    with_hint,
)


def test_an_error_carries_its_answer() -> None:
    error = PgError("no", sqlstate="0A000", severity="ERROR", detail="why", hint="so")
    body = b"SERROR\0VERROR\0C0A000\0Mno\0Dwhy\0Hso\0\0"
    assert error.frame() == b"E" + (len(body) + 4).to_bytes(4) + body


def test_protocol_errors_are_fatal_08p01() -> None:
    fields = read_error(ClientProtocolError("bad frame").frame()[5:])
    assert fields == ErrorFields(severity="FATAL", sqlstate="08P01", message="bad frame")


def test_a_nul_in_a_text_does_not_end_its_field() -> None:
    fields = read_error(PgError('user "a\0C00000\0b"', sqlstate="28P01").frame()[5:])
    assert fields.sqlstate == "28P01"
    assert fields.message == 'user "a?C00000?b"'


def test_names_that_are_no_utf8_are_told_as_they_came() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert b'user "caf\xe9"' in PgError(f'user "{name}"', sqlstate="28P01").frame()


def test_a_hint_is_added_where_there_is_none() -> None:
    body = b"SERROR\0VERROR\0C57014\0Mno\0Fpostgres.c\0\0"
    hinted = b"SERROR\0VERROR\0C57014\0Mno\0Fpostgres.c\0Hso\0\0"
    assert with_hint(body, "so") == b"E" + (len(hinted) + 4).to_bytes(4) + hinted
    assert with_hint(hinted, "other") == with_hint(body, "so")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ErrorFields()),
        (b"\0", ErrorFields()),
        # CVE-2026-6666: an error without SQLSTATE.
        (b"SFATAL\0Mgone\0\0", ErrorFields("FATAL", "XX000", "gone")),
        (b"SFATAL\0C\0Mgone\0\0", ErrorFields("FATAL", "XX000", "gone")),
        (b"SFATAL\0C08\0Mgone\0\0", ErrorFields("FATAL", "XX000", "gone")),
        (
            b"SFATAL\0C57P01\0Mlast field without its end",
            ErrorFields("FATAL", "57P01", "last field without its end"),
        ),
        (b"SFATALE\0VFATAL\0C57P01\0M\xff\0\0", ErrorFields("FATAL", "57P01", "\ufffd")),
        (b"SERROR\0C23505\0Mm\0Dd\0Hh\0\0", ErrorFields("ERROR", "23505", "m", "d", "h")),
        (b"SERROR\0C23505\0Mm\0\0Dbehind the end\0\0", ErrorFields("ERROR", "23505", "m")),
    ],
)
def test_what_is_missing_has_a_default(body: bytes, expected: ErrorFields) -> None:
    assert read_error(body) == expected
    assert read_error(memoryview(body)) == expected


@given(st.binary(max_size=300))
def test_no_body_is_too_strange_to_be_read(body: bytes) -> None:
    assert classify_sqlstate(read_error(body).sqlstate) in ("infrastructure", "application", "cancelled")


@pytest.mark.parametrize(
    ("verdict", "sqlstates"),
    [
        (
            "infrastructure",
            "08000 08006 08P01 28000 28P01 53300 53100 57P01 57P02 57P03 57P04 58030 XX000 XX001",
        ),
        ("infrastructure", "3D000 3F000 42P01 42703 42883 42501 25006"),
        ("application", "22012 23505 40001 40P01 P0001 42601 42P07 25P02 57P05 0A000 55P03"),
        ("cancelled", "57014"),
        # What is no SQLSTATE is the server's fault.
        ("infrastructure", "xx 2350 235050 ﬁ000"),
    ],
)
def test_whose_failure_an_sqlstate_is(verdict: str, sqlstates: str) -> None:
    assert {state: classify_sqlstate(state) for state in sqlstates.split()} == dict.fromkeys(
        sqlstates.split(), verdict
    )
