"""PostgreSQL is the oracle: what a client hears during its handshake is what the server itself would say."""

from __future__ import annotations

import re
import socket
import struct

import pytest
from support.fixtures import Server

from pgshunt.protocol import messages
from pgshunt.protocol.actions import Close, Send
from pgshunt.protocol.authentication import Passwords
from pgshunt.protocol.errors import read_error
from pgshunt.protocol.startup import Handshake

SILENCE_S = 0.2
ENCODED_PROOF = b"eHh4" * 10 + b"eHg="

# A packet that is complete up to where it lies about itself.
Delivery = tuple[bytes, ...]


def startup(minor: int = 0, **parameters: bytes) -> bytes:
    return messages.startup_message({name.encode(): value for name, value in parameters.items()}, minor)


def initial(data: bytes, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    return messages.sasl_initial_response(mechanism, data)


ALICE = startup(user=b"postgres")

DELIVERIES: dict[str, Delivery] = {
    "SSLRequest, then startup": (messages.ssl_request(), ALICE),
    "SSLRequest and startup at once": (messages.ssl_request() + ALICE,),
    "SSLRequest twice": (messages.ssl_request(), messages.ssl_request()),
    "protocol 3.9999": (startup(9999, user=b"postgres"),),
    "protocol 4.0": (struct.pack("!II", 9, 4 << 16) + b"\0",),
    "unknown options": (startup(user=b"postgres", **{"_pq_.a": b"1", "_pq_.b": b""}),),
    "unknown option and no user": (startup(**{"_pq_.a": b"1"}),),
    "no user": (startup(),),
    "empty user": (startup(user=b""),),
    "user given twice": (struct.pack("!II", 31, 3 << 16) + b"user\0nobody\0user\0x\0\0",),
    "no terminator": (struct.pack("!II", 13, 3 << 16) + b"user\0",),
    "only a version": (struct.pack("!II", 8, 3 << 16),),
    "replication=maybe": (startup(user=b"postgres", replication=b"maybe"),),
    "replication=of": (startup(user=b"postgres", replication=b"of"),),
    "unknown user": (startup(user=b"nobody"), initial(b"n,,n=,r=abc")),
    "client cannot bind channels": (ALICE, initial(b"y,,n=,r=abc")),
    "client binds a channel": (ALICE, initial(b"p=tls-server-end-point,,n=,r=abc")),
    "authorization identity": (ALICE, initial(b"n,a=x,n=,r=abc")),
    "mandatory extension": (ALICE, initial(b"n,,m=3,n=,r=abc")),
    "optional extension": (ALICE, initial(b"n,,n=,r=abc,x=1")),
    "other mechanism": (ALICE, initial(b"n,,n=,r=abc", b"SCRAM-SHA-1")),
    "malformed first message": (ALICE, initial(b"xyz")),
    "no first message yet": (ALICE, messages.frame(ord("p"), b"SCRAM-SHA-256\0\xff\xff\xff\xff")),
    "data shorter than announced": (ALICE, messages.frame(ord("p"), b"SCRAM-SHA-256\0\0\0\0\x09abc")),
    "a query instead": (ALICE, messages.query(b"")),
    "wrong proof": (ALICE, initial(b"n,,n=,r=abc"), b"c=biws,r=%b,p=" + ENCODED_PROOF),
    "proof of an unknown user": (
        startup(user=b"nobody"),
        initial(b"n,,n=,r=abc"),
        b"c=biws,r=%b,p=" + ENCODED_PROOF,
    ),
    "wrong nonce": (ALICE, initial(b"n,,n=,r=abc"), b"c=biws,r=%bx,p=" + ENCODED_PROOF),
    "other channel binding": (ALICE, initial(b"n,,n=,r=abc"), b"c=eSws,r=%b,p=" + ENCODED_PROOF),
    "short proof": (ALICE, initial(b"n,,n=,r=abc"), b"c=biws,r=%b,p=eHh4"),
    "text behind the proof": (ALICE, initial(b"n,,n=,r=abc"), b"c=biws,r=%b,p=" + ENCODED_PROOF + b",x=1"),
}


def is_final(message: bytes) -> bool:
    """A client-final-message still lacks the server's nonce, and its frame."""
    return message.startswith(b"c=")


def answers(raw: bytes) -> list[object]:
    """What was said, less what differs between any two logins: nonces, salts, lines of source code."""
    said: list[object] = []
    while raw:
        if raw[:1] == b"N" and raw[1:2] != b"\0":
            said.append("N")
            raw = raw[1:]
            continue
        length = int.from_bytes(raw[1:5])
        kind, body, raw = raw[:1], raw[5 : 1 + length], raw[1 + length :]
        if kind == b"E":
            fields = read_error(body)
            said.append((fields.severity, fields.sqlstate, fields.message))
        else:
            said.append((kind, re.sub(rb"(r=|s=)[^,]+", rb"\1", body)))
    return said


def ask_postgres(server: Server, delivery: Delivery) -> tuple[list[object], bool]:
    """What the server answers, and whether it then closes the connection."""
    with socket.create_connection((server.host, server.port)) as connection:
        raw, closed = b"", False
        for message in delivery:
            if is_final(message):
                message = complete(message, raw)
            connection.settimeout(None)
            connection.sendall(message)
            connection.settimeout(SILENCE_S)
            try:
                while not closed and (data := connection.recv(65_536)):
                    raw += data
                closed = True
            except TimeoutError:
                continue
        return answers(raw), closed


def ask_handshake(handshake: Handshake, delivery: Delivery) -> tuple[list[object], bool]:
    raw, closed = b"", False
    for message in delivery:
        if is_final(message):
            message = complete(message, raw)
        for action in handshake.receive(message):
            if isinstance(action, Send):
                raw += action.data
            closed = closed or isinstance(action, Close)
    return answers(raw), closed


def complete(message: bytes, challenge: bytes) -> bytes:
    nonce = challenge.rpartition(b"r=")[2].partition(b",")[0]
    return messages.sasl_response(message % nonce)


@pytest.mark.parametrize("delivery", DELIVERIES.values(), ids=DELIVERIES.keys())
def test_the_handshake_answers_as_postgresql_does(postgres: Server, delivery: Delivery) -> None:
    version = int(postgres.execute("SHOW server_version_num")[0][0])
    handshake = Handshake(
        Passwords({"postgres": "secret"}, b"sixteen bytes, at least"),
        minor_newest=2 if version >= 180_000 else 0,
    )
    assert ask_handshake(handshake, delivery) == ask_postgres(postgres, delivery)
