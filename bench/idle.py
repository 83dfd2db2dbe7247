"""Measures what an idle client costs a proxy, by thousands of them: unused, then after a query each."""

import socket
import ssl
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from load import DBNAME, USER
from processes import family, memory_kb
from targets import Target

CLIENTS = 5000
LOGIN_TIMEOUT_S = 20.0
PROTOCOL_VERSION = 3 << 16
SSL_REQUEST = struct.pack("!II", 8, 80877103)
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE
QUERY = b"SELECT abalance FROM pgbench_accounts WHERE aid = 1\0"


@dataclass(frozen=True, slots=True)
class Idle:
    """Memory that each of `clients` idle clients adds to all processes of a target, in KB of PSS."""

    target: str
    clients: int
    unused_kb: float
    used_kb: float
    """After each of them has run one query."""


def measure(target: Target, clients: int) -> Idle:
    """Opens the clients one after the other, and closes them all before it returns."""
    assert target.root is not None, "a direct connection has no proxy to measure"
    with ExitStack() as stack:
        # The first client and its query bring in what the proxy keeps for all: a pool, a shape, its code.
        _query(stack.enter_context(_login(target)))
        before = memory_kb(family(target.root))
        sessions = [stack.enter_context(_login(target)) for _ in range(clients)]
        unused = memory_kb(family(target.root))
        for session in sessions:
            _query(session)
        used = memory_kb(family(target.root))
    return Idle(
        target.name, clients, round((unused - before) / clients, 2), round((used - before) / clients, 2)
    )


def report(measured: Iterable[Mapping[str, Any]]) -> None:
    """Prints one line for each target."""
    print(f"{'idle clients':>12}  {'target':15}{'KB each':>9}{'KB after a query':>18}")
    for line in measured:
        print(f"{line['clients']:>12}  {line['target']:15}{line['unused_kb']:>9.1f}{line['used_kb']:>18.1f}")
    print()


def _login(target: Target) -> socket.socket:
    session = socket.create_connection(("127.0.0.1", target.port), timeout=LOGIN_TIMEOUT_S)
    if target.is_encrypted:
        session.sendall(SSL_REQUEST)
        if session.recv(1) != b"S":
            raise ConnectionError(f"{target.name} does not encrypt")
        session = CONTEXT.wrap_socket(session)
    parameters = b"".join(word.encode() + b"\0" for word in ("user", USER, "database", DBNAME)) + b"\0"
    session.sendall(struct.pack("!II", 8 + len(parameters), PROTOCOL_VERSION) + parameters)
    _until_ready(session)
    return session


def _query(session: socket.socket) -> None:
    session.sendall(b"Q" + struct.pack("!I", 4 + len(QUERY)) + QUERY)
    _until_ready(session)


def _until_ready(session: socket.socket) -> None:
    """Reads messages up to ReadyForQuery. Raises ConnectionError with the server's words on an error."""
    buffered = b""
    while True:
        while len(buffered) >= 5 and len(buffered) > (length := struct.unpack_from("!I", buffered, 1)[0]):
            kind, body, buffered = buffered[:1], buffered[5 : 1 + length], buffered[1 + length :]
            if kind == b"Z":
                return
            if kind == b"E":
                raise ConnectionError(body.decode(errors="replace").replace("\0", " "))
        received = session.recv(8192)
        if not received:
            raise ConnectionError("closed before ReadyForQuery")
        buffered += received
