"""Whatever a server does, its client is told what is true and the others go on."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.hostile import (
    CLOSE,
    COLUMN,
    READY,
    RESET,
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
from support.wire import SYNC, Frame, WireClient, bind, copy_data, execute, hint, kinds, parse, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

HARMLESS = Answer(ROW_DONE + READY)
EXTENDED = {"P": frame("1"), "B": frame("2"), "E": ROW + frame("C", b"SELECT 1\0"), "S": READY}
FATAL_57P01 = error("FATAL", "57P01")


def usual(kind: str, statement: str) -> Answer:
    """A server as it should be, with one column of one row."""
    if kind != "Q":
        return Answer(EXTENDED.get(kind, b""))
    if statement == "BEGIN":
        return Answer(frame("C", b"BEGIN\0") + READY)
    if statement in ("COMMIT", "ROLLBACK"):
        return Answer(frame("C", statement.encode() + b"\0") + READY)
    return HARMLESS


@contextmanager
def hostile(answers: dict[tuple[str, str], Answer]) -> Iterator[tuple[HostileServer, RunningRelay]]:
    """A server that answers as usual but for `answers` by type and statement, and a relay before it."""

    def script(kind: str, statement: str) -> Answer:
        return answers.get((kind, statement)) or usual(kind, statement)

    with (
        HostileServer(script) as server,
        RunningRelay(server, config={"pools": {"default_pool_size": 3}}) as relay,  # type: ignore[arg-type]
    ):
        bystander = log_in(relay)
        bystander.query("BEGIN")
        bystander.query("SELECT 1")
        yield server, relay
        assert kinds(bystander.query("SELECT 2")) == "TDCZ", "a session beside it was harmed"
        bystander.socket.close()
        with log_in(relay) as later:
            assert kinds(later.query("SELECT 3")) == "TDCZ", "a later session was harmed"
        assert not [event for event in relay.events if event["kind"] == "fault"]


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect(timeout_s=5)).log_in("somebody", "somewhere")


def ask(relay: RunningRelay, *parts: bytes, before: tuple[str, ...] = ()) -> list[Frame]:
    """All answers up to ReadyForQuery or the end."""
    with log_in(relay) as client:
        for sql in before:
            client.query(sql)
        client.send(*parts)
        return client.until_ready()


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


NONSENSE = {
    "a length of zero": b"D\0\0\0\0",
    "a length of three": b"T\0\0\0\3",
    "a negative length": b"D\xff\xff\xff\xff",
    "the most negative length": b"D\x80\0\0\0",
    "a length over 1 GB": b"D\x40\0\0\x04",
    "ParseComplete": frame("1"),
    "BindComplete": frame("2"),
    "CloseComplete": frame("3"),
    "NoData": frame("n"),
    "PortalSuspended": frame("s"),
    "ParameterDescription": frame("t", b"\0\0"),
    "ReadyForQuery without status": frame("Z"),
    "ReadyForQuery with two": frame("Z", b"II"),
    "ReadyForQuery with a status that is none": frame("Z", b"X"),
    "ReadyForQuery of a gigabyte": b"Z\x3f\0\0\0I",
}


@pytest.mark.parametrize("before", [b"", COLUMN + ROW], ids=["at once", "behind a row"])
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_a_protocol_violation(name: str, before: bytes) -> None:
    with hostile({("Q", "SELECT bad"): Answer(before + NONSENSE[name], SILENCE)}) as (_, relay):
        frames = ask(relay, query("SELECT bad"))
        assert sqlstate(frames) == "08P01"
        assert frames[-1].body == b"closed"


@pytest.mark.parametrize("name", ["a length of zero", "a negative length", "ReadyForQuery without status"])
@pytest.mark.parametrize("at", ["P", "B", "E", "S"])
def test_nonsense_in_a_batch(name: str, at: str) -> None:
    with hostile({(at, "SELECT bad"): Answer(NONSENSE[name], SILENCE)}) as (_, relay):
        frames = ask(relay, parse("", "SELECT bad"), bind("", ""), execute(), SYNC)
        assert sqlstate(frames) == "08P01"


@pytest.mark.parametrize(
    "extra", [ROW, frame("C", b"SELECT 1\0"), READY, frame("1"), b"\0\0\0\0\0\0", b"D\0\0\0\0"]
)
def test_what_nobody_asked_for_reaches_nobody(extra: bytes) -> None:
    """Behind the answer of one session, when the link may be another's already."""
    with hostile({("Q", "SELECT bad"): Answer(ROW_DONE + READY + extra)}) as (_, relay):
        with log_in(relay) as client:
            assert kinds(client.query("SELECT bad")) == "TDCZ"
            assert kinds(client.query("SELECT good")) == "TDCZ"
        relay.wait_for(
            lambda: any(event["kind"] == "link_out_of_step" for event in relay.events), "it is noted"
        )


@pytest.mark.parametrize(
    "body", [error("ERROR", None), frame("E", b"\0"), frame("E"), frame("E", b"Mno end")]
)
def test_an_error_without_sqlstate_is_passed_on(body: bytes) -> None:
    with hostile({("Q", "SELECT bad"): Answer(body + READY)}) as (_, relay), log_in(relay) as client:
        assert kinds(client.query("SELECT bad")) == "EZ"
        assert kinds(client.query("SELECT good")) == "TDCZ"


LOST = {
    "a read": (query("SELECT bad"), (), "08006"),
    "a write": (query("DELETE FROM bad"), (), "08007"),
    "COMMIT": (query("COMMIT"), ("BEGIN", "SELECT 1"), "08007"),
    "a write in a transaction": (query("DELETE FROM bad"), ("BEGIN", "SELECT 1"), "08006"),
    "a write, its BEGIN late": (query("DELETE FROM bad"), ("BEGIN",), "08006"),
    "a text with COMMIT in it": (query("DELETE FROM bad; COMMIT"), ("BEGIN", "SELECT 1"), "08007"),
}


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("said", [b"", frame("C", b"WHATEVER 1\0")], ids=["at once", "before ReadyForQuery"])
@pytest.mark.parametrize("name", LOST)
def test_a_lost_server_is_told_as_what_it_means(name: str, said: bytes, how: str) -> None:
    sent, before, expected = LOST[name]
    statement = sent[5:-1].decode()
    with hostile({("Q", statement): Answer(said, how)}) as (server, relay):
        frames = ask(relay, sent, before=before)
        assert (sqlstate(frames), frames[-1].body) == (expected, b"closed")
        assert [read_error(frame.body).severity for frame in frames if frame.kind == "E"] == ["FATAL"]
        assert server.heard.count(("Q", statement)) == 1, "it was sent again"


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("at", ["P", "B", "E", "S"])
@pytest.mark.parametrize(("statement", "expected"), [("SELECT bad", "08006"), ("DELETE FROM bad", "08007")])
def test_a_server_lost_in_a_batch(statement: str, expected: str, at: str, how: str) -> None:
    with hostile({(at, statement): Answer(b"", how)}) as (server, relay):
        frames = ask(relay, parse("", statement), bind("", ""), execute(), SYNC)
        assert (sqlstate(frames), frames[-1].body) == (expected, b"closed")
        assert server.heard.count((at, statement)) == 1


def test_a_commit_lost_before_its_sync_is_unknown_too() -> None:
    with hostile({("E", "COMMIT"): Answer(b"", CLOSE)}) as (_, relay):
        frames = ask(
            relay, parse("", "COMMIT"), bind("", ""), execute(), b"H\0\0\0\x04", before=("BEGIN", "SELECT 1")
        )
        assert sqlstate(frames) == "08007"


@pytest.mark.parametrize("how", [CLOSE, RESET])
def test_half_a_row_is_not_followed_by_an_error_inside_it(how: str) -> None:
    """The client has been promised bytes of a row: anything sent now would be taken for them."""
    long_row = b"D" + (100_000).to_bytes(4) + b"\0\1" + (99_994).to_bytes(4) + b"v" * 500
    with (
        hostile({("Q", "SELECT bad"): Answer(COLUMN + long_row, how)}) as (_, relay),
        log_in(relay) as client,
    ):
        client.send(query("SELECT bad"))
        received = b""
        while data := client.socket.recv(65536):
            received += data
        assert received in (COLUMN + long_row, b"", COLUMN)  # a reset may discard what was on its way


def test_a_server_lost_in_copy() -> None:
    copying = frame("G", b"\0\0\0")
    with hostile(
        {("Q", "COPY t FROM STDIN"): Answer(copying), ("d", "COPY t FROM STDIN"): Answer(b"", CLOSE)}
    ) as (
        _,
        relay,
    ):
        with log_in(relay) as client:
            client.send(query("COPY t FROM STDIN"))
            assert client.frame().kind == "G"
            client.send(copy_data(b"1\n"))
            frames = client.until_ready()
        assert sqlstate(frames) == "08006", "nothing is committed before CopyDone"


@pytest.mark.parametrize("expected", ["57P01", "53200"])
def test_a_fatal_error_is_passed_on_in_place_of_ours(expected: str) -> None:
    with hostile({("Q", "SELECT bad"): Answer(error("FATAL", expected), CLOSE)}) as (_, relay):
        frames = ask(relay, query("SELECT bad"))
        assert (kinds(frames), sqlstate(frames)) == ("E", expected)


def test_a_begin_that_fails_late() -> None:
    with hostile({("Q", "BEGIN ISOLATION LEVEL SERIALIZABLE"): Answer(error() + READY)}) as (_, relay):
        frames = ask(relay, query("SELECT 1"), before=("BEGIN ISOLATION LEVEL SERIALIZABLE",))
        assert (sqlstate(frames), frames[-1].body) == ("08007", b"closed")


def test_a_fatal_error_in_answer_to_a_late_begin() -> None:
    with hostile({("Q", "BEGIN READ ONLY"): Answer(FATAL_57P01, CLOSE)}) as (_, relay):
        frames = ask(relay, query("SELECT 1"), before=("BEGIN READ ONLY",))
        assert (kinds(frames), sqlstate(frames)) == ("E", "57P01")


def test_a_link_that_dies_while_idle_costs_nobody_an_error() -> None:
    """It says goodbye behind the last answer of one session; the next one asks at the same moment."""
    with (
        hostile({("Q", "SELECT bad"): Answer(ROW_DONE + READY + FATAL_57P01, CLOSE)}) as (_, relay),
        log_in(relay) as client,
        log_in(relay) as other,
    ):
        for _ in range(10):
            client.query("SELECT bad")
            relay.wait_for(lambda: relay.call(lambda r: len(r.links)) <= 1, "the dead link is gone")
            assert kinds(other.query("SELECT good")) == "TDCZ"


@pytest.mark.parametrize("waiting", [1, 3])
def test_a_link_that_dies_before_a_waiting_session_has_used_it(waiting: int) -> None:
    def script(kind: str, statement: str) -> Answer:
        if statement == "SELECT slow":
            return Answer(ROW_DONE + READY + FATAL_57P01, CLOSE)
        return usual(kind, statement)

    with (
        HostileServer(script) as server,
        RunningRelay(server, config={"pools": {"default_pool_size": 1}}) as relay,  # type: ignore[arg-type]
        log_in(relay) as holder,
    ):
        holder.query("BEGIN")
        holder.query("SELECT 1")
        clients = [log_in(relay) for _ in range(waiting)]
        for client in clients:
            client.query("BEGIN")
            client.send(query("SELECT good"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == waiting, "they wait")
        holder.send(query("SELECT slow"))  # ends the transaction, as this server says, and the link
        holder.until_ready()
        for client in clients:
            assert kinds(client.until_ready()) == "TDCZ"
            client.query("COMMIT")
            client.socket.close()


def test_a_gigabyte_announced_and_never_sent() -> None:
    announced = COLUMN + b"D" + (0x3FFFFFFF).to_bytes(4) + b"\0\1"
    with hostile({("Q", "SELECT bad"): Answer(announced, SILENCE)}) as (_, relay), log_in(relay) as client:
        client.send(query("SELECT bad"))
        assert client.frame().kind == "T"
        with log_in(relay) as other:
            assert kinds(other.query("SELECT good")) == "TDCZ"


LOGINS = {
    "closes": Answer(b"", CLOSE),
    "resets": Answer(b"", RESET),
    "a length of zero": Answer(b"R\0\0\0\0", SILENCE),
    "a negative length": Answer(b"R\xff\xff\xff\xff", SILENCE),
    "an answer to no question": Answer(ROW_DONE + READY, SILENCE),
    "an unknown way to authenticate": Answer(frame("R", (99).to_bytes(4)), SILENCE),
    "HTTP": Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n", SILENCE),
    "an error without SQLSTATE": Answer(error("FATAL", None), CLOSE),
    "too many clients": Answer(error("FATAL", "53300"), CLOSE),
}


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_that_goes_wrong_at_the_server(name: str) -> None:
    """The client hears why; once the server behaves, the next one is served."""
    with HostileServer(usual, login=LOGINS[name]) as server, RunningRelay(server) as relay:  # type: ignore[arg-type]
        with WireClient(relay.connect(timeout_s=5)) as client:
            client.send(messages.startup_message({b"user": b"somebody", b"database": b"somewhere"}))
            frames = client.until_ready()
            refusal = [Frame(f.kind, f.body) for f in frames if f.kind == "E"]
            assert refusal, frames
            assert sqlstate(frames) in ("08001", "08006", "08P01", "53300", "XX000")
            assert frames[-1].body == b"closed"
        server.login = HostileServer(usual).login
        with log_in(relay) as later:
            assert kinds(later.query("SELECT 1")) == "TDCZ"
        assert not [event for event in relay.events if event["kind"] == "fault"]


# --- servers that let some in, and others not ---------------------------------------------------------------

NO_MORE = Answer(error("FATAL", "28P01"), CLOSE)
TWO_LINKS = {"pools": {"default_pool_size": 2}}


def test_who_waits_behind_a_link_that_lives_is_not_refused_because_another_is() -> None:
    with (
        HostileServer(usual) as server,
        RunningRelay(server, config=TWO_LINKS) as relay,  # type: ignore[arg-type]
        log_in(relay) as holder,
        log_in(relay) as client,
    ):
        holder.query("BEGIN")
        holder.query("SELECT 1")
        server.login = NO_MORE
        client.send(query("SELECT 1"))
        relay.wait_for(lambda: any(e["kind"] == "link_failed" for e in relay.events), "no link is to be had")
        assert relay.call(lambda r: r.waiting) == 1
        holder.query("COMMIT")
        assert kinds(client.until_ready()) == "TDCZ"


def test_a_server_that_refuses_links_is_asked_again_but_not_for_each_statement() -> None:
    def refused() -> int:
        return sum(event["kind"] == "link_failed" for event in relay.events)

    with (
        HostileServer(usual) as server,
        RunningRelay(server, config=TWO_LINKS) as relay,  # type: ignore[arg-type]
        log_in(relay) as holder,
        log_in(relay) as client,
        log_in(relay) as another,
    ):
        holder.query("BEGIN")
        holder.query("SELECT 1")
        server.login = NO_MORE
        client.send(query("SELECT 1"))
        relay.wait_for(lambda: refused() == 1, "no link is to be had")
        another.send(query("SELECT 1"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 2, "another one waits")
        assert refused() == 1
        server.login = Answer(WELCOME)
        assert [kinds(waiting.until_ready()) for waiting in (client, another)] == ["TDCZ"] * 2
        holder.query("COMMIT")


def test_who_waits_until_its_time_is_over_hears_why_no_link_was_to_be_had() -> None:
    config = {"pools": {"default_pool_size": 2, "query_wait_timeout_ms": 50}}
    with (
        HostileServer(usual) as server,
        RunningRelay(server, config=config) as relay,  # type: ignore[arg-type]
        log_in(relay) as holder,
        log_in(relay) as client,
    ):
        holder.query("BEGIN")
        holder.query("SELECT 1")
        server.login = NO_MORE
        frames = client.query("SELECT 1")
        assert (kinds(frames), sqlstate(frames)) == ("EZ", "53300")
        assert "Another connection could not be opened: bad" in hint(frames)
        holder.query("COMMIT")


def test_with_no_link_at_all_everybody_hears_what_the_server_says() -> None:
    def script(kind: str, statement: str) -> Answer:
        return Answer(FATAL_57P01, CLOSE) if statement == "SELECT go" else usual(kind, statement)

    with (
        HostileServer(script) as server,
        RunningRelay(server, config=TWO_LINKS) as relay,  # type: ignore[arg-type]
    ):
        clients = [log_in(relay) for _ in range(5)]
        holders, waiting = clients[:2], clients[2:]
        for holder in holders:
            holder.query("BEGIN")
            holder.query("SELECT 1")
        for client in waiting:
            client.send(query("SELECT 1"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 3, "they wait")
        server.login = NO_MORE
        for holder in holders:
            assert sqlstate(holder.query("SELECT go")) == "57P01"
            holder.socket.close()
        for client in waiting:
            frames = client.until_ready()
            assert (kinds(frames), sqlstate(frames)) == ("EZ", "28P01")
            client.socket.close()


class Choosy(HostileServer):
    """Lets in every other connection of those that come while it is `choosy`."""

    choosy = False
    lets_in = itertools.cycle((False, True))

    def _give(self, connection: socket.socket, answer: Answer) -> bool:
        if answer is self.login and self.choosy and not next(self.lets_in):
            answer = NO_MORE
        return super()._give(connection, answer)


def test_of_those_who_log_in_at_once_one_is_refused_for_each_link_that_is() -> None:
    startup = messages.startup_message({b"user": b"somebody", b"database": b"somewhere"})
    with (
        Choosy(usual) as server,
        RunningRelay(server, config={"pools": {"default_pool_size": 4}}) as relay,  # type: ignore[arg-type]
    ):
        server.choosy = True
        clients = [WireClient(relay.connect(timeout_s=5)) for _ in range(4)]
        for client in clients:
            client.send(startup)
        ends = [client.until_ready()[-1] for client in clients]
        assert ends.count(Frame("", b"closed")) <= 2
        assert ends.count(Frame("Z", b"I")) >= 2
        for client in clients:
            client.socket.close()


# --- statements prepared in SQL, on a server that lacks them ------------------------------------------------


@pytest.mark.parametrize("at", ["PREPARE p AS SELECT 1", "EXECUTE p"])
@pytest.mark.parametrize(
    ("last_words", "heard"),
    [(Answer(FATAL_57P01, CLOSE), ("E", "57P01")), (Answer(b"", CLOSE), ("E", "08006"))],
    ids=["fatal", "closed"],
)
def test_a_server_that_goes_while_a_statement_is_prepared_there_again(
    at: str, last_words: Answer, heard: tuple[str, str]
) -> None:
    again = False

    def script(kind: str, statement: str) -> Answer:
        if again and statement == at:
            return last_words
        if statement.startswith("PREPARE"):
            return Answer(frame("C", b"PREPARE\0") + READY)
        return usual(kind, statement)

    with (
        HostileServer(script) as server,
        RunningRelay(server, config=TWO_LINKS) as relay,  # type: ignore[arg-type]
        log_in(relay) as client,
        log_in(relay) as holder,
    ):
        assert kinds(client.query("PREPARE p AS SELECT 1")) == "CZ"
        holder.query("BEGIN")
        holder.query("SELECT 1")  # on the link where it was prepared
        again = True
        frames = client.query("EXECUTE p")
        assert ("Q", "PREPARE p AS SELECT 1") in server.heard[2:]
        assert (frames[0].kind, sqlstate(frames), frames[-1].body) == (*heard, b"closed")
        again = False
        assert kinds(holder.query("COMMIT")) == "CZ"
        with log_in(relay) as later:
            assert kinds(later.query("SELECT 1")) == "TDCZ"
        assert not [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")]
