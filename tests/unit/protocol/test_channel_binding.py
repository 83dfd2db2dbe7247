"""SCRAM-SHA-256-PLUS in both roles, and what is refused because somebody may be in between."""

from __future__ import annotations

from functools import partial

import pytest

from pgshunt.protocol import messages
from pgshunt.protocol.errors import ClientProtocolError
from pgshunt.protocol.login import Channel, Login, LoginRefused, WeakPassword
from pgshunt.protocol.scram import (
    MECHANISM,
    MECHANISM_PLUS,
    Proof,
    ScramClient,
    ScramServer,
    derive_keys,
    make_verifier,
)

VERIFIER = make_verifier("secret", b"0123456789abcdef")
BINDING, OTHER = b"a" * 32, b"b" * 32
PLUS, PLAIN = MECHANISM_PLUS, MECHANISM


def log_in(client: ScramClient, server: ScramServer, mechanism: bytes) -> bool:
    server.choose(mechanism)
    final = server.final(client.final(server.first(client.first())))
    if final is None:
        return False
    client.verify(final)
    return True


def client(
    binding: bytes | None = None, *, could_bind: bool = False, password: str = "secret"
) -> ScramClient:
    return ScramClient(partial(derive_keys, password), binding=binding, could_bind=could_bind)


@pytest.mark.parametrize(
    ("offered", "mechanism", "one", "let_in"),
    [
        (BINDING, PLUS, client(BINDING), True),
        (BINDING, PLAIN, client(), True),
        (None, PLAIN, client(), True),
        (None, PLAIN, client(could_bind=True), True),
        (BINDING, PLUS, client(BINDING, password="wrong"), False),
    ],
)
def test_what_both_can(offered: bytes | None, mechanism: bytes, one: ScramClient, let_in: bool) -> None:
    assert log_in(one, ScramServer(VERIFIER, binding=offered), mechanism) is let_in


@pytest.mark.parametrize(
    ("offered", "mechanism", "one", "sqlstate", "message"),
    [
        (None, PLUS, client(BINDING), "08P01", "invalid SASL authentication mechanism"),
        (BINDING, PLUS, client(OTHER), "28000", "channel binding check failed"),  # another certificate
        (
            BINDING,
            PLAIN,
            client(could_bind=True),
            "28000",
            "channel binding negotiation error",
        ),  # PLUS was hidden
        (BINDING, PLAIN, client(BINDING), "08P01", "malformed SCRAM message"),
        (BINDING, PLUS, client(), "08P01", "malformed SCRAM message"),
        (BINDING, PLUS, client(could_bind=True), "08P01", "malformed SCRAM message"),
    ],
)
def test_what_is_refused(
    offered: bytes | None, mechanism: bytes, one: ScramClient, sqlstate: str, message: str
) -> None:
    with pytest.raises(ClientProtocolError, match=message) as refused:
        log_in(one, ScramServer(VERIFIER, binding=offered), mechanism)
    assert refused.value.sqlstate == sqlstate


def test_only_one_type_of_binding_is_known() -> None:
    server = ScramServer(VERIFIER, binding=BINDING)
    server.choose(PLUS)
    with pytest.raises(ClientProtocolError, match="unsupported SCRAM channel-binding type b'tls-unique'"):
        server.first(b"p=tls-unique,,n=,r=abc")


def test_a_right_proof_opens_every_server_with_the_same_verifier() -> None:
    """What the client has shown is all it takes; the verifier alone is not."""
    server = ScramServer(VERIFIER)
    assert log_in(client(), server, PLAIN) and server.proof is not None
    proof = server.proof
    assert proof == Proof(VERIFIER, derive_keys("secret", VERIFIER.salt, VERIFIER.iterations))
    assert "client_key" not in repr(proof) and "stored_key" not in repr(proof)
    assert log_in(ScramClient(lambda salt, iterations: proof.keys), ScramServer(VERIFIER), PLAIN)


@pytest.mark.parametrize("doomed", [True, False])
def test_a_failed_exchange_shows_nothing(doomed: bool) -> None:
    server = ScramServer(VERIFIER, doomed=doomed)
    assert not log_in(client(password="secret" if doomed else "wrong"), server, PLAIN)
    assert server.proof is None


# --- towards servers --------------------------------------------------------------------------------------

BOUND = Channel(BINDING)
INSISTS = Channel(BINDING, is_required=True)
OFFER_BOTH = messages.authentication_sasl([PLUS, PLAIN])
OFFER_PLAIN = messages.authentication_sasl([PLAIN])


def first_answer(offer: bytes, channel: Channel) -> bytes:
    answer, _ = Login("alice", "shop", credential="secret", channel=channel).receive(offer)
    return answer[5:].partition(b",,")[0]


def test_a_link_is_bound_where_it_can_be() -> None:
    head = PLUS + b"\0"
    assert first_answer(OFFER_BOTH, BOUND).startswith(head) and b"p=tls-server" in first_answer(
        OFFER_BOTH, BOUND
    )
    assert first_answer(OFFER_PLAIN, BOUND).endswith(b"y")  # so that the server notices if PLUS was hidden
    assert first_answer(OFFER_BOTH, Channel()).endswith(b"n")


@pytest.mark.parametrize(
    ("said", "channel"),
    [
        (OFFER_PLAIN, INSISTS),
        (messages.authentication_ok(), INSISTS),
        (OFFER_BOTH, Channel(None, is_required=True)),
        (messages.frame(ord("R"), bytes((0, 0, 0, 5)) + b"salt"), INSISTS),
    ],
)
def test_where_binding_is_required_nothing_else_will_do(said: bytes, channel: Channel) -> None:
    login = Login("alice", "shop", credential=WeakPassword("secret"), channel=channel)
    with pytest.raises(LoginRefused, match=r"tls\.channel_binding is require") as refused:
        login.receive(said)
    assert refused.value.sqlstate == "28000"
