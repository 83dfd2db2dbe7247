"""Whatever a peer sends, login ends in an answer, the same however the bytes arrive; nobody gets in by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgshunt.protocol import messages, scram
from pgshunt.protocol.actions import Action, Close, NeedVerifier, NeedWelcome, Send, StartTls
from pgshunt.protocol.authentication import Authenticator, Certificates, Passwords, Trust
from pgshunt.protocol.errors import ClientProtocolError, PgError, read_error, with_hint
from pgshunt.protocol.frames import scan
from pgshunt.protocol.login import Channel, Login, LoginResult, WeakPassword
from pgshunt.protocol.scram import ScramClient, ScramServer, derive_keys, make_verifier, parse_verifier
from pgshunt.protocol.settings import session_settings
from pgshunt.protocol.startup import Encryption, Handshake

from .mutations import FUZZED, cut, mutated

PASSWORD, SALT = "right", b"0123456789abcdef"
VERIFIER = make_verifier(PASSWORD, SALT)
KEYS = derive_keys(PASSWORD, SALT, 4096)
NONCE = b"bm9uY2Ugb2YgdGhlIHBlZXIh"

FIRST = b"n,,n=,r=" + NONCE
STARTUPS = [
    messages.startup_message({b"user": b"u", b"database": b"d"}),
    messages.startup_message({b"user": b"u", b"options": b"-c a=b", b"_pq_.x": b"1"}, minor=2),
    messages.startup_message({b"user": b"\xff", b"replication": b"database"}),
    messages.cancel_request(7, b"key!"),
    messages.sasl_initial_response(b"SCRAM-SHA-256", FIRST),
    messages.sasl_initial_response(b"SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=" + NONCE),
    messages.sasl_response(b"c=biws,r=" + NONCE + NONCE + b",p=" + b"A" * 43 + b"="),
    messages.query(b"SELECT 1"),
]
ENCRYPTED = [messages.ssl_request(), messages.gssenc_request(), b"\x16\x03\x01"]

AUTHENTICATORS: list[Authenticator] = [
    Trust(),
    Certificates({"c": ["u"]}),
    Passwords({"u": PASSWORD}, bytes(16)),
    Passwords({}, bytes(16), looks_up=True),
]


def shaken(handshake: Handshake, pieces: Iterable[bytes]) -> list[Action]:
    """All actions of a handshake that is given these pieces; what it waits for comes at once."""
    done: list[Action] = []
    for piece in pieces:
        todo = handshake.receive(piece)
        while todo:
            action = todo.pop(0)
            done.append(action)
            if isinstance(action, StartTls):
                todo += handshake.secured("postgresql", "c")
            elif isinstance(action, NeedVerifier):
                todo += handshake.found(None)
            elif isinstance(action, NeedWelcome | Close):
                assert not todo
                return done
    return done


def told(actions: list[Action]) -> bytes:
    return b"".join(action.data for action in actions if isinstance(action, Send))


def asked(actions: list[Action]) -> list[Action]:
    return [action for action in actions if not isinstance(action, Send | Close)]


@pytest.fixture(autouse=True)
def same_nonce() -> Iterable[None]:
    with mock.patch.object(scram, "_make_nonce", return_value=NONCE):
        yield


@given(mutated(STARTUPS), st.sampled_from(AUTHENTICATORS), st.data())
@FUZZED
def test_a_client_is_answered_alike_however_its_bytes_arrive(
    sent: bytes, authenticator: Authenticator, data: st.DataObject
) -> None:
    whole = shaken(Handshake(authenticator), [sent])
    cut_up = shaken(Handshake(authenticator), data.draw(cut(sent)))
    assert (told(whole), asked(whole)) == (told(cut_up), asked(cut_up))
    answer = told(whole).lstrip(b"N")  # what a request for encryption is answered with
    assert scan(answer, 1 << 20)[1:] == (len(answer), True)
    if isinstance(authenticator, Passwords | Certificates):
        assert not any(isinstance(action, NeedWelcome) for action in whole)


@given(mutated([*STARTUPS, *ENCRYPTED]), st.sampled_from(AUTHENTICATORS), st.booleans(), st.data())
@FUZZED
def test_an_encrypted_client_is_answered(
    sent: bytes, authenticator: Authenticator, is_required: bool, data: st.DataObject
) -> None:
    encryption = Encryption(is_required, b"end point")
    actions = shaken(Handshake(authenticator, encryption=encryption), data.draw(cut(sent)))
    ends = [action for action in actions if isinstance(action, NeedWelcome | Close)]
    assert len(ends) <= 1
    if authenticator.method == "scram-sha-256" or (is_required and StartTls not in map(type, actions)):
        assert not any(isinstance(action, NeedWelcome) for action in ends)


SERVER_FIRST = b"r=" + NONCE + b"abc,s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096"
ANSWERS = [
    messages.authentication_sasl([b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"]),
    messages.authentication_sasl_continue(SERVER_FIRST),
    messages.authentication_sasl_final(b"v=" + b"A" * 43 + b"="),
    messages.authentication_ok(),
    b"R\0\0\0\x0c\0\0\0\x05salt",
    messages.parameter_status(b"server_version", b"15"),
    messages.backend_key_data(7, b"key!"),
    messages.negotiate_protocol_version(0, [b"_pq_.x"]),
    messages.error_response(severity="FATAL", sqlstate="28P01", message="no"),
    messages.ready_for_query(b"I"),
]
WELCOME = b"".join(ANSWERS[index] for index in (3, 5, 6, 9))


def logged_in(login: Login, pieces: Iterable[bytes]) -> tuple[bytes, LoginResult | str | None]:
    """What a login answers, and what it comes to; only errors that say what is wrong may end it."""
    answer = b""
    try:
        for piece in pieces:
            more, result = login.receive(piece)
            answer += more
            if result is not None:
                return answer, result
    except PgError as error:
        return b"", str(error)
    return answer, None


@given(mutated([*ANSWERS, WELCOME, ANSWERS[0] + ANSWERS[1] + ANSWERS[2] + WELCOME]), st.data())
@FUZZED
def test_a_server_is_believed_nothing_that_it_has_not_proved(sent: bytes, data: st.DataObject) -> None:
    channel = data.draw(st.sampled_from((Channel(), Channel(b"end point"), Channel(b"end point", True))))
    credential = data.draw(st.sampled_from((None, PASSWORD, WeakPassword(PASSWORD))))
    pieces = data.draw(cut(sent))

    def login() -> Login:
        return Login("u", "d", credential=credential, channel=channel)

    answer, result = logged_in(login(), [sent])
    again, same = logged_in(login(), pieces)
    assert isinstance(result, str) == isinstance(same, str)
    if isinstance(result, LoginResult):
        assert isinstance(same, LoginResult)
        assert (answer, result.parameters, result.process_id) == (again, same.parameters, same.process_id)
        assert not channel.is_required
        assert PASSWORD.encode() not in answer


@given(mutated([FIRST, b"y,,n=u,r=x"]), mutated([b"c=biws,r=" + NONCE + NONCE + b",p=" + b"A" * 43 + b"="]))
@FUZZED
def test_no_proof_is_right_without_the_password(first: bytes, final: bytes) -> None:
    server = ScramServer(VERIFIER)
    try:
        server.first(first)
        assert server.final(final) is None
    except ClientProtocolError:
        pass
    assert server.proof is None


@given(mutated([SERVER_FIRST]), mutated([b"v=" + b"A" * 43 + b"=", b"e=other-error"]))
@FUZZED
def test_no_signature_is_right_without_the_password(first: bytes, final: bytes) -> None:
    client = ScramClient(lambda salt, iterations: KEYS)
    client.first()
    with pytest.raises(PgError):
        client.final(first)
        client.verify(final)


def read_first_packet(body: bytes) -> object:
    messages.check_startup_length(len(body))
    return messages.read_startup(body)


READERS: list[tuple[Callable[[bytes], object], list[bytes]]] = [
    (read_first_packet, [frame[4:] for frame in STARTUPS[:4]]),
    (messages.read_parse, [messages.parse(b"name", b"SELECT $1", [23])[5:]]),
    (messages.read_sasl_initial_response, [frame[5:] for frame in STARTUPS[4:6]]),
    (messages.read_authentication, [frame[5:] for frame in ANSWERS[:4]]),
    (messages.read_sasl_mechanisms, [ANSWERS[0][9:]]),
    (messages.read_parameter_status, [ANSWERS[5][5:]]),
    (messages.read_backend_key_data, [ANSWERS[6][5:]]),
    (lambda body: session_settings({b"options": body}), [b"-c a=b --c-d=e\\ f -c g=h"]),
]


@pytest.mark.parametrize(("read", "seeds"), READERS)
def test_a_reader_returns_or_says_what_is_wrong(read: Callable[[bytes], object], seeds: list[bytes]) -> None:
    @given(mutated(seeds))
    @FUZZED
    def run(body: bytes) -> None:
        try:
            read(body)
        except PgError as error:
            assert error.sqlstate and error.frame()

    run()


@given(mutated([ANSWERS[8][5:]]))
@FUZZED
def test_every_error_can_be_read_and_told(body: bytes) -> None:
    fields = read_error(body)
    assert len(fields.sqlstate) == 5
    frame = with_hint(body, "a hint")
    assert scan(frame, 1 << 20)[1:] == (len(frame), True)
    assert read_error(frame[5:]).hint


@given(mutated([b"SCRAM-SHA-256$4096:MDEyMw==$" + b"A" * 43 + b"=:" + b"A" * 43 + b"="]))
@FUZZED
def test_a_verifier_is_one_or_not(text: bytes) -> None:
    try:
        parse_verifier(text.decode("latin-1"))
    except ValueError as error:
        assert "SCRAM-SHA-256" in str(error)
