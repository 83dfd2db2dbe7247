"""Transactions that begin at a copy and move up to the owner: when they do, and when they must not begin."""

from __future__ import annotations

import socket

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.split import TABLES, asked, client_of, databases, moving
from support.wire import (
    SYNC,
    Frame,
    WireClient,
    bind,
    close,
    describe,
    execute,
    kinds,
    parse,
    sqlstate,
    without_tables,
)

from pgshunt.protocol import messages

__all__ = ["databases"]

READ = "SELECT v FROM t WHERE id = 1"
Pair = tuple[Database, Database]


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


def wait_fresh(relay: RunningRelay, client: WireClient) -> None:
    """Behind a write of the session, until the copy is known to hold it."""
    relay.wait_for(lambda: asked(client, "SELECT v FROM t WHERE id = 2") == "copy", "the copy is fresh again")


def batch_value(client: WireClient, *parts: bytes) -> str:
    """The first column of the first row of an extended batch."""
    client.send(*parts, SYNC)
    row = next(frame.body for frame in client.until_ready() if frame.kind == "D")
    return row[6 : 6 + int.from_bytes(row[2:6])].decode()


def test_a_transaction_reads_at_the_copy_and_writes_at_the_owner(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert kinds(client.query("BEGIN")) == "CZ"
        assert [asked(client) for _ in range(3)] == ["copy"] * 3
        assert kinds(client.query("UPDATE t SET v = 'mine' WHERE id = 1")) == "CZ"
        assert asked(client) == "mine"
        assert client.query("COMMIT")[-1].body == b"I"
        assert databases[0].execute("SELECT v FROM t WHERE id = 1") == [["mine"]]
        assert databases[1].execute("SELECT v FROM t WHERE id = 1") == [["copy"]]
        assert relay.count("routes", "svc", "split", "svc_db") == 1
        assert relay.count("routes", "svc", "transaction", "svc_db") == 2
        assert relay.count("routes", "svc", "moved_up", "shared") == 1
        left = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"
        left += " AND datname = current_database()"
        relay.wait_for(lambda: databases[1].execute(left) == [[0]], "the copy's half is rolled back")


def test_a_transaction_that_only_reads_ends_at_the_copy(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for end in ("COMMIT", "ROLLBACK", "END"):
            client.query("BEGIN")
            assert asked(client) == "copy"
            frames = client.query(end)
            assert (kinds(frames), frames[-1].body) == ("CZ", b"I")
        assert relay.count("calls", "svc", "baseline") == 0
        assert client.query("INSERT INTO u VALUES (77)")[-1].body == b"I"
        assert databases[0].execute("SELECT count(*) FROM u") == [[1]]


# What is done at the owner, wherever the transaction was; behind it the transaction stays there.
OWNERS = [
    "UPDATE t SET id = id WHERE id = 2",
    "SELECT v FROM t WHERE id = 2 FOR UPDATE",
    "SELECT v FROM t WHERE id = 2 FOR KEY SHARE",
    "LOCK TABLE t IN ACCESS SHARE MODE",
    "SELECT v, now() FROM t WHERE id = 2",
    "SELECT v, current_timestamp FROM t WHERE id = 2",
    "SELECT v, localtime FROM t WHERE id = 2",
    "SELECT v, transaction_timestamp() FROM t WHERE id = 2",
    "SELECT v, 'now'::timestamptz FROM t WHERE id = 2",
    "SELECT v FROM t WHERE id = 2 AND 'tomorrow' > date '2000-01-01'",
    "SELECT v, random() FROM t WHERE id = 2",
    "SELECT v FROM t, other",
    "SELECT 1",
    "SAVEPOINT s",
    "SET LOCAL work_mem = '8MB'",
    "SET work_mem = '8MB'",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "SHOW transaction_isolation",
    "DECLARE c CURSOR FOR SELECT v FROM t",
    "DECLARE c CURSOR WITH HOLD FOR SELECT v FROM t",
    "PREPARE p AS SELECT v FROM t",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT set_config('work_mem', '8MB', true)",
    "SELECT txid_current()",
    "SELECT pg_export_snapshot()",
    "CREATE TEMP TABLE made ON COMMIT DROP AS SELECT v FROM t",
    "COPY t TO STDOUT",
    "EXPLAIN SELECT v FROM t",
    "LISTEN channel",
    "NOTIFY channel",
    "DO $$ BEGIN PERFORM 1; END $$",
    "SELECT v FROM t WHERE id = 2; SELECT v FROM t WHERE id = 3 FOR UPDATE",
]


@pytest.mark.parametrize("sql", OWNERS)
def test_what_the_copy_could_not_forget_is_done_at_the_owner(sql: str, databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for before in ((), (READ,)):
            client.query("BEGIN")
            for statement in before:
                assert asked(client, statement) == "copy"
            assert "E" not in kinds(client.query(sql))
            assert asked(client) == "shared"
            client.query("ROLLBACK")
            client.query("DISCARD ALL")
            wait_fresh(relay, client)
        assert relay.count("routes", None, "moved_up", "shared") == 1


@pytest.mark.parametrize(
    ("begin", "where"),
    [
        ("BEGIN", "copy"),
        ("START TRANSACTION", "copy"),
        ("BEGIN ISOLATION LEVEL READ COMMITTED", "copy"),
        ("BEGIN ISOLATION LEVEL READ UNCOMMITTED", "copy"),
        ("BEGIN READ ONLY", "copy"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "shared"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", "shared"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "shared"),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE", "shared"),
        ("BEGIN READ WRITE", "shared"),
    ],
)
def test_how_a_transaction_begins_says_whether_it_may(begin: str, where: str, databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert kinds(client.query(begin)) == "CZ"
        assert asked(client) == where
        client.query("COMMIT")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_the_sessions_default_isolation_is_honoured(level: str, databases: Pair) -> None:
    def reads(client: WireClient, begin: str) -> str | None:
        wait_fresh(relay, client)  # until then the session keeps the link that is asked what was set
        client.query(begin)
        where = asked(client)
        client.query("COMMIT")
        return where

    with moving(databases) as relay:
        with client_of(relay) as client:
            client.query(f"SET default_transaction_isolation = '{level}'")
            assert reads(client, "BEGIN") == "shared"
            assert reads(client, "BEGIN ISOLATION LEVEL READ COMMITTED") == "copy"
            client.query("RESET default_transaction_isolation")
            assert reads(client, "BEGIN") == "copy"
            client.query(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")
            assert reads(client, "BEGIN") == "shared"
            client.query("BEGIN")
            client.query(f"SET TRANSACTION ISOLATION LEVEL {level}")
            assert asked(client) == "shared"
            client.query("COMMIT")
        options = "-c default_transaction_isolation=" + level.replace(" ", "\\ ")
        with WireClient(relay.connect()) as client:
            client.log_in("app", relay.shared.dbname, options=options)
            assert reads(client, "BEGIN") == "shared"


def test_a_role_of_another_default_stays(databases: Pair) -> None:
    databases[0].execute("ALTER ROLE app SET default_transaction_isolation = 'repeatable read'")
    try:
        with moving(databases) as relay, client_of(relay) as client:
            client.query("BEGIN")
            assert asked(client) == "shared"
    finally:
        databases[0].execute("ALTER ROLE app RESET default_transaction_isolation")


def test_a_read_only_transaction_is_refused_its_write_as_ever(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN READ ONLY")
        assert asked(client) == "copy"
        assert sqlstate(client.query("UPDATE t SET v = 'x'")) == "25006"
        assert sqlstate(client.query(READ)) == "25P02"
        assert client.query("ROLLBACK")[-1].body == b"I"


def test_a_transaction_that_failed_at_the_copy_stays_failed(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for behind, answers in (
            (("COMMIT",), "CZ"),
            ((READ, "ROLLBACK"), "EZCZ"),
            (("UPDATE t SET v = 'x'", "SAVEPOINT s", "ROLLBACK"), "EZEZCZ"),
        ):
            client.query("BEGIN")
            assert asked(client) == "copy"
            frames = client.query("SELECT v, 1 / (id - id) FROM t")
            assert (sqlstate(frames), frames[-1].body) == ("22012", b"E")
            found = [client.query(sql) for sql in behind]
            assert "".join(map(kinds, found)) == answers
            for frames in found[:-1]:
                assert (sqlstate(frames), frames[-1].body) == ("25P02", b"E")
            assert found[-1][0].body == b"ROLLBACK\0"
            wait_fresh(relay, client)
        assert databases[0].execute("SELECT count(*) FROM t WHERE v = 'x'") == [[0]]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_stands_behind_the_end_in_one_batch_is_never_done_at_the_copy(
    end: str, fails: bool, databases: Pair
) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert asked(client) == "copy"
        if fails:
            client.query("SELECT v, 1 / (id - id) FROM t")
        insert = parse("", "INSERT INTO u VALUES (5)"), bind("", ""), execute()
        client.send(parse("", end), bind("", ""), execute(), *insert, SYNC)
        assert kinds(client.until_ready()) == "12C12CZ"
        wait_fresh(relay, client)
        client.query("BEGIN")
        assert asked(client, "SELECT v FROM t WHERE id = 2") == "copy"
        assert kinds(client.query(f"{end}; INSERT INTO u VALUES (6)")) == "CCZ"
        assert databases[0].execute("SELECT id FROM u ORDER BY id") == [[5], [6]]
        assert databases[1].execute("SELECT id FROM u") == []


def test_extended_batches_move_with_their_statements(databases: Pair) -> None:
    """Prepared by name outside, unnamed inside; after the move each is found at the owner."""
    read = "SELECT v FROM t WHERE id = $1::int"
    with moving(databases) as relay, client_of(relay) as client:
        client.send(parse("named", read), parse("write", "UPDATE t SET v = v WHERE id = $1::int"), SYNC)
        client.until_ready()
        begin = parse("", "BEGIN"), bind("", ""), execute()
        assert batch_value(client, *begin, bind("", "named", "1"), describe("P"), execute()) == "copy"
        assert batch_value(client, parse("", read), bind("", "", "2"), execute()) == "copy"
        assert batch_value(client, bind("", "", "3"), execute()) == "copy"
        client.send(bind("", "write", "4"), execute(), SYNC)
        assert kinds(client.until_ready()) == "2CZ"
        assert batch_value(client, parse("", read), bind("", "", "2"), execute()) == "shared"
        assert batch_value(client, bind("", "named", "1"), execute()) == "shared"
        client.send(parse("", "COMMIT"), bind("", ""), execute(), SYNC)
        assert client.until_ready()[-1].body == b"I"
        wait_fresh(relay, client)
        client.send(parse("", "BEGIN"), bind("", ""), execute(), SYNC)
        client.until_ready()
        assert batch_value(client, parse("", read), bind("", "", "2"), execute()) == "copy"
        client.query("UPDATE t SET v = v WHERE id = 9")
        client.query("COMMIT")


def test_an_unnamed_statement_goes_along(databases: Pair) -> None:
    """Parsed at the copy, it is bound again behind a move that something else has caused."""
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        read = parse("", "SELECT v FROM t WHERE id = $1::int")
        assert batch_value(client, read, bind("", "", "2"), execute()) == "copy"
        client.send(close("P"), SYNC)
        assert kinds(client.until_ready()) == "3Z"
        assert batch_value(client, bind("", "", "3"), execute()) == "shared"


@pytest.mark.parametrize(
    "portal",
    [(bind("named", ""), execute("named")), (bind("", ""), execute("", 1))],
    ids=["named", "in parts"],
)
def test_a_portal_that_stays_open_is_the_owners(portal: tuple[bytes, bytes], databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for before in (0, 1):
            client.query("BEGIN")
            for _ in range(before):
                assert asked(client) == "copy"
            assert batch_value(client, parse("", "SELECT v FROM t ORDER BY id"), *portal) == "shared"
            name = "named" if b"named" in portal[0] else ""
            client.send(execute(name, 1), SYNC)
            assert "E" not in kinds(client.until_ready())
            client.query("COMMIT")


def test_a_parameter_that_tells_the_time_is_the_owners(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        for value, where in (("NOW", "shared"), ("Yesterday", "shared"), ("2026-01-01", "copy")):
            client.query("BEGIN")
            sql = "SELECT v FROM t WHERE id = 1 AND $1::text IS NOT NULL"
            assert batch_value(client, parse("", sql), bind("", "", value), execute()) == where
            client.query("COMMIT")


def test_a_copy_that_fails_costs_the_transaction_nothing(databases: Pair) -> None:
    """Be it the second read that fails there, or the first."""
    databases[0].execute("INSERT INTO u VALUES (77)")
    other = "SELECT id FROM u"
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert asked(client) == "copy"
        databases[1].execute("ALTER TABLE u RENAME TO hidden")
        assert asked(client, other) == "77"
        assert asked(client) == "shared"
        client.query("COMMIT")
        client.query("BEGIN")
        assert asked(client, other) == "77"
        assert kinds(client.query("UPDATE t SET v = 'mine' WHERE id = 1")) == "CZ"
        assert client.query("COMMIT")[-1].body == b"I"
        assert relay.count("routes", "svc", "retried", "shared") == 2
        assert databases[0].execute("SELECT v FROM t WHERE id = 1") == [["mine"]]


def test_a_copy_that_is_lost_between_two_statements(databases: Pair) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    with moving(databases) as relay, client_of(relay) as client:
        for behind in (f"{READ}", "UPDATE t SET id = id RETURNING v"):
            client.query("BEGIN")
            assert asked(client) == "copy"
            databases[1].execute(f"{kill} AND datname = current_database()")
            relay.wait_for(lambda: relay.call(lambda r: r.links_open) <= 1, "the link is gone")
            assert asked(client, behind) == "shared"
            assert client.query("COMMIT")[-1].body == b"I"
            wait_fresh(relay, client)
        client.query("BEGIN")
        assert asked(client) == "copy"
        client.query("SELECT v, 1 / (id - id) FROM t")
        kill = kill.replace("'idle in transaction'", "'idle in transaction (aborted)'")
        databases[1].execute(f"{kill} AND datname = current_database()")
        relay.wait_for(lambda: relay.call(lambda r: r.links_open) <= 1, "the link is gone")
        assert sqlstate(client.query(READ)) == "25P02"
        assert client.query("COMMIT")[0].body == b"ROLLBACK\0"


def test_a_copy_that_falls_behind_is_left_in_the_middle(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert asked(client) == "copy"
        relay.fresh = False
        relay.wait_for(lambda: asked(client) == "shared", "the copy is late")
        assert relay.count("routes", "svc", "moved_up", "shared") == 1
        client.query("COMMIT")


def test_a_new_epoch_is_heeded_in_the_middle(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert asked(client) == "copy"
        relay.shift(50)
        assert [asked(client) for _ in range(20)] == ["copy"] * 20, "the weight is asked once a transaction"
        relay.shift(0)
        assert asked(client) == "shared"
        relay.shift(100)
        assert asked(client) == "shared"
        client.query("COMMIT")
        assert asked(client) == "copy"


def test_a_session_reads_its_own_writes_in_transactions_too(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        relay.fresh = False
        client.query("UPDATE t SET v = 'mine' WHERE id = 1")
        client.query("BEGIN")
        assert asked(client) == "mine"
        client.query("COMMIT")


def test_settings_follow_the_transaction(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.query("SET app.tenant = 'seven'")
        wait_fresh(relay, client)  # until then the session keeps the link that is asked what was set
        client.query("BEGIN")
        assert asked(client) == "copy"
        client.query("UPDATE t SET v = current_setting('app.tenant') WHERE id = 1")
        client.query("COMMIT")
        assert databases[0].execute("SELECT v FROM t WHERE id = 1") == [["seven"]]


def test_what_is_pipelined_arrives_in_order(databases: Pair) -> None:
    """BEGIN, reads, a write and COMMIT in one packet, a Sync behind each."""
    with moving(databases) as relay, client_of(relay) as client:

        def unit(sql: str) -> bytes:
            return parse("", sql) + bind("", "") + execute() + SYNC

        update = "UPDATE t SET v = 'mine' WHERE id = 1 RETURNING v"
        client.send(*(unit(sql) for sql in ("BEGIN", READ, READ, update, READ, "COMMIT", READ)))
        found = [client.until_ready() for _ in range(7)]
        assert [kinds(frames) for frames in found] == ["12CZ", *["12DCZ"] * 4, "12CZ", "12DCZ"]
        values = [frame.body[6:].decode() for frames in found for frame in frames if frame.kind == "D"]
        assert values[:4] == ["copy", "copy", "mine", "mine"]
        assert [frames[-1].body for frames in found] == [b"T"] * 5 + [b"I"] * 2


def test_a_view_may_tell_the_time(databases: Pair) -> None:
    """At a replica of the owner, which has its views. Here it is another database, to tell them apart."""
    for database in databases:
        database.execute("CREATE VIEW timed AS SELECT v, now() AS at FROM t WHERE id = 1")
    with RunningRelay(databases[0], replicas=(databases[1],)) as relay, client_of(relay) as client:
        view, table = "SELECT v FROM timed", READ
        assert {asked(client, view) for _ in range(60)} == {"shared", "copy"}
        for sql, where in ((view, {"shared"}), (table, {"shared", "copy"})):
            found = set()
            for _ in range(60):
                client.query("BEGIN")
                found.add(asked(client, sql))
                client.query("COMMIT")
            assert found == where


TIMED = "SELECT v FROM t WHERE id = 1 AND 'now'::timestamptz > '2000-01-01'"


@pytest.mark.parametrize(("sql", "where"), [(READ, "copy"), (TIMED, "shared")])
def test_a_time_may_stand_in_what_was_prepared_before(sql: str, where: str, databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.send(parse("begin", "BEGIN"), parse("read", sql), SYNC)
        assert kinds(client.until_ready()) == "11Z"
        client.query("BEGIN")
        assert batch_value(client, bind("", "read"), execute()) == where
        client.query("COMMIT")
        client.send(parse("", sql), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(bind("", "begin"), execute(), SYNC)
        assert kinds(client.until_ready()) == "2CZ"
        assert batch_value(client, bind("", ""), execute()) == where
        client.query("COMMIT")
        client.query(f"PREPARE sql AS {sql}")
        client.query("BEGIN")
        assert asked(client, "EXECUTE sql") == where
        client.query("COMMIT")


TOO_LATE = [
    ["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
    ["SAVEPOINT s", "RELEASE s", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"],
    ["SET LOCAL transaction_isolation = 'serializable'"],
    ["SET TRANSACTION ISOLATION LEVEL READ COMMITTED"],
    ["SET TRANSACTION READ ONLY", "SET TRANSACTION READ WRITE"],
    ["SET TRANSACTION DEFERRABLE"],
]


def outcomes(client: WireClient, begin: str, statements: list[str]) -> list[str]:
    said = []
    for sql in (begin, READ, *statements, "SHOW transaction_isolation", "ROLLBACK"):
        frames = client.query(sql)
        said.append(sqlstate(frames) if "E" in kinds(frames) else kinds(frames))
    return said


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN READ ONLY"])
@pytest.mark.parametrize("statements", TOO_LATE)
def test_behind_a_read_its_transaction_is_what_it_is(
    begin: str, statements: list[str], databases: Pair
) -> None:
    server = databases[0].server
    with (
        moving(databases) as relay,
        client_of(relay) as client,
        LoginForwarder(server.host, server.port, server.user, server.password) as forwarder,
        WireClient(socket.create_connection(forwarder.address, 10)) as direct,
    ):
        expected = outcomes(direct.log_in(server.user, databases[0].dbname), begin, statements)
        assert outcomes(client, begin, statements) == expected
        assert relay.count("routes", None, "moved_up", "shared") == 1


BEHIND_A_PORTAL: dict[str, list[list[bytes]]] = {
    "bound anew, and run by a later batch": [
        [parse("", "SELECT id FROM u"), bind("", ""), SYNC],
        [execute(), SYNC],
    ],
    "bound anew, described, and run by a later batch": [
        [parse("", READ), bind("", ""), describe("P"), SYNC],
        [execute(), SYNC],
    ],
    "executed again": [[execute(), SYNC], [execute(), SYNC]],
    "behind another portal": [
        [parse("", "UPDATE t SET id = id WHERE id = 1"), bind("p", ""), execute("p"), SYNC],
        [execute(), SYNC],
    ],
    "behind another statement": [[query("UPDATE t SET id = id WHERE id = 1")], [execute(), SYNC]],
    "closed": [[close("P"), SYNC], [execute(), SYNC]],
    "described": [[describe("P"), SYNC], [describe("P"), execute(), SYNC], [execute(), SYNC]],
    "described in a pipeline": [
        [describe("P"), SYNC, describe("P"), parse("", "SELECT id FROM u"), bind("", ""), execute(), SYNC],
        [describe("P"), query("UPDATE t SET id = id WHERE id = 1")],
        [],
        [describe("P"), SYNC],
    ],
    "described and closed": [[describe("P"), close("P"), SYNC], [describe("P"), SYNC], [describe("P"), SYNC]],
    "described behind a parse": [
        [parse("", READ), SYNC],
        [describe("P"), SYNC],
        [describe("P"), parse("", "UPDATE t SET id = id WHERE id = 1"), bind("", ""), execute(), SYNC],
    ],
    "described behind nothing": [
        [query("")],
        [describe("P"), parse("", "UPDATE t SET id = id WHERE id = 1"), bind("", ""), execute(), SYNC],
    ],
    "described behind a simple read": [
        [query("SELECT id FROM t WHERE id = 1")],
        [describe("P"), parse("", "UPDATE t SET id = id WHERE id = 1"), bind("", ""), execute(), SYNC],
        [query("SELECT 1")],
    ],
    "described behind what is dropped": [
        [query("DEALLOCATE prepared")],
        [describe("P"), parse("", "UPDATE t SET id = id WHERE id = 1"), bind("", ""), execute(), SYNC],
    ],
    "executed behind a parse": [[parse("", READ), SYNC], [execute(), SYNC]],
    "described after an error": [[parse("", "SELECT nothing"), SYNC], [describe("P"), SYNC]],
    "in one batch": [
        [parse("", "UPDATE t SET id = id WHERE id = 1"), execute(), bind("", ""), execute(), SYNC],
        [execute(), SYNC],
    ],
}


@pytest.mark.parametrize("case", BEHIND_A_PORTAL)
def test_a_portal_that_has_returned_all_its_rows_has_none_left(case: str, databases: Pair) -> None:
    def heard(client: WireClient) -> list[list[tuple[str, bytes | str]]]:
        client.send(parse("prepared", READ), SYNC)
        client.until_ready()
        client.query("BEGIN")
        client.send(parse("", READ), bind("", ""), execute(), SYNC)
        assert kinds(client.until_ready()) == "12DCZ"
        told = []
        for batch in BEHIND_A_PORTAL[case]:
            client.send(*batch)
            frames = client.until_ready()
            told.append([(frame.kind, what(frame)) for frame in frames])
        client.query("ROLLBACK")
        return told

    def what(frame: Frame) -> bytes | str:
        return sqlstate([frame]) if frame.kind == "E" else without_tables(frame).body

    server = databases[0].server
    with (
        moving(databases) as relay,
        client_of(relay) as client,
        LoginForwarder(server.host, server.port, server.user, server.password) as forwarder,
        WireClient(socket.create_connection(forwarder.address, 10)) as direct,
    ):
        assert heard(client) == heard(direct.log_in(server.user, databases[0].dbname))


def test_a_batch_of_two_statements_is_no_read_because_its_first_is_one(databases: Pair) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.send(parse("read", READ), parse("", "INSERT INTO u VALUES (1)"), SYNC)
        assert kinds(client.until_ready()) == "11Z"
        client.send(bind("", "read"), execute(), bind("", ""), execute(), SYNC)
        assert kinds(client.until_ready()) == "2DC2CZ"
        assert [database.execute("SELECT count(*) FROM u") for database in databases] == [[[1]], [[0]]]


def test_a_transaction_that_was_refused_before_it_began_leaves_nothing_to_the_next(databases: Pair) -> None:
    """The next one may begin where no BEGIN waits: it is not taken for one that runs at a copy."""
    config = {"pools": {"default_pool_size": 1}}
    with (
        RunningRelay(*databases, tables=TABLES, reads_percent=100, config=config) as relay,
        client_of(relay) as holder,
        client_of(relay) as client,
    ):
        holder.query("BEGIN")
        assert asked(holder) == "copy"
        client.query("BEGIN")
        client.send(query(READ))
        relay.wait_for(lambda: relay.call(lambda relay: relay.waiting) == 1, "the read waits at the copy")
        process_id, secret_key = client.process_id, client.secret_key
        relay.call(lambda relay: relay.cancel(process_id, secret_key))
        assert sqlstate(client.until_ready()) == "57014"
        assert kinds(client.query("ROLLBACK")) == "CZ"
        assert client.query("BEGIN; INSERT INTO u VALUES (78)")[-1].body == b"T"
        assert client.query("UPDATE t SET v = 'mine' WHERE id = 1")[-1].body == b"T"
        assert client.query("COMMIT")[-1].body == b"I"
        holder.query("COMMIT")
    assert databases[0].execute("SELECT count(*) FROM u WHERE id = 78") == [[1]]
    assert databases[0].execute("SELECT v FROM t WHERE id = 1") == [["mine"]]


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize(
    "closed", [close("S", "named"), close("S", "nothing"), close("S"), close("P", "nothing")]
)
def test_what_only_the_proxy_holds_is_closed_wherever_the_transaction_runs(
    closed: bytes, pipelined: bool, databases: Pair
) -> None:
    def heard(client: WireClient) -> list[str]:
        client.send(parse("named", READ), parse("kept", READ), SYNC, query("BEGIN"))
        told = [kinds(client.until_ready()) for _ in range(2)]
        read = bind("", "kept"), describe("P"), execute(), SYNC
        for batch in ((*read,), (closed, SYNC), (closed, *read), (closed, closed, *read)):
            client.send(*batch)
            if not pipelined:
                told.append(kinds(client.until_ready()))
        told += [kinds(client.until_ready()) for _ in range(4 * pipelined)]
        client.send(bind("", "named"), execute(), SYNC)
        return [*told, kinds(client.until_ready())]

    server = databases[0].server
    with (
        moving(databases) as relay,
        client_of(relay) as client,
        LoginForwarder(server.host, server.port, server.user, server.password) as forwarder,
        WireClient(socket.create_connection(forwarder.address, 10)) as direct,
    ):
        proxied = heard(client)
        assert relay.count("routes", None, "moved_up") == (closed == close("S", "named"))
        assert proxied == heard(direct.log_in(server.user, databases[0].dbname))


def test_a_read_that_waits_too_long_at_a_copy_is_done_at_the_owner(databases: Pair) -> None:
    config = {"pools": {"default_pool_size": 1, "query_wait_timeout_ms": 100}}
    with (
        RunningRelay(*databases, tables=TABLES, reads_percent=100, config=config) as relay,
        client_of(relay) as holder,
        client_of(relay) as client,
    ):
        holder.query("BEGIN")
        assert asked(holder) == "copy"
        assert asked(client) == "shared"
        client.query("BEGIN")
        assert asked(client) == "shared"
        assert relay.count("timeouts", "query_wait") == 0


def test_a_close_behind_a_read_that_fails_at_the_copy_is_answered(databases: Pair) -> None:
    databases[1].execute("ALTER TABLE t RENAME COLUMN v TO w")
    with moving(databases) as relay, client_of(relay) as client:
        for begin in ("BEGIN", "ROLLBACK"):
            client.query(begin)
            client.send(query(READ), close("S", "nothing"), SYNC)
            assert [kinds(client.until_ready()) for _ in range(2)] == ["TDCZ", "3Z"]
