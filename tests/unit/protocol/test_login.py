"""Logging in to servers: honest ones in every delivery of their bytes, hostile ones at every step."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, ServerProtocolError
from pgshunt.protocol.login import LOGIN_BYTES_MAX, Login, LoginRefused, LoginResult, State
from pgshunt.protocol.phases import BACKEND_LOGIN, Backend
from pgshunt.protocol.scram import ScramServer, make_verifier

from .conftest import Cut

OK = messages.authentication_ok()
KEY = messages.backend_key_data(42, b"keys")
READY = messages.ready_for_query(b"I")
PARAMETERS = messages.parameter_status(b"server_version", b"15.4") + messages.parameter_status(
    b"TimeZone", b"UTC"
)
MECHANISMS = messages.authentication_sasl([b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"])
NOTICE = messages.notice_response("hello")
REST = NOTICE + PARAMETERS + KEY + READY
RESULT = LoginResult({b"server_version": b"15.4", b"TimeZone": b"UTC"}, 42, b"keys", b"")


def play(login: Login, data: bytes, cut: Cut) -> tuple[bytes, LoginResult | None]:
    sent, result = b"", None
    for piece in cut(data):
        answer, result = login.receive(piece)
        sent += answer
    return sent, result


def proved(cut: Cut) -> tuple[Login, bytes]:
    """A login that has sent its proof, and the AuthenticationSASLFinal of an honest server."""
    login, server = Login("alice", "shop", credential="secret"), ScramServer(make_verifier("secret", b"salt"))
    sent, _ = play(login, MECHANISMS, cut)
    mechanism, first = messages.read_sasl_initial_response(sent[5:])
    assert mechanism == b"SCRAM-SHA-256" and first is not None
    sent, _ = play(login, messages.authentication_sasl_continue(server.first(first)), cut)
    final = server.final(sent[5:])
    assert final is not None
    return login, messages.authentication_sasl_final(final)


def test_the_startup_packet_says_who_and_where() -> None:
    login = Login("alice", "shop", {b"client_encoding": b"UTF8"})
    request = messages.read_startup(login.start()[4:])
    assert isinstance(request, messages.StartupRequest)
    assert request.parameters == {b"user": b"alice", b"database": b"shop", b"client_encoding": b"UTF8"}


def test_a_server_that_trusts_lets_in(cut: Cut) -> None:
    assert play(Login("alice", "shop"), OK + REST, cut) == (b"", RESULT)


def test_what_comes_behind_is_left_over() -> None:
    _, result = Login("alice", "shop").receive(OK + REST + NOTICE)
    assert result is not None and result.leftover == NOTICE


@pytest.mark.parametrize("length", [4, 32, 256])
def test_keys_of_any_length_are_kept(length: int, cut: Cut) -> None:
    _, result = play(Login("a", "b"), OK + messages.backend_key_data(1, b"k" * length) + READY, cut)
    assert result is not None and result.secret_key == b"k" * length
    assert "kkkk" not in repr(result)


def test_newer_protocols_are_negotiated_away(cut: Cut) -> None:
    negotiation = messages.negotiate_protocol_version(0, [b"_pq_.x"])
    assert play(Login("a", "b"), negotiation + OK + REST, cut)[1] == RESULT


def test_a_password_is_proved_and_the_server_checked(cut: Cut) -> None:
    login, signature = proved(cut)
    assert play(login, signature + OK + REST, cut) == (b"", RESULT)


@pytest.mark.parametrize("instead", [OK, messages.authentication_sasl_final(b"v=" + b"A" * 43 + b"="), READY])
def test_a_server_must_sign_before_it_lets_in(instead: bytes, cut: Cut) -> None:
    """One that does not know the password must not be able to skip its own proof."""
    login, _ = proved(cut)
    with pytest.raises(ServerProtocolError):
        play(login, instead, cut)


def test_iterations_are_bounded(cut: Cut) -> None:
    """CVE-2026-42198."""
    login = Login("alice", "shop", credential="secret")
    sent, _ = play(login, MECHANISMS, cut)
    nonce = sent.rpartition(b"r=")[2]
    greedy = messages.authentication_sasl_continue(b"r=" + nonce + b"more,s=c2FsdA==,i=2147483647")
    with pytest.raises(ServerProtocolError, match="2147483647 SCRAM iterations"):
        play(login, greedy, cut)


def refused(data: bytes, cut: Cut, password: str | None = "secret") -> LoginRefused:
    with pytest.raises(LoginRefused) as refusal:
        play(Login("alice", "shop", credential=password), data, cut)
    return refusal.value


@pytest.mark.parametrize("code", [3, 5, 7, 9])
def test_weaker_proofs_are_not_given(code: int, cut: Cut) -> None:
    error = refused(messages.frame(Backend.AUTHENTICATION, struct.pack("!I", code) + b"salt"), cut)
    assert error.sqlstate == "28000" and error.response is None
    assert "SCRAM-SHA-256" in error.message and '"alice"' in error.message


def test_a_missing_password_is_named(cut: Cut) -> None:
    assert "none is configured" in refused(MECHANISMS, cut, password=None).message
    assert "no SCRAM-SHA-256" in refused(messages.authentication_sasl([b"OTHER"]), cut).message


def test_the_servers_refusal_is_kept_as_it_came(cut: Cut) -> None:
    frame = messages.error_response("53300", "sorry, too many clients already", severity="FATAL", hint="wait")
    for before in (b"", NOTICE, OK + PARAMETERS):
        error = refused(before + frame, cut)
        assert (error.sqlstate, error.message, error.hint) == (
            "53300",
            "sorry, too many clients already",
            "wait",
        )
        assert error.response == frame


def test_a_refusal_without_sqlstate_is_a_refusal(cut: Cut) -> None:
    """CVE-2026-6666."""
    for body in (b"", b"\0", b"SFATAL\0Mgone\0\0"):
        error = refused(messages.frame(Backend.ERROR_RESPONSE, body), cut)
        assert error.sqlstate == "XX000" and error.message


def test_a_postmaster_that_cannot_fork_is_understood() -> None:
    error = refused(
        b"Ecould not fork new process for connection: out of memory\n\0", lambda data: iter([data])
    )
    assert error.message == "could not fork new process for connection: out of memory"
    assert error.sqlstate == "08004"


@pytest.mark.parametrize(
    "data",
    [
        READY,
        KEY,
        PARAMETERS,
        OK + OK,
        OK + MECHANISMS,
        MECHANISMS + MECHANISMS,
        messages.authentication_sasl_continue(b"r=x"),
        messages.authentication_sasl_final(b"v=x"),
        messages.frame(Backend.AUTHENTICATION, struct.pack("!I", 99)),
        messages.frame(Backend.AUTHENTICATION, struct.pack("!I", 10)),
        OK + PARAMETERS + READY,  # without a key
        OK + KEY + messages.ready_for_query(b"T"),
        OK + messages.frame(Backend.PARAMETER_STATUS, b"no terminator"),
        OK + messages.frame(Backend.PARAMETER_STATUS, b"a\0b\0c\0"),
        OK + messages.frame(Backend.DATA_ROW, b"\0\0"),
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_a_server_that_breaks_the_order_is_left(data: bytes, cut: Cut) -> None:
    with pytest.raises(ServerProtocolError) as broken:
        play(Login("alice", "shop", credential="secret"), data, cut)
    assert broken.value.sqlstate == "08P01"


LENGTHS = (-(2**31), -2, -1, 0, 3, 65_536, 2**30, 2**31 - 1)


@pytest.mark.parametrize("kind", BACKEND_LOGIN)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("before", [b"", OK], ids=["authenticating", "authenticated"])
def test_impossible_lengths_are_refused_at_the_length(
    kind: int, length: int, before: bytes, cut: Cut
) -> None:
    with pytest.raises(PgError) as broken:
        play(Login("a", "b"), before + bytes((kind,)) + struct.pack("!i", length), cut)
    assert broken.value.sqlstate in ("08P01", "08004")


def test_endless_notices_end() -> None:
    login = Login("a", "b")
    notice = messages.notice_response("x" * 60_000)
    with pytest.raises(ServerProtocolError, match=f"more than {LOGIN_BYTES_MAX} bytes"):
        for _ in range(LOGIN_BYTES_MAX // len(notice) + 1):
            login.receive(notice)


@given(st.lists(st.binary(max_size=30), max_size=5), st.sampled_from([b"", OK, MECHANISMS, OK + PARAMETERS]))
def test_any_bytes_are_waited_for_or_refused(pieces: list[bytes], before: bytes) -> None:
    login = Login("a", "b", credential="secret")
    login.receive(before)
    try:
        for piece in pieces:
            _, result = login.receive(piece)
            assert result is None
    except PgError as refusal:
        assert len(refusal.sqlstate) == 5
    assert login.state is not State.DONE


def test_names_are_bounded() -> None:
    with pytest.raises(ValueError, match="startup packet of"):
        Login("a", "b", {b"x": b"y" * 10_000})
