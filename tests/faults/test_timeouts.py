"""Limits of time and number: who passes one is told which, and what it held serves others at once."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import FLUSH, SYNC, Frame, WireClient, execute, hint, kinds, parse, sqlstate

from pgshunt.protocol import messages

Start = Callable[..., RunningRelay]


@contextmanager
def running(database: Database, **pools: Any) -> Iterator[RunningRelay]:
    with RunningRelay(database, config={"pools": {"default_pool_size": 1, **pools}}) as relay:
        yield relay


def log_in(relay: RunningRelay) -> WireClient:
    return WireClient(relay.connect()).log_in(relay.shared.server.user, relay.shared.dbname)


def last_words(client: WireClient) -> list[Frame]:
    """What comes unasked, up to the end of the connection."""
    frames = client.until_ready()
    assert frames[-1] == Frame("", b"closed")
    return frames


def test_a_statement_past_its_time_is_cancelled_and_the_session_goes_on(database: Database) -> None:
    with running(database, query_timeout_ms=300) as relay, log_in(relay) as client:
        assert sqlstate(cancelled := client.query("SELECT pg_sleep(60)")) == "57014"
        assert "pools.query_timeout_ms, 300 ms" in hint(cancelled)
        assert client.value("SELECT 1") == "1"
        client.send(
            parse("", "SELECT pg_sleep(60)"), b"B\0\0\0\x0c\0\0\0\0\0\0\0\0", execute(), b"S\0\0\0\x04"
        )
        assert sqlstate(client.until_ready()) == "57014"
        assert client.value("SELECT 1") == "1"
        assert relay.count("timeouts", "query") == 2


def test_who_waits_too_long_for_a_link_is_told_the_limit(database: Database) -> None:
    with running(database, query_wait_timeout_ms=200) as relay, log_in(relay) as first:
        first.query("BEGIN; SELECT 1")
        with log_in(relay) as second:
            assert sqlstate(refused := second.query("SELECT 1")) == "53300"
            assert "pools.query_wait_timeout_ms, 200 ms" in hint(refused)


def test_what_waits_behind_another_statement_has_its_time_from_its_own_beginning(database: Database) -> None:
    with running(database, query_timeout_ms=1500) as relay, log_in(relay) as client:
        client.send(*[messages.query(b"SELECT pg_sleep(0.7)")] * 4)
        assert [kinds(client.until_ready()) for _ in range(4)] == ["TDCZ"] * 4
        assert relay.count("timeouts", "query") == 0


def test_a_batch_without_sync_has_its_time_too(database: Database) -> None:
    with running(database, query_timeout_ms=300) as relay, log_in(relay) as client:
        client.send(parse("", "SELECT pg_sleep(60)"), b"B\0\0\0\x0c\0\0\0\0\0\0\0\0", execute(), FLUSH)
        assert [client.frame().kind for _ in range(3)] == ["1", "2", "E"]
        client.send(SYNC)
        assert kinds(client.until_ready()) == "Z"
        assert client.value("SELECT 1") == "1"


def test_a_transaction_left_open_is_ended_and_its_link_serves_others(database: Database) -> None:
    with running(database, idle_transaction_timeout_ms=500) as relay, log_in(relay) as client:
        with log_in(relay) as other:
            client.query("BEGIN")
            client.query("CREATE TABLE left_open (id int)")
            other.send(messages.query(b"SELECT to_regclass('left_open') IS NULL"))
            assert sqlstate(told := last_words(client)) == "25P03"
            assert "pools.idle_transaction_timeout_ms, 500 ms" in hint(told)
            assert other.until_ready()[1].body.endswith(b"t")
        assert relay.count("timeouts", "idle_transaction") == 1


@pytest.mark.parametrize("sent", [[b"BEGIN"], [b"BEGIN", b"SELECT nope"]])
def test_an_idle_transaction_is_ended_whatever_its_state(sent: list[bytes], database: Database) -> None:
    with running(database, idle_transaction_timeout_ms=500) as relay, log_in(relay) as client:
        for statement in sent:
            client.query(statement.decode())
        assert sqlstate(last_words(client)) == "25P03"


def test_a_batch_never_finished_does_not_keep_its_link(database: Database) -> None:
    with running(database, idle_transaction_timeout_ms=500) as relay, log_in(relay) as client:
        client.send(parse("", "SELECT 1"), b"H\0\0\0\x04")
        assert client.frame().kind == "1"
        assert sqlstate(last_words(client)) == "25P03"


def test_a_long_statement_is_not_idle(database: Database) -> None:
    limits = {"idle_transaction_timeout_ms": 300, "client_idle_timeout_ms": 300}
    with running(database, **limits) as relay, log_in(relay) as client:
        client.query("BEGIN")
        assert kinds(client.query("SELECT pg_sleep(2.5)")) == "TDCZ"
        assert kinds(client.query("COMMIT")) == "CZ"


def test_an_idle_client_is_told_why_it_must_go(database: Database) -> None:
    with running(database, client_idle_timeout_ms=500, idle_transaction_timeout_ms=60_000) as relay:
        with log_in(relay) as client, log_in(relay) as in_transaction:
            in_transaction.query("BEGIN")
            assert sqlstate(told := last_words(client)) == "57P05"
            assert "pools.client_idle_timeout_ms, 500 ms" in hint(told)
            assert in_transaction.value("SELECT 1") == "1"
        assert relay.count("timeouts", "client_idle") == 1


def test_the_clients_of_one_user_are_limited(database: Database) -> None:
    user = database.server.user
    with running(database, users={user: {"max_client_conn": 2}}) as relay:
        first, second = log_in(relay), log_in(relay)
        with WireClient(relay.connect()) as third, pytest.raises(AssertionError, match="53300"):
            third.log_in(user, relay.shared.dbname)
        first.socket.close()
        relay.wait_for(lambda: relay.call(lambda r: r.clients) == 1, "it is gone")
        with log_in(relay) as third:
            assert third.value("SELECT 1") == "1"
        second.socket.close()


def test_a_user_may_have_a_pool_of_another_size(database: Database) -> None:
    users = {database.server.user: {"pool_size": 2}}
    with running(database, users=users) as relay, log_in(relay) as one, log_in(relay) as two:
        for client in (one, two):
            client.query("BEGIN")
            client.query("SELECT 1")
        assert relay.call(lambda r: len(r.links)) == 2


def test_a_server_is_given_no_more_links_than_its_max_connections(database: Database) -> None:
    """Whatever the pools allow: here each client, having a name of its own, is of another pool."""
    server = database.server
    shared = {
        "dbname": database.dbname,
        "primary": {"host": server.host, "port": server.port},
        "max_connections": 2,
    }
    with RunningRelay(database, config={"shared": shared}) as relay, ExitStack() as stack:
        clients = [
            stack.enter_context(WireClient(relay.connect())).log_in(
                server.user, database.dbname, application_name=f"a{number}"
            )
            for number in range(3)
        ]
        for client in clients[:2]:
            client.query("BEGIN; SELECT 1")
        clients[2].send(messages.query(b"SELECT 1"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "the third one waits")
        assert relay.call(lambda r: r.links_open) == 2
        clients[0].query("COMMIT")
        assert kinds(clients[2].until_ready()) == "TDCZ"


def test_a_busy_database_leaves_others_their_share_of_all_connections(
    database_pair: tuple[Database, Database],
) -> None:
    """One connection in all, and always somebody who waits for it at the shared database."""
    for database, name in zip(database_pair, ("shared", "copy"), strict=True):
        database.create_app()
        database.execute(f"CREATE TABLE t (v text); INSERT INTO t VALUES ('{name}')")
    servers = {"total": 1, "reserved": 0, "monitoring": 0}
    shared, copy = database_pair
    enough = threading.Event()

    def keep_busy(client: WireClient) -> None:
        while not enough.is_set():
            assert client.value("SELECT 1 FROM pg_sleep(0.01)") == "1"

    with (
        RunningRelay(
            shared, copy, tables=("t",), reads_percent=100, config={"pools": {"server_connections": servers}}
        ) as relay,
        ExitStack() as stack,
    ):
        reader, *busy = (
            stack.enter_context(WireClient(relay.connect())).log_in("app", shared.dbname) for _ in range(4)
        )
        threads = [threading.Thread(target=keep_busy, args=(client,)) for client in busy]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                assert reader.value("SELECT v FROM t") == "copy"
                assert relay.call(lambda r: r.links_open) <= 1
        finally:
            enough.set()
            for thread in threads:
                thread.join()


# --- logins -------------------------------------------------------------------------------------------------


def test_a_login_has_its_time_however_slowly_it_comes(database: Database) -> None:
    """A byte now and then is no reason to wait for longer; nor is a part of the exchange that went well."""
    server = database.server
    listen = {"login_timeout_ms": 300}
    users = {"users": [{"name": server.user, "password": server.password}]}
    named = {b"user": server.user.encode(), b"database": database.dbname.encode()}
    first = messages.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=" + b"abc" * 300)
    packet = messages.startup_message({**named, b"application_name": b"a" * 9000})
    with RunningRelay(database, config={"listen": listen, "auth": users}) as relay:
        for quick, slow in ((b"", packet), (messages.startup_message(named), first)):
            with WireClient(relay.connect()) as client:
                client.send(quick)
                if quick:
                    assert client.frame().kind == "R"
                for byte in slow:
                    client.send(bytes([byte]))
                    if select.select([client.socket], [], [], 0.01)[0]:
                        break
                told = last_words(client)
                assert (kinds(told), sqlstate(told)) == ("E", "08P01")
                assert "listen.login_timeout_ms, 300 ms" in hint(told)
        assert relay.count("timeouts", "login") == 2
