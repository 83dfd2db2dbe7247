"""What a session has prepared is what PostgreSQL says it has: in its view, and after DDL.

psycopg's and pg8000's own suites look there.
"""

from __future__ import annotations

import socket

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import FLUSH, SYNC, WireClient, bind, close, execute, kinds, parse, sqlstate
from wire.conftest import Connect
from wire.test_messages import answers_to, query

LIST = "SELECT name, statement, parameter_types::text, from_sql FROM pg_prepared_statements ORDER BY name"
LOOK = [parse("", LIST), bind("", ""), execute(), SYNC]

SEQUENCES = {
    "nothing prepared": [query(LIST)],
    "asked in simple queries": [
        parse("a", "SELECT $1::int"),
        parse("b", "SELECT 'x'"),
        SYNC,
        query(LIST),
        bind("", "a", "7"),
        execute(),
        SYNC,
        query(LIST),
    ],
    "asked in messages": [parse("a", "SELECT 1"), SYNC, *LOOK, bind("", "a"), execute(), SYNC, *LOOK],
    "asked in the batch that prepares": [
        parse("a", "SELECT 1"),
        parse("", LIST),
        bind("", ""),
        execute(),
        bind("", "a"),
        execute(),
        SYNC,
        *LOOK,
    ],
    "prepared, closed and prepared again behind it": [
        parse("a", "SELECT 1"),
        SYNC,
        query(LIST),
        parse("b", "SELECT 2"),
        close("S", "a"),
        SYNC,
        query(LIST),
        parse("a", "SELECT 'another'"),
        bind("", "a"),
        execute(),
        close("S", "nothing"),
        SYNC,
        query(LIST),
        bind("", "b"),
        execute(),
        SYNC,
    ],
    "prepared twice under one name behind it": [
        parse("a", "SELECT 1"),
        SYNC,
        query(LIST),
        parse("a", "SELECT 2"),
        bind("", "a"),
        SYNC,
        query(LIST),
    ],
    "SQL and messages": [
        query("PREPARE s AS SELECT 3"),
        parse("a", "SELECT 1"),
        SYNC,
        query(LIST),
        query("EXECUTE a"),
        query("DEALLOCATE a"),
        query("DEALLOCATE s"),
        query(LIST),
        bind("", "a"),
        SYNC,
    ],
    "DEALLOCATE ALL behind it": [
        parse("a", "SELECT 1"),
        SYNC,
        query(LIST),
        query("DEALLOCATE ALL"),
        query(LIST),
        bind("", "a"),
        SYNC,
        parse("a", "SELECT 2"),
        bind("", "a"),
        execute(),
        SYNC,
        query(LIST),
    ],
    "skipped because of an error before it": [
        parse("a", "SELECT 1"),
        SYNC,
        parse("", "SELECT nope"),
        *LOOK,
        bind("", "a"),
        execute(),
        SYNC,
        *LOOK,
    ],
    "in a failed transaction": [
        parse("a", "SELECT 1"),
        SYNC,
        query("BEGIN"),
        query("SELECT nope"),
        query(LIST),
        query("ROLLBACK"),
        query(LIST),
    ],
    "in a transaction that fails later": [
        parse("a", "SELECT 1"),
        SYNC,
        query("BEGIN"),
        query(LIST),
        query("SELECT nope"),
        parse("b", "SELECT 2"),
        SYNC,
        query("ROLLBACK"),
        query(LIST),
    ],
    "with Flush": [parse("a", "SELECT 1"), FLUSH, parse("", LIST), FLUSH, bind("", ""), execute(), SYNC],
    "by its function": [parse("a", "SELECT 1"), SYNC, query("SELECT name FROM pg_prepared_statement()")],
    "a type made anew": [
        query("CREATE TYPE colour AS ENUM ('red'); CREATE TABLE paint (c colour)"),
        parse("a", "INSERT INTO paint VALUES ($1)"),
        bind("", "a", "red"),
        execute(),
        SYNC,
        query("DROP TABLE paint; DROP TYPE colour"),
        query("CREATE TYPE colour AS ENUM ('blue'); CREATE TABLE paint (c colour)"),
        close("S", "a"),
        parse("a", "INSERT INTO paint VALUES ($1)"),
        bind("", "a", "blue"),
        execute(),
        SYNC,
        query("DROP TABLE paint; DROP TYPE colour"),
    ],
    "a type made anew in one transaction": [
        query("BEGIN"),
        query("CREATE TYPE colour AS ENUM ('red'); CREATE TABLE paint (c colour)"),
        parse("a", "INSERT INTO paint VALUES ($1)"),
        bind("", "a", "red"),
        execute(),
        SYNC,
        query("DROP TABLE paint; DROP TYPE colour"),
        query("CREATE TYPE colour AS ENUM ('blue'); CREATE TABLE paint (c colour)"),
        parse("b", "INSERT INTO paint VALUES ($1)"),
        bind("", "b", "blue"),
        execute(),
        SYNC,
        query("ROLLBACK"),
    ],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_same_answers_as_a_direct_connection(
    name: str, relay: RunningRelay, trusted: tuple[str, int], connect: Connect
) -> None:
    """Behind two sessions that have left statements on both links."""
    others = [connect(), connect()]
    for client in others:
        client.query("BEGIN")
        client.send(parse("a", "SELECT 1"), parse("other", "SELECT 'of another session'"), SYNC)
        client.until_ready()
    for client in others:
        client.query("COMMIT")
    answers = []
    for port in (trusted[1], relay.port):
        with WireClient(socket.create_connection(("127.0.0.1", port), 10)) as client:
            client.log_in(relay.shared.server.user, relay.shared.dbname)
            answers.append(answers_to(client, SEQUENCES[name]))
    assert answers[1] == answers[0]
    assert [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")] == []


def test_a_session_that_has_looked_leaves_nothing_behind(relay: RunningRelay, connect: Connect) -> None:
    """Whoever comes next on the links finds its own statements, or none."""
    nosy = connect()
    nosy.send(parse("a", "SELECT 'nosy'"), SYNC)
    nosy.until_ready()
    assert kinds(nosy.query(LIST)) == "TDCZ"
    assert relay.count("pins", "prepared_statements") == 1
    nosy.socket.close()
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 0, "the session is gone")
    for _ in range(3):
        client = connect()
        client.send(bind("", "a"), SYNC)
        assert sqlstate(client.until_ready()) == "26000"
        client.send(parse("a", "SELECT 'mine'"), bind("", "a"), execute(), SYNC)
        assert kinds(client.until_ready()) == "12DCZ"


def test_what_can_no_longer_be_prepared_is_not_listed(relay: RunningRelay, connect: Connect) -> None:
    """It fails at the server while nobody has asked for it; the question is answered all the same."""
    client = connect()
    client.query("CREATE TABLE gone (a int)")
    client.send(parse("a", "SELECT a FROM gone"), parse("b", "SELECT 1"), SYNC)
    client.until_ready()
    client.query("DROP TABLE gone")
    assert kinds(client.query(LIST)) == "TDCZ"
    client.send(bind("", "b"), execute(), SYNC)
    assert kinds(client.until_ready()) == "2DCZ"


def test_ddl_of_another_session_is_seen_by_the_next_parse(database: Database) -> None:
    """On every link: the parameter's type is the column's as it is now."""
    with RunningRelay(database, config={"pools": {"default_pool_size": 2}}) as relay:

        def connected() -> WireClient:
            return WireClient(relay.connect()).log_in(database.server.user, database.dbname)

        with connected() as first, connected() as second, connected() as migration:
            migration.query("CREATE TYPE colour AS ENUM ('red'); CREATE TABLE paint (c colour)")
            for client in (first, second):  # both links prepare it
                client.query("BEGIN")
                client.send(parse("a", "INSERT INTO paint VALUES ($1)"), SYNC)
                assert kinds(client.until_ready()) == "1Z"
            for client in (first, second):
                client.query("COMMIT")
            migration.query("DROP TABLE paint; DROP TYPE colour")
            migration.query("CREATE TYPE colour AS ENUM ('blue'); CREATE TABLE paint (c colour)")
            for client in (first, second):
                client.query("BEGIN")
                client.send(
                    close("S", "a"),
                    parse("a", "INSERT INTO paint VALUES ($1)"),
                    bind("", "a", "blue"),
                    execute(),
                    SYNC,
                )
                assert kinds(client.until_ready()) == "312CZ"
            for client in (first, second):
                client.query("COMMIT")


def test_a_session_knows_its_own_notifications(connect: Connect) -> None:
    """By the process id it knows, as clients do that skip what they sent themselves: the one it was given at
    login, or the server's, once it has asked for that.
    """
    client = connect()
    client.query("LISTEN news")
    frames = client.query("NOTIFY news, 'mine'")
    own = next(frame for frame in frames if frame.kind == "A")
    assert int.from_bytes(own.body[:4]) == client.process_id
    asked = client.value("SELECT pg_backend_pid()")
    own = next(frame for frame in client.query("NOTIFY news") if frame.kind == "A")
    assert str(int.from_bytes(own.body[:4])) == asked
