"""Every length, on every message, in every phase, from clients and from a server.

Each is what the protocol allows, or ends in one error, and nobody else notices.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from support.hostile import (
    CLOSE,
    COLUMN,
    READY,
    ROW,
    ROW_DONE,
    SILENCE,
    WELCOME,
    Answer,
    HostileServer,
    error,
    frame,
)
from support.relay import RunningRelay
from support.wire import SYNC, Frame, WireClient, bind, close, copy_data, describe, execute, kinds, parse

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

LENGTHS = (-(2**31), -2, -1, 0, 3, 4, 5, 10_000, 10_001, 65_535, 65_536, 2**30, 2**31 - 1)
BODY_SENT_BYTES = 70_000  # of longer ones the rest never comes

# Every type there is, some that only the other side may send, and some that are none.
FRONTEND = "QPBDECSHFdcfXp" + "ZRTy\0\xff"
BACKEND = "RSKZTDCEINA123sntGHWVdcv" + "Qy\0\xff"


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


def evil(kind: str, length: int) -> bytes:
    """A message that says it has `length` bytes, with as many zeros as there may be."""
    return (
        kind.encode("latin-1")
        + length.to_bytes(4, signed=True)
        + bytes(max(0, min(length - 4, BODY_SENT_BYTES)))
    )


def possible(length: int) -> bool:
    return 4 <= length <= 4 + 0x3FFFFFFF


def serve(kind: str, statement: str) -> Answer:
    """A server in whose statements stands what is to go wrong: `EVIL` message, type, length."""
    if statement.startswith("EVIL"):
        _, at, code, length = statement.split()
        if kind == at[0]:
            before = COLUMN + ROW if at == "Qrow" else frame("G", b"\0\0\1\0\0") if at == "Qcopy" else b""
            # What is impossible is seen at once; behind a part of a message nothing else would ever come.
            return Answer(
                before + evil(chr(int(code)), int(length)), CLOSE if possible(int(length)) else SILENCE
            )
    match kind:
        case "P" | "B" | "C":
            return Answer(frame({"P": "1", "B": "2", "C": "3"}[kind]))
        case "D":
            return Answer(frame("n"))
        case "E" if statement == "COPY by messages":
            return Answer(frame("G", b"\0\0\1\0\0"))
        case "c" | "f" if statement.startswith("COPY"):
            done = error() if kind == "f" else frame("C", b"COPY 1\0")
            return Answer(done + READY if statement == "COPY" else done)
        case "F":
            return Answer(frame("V", b"\0\0\0\0") + READY)
        case "E" if statement == "FAIL":
            return Answer(error())
        case "E":
            return Answer(frame("s") if statement == "CURSOR" else ROW + frame("C", b"SELECT 1\0"))
        case "Q" if statement == "COPY":
            return Answer(frame("G", b"\0\0\1\0\0"))
        case "Q" if statement == "FAIL":
            return Answer(error() + frame("Z", b"E"))
        case "Q" if statement in ("BEGIN", "COMMIT", "ROLLBACK"):
            return Answer(frame("C", statement.encode() + b"\0") + READY)
        case "Q":
            return Answer(ROW_DONE + READY)
        case "S":
            return Answer(READY)
        case _:
            return Answer()


# What a client has sent before, and the end of the answer to it.
PHASES = {
    "idle": ([], ""),
    "BEGIN not sent yet": ([query("BEGIN")], "CZ"),
    "in a transaction": ([query("BEGIN"), query("SELECT 1")], "CZTDCZ"),
    "in a failed transaction": ([query("BEGIN"), query("FAIL")], "CZEZ"),
    "behind a query": ([query("SELECT 1") * 3], "TDCZ" * 3),
    "in a batch": ([parse("", "SELECT 1"), bind("", ""), describe("P")], None),
    "in a batch that failed": ([parse("", "FAIL"), bind("", ""), execute()], None),
    "behind a Sync": ([parse("", "SELECT 1"), bind("", ""), execute(), SYNC], "12DCZ"),
    "with a portal suspended": (
        [query("BEGIN"), parse("", "CURSOR"), bind("", ""), execute("", 1), SYNC],
        "CZ12sZ",
    ),
    "with statements prepared": (
        [parse("a", "SELECT 1"), parse("b", "SELECT 1"), close("S", "b"), SYNC],
        "113Z",
    ),
    "in a COPY": ([query("COPY"), copy_data(b"1")], None),
    "in a COPY by messages": (
        [parse("", "COPY by messages"), bind("", ""), execute(), SYNC, copy_data(b"1")],
        None,
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer(serve) as running:
        yield running


@pytest.fixture
def relay(server: HostileServer) -> Iterator[RunningRelay]:
    """With a session beside those that speak or hear nonsense, which must not notice."""
    with RunningRelay(server, config={"pools": {"default_pool_size": 5}}) as running:  # type: ignore[arg-type]
        with log_in(running) as bystander:
            bystander.query("BEGIN")
            bystander.query("SELECT 1")
            yield running
            assert kinds(bystander.query("SELECT 2")) == "TDCZ"
        with log_in(running) as later:
            assert kinds(later.query("SELECT 3")) == "TDCZ"
        running.wait_for(lambda: running.call(lambda r: r.clients) == 0, "all clients are gone")
        assert not [event for event in running.events if event["kind"] == "fault"]


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect(timeout_s=10)).log_in("somebody", "somewhere")


def hear_out(client: WireClient) -> list[Frame]:
    """Everything up to the end of the connection; whoever hears nothing more and is not cut off fails."""
    frames = client.until_ready()
    while frames[-1].kind:
        frames += client.until_ready()
    return frames


@pytest.mark.parametrize("phase", PHASES)
def test_from_clients(phase: str, relay: RunningRelay) -> None:
    before, answer = PHASES[phase]
    for kind in FRONTEND:
        for length in LENGTHS:
            with log_in(relay) as client:
                try:
                    client.send(*before, evil(kind, length))
                    client.socket.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # Refused while it was being sent: what was answered can still be read.
                heard = hear_out(client)
            case = f"{kind!r} of {length} bytes: {heard}"
            if answer is not None and not (possible(length) and length > BODY_SENT_BYTES):
                assert kinds(heard).startswith(answer), case
            errors = [read_error(frame.body) for frame in heard if frame.kind == "E"]
            refused = [error for error in errors if error.severity == "FATAL"]
            assert all(error.sqlstate == "08P01" for error in refused) and len(refused) <= 1, case
            if not possible(length):
                assert refused, case


@pytest.mark.parametrize("length", LENGTHS)
def test_from_clients_that_have_not_logged_in(length: int, relay: RunningRelay) -> None:
    for code in (196608, 80877102, 80877103, 80877104, 0, 0x7FFFFFFF):
        with WireClient(relay.connect(timeout_s=10)) as client:
            head = length.to_bytes(4, signed=True) + code.to_bytes(4)
            try:
                client.send(head, bytes(max(0, min(length - 8, BODY_SENT_BYTES))))
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # Refused while it was being sent: what was answered can still be read.
            assert "Z" not in kinds(hear_out(client)), code


@pytest.mark.parametrize("at", ["Q", "Qrow", "Qcopy", "P", "B", "E", "S"])
def test_from_a_server(at: str, relay: RunningRelay) -> None:
    for kind in BACKEND:
        for length in LENGTHS:
            statement = f"EVIL {at} {ord(kind)} {length}"
            with log_in(relay) as client:
                if at[0] == "Q":
                    client.send(query(statement))
                else:
                    client.send(parse("", statement), bind("", ""), execute(), SYNC)
                client.socket.shutdown(socket.SHUT_WR)
                heard = hear_out(client)
            case = f"{kind!r} of {length} bytes: {heard}"
            errors = [
                read_error(frame.body) for frame in heard if frame.kind == "E" and frame.body[:1] == b"S"
            ]
            assert {error.sqlstate for error in errors} <= {"08P01", "08006", "08007"}, case
            if not possible(length):
                assert [error.sqlstate for error in errors] == ["08P01"], case


def test_from_a_server_at_login(server: HostileServer, relay: RunningRelay) -> None:
    try:
        for number, (kind, length) in enumerate((kind, length) for kind in BACKEND for length in LENGTHS):
            server.login = Answer(WELCOME[: -len(READY)] + evil(kind, length), CLOSE)
            with WireClient(relay.connect(timeout_s=10)) as client:
                identity = {
                    b"user": b"somebody",
                    b"database": b"somewhere",
                    b"application_name": b"%d" % number,
                }
                client.send(messages.startup_message(identity))
                heard = hear_out(client)
            assert "Z" not in kinds(heard), (kind, length, heard)
    finally:
        server.login = Answer(WELCOME)
