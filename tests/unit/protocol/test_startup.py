"""A client's way from its first byte to the end of authentication, in every delivery of its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol import messages
from pgshunt.protocol.actions import Action, Cancel, Close, NeedVerifier, NeedWelcome, Send
from pgshunt.protocol.authentication import Authenticator, Passwords, Trust
from pgshunt.protocol.errors import read_error
from pgshunt.protocol.phases import SASL_BYTES_MAX
from pgshunt.protocol.scram import ScramClient, derive_keys, make_verifier
from pgshunt.protocol.startup import Handshake

from .conftest import Cut

SECRET = b"sixteen bytes, at least"
PASSWORDS = Passwords({"alice": "secret"}, SECRET)
STARTUP = messages.startup_message({b"user": b"alice"})
WELCOME = NeedWelcome("alice", "alice", {}, 0)
OK = messages.authentication_ok()
MECHANISMS = messages.authentication_sasl([b"SCRAM-SHA-256"])


def play(handshake: Handshake, data: bytes, cut: Cut) -> list[Action]:
    """All actions upon these bytes, neighbouring sends joined."""
    return join(action for piece in cut(data) for action in handshake.receive(piece))


def join(actions: Iterable[Action]) -> list[Action]:
    joined: list[Action] = []
    for action in actions:
        if joined and isinstance(action, Send) and isinstance(joined[-1], Send):
            joined[-1] = Send(joined[-1].data + action.data)
        else:
            joined.append(action)
    return joined


def refusal(actions: list[Action]) -> tuple[str, str, str]:
    """Severity, SQLSTATE and message of the error that ends these actions; it is the last thing sent."""
    *_, sent, closed = actions
    assert isinstance(sent, Send) and isinstance(closed, Close) and closed.error is not None
    frame = closed.error.frame()
    assert sent.data.endswith(frame)
    fields = read_error(frame[5:])
    return fields.severity, fields.sqlstate, fields.message


def log_in(handshake: Handshake, cut: Cut, password: str = "secret", behind: bytes = b"") -> list[Action]:
    """Plays the client's SASL messages, checks the server's signature, returns the last actions."""
    client = ScramClient(partial(derive_keys, password))
    (challenge,) = play(handshake, messages.sasl_initial_response(b"SCRAM-SHA-256", client.first()), cut)
    assert isinstance(challenge, Send) and challenge.data[:1] == b"R"
    answer = messages.sasl_response(client.final(challenge.data[9:]))
    # What comes behind arrives with the message's end, as from a client that does not wait.
    head, last = answer[:-1], answer[-1:]
    actions = join([*play(handshake, head, cut), *handshake.receive(last + behind)])
    if isinstance(actions[-1], NeedWelcome):
        assert isinstance(actions[0], Send) and actions[0].data.endswith(OK)
        client.verify(actions[0].data[9 : -len(OK)])
    return actions


# --- the first packet -------------------------------------------------------------------------------------


def test_trust_lets_in_at_once(cut: Cut) -> None:
    handshake = Handshake(Trust())
    assert play(handshake, STARTUP, cut) == [Send(OK), WELCOME]
    assert handshake.leftover == b""


def test_what_is_pipelined_behind_the_handshake_is_left_over() -> None:
    handshake = Handshake(Trust())
    query = messages.query(b"SELECT 1")
    assert handshake.receive(STARTUP + query) == [Send(OK), WELCOME]
    assert handshake.leftover == query
    with pytest.raises(RuntimeError):
        handshake.receive(b"more")


def test_parameters_are_collected_in_order(cut: Cut) -> None:
    given = {
        b"application_name": b"a",
        b"user": b"alice",
        b"options": b"-c geqo=off",
        b"database": b"shop",
        b"TimeZone": b"",
    }
    *_, welcome = play(Handshake(Trust()), messages.startup_message(given), cut)
    kept = {b"application_name": b"a", b"options": b"-c geqo=off", b"TimeZone": b""}
    assert welcome == NeedWelcome("alice", "shop", kept, 0)
    assert isinstance(welcome, NeedWelcome) and list(welcome.parameters) == list(kept)


def test_long_names_are_cut_as_postgresql_cuts_them(cut: Cut) -> None:
    *_, welcome = play(Handshake(Trust()), messages.startup_message({b"user": b"u" * 70}), cut)
    assert welcome == NeedWelcome("u" * 63, "u" * 63, {}, 0)


@pytest.mark.parametrize(
    "request_", [messages.ssl_request(), messages.gssenc_request()], ids=["SSL", "GSSENC"]
)
def test_encryption_is_declined_and_the_client_goes_on(request_: bytes, cut: Cut) -> None:
    handshake = Handshake(Trust())
    assert play(handshake, request_, cut) == [Send(b"N")]
    assert play(handshake, STARTUP, cut) == [Send(OK), WELCOME]


def test_both_kinds_of_encryption_may_be_asked_for_once(cut: Cut) -> None:
    handshake = Handshake(Trust())
    assert play(handshake, messages.gssenc_request(), cut) == [Send(b"N")]
    assert play(handshake, messages.ssl_request(), cut) == [Send(b"N")]
    assert refusal(play(handshake, messages.gssenc_request(), cut)) == (
        "FATAL",
        "0A000",
        "unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2",
    )


@pytest.mark.parametrize(
    ("request_", "name"), [(messages.ssl_request(), "SSL"), (messages.gssenc_request(), "GSSAPI encryption")]
)
def test_bytes_stuffed_behind_an_encryption_request_are_never_parsed(request_: bytes, name: str) -> None:
    """CVE-2021-23214: even a well-formed startup packet there is refused."""
    handshake = Handshake(Trust())
    actions = handshake.receive(request_ + STARTUP)
    assert actions[0] == Send(b"N")
    assert refusal(actions) == ("FATAL", "08P01", f"received unencrypted data after {name} request")
    assert handshake.receive(STARTUP) == []


@pytest.mark.parametrize("key", [b"keys", b"k" * 32, b"k" * 256])
def test_a_cancel_request_is_passed_on_and_never_answered(key: bytes, cut: Cut) -> None:
    assert play(Handshake(Trust()), messages.cancel_request(7, key), cut) == [Cancel(7, key), Close()]
    assert "k" * 4 not in repr(Cancel(7, key)).removeprefix("Cancel")


@pytest.mark.parametrize("version", [(2, 0), (4, 0), (0, 0), (1234, 5677)])
def test_other_major_versions_are_refused(version: tuple[int, int], cut: Cut) -> None:
    packet = struct.pack("!IHH", 9, *version) + b"\0"
    assert refusal(play(Handshake(Trust()), packet, cut)) == (
        "FATAL",
        "0A000",
        f"unsupported frontend protocol {version[0]}.{version[1]}: server supports 3.0 to 3.2",
    )


@pytest.mark.parametrize(
    ("minor", "minor_newest", "options", "negotiated"),
    [
        (0, 0, [], None),
        (2, 0, [], 0),
        (9999, 0, [], 0),  # the version clients use to see that servers negotiate ("grease")
        (0, 0, [b"_pq_.a", b"_pq_.b"], 0),
        (2, 2, [], None),
        (9999, 2, [b"_pq_.a"], 2),
    ],
)
def test_versions_and_options_are_negotiated_once(
    minor: int, minor_newest: int, options: list[bytes], negotiated: int | None, cut: Cut
) -> None:
    given = {b"user": b"alice", **dict.fromkeys(options, b"1")}
    actions = play(Handshake(Trust(), minor_newest=minor_newest), messages.startup_message(given, minor), cut)
    answer = b"" if negotiated is None else messages.negotiate_protocol_version(negotiated, options)
    assert actions == [Send(answer + OK), replace(WELCOME, protocol_minor=min(minor, minor_newest))]


@pytest.mark.parametrize("given", [{}, {b"user": b""}, {b"database": b"shop"}])
def test_a_user_must_be_named(given: dict[bytes, bytes], cut: Cut) -> None:
    assert refusal(play(Handshake(Trust()), messages.startup_message(given), cut)) == (
        "FATAL",
        "28000",
        "no PostgreSQL user name specified in startup packet",
    )


def test_negotiation_precedes_a_refusal() -> None:
    actions = Handshake(Trust()).receive(messages.startup_message({b"_pq_.a": b""}))
    assert actions[0] == Send(messages.negotiate_protocol_version(0, [b"_pq_.a"]))
    assert refusal(actions)[1] == "28000"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *[(value, None) for value in (b"false", b"F", b"no", b"of", b"OFF", b"0")],
        *[(value, b"true") for value in (b"true", b"T", b"y", b"on", b"1")],
        (b"database", b"database"),
        *[(value, b"refused") for value in (b"", b"o", b"2", b"Database", b"truee")],
    ],
)
def test_replication_is_asked_for_as_postgresql_takes_it(
    value: bytes, wanted: bytes | None, cut: Cut
) -> None:
    actions = play(
        Handshake(Trust()), messages.startup_message({b"user": b"alice", b"replication": value}), cut
    )
    if wanted == b"refused":
        assert refusal(actions)[1] == "22023"
    else:
        assert actions[-1] == NeedWelcome("alice", "alice", {}, 0, wanted)


# --- lengths ----------------------------------------------------------------------------------------------

LENGTHS = (-(2**31), -2, -1, 0, 3, 4, 5, 7, 10_005, 65_535, 65_536, 2**30, 2**31 - 1)


@pytest.mark.parametrize("length", LENGTHS)
def test_impossible_startup_lengths_are_refused_at_the_length(length: int, cut: Cut) -> None:
    actions = play(Handshake(Trust()), struct.pack("!i", length), cut)
    assert refusal(actions) == ("FATAL", "08P01", "invalid length of startup packet")


@pytest.mark.parametrize("length", [8, 9, 1_000, 10_004])
def test_possible_startup_lengths_are_waited_for(length: int, cut: Cut) -> None:
    handshake = Handshake(Trust())
    assert play(handshake, struct.pack("!I", length) + bytes(length - 5), cut) == []
    assert isinstance(handshake.receive(b"\0")[-1], Close)


@pytest.mark.parametrize("length", [length for length in LENGTHS if not 4 <= length <= SASL_BYTES_MAX])
def test_impossible_sasl_lengths_are_refused_at_the_length(length: int, cut: Cut) -> None:
    handshake = Handshake(PASSWORDS)
    handshake.receive(STARTUP)
    actions = play(handshake, b"p" + struct.pack("!i", length), cut)
    assert refusal(actions) == ("FATAL", "08P01", "invalid message length")


def test_the_longest_sasl_message_is_read() -> None:
    handshake = Handshake(PASSWORDS)
    handshake.receive(STARTUP)
    first = b"n,,n=,r=" + b"x" * (SASL_BYTES_MAX - 4 - 18 - 8)
    message = messages.sasl_initial_response(b"SCRAM-SHA-256", first)
    assert len(message) == 1 + SASL_BYTES_MAX
    (challenge,) = handshake.receive(message)
    assert isinstance(challenge, Send) and challenge.data.startswith(b"R")


def test_plain_http_and_tls_hellos_are_refused(cut: Cut) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        assert refusal(play(Handshake(Trust()), data, cut))[1] == "08P01"


@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_any_bytes_are_waited_for_or_refused(pieces: list[bytes], inside_sasl: bool) -> None:
    handshake = Handshake(PASSWORDS)
    if inside_sasl:
        handshake.receive(STARTUP)
    for piece in pieces:
        for action in handshake.receive(piece):
            assert not isinstance(action, NeedWelcome)


# --- SCRAM ------------------------------------------------------------------------------------------------


def test_the_right_password_is_let_in(cut: Cut) -> None:
    handshake = Handshake(PASSWORDS)
    assert play(handshake, STARTUP, cut) == [Send(MECHANISMS)]
    actions = log_in(handshake, cut, behind=messages.sync())
    assert actions[-1] == WELCOME
    assert handshake.leftover == messages.sync()


@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("nobody", "secret"), ("", "secret")])
def test_a_wrong_password_and_an_unknown_user_look_the_same(user: str, password: str, cut: Cut) -> None:
    if not user:
        user = b"\xff\xfe".decode("utf-8", "surrogateescape")
    handshake = Handshake(PASSWORDS)
    handshake.receive(messages.startup_message({b"user": user.encode("utf-8", "surrogateescape")}))
    actions = log_in(handshake, cut, password)
    assert len(actions) == 2
    assert isinstance(actions[0], Send)
    assert actions[0].data == (
        b"E"
        + struct.pack("!I", len(actions[0].data) - 1)
        + b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "'
        + user.encode("utf-8", "surrogateescape")
        + b'"\0\0'
    )


def challenge(authenticator: Authenticator, user: bytes) -> tuple[bytes, bytes]:
    """Salt and iteration count that a user is shown."""
    handshake = Handshake(authenticator)
    handshake.receive(messages.startup_message({b"user": user}))
    (sent,) = handshake.receive(messages.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=nonce"))
    assert isinstance(sent, Send)
    _, salt, iterations = sent.data[9:].split(b",")
    return salt, iterations


def test_challenges_do_not_tell_who_exists() -> None:
    """Another worker knows the same secret; with another one, every salt is different, known user or not."""
    same, other = Passwords({"bob": "x"}, SECRET), Passwords({"alice": "secret"}, b"another secret, as long")
    for user in (b"alice", b"nobody"):
        assert challenge(PASSWORDS, user) == challenge(PASSWORDS, user) == challenge(same, user)
        assert challenge(PASSWORDS, user)[0] != challenge(other, user)[0]
        assert challenge(PASSWORDS, user)[1] == b"i=4096"
        assert len(challenge(PASSWORDS, user)[0]) == len(challenge(PASSWORDS, b"alice")[0])
    assert challenge(PASSWORDS, b"alice")[0] != challenge(PASSWORDS, b"nobody")[0]


def test_logging_in_derives_no_keys() -> None:
    """The client pays for PBKDF2; the server only compares."""
    client = ScramClient(partial(derive_keys, "secret"))
    handshake = Handshake(PASSWORDS)
    handshake.receive(STARTUP)
    (sent,) = handshake.receive(messages.sasl_initial_response(b"SCRAM-SHA-256", client.first()))
    assert isinstance(sent, Send)
    answer = messages.sasl_response(client.final(sent.data[9:]))
    derived = derive_keys.cache_info()
    assert handshake.receive(answer)[-1] == WELCOME
    assert derive_keys.cache_info() == derived


def test_a_client_may_wait_with_its_first_message(cut: Cut) -> None:
    handshake = Handshake(PASSWORDS)
    handshake.receive(STARTUP)
    nothing = messages.frame(ord("p"), b"SCRAM-SHA-256\0\xff\xff\xff\xff")
    assert play(handshake, nothing, cut) == [Send(messages.authentication_sasl_continue(b""))]
    client = ScramClient(partial(derive_keys, "secret"))
    (sent,) = play(handshake, messages.sasl_response(client.first()), cut)
    assert isinstance(sent, Send)
    assert play(handshake, messages.sasl_response(client.final(sent.data[9:])), cut)[-1] == WELCOME


@pytest.mark.parametrize(
    ("message", "sqlstate", "text"),
    [
        (messages.query(b"SELECT 1"), "08P01", "expected SASL response, got message type 81"),
        (messages.terminate(), "08P01", "expected SASL response, got message type 88"),
        (STARTUP, "08P01", "expected SASL response, got message type 0"),
        (
            messages.sasl_initial_response(b"SCRAM-SHA-1", b"n,,n=,r=x"),
            "08P01",
            "client selected an invalid SASL authentication mechanism",
        ),
        (messages.password_message(b"secret"), "08P01", "insufficient data left in message"),
        (messages.sasl_initial_response(b"SCRAM-SHA-256", b"x"), "08P01", "malformed SCRAM message"),
        (messages.sasl_initial_response(b"SCRAM-SHA-256", b""), "08P01", "malformed SCRAM message"),
    ],
)
def test_what_is_no_sasl_response_is_refused(message: bytes, sqlstate: str, text: str, cut: Cut) -> None:
    handshake = Handshake(PASSWORDS)
    handshake.receive(STARTUP)
    assert refusal(play(handshake, message, cut)) == ("FATAL", sqlstate, text)


def test_a_short_secret_is_no_secret() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        Passwords({}, b"short")


# --- verifiers that somebody else has -----------------------------------------------------------------------

ELSEWHERE = Passwords({}, SECRET, looks_up=True)


def test_a_verifier_that_is_found_goes_on_as_one_that_was_there(cut: Cut) -> None:
    handshake = Handshake(ELSEWHERE)
    assert play(handshake, STARTUP, cut) == [NeedVerifier("alice")]
    assert handshake.found(make_verifier("secret", b"salt")) == [Send(MECHANISMS)]
    *_, welcome = log_in(handshake, cut)
    assert welcome == WELCOME and isinstance(welcome, NeedWelcome) and welcome.proof is not None


def test_a_user_who_is_not_found_gets_the_exchange_of_one_with_a_wrong_password(cut: Cut) -> None:
    handshake = Handshake(ELSEWHERE)
    play(handshake, STARTUP, cut)
    assert handshake.found(None) == [Send(MECHANISMS)]
    assert refusal(log_in(handshake, cut))[1] == "28P01"


def test_who_does_not_wait_for_the_request_is_heard_when_it_is_sent() -> None:
    handshake = Handshake(ELSEWHERE)
    first = messages.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc")
    assert handshake.receive(STARTUP + first) == [NeedVerifier("alice")]
    request, challenge = handshake.found(None)
    assert request == Send(MECHANISMS) and isinstance(challenge, Send)


def test_what_comes_while_nobody_listens_is_bounded() -> None:
    handshake = Handshake(ELSEWHERE)
    handshake.receive(STARTUP)
    actions = [action for _ in range(100) for action in handshake.receive(b"x" * 100)]
    assert refusal(actions)[1] == "08P01"
