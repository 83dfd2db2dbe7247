"""Services that have moved: what goes to their own database, what stays, and what is refused.

The two databases answer differently, so that the answer tells which one was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import pytest
from support.fixtures import Database
from support.split import asked, batch, client_of, databases, moved, query, told
from support.wire import FLUSH, SYNC, bind, close, copy_data, describe, execute, hint, kinds, parse, sqlstate

from pgshunt.protocol.messages import cancel_request
from pgshunt.routing.table import Stage

__all__ = ["databases"]

Pair = tuple[Database, Database]
READ = "SELECT v FROM t WHERE id = 1"
WRITE = "UPDATE t SET v = 'mine' WHERE id = 1"


@pytest.mark.parametrize("stage", ["switched", "completed"])
def test_statements_go_to_the_owner_of_their_tables(databases: Pair, stage: Stage) -> None:
    shared, own = databases
    with moved(databases, stage) as relay, client_of(relay) as client:
        assert asked(client) == "copy"
        assert kinds(client.query(WRITE)) == "CZ"
        assert asked(client) == "mine", "at the owner, whatever the freshness"
        assert batch(client, parse("", "DELETE FROM t WHERE id = $1::int"), bind("", "", "2"), execute()) == (
            "12CZ"
        )
        assert kinds(client.query("INSERT INTO other VALUES (1)")) == "CZ"
        assert asked(client, "SELECT count(*) FROM other") == "1"
        client.send(query("COPY u FROM STDIN"), copy_data(b"7\n"), b"c\0\0\0\4")
        assert kinds(client.until_ready()) == "GCZ"
        for database, rows in ((shared, [["shared", 10, 0, 1]]), (own, [["mine", 9, 1, 0]])):
            assert rows == database.execute(
                "SELECT (SELECT v FROM t WHERE id = 1), (SELECT count(*) FROM t),"
                " (SELECT count(*) FROM u), (SELECT count(*) FROM other)"
            )
        assert relay.count("routes", "svc", "owner_write", "svc_db") == 3


def test_what_names_no_table_stays_on_the_shared_database(databases: Pair) -> None:
    port = "SELECT current_setting('port')"
    with moved(databases) as relay, client_of(relay) as client:
        expected = str(databases[0].server.port).encode()
        for sql in (port, f"SELECT random() < 2, {port[7:]}", f"/* t */ {port}"):
            rows = [frame.body for frame in client.query(sql) if frame.kind == "D"]
            assert rows[0].endswith(expected)
        assert sqlstate(client.query("SELCT FROM other")) == "42601"
        assert relay.count("calls", "svc") == 0


def test_what_only_an_older_server_can_parse_is_not_asked_of_the_wrong_one(databases: Pair) -> None:
    """PostgreSQL 15 runs it: json_exists is no keyword there."""
    for database in databases:
        database.execute("CREATE FUNCTION json_exists(text) RETURNS text RETURN $1")
    with moved(databases) as relay, client_of(relay) as client:
        frames = client.query("SELECT json_exists(v) FROM t WHERE id = 1")
        assert (kinds(frames), sqlstate(frames)) == ("EZ", "0A000")
        assert "PostgreSQL 18" in hint(frames)
        assert client.value('SELECT "json_exists"(v) FROM t WHERE id = 1') == "copy"
        assert kinds(client.query("SELECT json_exists('other') FROM other")) == "TCZ"


def test_a_table_that_the_shared_database_has_no_more_is_found(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        databases[0].execute("ALTER TABLE t RENAME TO t_moved_away")
        relay.shift(0)
        assert asked(client) == "copy"
        assert kinds(client.query(WRITE)) == "CZ"


def test_a_switch_is_followed_by_the_next_statement(databases: Pair) -> None:
    with moved(databases, "reading", reads_percent=0) as relay, client_of(relay) as client:
        client.send(parse("named", READ), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        assert asked(client) == "shared"
        for stage, answer in (("switched", "copy"), ("reading", "shared"), ("completed", "copy")):
            relay.shift(0, stage=stage)
            assert asked(client) == answer
            client.send(bind("", "named"), execute(), SYNC)
            assert client.until_ready()[1].body.endswith(answer.encode())
            client.query("BEGIN")
            assert asked(client) == answer
            client.query("ROLLBACK")


def test_who_waits_for_a_link_during_a_switch_goes_to_the_new_owner(databases: Pair) -> None:
    config = {"pools": {"default_pool_size": 1}}
    with (
        moved(databases, "reading", config=config) as relay,
        client_of(relay) as busy,
        client_of(relay) as waiting,
    ):
        busy.query("BEGIN")
        busy.query("LOCK TABLE other")
        waiting.send(query(WRITE))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "the write waits for a link")
        relay.shift(0, stage="switched")
        assert kinds(waiting.until_ready()) == "CZ"
        assert databases[1].execute(READ) == [["mine"]]
        busy.query("ROLLBACK")


# --- several owners -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE t SET v = 'x' FROM other",
        "INSERT INTO other SELECT id FROM t",
        "WITH gone AS (DELETE FROM other RETURNING id) INSERT INTO t SELECT id FROM gone",
        "SELECT v FROM t JOIN other USING (id)",
        "SELECT v FROM t, other FOR UPDATE",
        "TRUNCATE t, other",
        "INSERT INTO other VALUES (1); INSERT INTO t VALUES (99)",
        "COPY (SELECT * FROM t, other) TO STDOUT",
    ],
)
def test_what_no_database_may_do_is_refused_before_anything_is_sent(databases: Pair, sql: str) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        message, way = told(client, sql)
        assert "public.t (owned by svc, on svc_db)" in message
        assert "public.other (nobody's, on shared)" in message
        assert "one database" in way
        assert batch(client, parse("", sql), bind("", ""), execute()) == "EZ"
        for database in databases:
            assert database.execute("SELECT count(*), count(*) FILTER (WHERE v = 'x') FROM t") == [[10, 0]]
            assert database.execute("SELECT count(*) FROM other") == [[0]]
        assert relay.count("routes", None, "several_owners") == 2
        assert asked(client) == "copy"


def test_a_read_over_several_owners_goes_where_all_are_and_are_fresh(databases: Pair) -> None:
    """The reverse lane's copy of t is on the shared database, where other is owned."""
    for database in databases:
        database.execute("INSERT INTO other VALUES (1)")
    both = "SELECT v FROM t JOIN other USING (id)"
    with moved(databases) as relay, client_of(relay) as client:
        assert asked(client, both) == "shared"
        assert relay.count("routes", "svc", "together", "shared") == 1
        relay.fresh = False
        assert kinds(client.query(WRITE)) == "CZ"
        message, way = told(client, both)
        assert "public.t (owned by svc, on svc_db)" in message
        assert "Repeat it" in way
        assert kinds(client.query("INSERT INTO other SELECT id FROM t WHERE id = 5")) == "EZ"
        with client_of(relay) as another:
            assert asked(another, both) == "shared", "this one has written nothing that is missing there"
        relay.fresh = True
        relay.wait_for(lambda: kinds(client.query(both)) == "TDCZ", "fresh again")
        assert kinds(client.query("INSERT INTO other SELECT id FROM t WHERE id = 5")) == "CZ"
        assert databases[0].execute("SELECT id FROM other ORDER BY id") == [[1], [5]]


def test_what_was_written_where_it_is_read_needs_no_proof(databases: Pair) -> None:
    both = "SELECT count(*) FROM t JOIN other USING (id)"
    with moved(databases) as relay, client_of(relay) as client:
        relay.fresh = False
        assert kinds(client.query("INSERT INTO other VALUES (3)")) == "CZ"
        assert asked(client, both) == "1"
        client.query("BEGIN")
        assert kinds(client.query("INSERT INTO other VALUES (4)")) == "CZ"
        assert asked(client, both) == "2"
        assert kinds(client.query("COMMIT")) == "CZ"
        assert kinds(client.query(WRITE)) == "CZ"
        assert kinds(client.query("INSERT INTO other VALUES (5)")) == "CZ"
        assert "Repeat it" in told(client, both)[1], "what was written at the other database came earlier"


def test_an_external_ref_is_read_beside_the_services_own_tables(databases: Pair) -> None:
    databases[1].execute("INSERT INTO other VALUES (1)")
    with moved(databases, "completed", ("other",)) as relay, client_of(relay) as client:
        assert asked(client, "SELECT v FROM t JOIN other USING (id)") == "copy"
        assert kinds(client.query("INSERT INTO t SELECT id + 100 FROM other")) == "CZ"
        assert databases[1].execute("SELECT max(id) FROM t") == [[101]]
        assert asked(client, "SELECT count(*) FROM other") == "0", "alone it is read at its owner"
        assert "on svc_db" in told(client, "INSERT INTO other SELECT id FROM t")[0]
        assert relay.count("routes", "svc", "together", "svc_db") == 2


# --- transactions -------------------------------------------------------------------------------------


def test_a_transaction_is_bound_to_the_owner_of_its_first_statement(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        for first, second, owner in (
            (WRITE, "INSERT INTO other VALUES (1)", "svc_db"),
            ("INSERT INTO other VALUES (1)", WRITE, "shared"),
        ):
            assert kinds(client.query("BEGIN")) == "CZ"
            assert kinds(client.query(first)) == "CZ"
            message, way = told(client, second)
            assert f"the transaction runs at {owner}" in message
            assert "one database" in way
            assert sqlstate(client.query(first)) == "25P02"
            frames = client.query("COMMIT")
            assert (frames[0].body, frames[-1].body) == (b"ROLLBACK\0", b"I")
        assert databases[0].execute("SELECT count(*) FROM other") == [[0]]
        assert databases[1].execute(READ) == [["copy"]]
        assert databases[1].execute("SELECT count(*) FROM other") == [[0]]
        assert relay.count("routes", None, "bound") == 2


def test_the_refusal_ends_a_batch_and_can_be_taken_back_by_a_savepoint(databases: Pair) -> None:
    insert = parse("", "INSERT INTO other VALUES (1)")
    with moved(databases, "completed") as relay, client_of(relay) as client:
        update = parse("", WRITE)
        ran = batch(client, update, bind("", ""), execute(), insert, bind("", ""), execute())
        assert ran == "12CEZ"
        assert databases[1].execute(READ) == [["copy"]], "the batch is one transaction"
        client.query("BEGIN")
        client.query(WRITE)
        client.query("SAVEPOINT s")
        assert batch(client, insert, bind("", ""), describe("P"), execute()) == "EZ"
        assert kinds(client.query("ROLLBACK TO s")) == "CZ"
        assert kinds(client.query("SELECT 1")) == "TDCZ"
        assert kinds(client.query("COMMIT")) == "CZ"
        assert databases[1].execute(READ) == [["mine"]]


def test_what_was_pipelined_goes_each_to_its_owner(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.send(
            query("INSERT INTO other VALUES (1)"), query("BEGIN"), query(WRITE), query("COMMIT"),
            query("INSERT INTO other VALUES (2)"), query(READ), query(READ), query("SELECT 1"),
        )  # fmt: skip
        answers = [kinds(client.until_ready()) for _ in range(8)]
        assert answers == ["CZ", "CZ", "CZ", "CZ", "CZ", "TDCZ", "TDCZ", "TDCZ"]
        assert databases[0].execute("SELECT id FROM other") == [[1], [2]]
        assert databases[1].execute(READ) == [["mine"]]


def test_a_transaction_moves_up_from_a_copy_to_the_owner_wherever_that_is(databases: Pair) -> None:
    """It began when the service was read at its own database, and goes on when that owns it."""
    with moved(databases, "reading", reads_percent=100) as relay, client_of(relay) as client:
        client.query("BEGIN")
        assert asked(client) == "copy"
        relay.shift(0, stage="switched")
        assert kinds(client.query(WRITE)) == "CZ"
        assert kinds(client.query("COMMIT")) == "CZ"
        assert databases[1].execute(READ) == [["mine"]]
        assert databases[0].execute(READ) == [["shared"]]
        assert relay.count("routes", "svc", "moved_up", "svc_db") == 1


# --- transactions that begin without a table -----------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        "SET LOCAL app.tenant = 'seven'",
        "SELECT set_config('app.tenant', 'seven', true)",
        "SAVEPOINT s",
        "SELECT 1",
        "SHOW work_mem",
        "SELECT current_setting('port')",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ],
)
def test_what_names_no_table_leaves_it_open_where_the_transaction_runs(databases: Pair, first: str) -> None:
    write = "UPDATE t SET v = coalesce(nullif(current_setting('app.tenant', true), ''), 'none') WHERE id = 1"
    value = "seven" if "tenant" in first else "none"
    with moved(databases, "completed") as relay, client_of(relay) as client:
        for number, messages in enumerate(
            (
                [query(first)],
                [parse("", first), bind("", ""), describe("P"), execute(), SYNC],
                [parse("named", first), bind("", "named"), execute(), SYNC],
                [bind("", "named"), execute(), SYNC],
            )
        ):
            client.query("BEGIN")
            client.send(*messages)
            assert "E" not in kinds(client.until_ready())
            assert kinds(client.query(write)) == "CZ"
            if first.startswith("SAVEPOINT"):
                assert kinds(client.query("ROLLBACK TO s")) == "CZ"
                assert asked(client) == ("copy" if number == 0 else "none"), "undone to the savepoint"
                assert kinds(client.query(write)) == "CZ"
            shown = asked(client, "SHOW transaction_isolation")
            assert shown == ("serializable" if "SERIALIZABLE" in first else "read committed")
            assert kinds(client.query("COMMIT")) == "CZ"
            assert databases[1].execute(READ) == [[value]]
            assert not asked(client, "SELECT current_setting('app.tenant', true)"), (
                "it was for the transaction"
            )
        assert relay.count("routes", "svc", "moved_up", "svc_db") == 4


@pytest.mark.parametrize(
    "first",
    [
        "SELECT set_config('app.id', gen_random_uuid()::text, true)",
        "SELECT now()",
        "SELECT random()",
        "SELECT pg_advisory_xact_lock(1)",
        "DECLARE c CURSOR FOR SELECT 1",
        "SELECT count(*) FROM other",
    ],
)
def test_what_cannot_be_done_again_alike_binds_the_transaction(databases: Pair, first: str) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("BEGIN")
        client.query("SET LOCAL app.tenant = 'seven'")
        client.query(first)
        assert "the transaction runs at shared" in told(client, WRITE)[0]
        client.query("ROLLBACK")
        batch_of = parse("", "SET LOCAL app.tenant = 'seven'"), bind("", ""), execute()
        client.query("BEGIN")
        assert batch(client, *batch_of, parse("", "INSERT INTO other VALUES (1)"), bind("", ""), execute())
        assert "the transaction runs at shared" in told(client, WRITE)[0]
        client.query("ROLLBACK")
        assert databases[1].execute(READ) == [["copy"]]


def test_a_beginning_that_failed_binds_the_transaction(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("BEGIN")
        client.query("SAVEPOINT s")
        assert kinds(client.query("SET LOCAL work_mem = 'nonsense'")) == "EZ"
        assert sqlstate(client.query(WRITE)) == "25P02"
        assert kinds(client.query("ROLLBACK TO s")) == "CZ"
        assert "the transaction runs at shared" in told(client, WRITE)[0]
        assert client.query("ROLLBACK")[-1].body == b"I"


def test_a_cancel_while_a_beginning_is_done_again_fails_the_transaction(databases: Pair) -> None:
    """It takes long at the second database only."""
    for database, rows in zip(databases, (1, 10**12), strict=True):
        database.execute(f"ALTER DATABASE {database.dbname} SET app.rows = '{rows}'")
    rows = "(SELECT generate_series(1, current_setting('app.rows')::bigint)) n"
    first = f"SELECT set_config('app.counted', count(*)::text, true) FROM {rows}"
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT set_con%'"
    with moved(databases, "completed") as relay, client_of(relay) as client:
        write = parse("", WRITE), bind("", ""), execute()
        for parts in ([query(WRITE)], [*write, SYNC], [*write, FLUSH]):
            client.query("BEGIN")
            assert asked(client, first) == "1"
            client.send(*parts)
            relay.wait_for(lambda: databases[1].execute(running) == [[1]], "it is done again")
            with relay.connect() as other:
                other.sendall(cancel_request(client.process_id, client.secret_key))
                assert other.recv(1) == b""
            if parts[-1] == FLUSH:
                assert sqlstate([client.frame()]) == "57014"
                client.send(*write, SYNC)
            frames = client.until_ready()
            assert (kinds(frames), frames[-1].body) == ("Z" if parts[-1] == FLUSH else "EZ", b"E")
            assert parts[-1] == FLUSH or sqlstate(frames) == "57014"
            assert sqlstate(client.query(READ)) == "25P02"
            assert kinds(client.query("ROLLBACK")) == "CZ"
            assert asked(client) == "copy"


def test_who_waits_for_a_link_waits_no_longer_because_owners_change(databases: Pair) -> None:
    config = {"pools": {"default_pool_size": 1, "query_wait_timeout_ms": 300}}
    with (
        moved(databases, "reading", config=config) as relay,
        client_of(relay) as busy,
        client_of(relay) as waiting,
    ):
        busy.query("BEGIN; LOCK TABLE other")
        waiting.send(query("INSERT INTO other VALUES (1)"))
        stages: Iterator[Stage] = cycle(("switched", "reading"))

        def is_refused() -> bool:
            relay.shift(0, stage=next(stages))
            return relay.count("timeouts", "query_wait") == 1

        relay.wait_for(is_refused, "it has waited too long")
        assert sqlstate(waiting.until_ready()) == "53300"


def test_a_close_in_front_binds_nothing(databases: Pair) -> None:
    read = bind("", "named"), execute(), SYNC
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert batch(client, parse("named", READ)) == "1Z"
        client.send(query("SELECT count(*) FROM other"), close("S", "nothing"), *read)
        assert [kinds(client.until_ready()) for _ in range(2)] == ["TDCZ", "32DCZ"]
        client.query("BEGIN")
        assert asked(client, "SELECT 1") == "1"
        for closed in (close("S", "nothing"), close("S"), close("P", "nothing")):
            assert batch(client, closed) == "3Z"
        client.send(close("S", "nothing"), *read)
        assert kinds(client.until_ready()) == "32DCZ"
        assert kinds(client.query(WRITE)) == "CZ"


def test_a_pipelined_transaction_that_begins_without_a_table(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        tenant = "UPDATE t SET v = current_setting('app.tenant') WHERE id = 1"
        client.send(
            query("BEGIN"), query("SET LOCAL app.tenant = 'seven'"), query("SAVEPOINT s"),
            parse("", "SELECT set_config('app.tenant', $1, true)"), bind("", "", "nine"), execute(), SYNC,
            query(tenant), query("COMMIT"), query("INSERT INTO other VALUES (1)"),
        )  # fmt: skip
        answers = [kinds(client.until_ready()) for _ in range(7)]
        assert answers == ["CZ", "CZ", "CZ", "12DCZ", "CZ", "CZ", "CZ"]
        assert databases[1].execute(READ) == [["nine"]]
        assert databases[0].execute("SELECT count(*) FROM other") == [[1]]


# --- what a session leaves behind ----------------------------------------------------------------------


def test_settings_and_prepared_statements_follow_to_the_other_database(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("SET app.tenant = 'seven'")
        client.query("PREPARE p AS SELECT v || current_setting('app.tenant') FROM t WHERE id = 1")
        assert asked(client, "EXECUTE p") == "copyseven"
        assert asked(client, "SELECT v || current_setting('app.tenant') FROM t WHERE id = 1") == "copyseven"
        client.query("BEGIN")
        assert kinds(client.query(WRITE)) == "CZ"
        client.query("SET app.tenant = 'eight'")
        client.query("COMMIT")
        assert asked(client, "SELECT current_setting('app.tenant')") == "eight"


@pytest.mark.parametrize(
    ("keeps", "pin", "gives_up"),
    [
        ("CREATE TEMP TABLE mine (id int)", "temp_table", "DROP TABLE mine"),
        ("LISTEN jobs", "listen", "UNLISTEN jobs"),
        ("SELECT pg_advisory_lock(1)", "advisory_lock", "SELECT pg_advisory_unlock(1)"),
    ],
)
def test_a_session_that_keeps_its_link_is_refused_what_is_not_there(
    databases: Pair, keeps: str, pin: str, gives_up: str
) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query(keeps)
        assert asked(client, "SELECT count(*) FROM other") == "0"
        for sql in (READ, WRITE):
            message, way = told(client, sql)
            assert f"keeps its connection to shared ({pin})" in message
            assert "DISCARD ALL" in way
        assert relay.count("routes", None, "kept") == 2
        client.query(gives_up)
        relay.wait_for(lambda: kinds(client.query(READ)) == "TDCZ", "the link is given up")
        assert asked(client) == "copy"


def test_a_temporary_table_made_of_tables_that_have_moved_is_where_they_are(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("CREATE TEMP TABLE mine AS SELECT * FROM t")
        assert asked(client, "SELECT v FROM mine WHERE id = 1") == "copy"
        assert asked(client, "SELECT t.v FROM mine JOIN t USING (id) WHERE id = 1") == "copy"
        assert "keeps its connection to svc_db" in told(client, "INSERT INTO other VALUES (1)")[0]
        assert kinds(client.query("DISCARD ALL")) == "CZ"
        relay.wait_for(lambda: kinds(client.query("INSERT INTO other VALUES (1)")) == "CZ", "given up")


def test_sessions_meet_at_the_shared_database(databases: Pair) -> None:
    """A lock or a message in a transaction elsewhere would be seen by nobody."""
    with moved(databases, "completed") as relay, client_of(relay) as client:
        for sql in ("NOTIFY jobs", "LISTEN jobs", "SELECT pg_advisory_xact_lock(1)"):
            client.query("BEGIN")
            client.query(WRITE)
            assert "runs at svc_db" in told(client, sql)[0]
            client.query("ROLLBACK")
        assert "LISTEN, NOTIFY" in told(client, "SELECT pg_notify('jobs', v) FROM t")[0]
        assert kinds(client.query("NOTIFY jobs")) == "CZ"


# --- code, sequences, partitions, definitions ----------------------------------------------------------


def test_what_goes_with_a_table_goes_where_it_is(databases: Pair) -> None:
    for database in databases:
        database.execute(
            "DROP TABLE u; CREATE TABLE u (id serial, day int) PARTITION BY RANGE (day);"
            "CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (10);"
        )
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert kinds(client.query("INSERT INTO u (day) VALUES (1)")) == "CZ"
        assert asked(client, "SELECT nextval('u_id_seq')") == "2"
        assert asked(client, "SELECT count(*) FROM u") == asked(client, "SELECT count(*) FROM u_1") == "1"
        assert databases[0].execute("SELECT count(*) FROM u") == [[0]]


def test_code_counts_with_the_tables_that_it_touches(databases: Pair) -> None:
    for database in databases:
        database.execute(
            "CREATE FUNCTION first() RETURNS text LANGUAGE sql AS 'SELECT v FROM t WHERE id = 1';"
            "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN INSERT INTO other VALUES (new.id); RETURN new; END';"
            "CREATE TRIGGER log BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION log()"
        )
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert asked(client, "SELECT first()") == "copy"
        assert "public.other" in told(client, WRITE)[0]
        assert kinds(client.query("DELETE FROM t WHERE id = 3")) == "CZ"


def test_definitions_change_at_the_owner(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert kinds(client.query("ALTER TABLE t ADD COLUMN more int")) == "CZ"
        assert kinds(client.query("CREATE INDEX ON t (more)")) == "CZ"
        relay.shift(0, stage="switched")
        assert "cannot change while svc is moving" in told(client, "ALTER TABLE t ADD COLUMN lost int")[0]
        relay.shift(0, ddl="owner")
        assert kinds(client.query("ALTER TABLE t ADD COLUMN third int")) == "CZ"
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
    assert (databases[0].execute(columns), databases[1].execute(columns)) == ([[2]], [[4]])


# --- faults -------------------------------------------------------------------------------------------


def test_an_owner_that_is_down_is_told_and_nothing_else_is(databases: Pair) -> None:
    own = databases[1]
    with moved(databases, "switched") as relay, client_of(relay) as client:
        own.server.execute(f"ALTER DATABASE {own.dbname} WITH ALLOW_CONNECTIONS false")
        for sql in (READ, WRITE):
            assert sqlstate(client.query(sql)) == "55000"
        assert asked(client, "SELECT count(*) FROM other") == "0"
        assert kinds(client.query("BEGIN") + client.query(WRITE)) == "CZEZ"
        assert client.query("ROLLBACK")[-1].body == b"I"
        own.server.execute(f"ALTER DATABASE {own.dbname} WITH ALLOW_CONNECTIONS true")
        relay.wait_for(lambda: kinds(client.query(READ)) == "TDCZ", "it is back")


def test_the_route_is_shown(databases: Pair) -> None:
    with moved(databases) as relay, client_of(relay) as client:
        client.query(WRITE)
        shown = b" ".join(frame.body for frame in client.query("SHOW pgshunt.route"))
        assert b"owned by svc, on svc_db, copies in shared" in shown
        assert b"svc_db 100 %" in shown
        told(client, "TRUNCATE t, other")
        shown = b" ".join(frame.body for frame in client.query("SHOW pgshunt.route"))
        assert b"several_owners" in shown
        assert b"Move these services to one database" in shown


def test_what_a_service_has_moved_to_is_no_candidate(databases: Pair) -> None:
    """There is nothing to take its reads back to; and what its database lacks is the statement's mistake."""
    with moved(databases) as relay, client_of(relay) as client:
        databases[1].execute("DROP TABLE u")
        assert asked(client) == "copy"
        assert sqlstate(client.query("SELECT * FROM u")) == "42P01"
        assert sqlstate(client.query("SELECT nothing FROM t")) == "42703"
        relay.count("calls")  # they go out as what they were counted for
        relay.shift(100, stage="reading")
        assert asked(client) == "copy"
        assert kinds(client.query("SELECT * FROM u")) == "TCZ", (
            "a copy that lacks a table costs nobody a read"
        )
        relay.count("calls")
        rows = [row for delta in relay.deltas for row in delta["calls"] if row[:1] == ["svc"]]
        found = [(side, endpoint, *row[:3]) for _, side, endpoint, _, *row in rows]
        assert sorted(found) == [
            ("baseline", "shared", 1, 0, 0),
            ("baseline", "svc_db", 3, 0, 2),
            ("candidate", "svc_db", 2, 1, 0),
        ]
