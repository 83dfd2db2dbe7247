"""Message by message: what a raw client gets through the relay is what PostgreSQL sends."""

from __future__ import annotations

import socket

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    Frame,
    WireClient,
    bind,
    close,
    copy_data,
    describe,
    execute,
    kinds,
    parse,
    sqlstate,
)
from wire.conftest import Connect

from pgshunt.protocol import messages


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


BATCHES = {
    "simple": [query("SELECT 1")],
    "simple, two statements": [query("SELECT 1; SELECT 2")],
    "simple, empty": [query("")],
    "simple, error": [query("SELECT 1/0")],
    "simple, syntax error": [query("SELEC")],
    "simple, notice": [query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")],
    "several simple queries at once": [query("SELECT 1"), query("SELECT nope"), query("SELECT 3")],
    "unnamed statement": [parse("", "SELECT $1::int"), bind("", "", "7"), describe("P"), execute(), SYNC],
    "unnamed, described as statement": [parse("", "SELECT v FROM t WHERE id = $1"), describe("S"), SYNC],
    "named, used twice": [
        parse("a", "SELECT v FROM t WHERE id = $1::int"),
        bind("", "a", "1"),
        execute(),
        bind("", "a", "2"),
        execute(),
        SYNC,
    ],
    "named in one batch, bound in the next": [parse("a", "SELECT 1"), SYNC, bind("", "a"), execute(), SYNC],
    "closed and parsed again": [
        parse("a", "SELECT 1"),
        SYNC,
        close("S", "a"),
        SYNC,
        parse("a", "SELECT 'x'"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "parsed twice under one name": [
        parse("a", "SELECT 1"),
        SYNC,
        parse("a", "SELECT 2"),
        SYNC,
        query("SELECT 9"),
    ],
    "parsed twice in one batch": [parse("a", "SELECT 1"), parse("a", "SELECT 2"), bind("", "a"), SYNC],
    "bind of an unknown statement": [bind("", "nope"), execute(), SYNC],
    "bind of no unnamed statement": [bind("", ""), execute(), SYNC],
    "unnamed statement survives Sync": [parse("", "SELECT 5"), SYNC, bind("", ""), execute(), SYNC],
    "a simple query drops the unnamed statement": [
        parse("", "SELECT 5"),
        SYNC,
        query("SELECT 1"),
        bind("", ""),
        SYNC,
    ],
    "error in Parse, the rest is skipped": [
        parse("", "SELECT nope FROM t"),
        bind("", ""),
        describe("P"),
        execute(),
        SYNC,
        query("SELECT 2"),
    ],
    "error in Bind": [parse("", "SELECT $1::int"), bind("", "", "x"), execute(), SYNC],
    "error in Execute": [parse("", "SELECT 1/0"), bind("", ""), execute(), SYNC],
    "a failed Parse leaves no name behind": [
        parse("a", "SELECT nope"),
        SYNC,
        bind("", "a"),
        SYNC,
        parse("a", "SELECT 1"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "a batch of several statements": [
        parse("", "SELECT 1"),
        bind("", ""),
        execute(),
        parse("", "SELECT 2"),
        bind("", ""),
        execute(),
        SYNC,
    ],
    "a simple query inside a batch": [parse("", "SELECT 1"), query("SELECT 2"), SYNC],
    "a simple query behind an error is skipped": [parse("", "SELECT nope"), query("SELECT 2"), SYNC],
    "two syncs": [parse("", "SELECT 1"), bind("", ""), execute(), SYNC, SYNC],
    "sync alone": [SYNC],
    "close of what does not exist": [close("S", "nope"), close("P", "nope"), SYNC],
    "row limit": [
        query("BEGIN"),
        parse("", "SELECT * FROM t ORDER BY id"),
        bind("", ""),
        execute("", 2),
        execute("", 3),
        SYNC,
        query("COMMIT"),
    ],
    "named portal": [
        query("BEGIN"),
        parse("", "SELECT * FROM t ORDER BY id"),
        bind("p", ""),
        execute("p", 1),
        SYNC,
        execute("p", 1),
        close("P", "p"),
        SYNC,
        query("ROLLBACK"),
    ],
    "transaction": [
        query("BEGIN"),
        query("INSERT INTO t VALUES (500, 'x')"),
        query("SELECT 1"),
        query("ROLLBACK"),
    ],
    "empty transaction": [query("BEGIN"), query("COMMIT")],
    "empty transaction, rolled back": [query("BEGIN"), query("ROLLBACK")],
    "START TRANSACTION": [query("START TRANSACTION READ ONLY"), query("END")],
    "BEGIN twice": [query("BEGIN"), query("BEGIN"), query("SELECT 1"), query("COMMIT")],
    "COMMIT without BEGIN": [query("COMMIT")],
    "COMMIT AND CHAIN": [query("BEGIN"), query("COMMIT AND CHAIN"), query("ROLLBACK")],
    "failed transaction": [query("BEGIN"), query("SELECT nope"), query("SELECT 1"), query("COMMIT")],
    "savepoints": [
        query("BEGIN"),
        query("SAVEPOINT s"),
        query("SELECT nope"),
        query("ROLLBACK TO s"),
        query("SELECT 1"),
        query("COMMIT"),
    ],
    "isolation level of a late BEGIN": [
        query("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"),
        query("SHOW transaction_isolation"),
        query("COMMIT"),
    ],
    "BEGIN by the extended protocol": [
        parse("", "BEGIN"),
        bind("", ""),
        describe("P"),
        execute(),
        SYNC,
        query("SELECT 1"),
        parse("", "COMMIT"),
        bind("", ""),
        execute(),
        SYNC,
    ],
    "BEGIN and a statement in one batch": [
        parse("", "BEGIN"),
        bind("", ""),
        execute(),
        parse("", "SELECT 1"),
        bind("", ""),
        execute(),
        SYNC,
        query("ROLLBACK"),
    ],
    "BEGIN as a named statement": [
        parse("b", "BEGIN"),
        SYNC,
        bind("", "b"),
        execute(),
        SYNC,
        query("SELECT 1"),
        query("COMMIT"),
    ],
    "transaction in one text": [query("BEGIN; SELECT 1; COMMIT"), query("BEGIN; SELECT 2"), query("COMMIT")],
    "implicit transaction rolled back": [
        query("INSERT INTO t VALUES (501, 'y'); SELECT 1/0"),
        query("SELECT count(*) FROM t"),
    ],
    "copy out": [query("COPY (SELECT * FROM t ORDER BY id LIMIT 3) TO STDOUT")],
    "copy out, extended": [parse("", "COPY t TO STDOUT"), bind("", ""), execute(), SYNC],
    "copy in": [
        query("COPY t FROM STDIN"),
        copy_data(b"900\tx\n"),
        COPY_DONE,
        query("SELECT count(*) FROM t"),
    ],
    "copy in, bad data": [query("COPY t FROM STDIN"), copy_data(b"x\ty\n"), COPY_DONE, query("SELECT 1")],
    "copy in refused by the client": [
        query("COPY t FROM STDIN"),
        copy_data(b"901\tx\n"),
        b"f\0\0\0\x0aenough"[:4] + b"\x0benough\0",
        query("SELECT 1"),
    ],
    "copy in of a missing table": [
        query("COPY nope FROM STDIN"),
        copy_data(b"1\n"),
        COPY_DONE,
        query("SELECT 1"),
    ],
    "copy in, extended": [
        parse("", "COPY t FROM STDIN"),
        bind("", ""),
        execute(),
        copy_data(b"902\tx\n"),
        COPY_DONE,
        SYNC,
        query("SELECT count(*) FROM t"),
    ],
    "function call of a missing function": [
        b"F\0\0\0\x0e" + b"\0\0\0\0" + b"\0\0" + b"\0\0" + b"\0\0",
        query("SELECT 1"),
    ],
    "flush": [parse("", "SELECT 1"), describe("S"), FLUSH, bind("", ""), execute(), FLUSH, SYNC],
    "DEALLOCATE of what a message prepared": [
        parse("a", "SELECT 1"),
        SYNC,
        query("DEALLOCATE a"),
        bind("", "a"),
        execute(),
        SYNC,
        query("DEALLOCATE a"),
        parse("a", "SELECT 'another'"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "DEALLOCATE behind an unanswered query": [
        parse("a", "SELECT 1"),
        SYNC,
        query("SELECT 2"),
        query("DEALLOCATE PREPARE a"),
        query("SELECT 3"),
    ],
    "DEALLOCATE in a transaction": [
        parse("a", "SELECT 1"),
        SYNC,
        query("BEGIN"),
        query("DEALLOCATE a"),
        query("SELECT 2"),
        query("DEALLOCATE a"),
        query("ROLLBACK"),
        bind("", "a"),
        SYNC,
    ],
    "DEALLOCATE in a failed transaction": [
        parse("a", "SELECT 1"),
        SYNC,
        query("BEGIN"),
        query("SELECT nope"),
        query("DEALLOCATE a"),
        query("ROLLBACK"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "DEALLOCATE drops the unnamed statement, as any simple query does": [
        parse("a", "SELECT 1"),
        parse("", "SELECT 2"),
        SYNC,
        query("DEALLOCATE a"),
        bind("", ""),
        SYNC,
    ],
    "DEALLOCATE by the extended protocol": [
        parse("a", "SELECT 1"),
        SYNC,
        parse("", "DEALLOCATE a"),
        bind("", ""),
        describe("P"),
        execute(),
        SYNC,
        bind("", "a"),
        SYNC,
    ],
    "DEALLOCATE in the middle of a batch": [
        parse("a", "SELECT 1"),
        bind("", "a"),
        execute(),
        parse("", "DEALLOCATE a"),
        bind("", ""),
        execute(),
        parse("a", "SELECT 'another'"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "DEALLOCATE of names with capitals": [
        parse("A b", "SELECT 1"),
        SYNC,
        query('DEALLOCATE "A b"'),
        query("DEALLOCATE A"),
    ],
    "DEALLOCATE of a star": [
        parse("a", "SELECT 1"),
        parse("*", "SELECT 2"),
        SYNC,
        query('DEALLOCATE "*"'),
        bind("", "a"),
        execute(),
        SYNC,
        bind("", "*"),
        SYNC,
        query('PREPARE "*" AS SELECT 3'),
        query('DEALLOCATE "*"'),
        query('DEALLOCATE "*"'),
        bind("", "a"),
        execute(),
        SYNC,
        parse("*", "SELECT 4"),
        parse("", 'DEALLOCATE "*"'),
        bind("", ""),
        execute(),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "DEALLOCATE ALL": [
        parse("a", "SELECT 1"),
        parse("b", "SELECT 2"),
        SYNC,
        query("DEALLOCATE ALL"),
        bind("", "a"),
        SYNC,
        bind("", "b"),
        SYNC,
        parse("a", "SELECT 3"),
        bind("", "a"),
        execute(),
        SYNC,
    ],
    "DEALLOCATE ALL by the extended protocol": [
        parse("a", "SELECT 1"),
        SYNC,
        parse("", "DEALLOCATE ALL"),
        bind("", ""),
        execute(),
        SYNC,
        bind("", "a"),
        SYNC,
    ],
    "DEALLOCATE ALL with statements of both kinds": [
        query("PREPARE s AS SELECT 1"),
        parse("a", "SELECT 2"),
        SYNC,
        query("DEALLOCATE ALL"),
        query("EXECUTE s"),
        bind("", "a"),
        SYNC,
    ],
    "DEALLOCATE of what SQL prepared": [
        query("PREPARE s AS SELECT 1"),
        query("DEALLOCATE s"),
        query("EXECUTE s"),
    ],
    "DISCARD ALL drops prepared statements": [
        parse("a", "SELECT 1"),
        SYNC,
        query("DISCARD ALL"),
        bind("", "a"),
        SYNC,
        query("SELECT 1"),
    ],
    "set, pinned": [query("SET application_name = 'x'"), query("SHOW application_name")],
}


def answers_to(client: WireClient, batch: list[bytes]) -> list[Frame]:
    """Everything the server says up to the end of the connection, which the client asks for."""
    client.send(*batch, TERMINATE)
    frames = []
    try:
        while True:
            frames.append(client.frame())
    except (EOFError, ConnectionResetError):
        return frames


@pytest.mark.parametrize("name", BATCHES)
def test_same_answers_as_a_direct_connection(
    name: str, relay: RunningRelay, trusted: tuple[str, int]
) -> None:
    """Sent in one piece and byte by byte; PostgreSQL is the oracle."""
    batch = BATCHES[name]
    shared = relay.shared
    answers = []
    for port, pieces in ((trusted[1], False), (relay.port, False), (trusted[1], False), (relay.port, True)):
        shared.execute("DELETE FROM t WHERE id > 100")
        with WireClient(socket.create_connection(("127.0.0.1", port), 10)) as client:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.log_in(shared.server.user, shared.dbname)
            if pieces:
                for byte in b"".join(batch):
                    client.send(bytes([byte]))
                answers.append(answers_to(client, []))
            else:
                answers.append(answers_to(client, batch))
    assert answers[1] == answers[0]
    assert answers[3] == answers[2]
    assert answers[0], "PostgreSQL said nothing: the batch proves nothing"


def test_a_query_of_many_megabytes_is_routed_and_answered(connect: Connect) -> None:
    client = connect()
    text = "x" * (3 << 20)
    assert client.value(f"SELECT length('{text}')") == str(3 << 20)


def test_a_result_larger_than_every_buffer(connect: Connect) -> None:
    client = connect()
    client.send(query("SELECT repeat('y', 1000000) FROM generate_series(1, 40)"))
    frames = client.until_ready()
    assert kinds(frames) == "T" + "D" * 40 + "CZ"
    assert all(len(frame.body) == 1000006 for frame in frames if frame.kind == "D")


def test_a_bind_larger_than_every_buffer_is_streamed(connect: Connect) -> None:
    client = connect()
    value = "z" * (5 << 20)
    client.send(parse("s", "SELECT length($1)"), bind("", "s", value), execute(), SYNC)
    frames = client.until_ready()
    assert kinds(frames) == "12DCZ"
    assert frames[2].body.endswith(str(5 << 20).encode())


def test_prepared_statements_are_shared_between_links_and_sessions(
    relay: RunningRelay, connect: Connect
) -> None:
    """Three sessions on two links: each finds its statement wherever it lands."""
    clients = [connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(parse("mine", f"SELECT {number}"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
    busy = [connect(), connect()]
    for round_number in range(20):
        holder = busy[round_number % 2]
        holder.query("BEGIN")
        holder.query("SELECT 1")
        for number, client in enumerate(clients):
            client.send(bind("", "mine"), execute(), SYNC)
            frames = client.until_ready()
            assert kinds(frames) == "2DCZ"
            assert frames[1].body.endswith(str(number).encode())
        holder.query("COMMIT")


def test_an_unnamed_statement_of_another_session_is_never_run(relay: RunningRelay, connect: Connect) -> None:
    first, second = connect(), connect()
    holder = connect()
    holder.query("BEGIN")
    holder.query("SELECT 1")  # one link is taken: the two clients share the other
    first.send(parse("", "SELECT 'first'"), SYNC)
    assert kinds(first.until_ready()) == "1Z"
    second.send(bind("", ""), execute(), SYNC)
    assert sqlstate(second.until_ready()) == "26000"
    second.send(parse("", "SELECT 'second'"), SYNC)
    second.until_ready()
    first.send(bind("", ""), execute(), SYNC)
    assert first.until_ready()[1].body.endswith(b"first")
    holder.query("COMMIT")


def test_sessions_wait_for_a_link_and_are_served_in_turn(relay: RunningRelay, connect: Connect) -> None:
    holders = [connect(), connect()]
    for holder in holders:
        holder.query("BEGIN")
        holder.query("SELECT 1")
    waiting = [connect() for _ in range(5)]
    for number, client in enumerate(waiting):
        client.send(query(f"SELECT {number}"))
    relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 5, "five sessions wait")
    for holder in holders:
        holder.query("COMMIT")
    for number, client in enumerate(waiting):
        assert client.until_ready()[1].body.endswith(str(number).encode())


def test_a_wait_that_lasts_too_long_ends_in_an_error_and_the_session_lives(database: Database) -> None:
    with RunningRelay(
        database, config={"pools": {"default_pool_size": 1, "query_wait_timeout_ms": 100}}
    ) as relay:
        user = database.server.user
        with WireClient(relay.connect()) as holder, WireClient(relay.connect()) as client:
            holder.log_in(user, database.dbname)
            client.log_in(user, database.dbname)
            holder.query("BEGIN")
            holder.query("SELECT 1")
            frames = client.query("SELECT 2")
            assert (kinds(frames), sqlstate(frames)) == ("EZ", "53300")
            client.send(parse("", "SELECT 3"), bind("", ""), execute(), SYNC)
            frames = client.until_ready()
            assert (kinds(frames), sqlstate(frames)) == ("EZ", "53300")
            holder.query("COMMIT")
            assert client.value("SELECT 4") == "4"


def test_session_state_keeps_its_link_and_leaks_to_nobody(relay: RunningRelay, connect: Connect) -> None:
    first = connect()
    first.query("SET statement_timeout = 12345")
    first.query("CREATE TEMP TABLE mine AS SELECT 1 AS x")
    others = [connect() for _ in range(4)]
    for _ in range(5):
        for other in others:
            assert other.value("SHOW statement_timeout") == "0"
            assert sqlstate(other.query("SELECT * FROM mine")) == "42P01"
        assert first.value("SHOW statement_timeout") == "12345ms"
        assert first.value("SELECT x FROM mine") == "1"
    assert relay.count("pins", "temp_table") == 1
    first.send(TERMINATE)
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 4, "the pinned session is gone")
    for other in others:
        assert other.value("SHOW statement_timeout") == "0"


def test_startup_parameters_are_the_sessions_own(connect: Connect) -> None:
    german = connect(DateStyle="German, DMY", application_name="g")
    plain = connect()
    assert german.parameters["DateStyle"] == "German, DMY"
    for _ in range(5):
        assert german.value("SELECT date '2026-11-22'") == "22.11.2026"
        assert german.value("SHOW application_name") == "g"
        assert plain.value("SELECT date '2026-11-22'") == "2026-11-22"


def test_cancel_reaches_the_running_statement(relay: RunningRelay, connect: Connect) -> None:
    client = connect()
    client.send(query("SELECT pg_sleep(30)"))
    server = relay.shared
    relay.wait_for(
        lambda: bool(
            server.execute(
                "SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'"
            )
        ),
        "the statement runs",
    )
    with relay.connect() as other:
        other.sendall(messages.cancel_request(client.process_id, client.secret_key))
        assert other.recv(1) == b""
    assert sqlstate(client.until_ready()) == "57014"
    assert client.value("SELECT 1") == "1"


@pytest.mark.parametrize("begin", [[query("BEGIN")], [parse("", "BEGIN"), bind("", ""), execute(), SYNC]])
@pytest.mark.parametrize(
    "asked", [[query("SELECT 1")], [parse("", "SELECT 1"), bind("", ""), execute(), SYNC]]
)
def test_cancel_while_the_first_statement_of_a_transaction_waits_for_a_link(
    begin: list[bytes], asked: list[bytes], relay: RunningRelay, connect: Connect
) -> None:
    """The statement ends and the transaction has failed, without a server at first, then at the server."""
    holders = [connect(), connect()]
    for holder in holders:
        holder.query("BEGIN")
        holder.query("SELECT 1")
    waiting = connect()
    for ending in ("ROLLBACK", "COMMIT", "SELECT 2"):
        waiting.send(*begin)
        assert waiting.until_ready()[-1] == Frame("Z", b"T")
        waiting.send(*asked)
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "it waits for a link")
        with relay.connect() as other:
            other.sendall(messages.cancel_request(waiting.process_id, waiting.secret_key))
            assert other.recv(1) == b""
        ended = waiting.until_ready()
        assert (kinds(ended), sqlstate(ended), ended[-1].body) == ("EZ", "57014", b"E")
        if ending != "SELECT 2":
            assert waiting.query(ending) == [Frame("C", b"ROLLBACK\0"), Frame("Z", b"I")]
    holders[0].query("COMMIT")
    for _ in range(2):
        waiting.send(*asked)
        refused = waiting.until_ready()
        assert (kinds(refused), sqlstate(refused), refused[-1].body) == ("EZ", "25P02", b"E")
    assert waiting.query("COMMIT") == [Frame("C", b"ROLLBACK\0"), Frame("Z", b"I")]
    assert waiting.value("SELECT 1") == "1"


def test_cancel_with_a_wrong_key_or_of_an_idle_session_does_nothing(
    relay: RunningRelay, connect: Connect
) -> None:
    client = connect()
    for key in (b"\0\0\0\0", client.secret_key):
        with relay.connect() as other:
            other.sendall(messages.cancel_request(client.process_id, key))
            assert other.recv(1) == b""
        assert client.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    "broken",
    [
        b"Q\0\0\0\x03",
        b"Q\xff\xff\xff\xff",
        b"y\0\0\0\x04",
        b"Q\0\0\0\x05x",
        b"P\0\0\0\x05a",
        b"B\0\0\0\x05a",
        b"D\0\0\0\x06Xa",
        b"E\0\0\0\x05\0",
        b"S\0\0\0\x05\0",
        b"C\0\0\0\x05S",
        b"p\0\0\0\x05x",
        b"D\x20\0\0\0",
    ],
)
def test_a_malformed_message_is_refused_and_nobody_else_notices(
    broken: bytes, relay: RunningRelay, connect: Connect
) -> None:
    bystander, client = connect(), connect()
    bystander.query("BEGIN")
    bystander.query("SELECT 1")
    client.send(broken)
    frames = client.until_ready()
    assert sqlstate(frames) == "08P01"
    assert frames[-1].body == b"closed"
    assert bystander.value("SELECT 2") == "2"
    assert connect().value("SELECT 3") == "3"
    assert not [event for event in relay.events if event["kind"] == "fault"]


def test_a_client_that_leaves_in_a_transaction_is_rolled_back_and_its_link_reused(
    relay: RunningRelay, connect: Connect
) -> None:
    client = connect()
    client.query("BEGIN")
    client.query("INSERT INTO t VALUES (777, 'gone')")
    client.socket.close()
    other = connect()
    relay.wait_for(lambda: relay.call(lambda r: r.clients) == 1, "the session is gone")
    assert other.value("SELECT count(*) FROM t WHERE id = 777") == "0"
    relay.call(lambda r: None)
    assert relay.call(lambda r: len(r.links)) <= 2
    other.query("BEGIN")
    assert kinds(other.query("INSERT INTO t VALUES (777, 'mine')")) == "CZ"
    other.query("ROLLBACK")


def test_a_statement_sent_before_goodbye_is_carried_out(relay: RunningRelay, connect: Connect) -> None:
    client = connect()
    client.send(query("INSERT INTO t SELECT 600, 'late' FROM pg_sleep(0.2)"), TERMINATE)
    client.socket.close()
    relay.wait_for(
        lambda: relay.shared.execute("SELECT count(*) FROM t WHERE id = 600") == [[1]],
        "the statement has run",
    )


def test_a_server_connection_killed_while_idle_costs_nobody_anything(
    relay: RunningRelay, connect: Connect
) -> None:
    client = connect()
    assert client.value("SELECT 1") == "1"
    relay.shared.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 0, "the dead links are noticed")
    assert client.value("SELECT 2") == "2"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [("SELECT pg_sleep(30)", "57P01"), ("INSERT INTO t SELECT 700, '' FROM pg_sleep(30)", "57P01")],
)
def test_a_server_that_says_goodbye_is_passed_on(
    statement: str, expected: str, relay: RunningRelay, connect: Connect
) -> None:
    client = connect()
    client.send(query(statement))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '"
        + statement.replace("'", "''")
        + "'"
    )
    relay.wait_for(lambda: bool(relay.shared.execute(kill)), "the statement runs")
    frames = client.until_ready()
    assert (sqlstate(frames), frames[-1].body) == (expected, b"closed")
