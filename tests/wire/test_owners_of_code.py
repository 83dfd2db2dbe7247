"""Services that have moved, and statements that name their tables only by way of something else: a prepared
statement, a view, code. They go where the tables are, or are refused."""

from __future__ import annotations

import psycopg
import pytest
from support.fixtures import Database
from support.split import asked, batch, client_of, databases, moved, query, told
from support.wire import SYNC, bind, describe, execute, kinds, parse, sqlstate

__all__ = ["databases"]

Pair = tuple[Database, Database]
READ = "SELECT v FROM t WHERE id = 1"
WRITE = "UPDATE t SET v = 'mine' WHERE id = 1"

# --- prepared statements --------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", ["sql", "messages"])
@pytest.mark.parametrize("stage", ["switched", "completed"])
def test_execute_by_messages_runs_where_the_tables_are(databases: Pair, stage: str, prepared: str) -> None:
    with moved(databases, stage) as relay, client_of(relay) as client:  # type: ignore[arg-type]
        if prepared == "sql":
            assert kinds(client.query(f"PREPARE p AS {READ}")) == "CZ"
        else:
            assert batch(client, parse("p", READ)) == "1Z"
        client.send(parse("", "EXECUTE p"), bind("", ""), describe("P"), execute(), SYNC)
        frames = client.until_ready()
        assert kinds(frames) == "12TDCZ"
        assert frames[3].body.endswith(b"copy")
        client.send(parse("again", "EXECUTE p"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(bind("", "again"), execute(), SYNC)
        assert client.until_ready()[1].body.endswith(b"copy")
        assert (
            "keeps its connection to svc_db (prepared_statements)"
            in (told(client, "INSERT INTO other VALUES (1)")[0])
        )
        client.query("DISCARD ALL")
        relay.wait_for(lambda: kinds(client.query("INSERT INTO other VALUES (1)")) == "CZ", "given up")


@pytest.mark.parametrize(
    "sql",
    ["EXECUTE p((random() * 0)::int + 1)", "EXECUTE p(1); EXECUTE p(1)", "EXECUTE q; EXECUTE p(1)",
     "SELECT 'x'; EXECUTE p(1)"],
)  # fmt: skip
def test_execute_with_more_than_a_name_runs_where_the_tables_are(databases: Pair, sql: str) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("PREPARE p (int) AS SELECT v FROM t WHERE id = $1")
        client.query("PREPARE q AS SELECT count(*) FROM u")
        frames = client.query(sql)
        assert "E" not in kinds(frames), frames
        assert [frame.body for frame in frames if frame.kind == "D"][-1].endswith(b"copy")


def test_what_is_executed_at_several_owners_is_refused(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        client.query("PREPARE p AS UPDATE other SET id = 1")
        client.query(f"PREPARE q AS {WRITE}")
        message, _ = told(client, "EXECUTE p; EXECUTE q")
        assert "different databases own: public.other" in message
        assert "different databases" in told(client, f"EXECUTE p; {WRITE}")[0]


def test_preparing_needs_the_tables_as_well(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        databases[0].execute("DROP TABLE t")
        relay.shift(0)
        assert kinds(client.query(f"PREPARE p AS {READ}")) == "CZ"
        assert asked(client, "EXECUTE p") == "copy"
        client.query("BEGIN")
        client.query("SET LOCAL work_mem = '1MB'")
        assert kinds(client.query("PREPARE q AS UPDATE t SET v = 'q'")) == "CZ"
        assert kinds(client.query("EXECUTE q")) == "CZ"
        client.query("ROLLBACK")
        assert kinds(client.query(f"PREPARE one AS {READ}; EXECUTE one")) == "CTDCZ"


def test_a_statement_that_nobody_has_told_of_is_not_executed(databases: Pair) -> None:
    """Of a text of several statements nobody keeps what each of them has prepared."""
    with moved(databases, "reading", reads_percent=0) as relay, client_of(relay) as client:
        client.query("PREPARE p AS SELECT 1 FROM other")
        client.query(f"DEALLOCATE p; PREPARE p AS {READ}")
        assert asked(client, "EXECUTE p") == "shared"
        relay.shift(0, stage="switched")
        message, way = told(client, "EXECUTE p")
        assert "nobody can tell which tables" in message
        assert "Prepare and execute it" in way
        assert batch(client, bind("", "p"), execute()) == "EZ"
        assert batch(client, parse("", "EXECUTE p"), bind("", ""), execute()) == "EZ"
        client.query("DISCARD ALL")
        assert sqlstate(client.query("EXECUTE p")) == "26000"
        assert batch(client, bind("", "nothing"), execute()) == "EZ"
        assert sqlstate(client.query("EXECUTE nothing")) == "26000"


# --- transactions that began without a table ------------------------------------------------------------


def test_a_snapshot_is_not_taken_before_it_would_be(databases: Pair) -> None:
    """LOCK TABLE comes before the snapshot of a transaction that sees the same all along."""
    own = databases[1]
    for begin, first in (
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "SET LOCAL app.tenant = 'seven'"),
        ("BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "SAVEPOINT s"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "SHOW work_mem"),
    ):
        with moved(databases, "completed") as relay, client_of(relay) as client:
            client.query(begin)
            client.query(first)
            with psycopg.connect(own.dsn()) as other:
                other.execute("UPDATE t SET v = v || '+' WHERE id = 1")
                client.send(query("LOCK TABLE t"))
                relay.wait_for(
                    lambda: own.execute("SELECT count(*) FROM pg_locks WHERE NOT granted") != [[0]],
                    "the lock is waited for",
                )
                other.commit()
            assert kinds(client.until_ready()) == "CZ"
            seen = asked(client)
            assert kinds(client.query("COMMIT")) == "CZ"
            assert [[seen]] == own.execute(READ), first


def test_a_portal_with_a_name_or_with_rows_left_binds_the_transaction(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        for messages in (
            (parse("", "SELECT 1"), bind("c", "")),
            (parse("", "SELECT generate_series(1, 3)"), bind("", ""), execute(rows_max=1)),
        ):
            client.query("BEGIN")
            assert "E" not in batch(client, *messages)
            assert "the transaction runs at shared" in told(client, WRITE)[0]
            client.query("ROLLBACK")


def test_in_a_batch_it_is_its_transaction_that_is_told_of(databases: Pair) -> None:
    with moved(databases, "completed") as relay, client_of(relay) as client:
        insert = parse("", "INSERT INTO other VALUES (1)"), bind("", ""), execute()
        client.send(*insert, parse("", WRITE), bind("", ""), execute(), SYNC)
        error = next(frame for frame in client.until_ready() if frame.kind == "E")
        assert b"the transaction runs at shared" in error.body


def test_what_must_not_run_is_not_described_elsewhere(databases: Pair) -> None:
    databases[0].execute("DROP TABLE t")
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert batch(client, parse("p", READ)) == "1Z"
        client.query("CREATE TEMP TABLE mine (id int)")
        client.send(describe("S", "p"), SYNC)
        frames = client.until_ready()
        assert kinds(frames) == "EZ"
        assert b"keeps its connection to shared (temp_table)" in frames[0].body


# --- code -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "BEGIN PERFORM pg_notify('jobs', 'x'); END",
        "BEGIN NOTIFY jobs; END",
        "BEGIN PERFORM pg_advisory_xact_lock(1); END",
        "BEGIN PERFORM deeper(); END",
    ],
)
def test_functions_that_meet_other_sessions_do_so_at_the_shared_database(databases: Pair, body: str) -> None:
    for database in databases:
        database.execute(
            "CREATE FUNCTION deeper() RETURNS void LANGUAGE sql AS $$SELECT pg_notify('jobs', 'x')$$;"
            f"CREATE FUNCTION meet() RETURNS void LANGUAGE plpgsql AS $${body}$$"
        )
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert kinds(client.query("SELECT meet()")) == "TDCZ"
        client.query("BEGIN")
        client.query(WRITE)
        assert (
            "LISTEN, NOTIFY and advisory locks are the shared database's" in told(client, "SELECT meet()")[0]
        )
        client.query("ROLLBACK")
        assert "LISTEN, NOTIFY" in told(client, "SELECT meet() FROM t")[0]
        assert "LISTEN, NOTIFY" in told(client, "DO $$BEGIN PERFORM meet() FROM t; END$$")[0]
        client.query("BEGIN")
        assert kinds(client.query("SELECT meet()")) == "TDCZ"
        assert "the transaction runs at shared" in told(client, WRITE)[0]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT anything('t')",
        "SELECT anything('t') FROM other",
        "DO $$BEGIN EXECUTE current_setting('app.x'); END$$",
        "SELECT query_to_xml('SELECT * FROM t', true, true, '')",
        "SELECT table_to_xml('t', true, true, '')",
        "SELECT nextval('u_' || 'seq')",
        "SET search_path = public; SELECT v FROM t",
        "SELECT v FROM t WHERE " + " AND ".join("id > id" for _ in range(4000)),
    ],
    ids=lambda sql: sql[:30],
)
def test_what_may_use_any_table_is_refused(databases: Pair, sql: str) -> None:
    for database in databases:
        database.execute(
            "CREATE FUNCTION anything(name text) RETURNS bigint LANGUAGE plpgsql AS $$"
            "DECLARE n bigint; BEGIN EXECUTE 'SELECT count(*) FROM ' || name || ' x' INTO n; RETURN n; END$$;"
            "CREATE SEQUENCE u_seq OWNED BY u.id"
        )
    with moved(databases, "reading", reads_percent=0) as relay, client_of(relay) as client:
        relay.shift(0, stage="switched")
        message, way = told(client, sql)
        assert "nobody can tell which tables the statement uses" in message
        assert "pgshunt: primary" in way
        assert relay.count("routes", None, "anywhere") == 1
        assert batch(client, parse("", sql), bind("", ""), execute()) == "EZ"
        assert asked(client) == "copy"


def test_a_comment_says_that_no_other_tables_are_used(databases: Pair) -> None:
    for database in databases:
        database.execute(
            "CREATE FUNCTION first(name text) RETURNS text LANGUAGE plpgsql AS $$"
            "DECLARE v text; BEGIN EXECUTE 'SELECT min(v) FROM ' || name || ' x' INTO v; RETURN v; END$$"
        )
    with moved(databases) as relay, client_of(relay) as client:
        told(client, "SELECT first('t') FROM t LIMIT 1")
        assert asked(client, "/* pgshunt: primary */ SELECT first('t') FROM t LIMIT 1") == "copy"


def test_what_triggers_do_is_done_at_the_owner(databases: Pair) -> None:
    for database in databases:
        database.execute(
            "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
            " PERFORM pg_notify('jobs', 'x'); EXECUTE 'INSERT INTO ' || TG_ARGV[0] || ' VALUES (1)';"
            " RETURN new; END$$;"
            "CREATE TRIGGER log BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION log('u')"
        )
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert kinds(client.query(WRITE)) == "CZ"
        assert databases[1].execute("SELECT count(*) FROM u") == [[1]]


# --- views ----------------------------------------------------------------------------------------------


def test_a_view_is_read_where_its_tables_are(databases: Pair) -> None:
    for database in databases:
        database.execute(
            "CREATE VIEW of_t AS SELECT * FROM t; CREATE VIEW deep AS SELECT v FROM of_t WHERE id = 1;"
            "CREATE VIEW of_both AS SELECT v FROM t JOIN other USING (id);"
            "CREATE VIEW of_other AS SELECT * FROM other"
        )
    with moved(databases, "completed") as relay, client_of(relay) as client:
        assert (
            asked(client, "SELECT v FROM of_t WHERE id = 1") == asked(client, "SELECT v FROM deep") == "copy"
        )
        assert kinds(client.query("UPDATE of_t SET v = 'mine' WHERE id = 1")) == "CZ"
        assert databases[1].execute(READ) == [["mine"]]
        assert "public.other (nobody's, on shared)" in told(client, "SELECT * FROM of_both")[0]
        assert asked(client, "SELECT count(*) FROM of_other") == "0"
        assert relay.count("routes", "svc", "together", "svc_db") == 3
        client.query("BEGIN")
        client.query(WRITE)
        assert asked(client, "SELECT v FROM deep") == "mine"
        assert "runs at svc_db" in told(client, "SELECT * FROM of_other")[0]


def test_a_view_that_only_the_shared_database_has(databases: Pair) -> None:
    """No lane brings views: while the reverse lane keeps the tables there, they are read there."""
    databases[0].execute("CREATE VIEW of_t AS SELECT * FROM t")
    with moved(databases) as relay, client_of(relay) as client:
        assert asked(client, "SELECT v FROM of_t WHERE id = 1") == "shared"
        relay.shift(0, stage="completed")
        assert sqlstate(client.query("SELECT v FROM of_t WHERE id = 1")) == "42P01"
        assert sqlstate(client.query("UPDATE of_t SET v = 'x'")) == "42P01"


# --- search paths ---------------------------------------------------------------------------------------


def test_a_search_path_set_in_a_transaction_is_known_in_it(databases: Pair) -> None:
    for database, name in zip(databases, ("shared", "copy"), strict=True):
        database.execute(
            f"CREATE SCHEMA tenant; CREATE TABLE tenant.t AS SELECT 1 AS id, 'tenant {name}' AS v"
        )
    obscure = "SELECT v FROM t WHERE id = 1"
    with moved(databases, "completed") as relay, client_of(relay) as client:
        for path, found in (("tenant, public", "tenant shared"), ("'public'", "copy"), ("public", "copy")):
            client.query("BEGIN")
            assert kinds(client.query(f"SET LOCAL search_path = {path}")) == "CZ"
            assert asked(client, obscure) == found
            client.query("COMMIT")
            assert asked(client, obscure) == "copy"
        for sent in (
            ["BEGIN", "SAVEPOINT s", "SET LOCAL search_path = public", "ROLLBACK TO s"],
            ["SET search_path = tenant", "BEGIN", "SET search_path = public", "SELECT 1; ROLLBACK; BEGIN"],
            ["BEGIN", 'SET LOCAL search_path = "$user", public'],
        ):
            for sql in sent:
                assert "E" not in kinds(client.query(sql))
            assert "may mean public.t" in told(client, obscure)[0]
            client.query("ROLLBACK")
            client.query("RESET search_path")
        client.query("BEGIN")
        client.query("SET LOCAL search_path = tenant")
        client.send(query("COMMIT"), query(obscure))
        assert kinds(client.until_ready()) == "CZ"
        frames = client.until_ready()
        assert kinds(frames) in ("TDCZ", "EZ"), "it is never read from the tenant's"
        assert not any(b"tenant" in frame.body for frame in frames if frame.kind == "D")
        client.send(query("SET LOCAL search_path = tenant"), query(obscure))
        client.until_ready()
        assert not any(b"tenant" in frame.body for frame in client.until_ready() if frame.kind == "D")


# --- sessions that are signalled ------------------------------------------------------------------------

ASLEEP = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


def test_who_waits_for_an_owner_does_so_while_it_is_signalled_elsewhere(databases: Pair) -> None:
    config = {"pools": {"default_pool_size": 1}}
    with (
        moved(databases, "completed", config=config) as relay,
        client_of(relay) as busy,
        client_of(relay) as victim,
        client_of(relay) as caller,
    ):
        busy.query("BEGIN")
        busy.query("UPDATE t SET v = 'busy' WHERE id = 2")
        victim.send(query("BEGIN"), query(WRITE), query("COMMIT"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "the write waits for a link")
        assert asked(caller, f"SELECT pg_cancel_backend({victim.process_id})") == "t"
        busy.query("COMMIT")
        assert [kinds(victim.until_ready()) for _ in range(3)] == ["CZ", "CZ", "CZ"]
        assert databases[1].execute(READ) == [["mine"]]


def test_a_transaction_does_not_begin_on_a_link_that_is_kept_for_a_signal(databases: Pair) -> None:
    with (
        moved(databases, "completed") as relay,
        client_of(relay) as victim,
        client_of(relay) as caller,
    ):
        caller.send(query(f"SELECT pg_sleep(0.3), pg_cancel_backend({victim.process_id})"))
        relay.wait_for(lambda: databases[0].execute(ASLEEP) == [[1]], "it runs")
        victim.send(query("BEGIN"), query(WRITE), query("COMMIT"))
        assert [kinds(victim.until_ready()) for _ in range(3)] == ["CZ", "CZ", "CZ"]
        assert kinds(caller.until_ready()) == "TDCZ"
