"""SCRAM-SHA-256: the RFC's example, our two roles against each other, and scramp's roles against ours."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from functools import partial
from hashlib import pbkdf2_hmac

import pytest
from scramp import ScramClient as ScrampClient
from scramp import ScramMechanism

from pgshunt.protocol.errors import ClientProtocolError, ServerProtocolError
from pgshunt.protocol.scram import (
    ITERATIONS_MAX,
    ScramClient,
    ScramKeys,
    ScramServer,
    ScramVerifier,
    derive_keys,
    make_verifier,
    parse_verifier,
)

SALT = b"0123456789abcdef"
VERIFIER = make_verifier("secret", SALT)

# RFC 7677, section 3, with the user name that PostgreSQL's clients leave out.
RFC_SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")


def client(password: str = "secret", nonce: bytes | None = None) -> ScramClient:
    return ScramClient(partial(derive_keys, password), nonce=nonce)


def log_in(with_client: ScramClient, server: ScramServer) -> bool:
    final = server.final(with_client.final(server.first(with_client.first())))
    if final is None:
        return False
    with_client.verify(final)
    return True


def test_the_example_of_rfc_7677() -> None:
    """The exchange for user "user" and password "pencil": its keys prove and sign as the RFC prints them."""
    server = ScramServer(make_verifier("pencil", RFC_SALT, 4096), nonce=b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    first = server.first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert first == b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    final = server.final(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert final == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_our_roles_agree() -> None:
    assert log_in(client(), ScramServer(VERIFIER))
    assert not log_in(client("wrong"), ScramServer(VERIFIER))


def test_a_doomed_exchange_fails_even_with_the_right_password() -> None:
    assert not log_in(client(), ScramServer(VERIFIER, doomed=True))


def test_scramp_logs_in_to_our_server() -> None:
    """pg8000 is built on scramp."""
    peer = ScrampClient(["SCRAM-SHA-256"], "someone", "secret")
    server = ScramServer(VERIFIER)
    peer.set_server_first(server.first(peer.get_client_first().encode()).decode())
    final = server.final(peer.get_client_final().encode())
    assert final is not None
    peer.set_server_final(final.decode())


@pytest.mark.parametrize("password", ["secret", "ﬁre\u00a0wall", "I\u00adX", "ü"])
def test_passwords_amount_to_the_keys_scramp_makes(password: str) -> None:
    salt, stored_key, server_key, iterations = ScramMechanism().make_auth_info(password, 4096, SALT)
    assert make_verifier(password, SALT) == ScramVerifier(salt, iterations, stored_key, server_key)


@pytest.mark.parametrize("password", ["a\u0001b", "", "\u00ad", "\ue000"])
def test_passwords_that_saslprep_refuses_are_used_as_they_are(password: str) -> None:
    """As in PostgreSQL; the RFC would have them refused."""
    salted = pbkdf2_hmac("sha256", password.encode(), SALT, 4096)
    assert derive_keys(password, SALT, 4096).client_key == hmac.digest(salted, b"Client Key", "sha256")
    assert log_in(client(password), ScramServer(make_verifier(password, SALT)))


@pytest.mark.parametrize(
    ("message", "sqlstate"),
    [
        (b"", "08P01"),
        (b"xyz", "08P01"),
        (b"n,,n=,r=", "08P01"),
        (b"n,,n=,r=a b", "08P01"),
        (b"n,,n=,r=abc\0", "08P01"),
        (b"n,,r=abc,n=", "08P01"),
        (b"n,,n=,r=abc,", "08P01"),
        (b"p=tls-server-end-point,,n=,r=abc", "08P01"),
        (b"n,a=other,n=,r=abc", "0A000"),
        (b"n,,m=must,n=,r=abc", "0A000"),
    ],
)
def test_a_malformed_client_first_message_is_refused(message: bytes, sqlstate: str) -> None:
    with pytest.raises(ClientProtocolError) as refusal:
        ScramServer(VERIFIER).first(message)
    assert refusal.value.sqlstate == sqlstate


@pytest.mark.parametrize("flag", [b"n", b"y"])
def test_the_final_message_repeats_what_the_first_said_of_channel_binding(flag: bytes) -> None:
    proof = b",p=" + b64encode(bytes(32))
    for repeated, accepted in ((flag, True), (b"n" if flag == b"y" else b"y", False)):
        server = ScramServer(VERIFIER, nonce=b"SERVER")
        server.first(flag + b",,n=,r=CLIENT")
        message = b"c=" + b64encode(repeated + b",,") + b",r=CLIENTSERVER" + proof
        if accepted:
            assert server.final(message) is None
        else:
            with pytest.raises(ClientProtocolError, match="channel-binding"):
                server.final(message)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"c=biws,r=CLIENTSERVER",
        b"c=biws,r=CLIENTSERVER,p=",
        b"c=biws,r=CLIENTSERVER,p=!!!!",
        b"c=biws,r=CLIENTSERVER,p=" + b64encode(bytes(31)),
        b"c=biws,r=CLIENTSERVER,p=" + b64encode(bytes(33)),
        b"c=biws,r=CLIENTSERVER,p=" + b64encode(bytes(32)) + b",x=1",
        b"c=biws,r=CLIENTSERVER,p=" + b64encode(bytes(32)) + b",p=" + b64encode(bytes(32)),
        b"c=biws,r=CLIENT,p=" + b64encode(bytes(32)),
        b"c=biws,r=OTHERSERVER,p=" + b64encode(bytes(32)),
        b"r=CLIENTSERVER,c=biws,p=" + b64encode(bytes(32)),
    ],
)
def test_a_malformed_client_final_message_is_refused(message: bytes) -> None:
    server = ScramServer(VERIFIER, nonce=b"SERVER")
    server.first(b"n,,n=,r=CLIENT")
    with pytest.raises(ClientProtocolError) as refusal:
        server.final(message)
    assert refusal.value.sqlstate == "08P01"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"r=OTHER,s=c2FsdA==,i=4096",
        b"r=CLIENT,s=c2FsdA==,i=4096",
        b"r=CLIENTSERVER,s=,i=4096",
        b"r=CLIENTSERVER,s=!,i=4096",
        b"r=CLIENTSERVER,s=c2FsdA==",
        b"r=CLIENTSERVER,s=c2FsdA==,i=0",
        b"r=CLIENTSERVER,s=c2FsdA==,i=-1",
        b"r=CLIENTSERVER,s=c2FsdA==,i=99999999999",
        b"e=other-error",
    ],
)
def test_a_client_refuses_what_no_honest_server_sends(message: bytes) -> None:
    with pytest.raises(ServerProtocolError):
        client(nonce=b"CLIENT").final(message)


@pytest.mark.parametrize("iterations", [ITERATIONS_MAX + 1, 2**31 - 1])
def test_a_server_cannot_make_us_compute_for_hours(iterations: int) -> None:
    """CVE-2026-42198."""

    def compute(salt: bytes, iterations: int) -> ScramKeys:
        raise AssertionError(f"{iterations} iterations were computed")

    with pytest.raises(ServerProtocolError, match="at most 1000000"):
        ScramClient(compute, nonce=b"CLIENT").final(b"r=CLIENTSERVER,s=c2FsdA==,i=%d" % iterations)


def test_few_iterations_and_short_salts_are_the_servers_business() -> None:
    assert log_in(client(), ScramServer(make_verifier("secret", b"s", 1)))


@pytest.mark.parametrize(
    "final", [b"", b"v=", b"v=!", b"v=" + b64encode(bytes(32)), b"e=invalid-proof", b"x"]
)
def test_a_server_that_cannot_sign_is_not_trusted(final: bytes) -> None:
    one = client()
    one.final(ScramServer(VERIFIER).first(one.first()))
    with pytest.raises(ServerProtocolError):
        one.verify(final)


def test_keys_are_derived_once() -> None:
    derive_keys.cache_clear()
    for _ in range(3):
        assert log_in(client("derived once"), ScramServer(make_verifier("derived once", SALT)))
    assert derive_keys.cache_info().misses == 1


def test_secrets_do_not_show() -> None:
    for value in (VERIFIER, derive_keys("secret", SALT, 4096)):
        assert "key" not in repr(value)


def test_a_verifier_of_pg_authid_is_read() -> None:
    text = (
        f"SCRAM-SHA-256$4096:{b64encode(SALT).decode()}"
        f"${b64encode(VERIFIER.stored_key).decode()}:{b64encode(VERIFIER.server_key).decode()}"
    )
    assert parse_verifier(text) == VERIFIER
    for broken in ("", "md5" + "0" * 32, text[:-4], text.replace("4096", "0"), text.replace("$4096", "$-1")):
        with pytest.raises(ValueError):
            parse_verifier(broken)
