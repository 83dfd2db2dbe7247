"""How a client comes to an encrypted connection, in every delivery of its bytes, and what is refused then."""

from __future__ import annotations

import pytest

from pgshunt.protocol import messages
from pgshunt.protocol.actions import Action, Cancel, Close, NeedWelcome, Send, StartTls
from pgshunt.protocol.authentication import Trust
from pgshunt.protocol.errors import read_error
from pgshunt.protocol.startup import Encryption, Handshake

from .conftest import Cut

OFFERED = Encryption()
REQUIRED = Encryption(is_required=True)
STARTUP = messages.startup_message({b"user": b"alice"})
HELLO = b"\x16\x03\x01\x00\x05hello"
LET_IN = [Send(messages.authentication_ok()), NeedWelcome("alice", "alice", {}, 0)]


def play(handshake: Handshake, data: bytes, cut: Cut) -> list[Action]:
    return [action for piece in cut(data) for action in handshake.receive(piece)]


def sqlstate(actions: list[Action]) -> str:
    """Of the error that ends these actions."""
    *_, sent, closed = actions
    assert isinstance(sent, Send) and isinstance(closed, Close)
    return read_error(sent.data[5:]).sqlstate


def secured(encryption: Encryption = OFFERED) -> Handshake:
    handshake = Handshake(Trust(), encryption=encryption)
    handshake.receive(messages.ssl_request())
    assert handshake.secured(None, None) == []
    return handshake


def test_a_request_is_accepted_and_the_login_goes_on_inside(cut: Cut) -> None:
    handshake = Handshake(Trust(), encryption=REQUIRED)
    assert play(handshake, messages.ssl_request(), cut) == [Send(b"S"), StartTls()]
    with pytest.raises(RuntimeError):
        handshake.receive(HELLO)  # the handshake of TLS is not its own
    assert handshake.secured("postgresql", None) == []
    assert play(handshake, STARTUP, cut) == LET_IN


def test_a_direct_connection_is_recognised_by_its_first_byte() -> None:
    for length in range(1, len(HELLO) + 1):
        handshake = Handshake(Trust(), encryption=OFFERED)
        assert handshake.receive(HELLO[:length]) == [StartTls(HELLO[:length])]
        assert handshake.secured("postgresql", None) == []
        assert handshake.receive(STARTUP) == LET_IN


def test_a_direct_connection_must_name_our_protocol() -> None:
    handshake = Handshake(Trust(), encryption=OFFERED)
    handshake.receive(HELLO)
    assert sqlstate(handshake.secured(None, None)) == "08P01"
    assert handshake.receive(STARTUP) == []


@pytest.mark.parametrize("behind", [STARTUP, HELLO, b"x"])
def test_what_stands_behind_the_request_is_refused_unread(behind: bytes) -> None:
    """CVE-2021-23214; not even `S` is sent."""
    actions = Handshake(Trust(), encryption=OFFERED).receive(messages.ssl_request() + behind)
    assert len(actions) == 2 and sqlstate(actions) == "08P01"


@pytest.mark.parametrize("request_", [messages.ssl_request(), messages.gssenc_request()])
def test_nothing_is_encrypted_twice(request_: bytes, cut: Cut) -> None:
    assert sqlstate(play(secured(), request_, cut)) == "0A000"


def test_a_tunnel_in_the_tunnel_is_no_startup_packet() -> None:
    assert sqlstate(secured().receive(HELLO)) == "08P01"


def test_a_hello_behind_a_declined_request_is_no_direct_connection() -> None:
    handshake = Handshake(Trust(), encryption=OFFERED)
    assert handshake.receive(messages.gssenc_request()) == [Send(b"N")]
    assert sqlstate(handshake.receive(HELLO)) == "08P01"


def test_where_tls_is_required_only_a_cancel_comes_without(cut: Cut) -> None:
    """libpq sent cancel requests in the clear until version 17; their only secret is the key they spend."""
    refused = Handshake(Trust(), encryption=REQUIRED)
    assert sqlstate(play(refused, STARTUP, cut)) == "28000"
    cancelling = Handshake(Trust(), encryption=REQUIRED)
    assert play(cancelling, messages.cancel_request(7, b"keys"), cut)[0] == Cancel(7, b"keys")
    assert play(secured(REQUIRED), messages.cancel_request(7, b"keys"), cut)[0] == Cancel(7, b"keys")
