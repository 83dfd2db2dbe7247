"""Who goes away, and when: what it asked is done, what it said is heard, what it held serves others."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fixtures import Database
from support.hostile import (
    CLOSE,
    COLUMN,
    READY,
    ROW,
    ROW_DONE,
    WELCOME,
    Answer,
    HostileServer,
    error,
    frame,
)
from support.relay import RunningRelay
from support.wire import SYNC, Frame, WireClient, bind, execute, kinds, parse, sqlstate

from pgshunt.protocol import messages
from pgshunt.proxy import _relay

FATAL = error("FATAL", "57P01")
ONE_LINK = {"pools": {"default_pool_size": 1}}


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


def log_in(relay: RunningRelay) -> WireClient:
    server = relay.shared.server
    return WireClient(relay.connect()).log_in(server.user, relay.shared.dbname)


def reset(client: WireClient) -> None:
    """The client is killed: RST."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.socket.close()


def waiting(relay: RunningRelay) -> int:
    return relay.call(lambda r: r.waiting)


# --- clients that wait for a link ---------------------------------------------------------------------------


@pytest.fixture
def busy(database: Database) -> Iterator[RunningRelay]:
    """One link, which a transaction holds."""
    database.execute("CREATE TABLE t (id int)")
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as holder:
        holder.query("BEGIN")
        holder.query("SELECT 1")
        relay.holder = holder  # type: ignore[attr-defined]
        yield relay


SENT_LAST = {
    "a query": [query("INSERT INTO t VALUES (1)")],
    "a batch": [parse("", "INSERT INTO t VALUES (1)"), bind("", ""), execute(), SYNC],
    "a query and Terminate": [query("INSERT INTO t VALUES (1)"), b"X\0\0\0\x04"],
    "a long query": [query("INSERT INTO t VALUES (1) -- " + "x" * 200_000)],
}


@pytest.mark.parametrize("go", [reset, lambda client: client.socket.close()], ids=["killed", "closed"])
@pytest.mark.parametrize("sent", SENT_LAST)
def test_who_is_gone_leaves_the_line(sent: str, go: Callable[[WireClient], None], busy: RunningRelay) -> None:
    client = log_in(busy)
    client.send(*SENT_LAST[sent])
    busy.wait_for(lambda: waiting(busy) == 1, "it waits")
    go(client)
    busy.wait_for(lambda: waiting(busy) == 0, "it has left the line")
    busy.wait_for(lambda: busy.call(lambda r: r.clients) == 1, "it is gone")
    with log_in(busy) as next_in_line:
        next_in_line.send(query("SELECT count(*) FROM t"))
        busy.wait_for(lambda: waiting(busy) == 1, "the next one waits")
        busy.holder.query("COMMIT")  # type: ignore[attr-defined]
        assert next_in_line.until_ready()[1].body.endswith(b"0"), "what never began is not done"


@pytest.mark.parametrize("sent", SENT_LAST)
def test_who_only_sends_no_more_is_answered_in_its_turn(sent: str, busy: RunningRelay) -> None:
    with log_in(busy) as client, log_in(busy) as other:
        client.send(*SENT_LAST[sent])
        client.socket.shutdown(socket.SHUT_WR)
        busy.wait_for(lambda: waiting(busy) == 1, "it waits")
        assert client.frame() == Frame(
            "S", b"server_version\0" + client.parameters["server_version"].encode() + b"\0"
        )
        other.send(query("SELECT count(*) FROM t"))
        busy.wait_for(lambda: waiting(busy) == 2, "another one waits behind it")
        busy.holder.query("COMMIT")  # type: ignore[attr-defined]
        assert kinds(client.until_ready()) in ("CZ", "12CZ")
        assert client.until_ready()[-1].body == b"closed"
        assert other.until_ready()[1].body.endswith(b"1")


def test_a_client_that_is_reset_while_its_server_works(database: Database) -> None:
    """Its statement runs to its end, as on a direct connection, and then the link serves others."""
    database.execute("CREATE TABLE t (id int)")
    with RunningRelay(database, config=ONE_LINK) as relay:
        client = log_in(relay)
        client.send(query("INSERT INTO t SELECT 1 FROM pg_sleep(0.2)"))
        relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 1, "it runs")
        reset(client)
        with log_in(relay) as other:
            assert other.value("SELECT count(*) FROM t") == "1"


# --- servers that go while their client is slow -------------------------------------------------------------

LONG_ROW = frame("D", b"\0\1" + (8000).to_bytes(4) + b"v" * 8000)
UNREAD_BYTES = 100_000  # fits into a Unix socket with room for the last words


class LeavingServer(HostileServer):
    """Answers with rows until nobody takes them any more, then says FATAL, closes, and tells it by `closed`.

    On a Unix socket, in a directory, the end of a connection is a hang-up at once.
    """

    def __init__(self, directory: Path | None) -> None:
        super().__init__(lambda _kind, _statement: Answer(COLUMN, CLOSE))
        self.closed = threading.Event()
        self.rows = 0
        if directory is not None:
            self._listener.close()
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(directory / ".s.PGSQL.5432"))
            self._listener.listen(64)
            self.server = type(self.server)(str(directory), 5432)

    def _give(self, connection: socket.socket, answer: Answer) -> bool:
        if answer.then != CLOSE:
            return super()._give(connection, answer)
        connection.sendall(answer.data)
        before = 0
        while before < UNREAD_BYTES or unread_bytes(connection) < before:
            before = unread_bytes(connection)
            if before < UNREAD_BYTES:
                connection.sendall(LONG_ROW)
                self.rows += 1
            else:
                self.closed.wait(0.05)
        super()._give(connection, Answer(FATAL, CLOSE))
        self.closed.set()
        return False


def unread_bytes(connection: socket.socket) -> int:
    """What has been sent and not been taken by the other side (TCP: by its kernel)."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.fixture(params=["tcp", "unix"])
def leaving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LeavingServer]:
    with LeavingServer(tmp_path if request.param == "unix" else None) as server:
        yield server


@pytest.mark.parametrize("replication", [{}, {"replication": "database"}], ids=["link", "tunnel"])
def test_a_slow_client_hears_the_last_words_of_its_server(
    replication: dict[str, str], leaving: LeavingServer
) -> None:
    # The relay knows Unix sockets, the configuration does not yet.
    config = {"shared": {"dbname": "somewhere", "primary": {"host": "127.0.0.1", "port": 1}}}
    slow = socket.socket()
    slow.settimeout(10)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # so that little is on its way
    with RunningRelay(leaving, config=config) as relay, WireClient(slow) as client:  # type: ignore[arg-type]
        slow.connect(("127.0.0.1", relay.port))
        client.log_in("somebody", "somewhere", **replication)
        client.send(query("SELECT long"))
        assert leaving.closed.wait(20)
        relay.call(lambda r: r.clients)  # a turn of the loop: the hang-up has been seen
        frames = client.until_ready()
        assert kinds(frames) == "T" + "D" * leaving.rows + "E"
        assert sqlstate(frames) == "57P01"
        relay.wait_for(lambda: relay.call(lambda r: (r.clients, r.links_open)) == (0, 0), "both are gone")


# --- servers that go while only the proxy asks --------------------------------------------------------------

DESCRIBED = frame("t", b"\0\0") + COLUMN
ANSWERS = {
    "P": frame("1"),
    "D": DESCRIBED,
    "B": frame("2"),
    "C": frame("3"),
    "E": ROW + frame("C", b"SELECT 1\0"),
    "S": READY,
}
TOLD = frame("D", b"\0\3" + b"".join(len(v).to_bytes(4) + v for v in (b"UTF8", b"UTF8", b"5MB")))


@contextmanager
def going(kind: str, statement: str, last_words: Answer) -> Iterator[RunningRelay]:
    """A server that answers messages of this kind, of statements that begin like this, with `last_words`."""

    def script(sent: str, sql: str) -> Answer:
        if sent == kind and sql.startswith(statement):
            return last_words
        if sent == "P" and sql == "SELECT twice":
            return Answer(error(sqlstate="42P05"))
        if sent != "Q":
            return Answer(ANSWERS.get(sent, b""))
        if sql.startswith("SELECT pg_catalog.current_setting"):
            return Answer(COLUMN + TOLD + frame("C", b"SELECT 1\0") + READY)
        if sql.startswith("SET"):
            return Answer(frame("C", b"SET\0") + READY)
        return Answer(ROW_DONE + READY)

    with HostileServer(script) as server, RunningRelay(server, config=ONE_LINK) as relay:  # type: ignore[arg-type]
        yield relay
        assert [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")] == []


LAST_WORDS = pytest.mark.parametrize(
    "last_words", [Answer(FATAL, CLOSE), Answer(b"", CLOSE)], ids=["fatal", "closed"]
)


@LAST_WORDS
def test_a_session_whose_settings_go_with_the_server_hears_of_it(last_words: Answer) -> None:
    """The server goes while it is asked what SET has made of them: nobody knows them now."""
    with going("Q", "SELECT pg_catalog.current_setting", last_words) as relay, log_in(relay) as client:
        assert kinds(client.query("SET work_mem = '5MB'")) == "CZ"
        frames = client.until_ready()
        assert (sqlstate(frames), frames[-1].body) == ("57P01" if last_words.data else "08006", b"closed")


@LAST_WORDS
def test_a_session_that_has_left_nothing_does_not_hear_of_a_server_that_goes(last_words: Answer) -> None:
    """Only a Close of the proxy's own, behind the answer, was still to be answered."""
    with going("C", "SELECT twice", last_words) as relay, log_in(relay) as client:
        client.send(parse("a", "SELECT 1"), SYNC)
        client.until_ready()
        client.send(parse("a", "SELECT twice"), SYNC)
        assert kinds(client.until_ready()) == "EZ"
        relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 0, "the link is gone")
        client.send(bind("", "a"), execute(), SYNC)
        assert kinds(client.until_ready()) == "2DCZ"


@LAST_WORDS
def test_a_session_that_has_said_goodbye_does_not_hear_of_it_either(last_words: Answer) -> None:
    with going("C", "SELECT twice", last_words) as relay, log_in(relay) as client:
        client.send(parse("a", "SELECT 1"), SYNC, parse("a", "SELECT twice"), SYNC, b"X\0\0\0\x04")
        assert kinds(client.until_ready()) == "1Z"
        assert kinds(client.until_ready()) == "EZ"
        assert client.until_ready() == [Frame("", b"closed")]


def test_a_server_that_goes_while_settings_are_brought_is_not_said_to_refuse_them() -> None:
    with going("Q", "SET exit_on_error", Answer(FATAL, CLOSE)) as relay, log_in(relay) as client:
        assert kinds(client.query("SET work_mem = '5MB'")) == "CZ"
        with log_in(relay) as other:
            frames = other.query("SELECT 1")
            assert (kinds(frames), sqlstate(frames)) == ("E", "57P01")


def test_a_pinned_session_hears_what_its_server_says(database: Database) -> None:
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as client:
        client.query("CREATE TEMP TABLE own (id int)")
        pid = client.value("SELECT pg_backend_pid()")
        database.execute(f"SELECT pg_terminate_backend({pid})")
        frames = client.until_ready()
        assert (sqlstate(frames), frames[-1].body) == ("57P01", b"closed")


def test_a_server_that_goes_as_soon_as_it_is_there_costs_nobody_an_error() -> None:
    """What it says behind its first ReadyForQuery comes with it, and a notice is nothing bad at all."""
    notice = frame("N", error("NOTICE", "00000")[5:])
    with going("Q", "SELECT go", Answer(FATAL, CLOSE)) as relay, log_in(relay) as client:
        server = relay.shared
        assert isinstance(server, HostileServer)
        assert sqlstate(client.query("SELECT go")) == "57P01"
        with log_in(relay) as other:
            server.login = Answer(WELCOME + notice + FATAL, CLOSE)
            before = len(server._open)
            other.send(query("SELECT 1"))
            relay.wait_for(lambda: len(server._open) > before, "a link was opened, for a moment")
            server.login = Answer(WELCOME + notice)
            assert kinds(other.until_ready()) == "TDCZ"


# --- faults of ours -----------------------------------------------------------------------------------------


def test_a_fault_while_a_fault_is_told_costs_nobody_else_anything(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All events of one turn: each is there once, so whoever's is lost hangs."""
    with RunningRelay(database, config=ONE_LINK) as relay:
        clients = [log_in(relay) for _ in range(9)]
        assert kinds(clients[0].query("SELECT 1")) == "TDCZ"
        classify = _relay.classify  # type: ignore[attr-defined]

        def faulty(sql: str, *rest: object) -> object:
            if "fault" in sql:
                raise RuntimeError("a fault")
            return classify(sql, *rest)

        def telling_fails(_event: object) -> None:
            raise RuntimeError("a fault while it is told")

        monkeypatch.setattr(_relay, "classify", faulty)
        stopped, go_on = threading.Event(), threading.Event()

        def stop(_: object) -> None:
            stopped.set()
            go_on.wait(10)

        relay.call(lambda r: setattr(r, "on_event", telling_fails))
        halt = asyncio.run_coroutine_threadsafe(_call(stop), relay._loop)
        assert stopped.wait(10)
        for number, client in enumerate(clients):
            client.send(query(f"SELECT '{number}'::text" if number % 3 else f"SELECT 'fault' AS f{number}"))
        go_on.set()
        halt.result(10)
        for number, client in enumerate(clients):
            frames = client.until_ready()
            assert kinds(frames) == "TDCZ" if number % 3 else frames[-1].body == b"closed"
        relay.wait_for(lambda: relay.call(lambda r: (r.clients, r.waiting)) == (6, 0), "three are gone")
        relay.call(lambda r: setattr(r, "on_event", relay.events.append))
        for client in clients:
            client.socket.close()


async def _call(function: Callable[[object], None]) -> None:
    function(None)


# --- a worker that goes -------------------------------------------------------------------------------------


def drain(relay: RunningRelay, grace_ms: int = 60_000) -> Future[None]:
    drained = asyncio.run_coroutine_threadsafe(relay.relay.drain(grace_ms), relay._loop)
    relay.wait_for(lambda: relay.call(lambda r: r.draining), "it drains")
    return drained


def test_a_drain_waits_for_no_login(database: Database) -> None:
    packet = messages.startup_message({b"user": database.server.user.encode(), b"database": b"x"})
    with RunningRelay(database, config=ONE_LINK) as relay:
        silent, halfway = relay.connect(), relay.connect()
        halfway.sendall(packet[:9])
        relay.wait_for(lambda: relay.call(lambda r: r.clients) == 2, "both are there")
        drained = drain(relay)
        for client in (silent, halfway):
            with WireClient(client) as wire:
                frames = wire.until_ready()
                assert (sqlstate(frames), frames[-1].body) == ("57P03", b"closed")
        drained.result(10)


def test_who_comes_while_the_worker_drains_is_told(database: Database) -> None:
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as holder:
        holder.query("BEGIN")
        holder.query("SELECT 1")
        drained = drain(relay)
        with WireClient(relay.connect()) as late, pytest.raises(AssertionError, match="57P03"):
            late.log_in(database.server.user, database.dbname)
        assert kinds(holder.query("COMMIT")) == "CZ"
        assert sqlstate(holder.until_ready()) == "57P01"
        drained.result(10)


def test_a_drain_while_sessions_wait_for_links(database: Database) -> None:
    """They are in the middle of what they asked: it is carried out, then they are told."""
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as holder:
        holder.query("BEGIN")
        holder.query("SELECT 1")
        clients = [log_in(relay) for _ in range(5)]
        for client in clients:
            client.send(query("SELECT 1"))
        relay.wait_for(lambda: waiting(relay) == 5, "they wait")
        drained = drain(relay)
        assert kinds(holder.query("COMMIT")) == "CZ"
        for client in (holder, *clients):
            frames = client.until_ready()
            if client is not holder:
                assert kinds(frames) == "TDCZ"
                frames = client.until_ready()
            assert (sqlstate(frames), frames[-1].body) == ("57P01", b"closed")
            client.socket.close()
        drained.result(10)
        relay.wait_for(
            lambda: relay.call(lambda r: (r.links_open, len(r.links))) == (0, 0), "no link is left"
        )


def test_a_drain_ends_what_still_waits_when_its_time_is_over(database: Database) -> None:
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as holder, log_in(relay) as client:
        holder.query("BEGIN")
        holder.query("SELECT 1")
        client.send(query("SELECT 1"))
        relay.wait_for(lambda: waiting(relay) == 1, "it waits")
        drain(relay, grace_ms=200).result(10)
        for each in (client, holder):
            assert sqlstate(each.until_ready()) == "57P01"
        relay.wait_for(lambda: relay.call(lambda r: (r.clients, r.waiting)) == (0, 0), "all are gone")


def test_a_slow_client_that_has_left_the_line_does_not_stay_for_good(database: Database) -> None:
    """It reads nothing: what it is told of why it must go is kept for it for five seconds."""
    names = [f"{'x' * 50}_{number}" for number in range(20)]
    database.execute(";".join(f"CREATE TABLE {name} (id int)" for name in names))
    with RunningRelay(database, config=ONE_LINK) as relay, log_in(relay) as holder:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", relay.port))
        with WireClient(connection) as client:
            client.log_in(database.server.user, database.dbname)
            client.query(f"SELECT FROM {', '.join(names)}")
            holder.query("BEGIN")
            holder.query("SELECT 1")
            client.send(query("SHOW pgshunt.route") * 1500, query("SELECT 1"))  # more than all buffers hold
            relay.wait_for(lambda: waiting(relay) == 1, "it waits")
            drain(relay, grace_ms=0).result(10)
            assert relay.call(lambda r: (r.clients, r.waiting)) == (1, 0)
            relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "it is gone")
