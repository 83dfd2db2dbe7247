"""Bugs that other proxies had: each test is named after what it guards, and says where it was seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.fixtures import Database
from support.hostile import COLUMN, READY, ROW_DONE, Answer, HostileServer, frame, row
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

from pgshunt.protocol import messages

TABLE = """
    CREATE TABLE t (id int PRIMARY KEY, v text);
    INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i
"""


@pytest.fixture
def relay(database: Database) -> Iterator[RunningRelay]:
    """One link for everybody."""
    database.execute(TABLE)
    with RunningRelay(database, config={"pools": {"default_pool_size": 1}}) as running:
        yield running


@contextmanager
def client_of(relay: RunningRelay) -> Iterator[WireClient]:
    with WireClient(relay.connect()) as client:
        yield client.log_in(relay.shared.server.user, relay.shared.dbname)


def query(sql: str) -> bytes:
    return messages.query(sql.encode())


def ask(name: str, *values: str) -> bytes:
    return bind("", name, *values) + execute()


def test_a_cancel_never_hits_the_next_session_of_the_link(relay: RunningRelay) -> None:
    """pgbouncer#717 and #245, pgdog#1505: a key looked up, then sent when the link served somebody else."""
    with client_of(relay) as first, client_of(relay) as second:
        request = messages.cancel_request(first.process_id, first.secret_key)
        for _ in range(40):
            first.send(query("SELECT 1"))
            with relay.connect() as canceller:
                canceller.sendall(request)
                second.send(query("SELECT pg_sleep(0.005)"))
                assert canceller.recv(1) == b""
            assert kinds(first.until_ready())[-1] == "Z"
            assert kinds(second.until_ready()) == "TDCZ"


def test_several_syncs_at_once_are_all_answered(relay: RunningRelay) -> None:
    """supavisor#1061, porsager/postgres#970: the link went back at the first ReadyForQuery."""
    with client_of(relay) as client, client_of(relay) as other:
        client.send(parse("a", "SELECT v FROM t WHERE id = $1::int"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        other.send(query("SELECT pg_sleep(0.02)"))
        client.send(*[ask("a", str(number)) + SYNC for number in range(1, 8)])
        for number in range(1, 8):
            frames = client.until_ready()
            assert kinds(frames) == "2DCZ"
            assert frames[1].body.endswith(f"v{number}".encode())
        assert kinds(other.until_ready()) == "TDCZ"


def test_a_parse_behind_deallocate_all_in_one_pipeline_lives(relay: RunningRelay) -> None:
    """pgbouncer#1535: the DEALLOCATE ALL was applied when answered, and took the new name with it."""
    with client_of(relay) as client:
        client.send(parse("a", "SELECT 1"), SYNC)
        client.until_ready()
        client.send(
            parse("", "DEALLOCATE ALL"),
            ask(""),
            parse("a", "SELECT 2"),
            SYNC,
            ask("a"),
            SYNC,
            describe("S", "a"),
            SYNC,
        )
        assert kinds(client.until_ready()) == "12C1Z"
        assert kinds(client.until_ready()) == "2DCZ"
        assert kinds(client.until_ready()) == "tTZ"


def test_a_failed_parse_leaves_its_name_free(relay: RunningRelay) -> None:
    """supavisor#1175: registered when sent, never taken back."""
    with client_of(relay) as client:
        client.send(parse("a", "SELECT nope"), SYNC, ask("a"), SYNC, parse("a", "SELECT 2"), ask("a"), SYNC)
        assert sqlstate(client.until_ready()) == "42703"
        assert sqlstate(client.until_ready()) == "26000"
        assert kinds(client.until_ready()) == "12DCZ"


def test_describe_alone_finds_its_statement_on_any_link(relay: RunningRelay) -> None:
    """supavisor#1174: only Bind had the statement prepared on a link that lacked it."""
    with client_of(relay) as client:
        client.send(parse("a", "SELECT v FROM t WHERE id = $1"), SYNC)
        client.until_ready()
        relay.shared.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            f" AND datname = '{relay.shared.dbname}'"
        )
        relay.wait_for(lambda: relay.call(lambda r: len(r.links)) == 0, "the link is gone")
        client.send(describe("S", "a"), SYNC)
        assert kinds(client.until_ready()) == "tTZ"


def test_a_statement_of_a_client_that_left_before_flush_is_not_believed_to_exist(relay: RunningRelay) -> None:
    """pg_doorman 3.3.4: the cache of the link listed what had never been sent."""
    with client_of(relay) as client:
        client.send(parse("a", "SELECT 41 + 1"), describe("S", "a"))
    with client_of(relay) as client:
        client.send(parse("b", "SELECT 41 + 1"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(ask("b"), SYNC)
        assert kinds(client.until_ready()) == "2DCZ"


def test_eviction_never_closes_what_the_same_batch_binds(relay: RunningRelay) -> None:
    """pg_doorman 3.3.5: the Close of the oldest statement overtook the Bind that needed it."""
    with client_of(relay) as client:
        client.send(*[parse(f"s{number}", f"SELECT {number}") for number in range(700)], SYNC)
        assert kinds(client.until_ready()) == "1" * 700 + "Z"
        client.send(*[ask(f"s{number}") for number in range(700)], SYNC)
        frames = client.until_ready()
        assert kinds(frames) == "2DC" * 700 + "Z"
        assert [frame.body[6:] for frame in frames if frame.kind == "D"] == [b"%d" % n for n in range(700)]


def test_eviction_behind_a_batch_that_failed(relay: RunningRelay) -> None:
    """pgbouncer's prepare.c: an error skipped the Close, and the statement was taken for closed."""
    with client_of(relay) as client:
        client.send(*[parse(f"s{number}", f"SELECT {number}") for number in range(700)])
        client.send(parse("", "SELECT 1/0"), ask(""), SYNC)
        assert kinds(client.until_ready()) == "1" * 701 + "EZ"
        client.send(*[ask(f"s{number}") for number in range(700)], SYNC)
        assert [frame.body[6:] for frame in client.until_ready() if frame.kind == "D"] == [
            b"%d" % number for number in range(700)
        ]


def test_a_value_that_the_server_spells_otherwise_is_brought_once() -> None:
    """pgbouncer#776: compared with what the client had written, it never matched, and was set for ever."""
    told = COLUMN + row(b"UTF8", b"UTF8", b"ISO, DMY") + frame("C", b"SELECT 1\0")

    def script(_kind: str, statement: str) -> Answer:
        asked = statement.startswith("SELECT pg_catalog.current_setting")
        return Answer((told if asked else ROW_DONE) + READY)

    with HostileServer(script) as server, RunningRelay(server) as relay, client_of(relay) as client:  # type: ignore[arg-type]
        client.query("SET datestyle = dmy")
        for _ in range(3):
            client.query("SELECT 1")
        assert [sql for _, sql in server.heard if "pg_catalog" not in sql] == [
            "SET datestyle = dmy",
            *["SELECT 1"] * 3,
        ]


def test_a_pipeline_is_one_transaction_up_to_its_sync(relay: RunningRelay) -> None:
    """proxysql#5119: a Sync of the proxy's own committed the first half."""
    with client_of(relay) as client:
        client.send(
            parse("", "INSERT INTO t VALUES (100, 'half')"), ask(""), parse("", "SELECT 1/0"), ask(""), SYNC
        )
        assert sqlstate(client.until_ready()) == "22012"
        assert client.value("SELECT count(*) FROM t WHERE id = 100") == "0"


def test_a_simple_query_ends_an_unfinished_pipeline(relay: RunningRelay) -> None:
    """proxysql#5091: legal, and was refused."""
    with client_of(relay) as client:
        client.send(parse("", "SELECT 1"), ask(""), query("SELECT 2"))
        assert kinds(client.until_ready()) == "12DCTDCZ"
        assert client.value("SELECT 3") == "3"


def test_a_sync_before_copy_done_is_not_waited_for(relay: RunningRelay) -> None:
    """pgbouncer PR 1025, pgdog#885: the server ignores it while it copies, so it answers it never."""
    with client_of(relay) as client, client_of(relay) as other:
        client.send(parse("", "COPY t FROM STDIN"), ask(""), SYNC, copy_data(b"100\tx\n"), COPY_DONE, SYNC)
        assert kinds(client.until_ready()) == "12GCZ"
        assert other.value("SELECT v FROM t WHERE id = 100") == "x"


def test_a_copy_that_the_server_refuses_frees_its_link(relay: RunningRelay) -> None:
    """pgbouncer#1471: the client went on streaming, and pools ran dry in production."""
    with client_of(relay) as client, client_of(relay) as other:
        for _ in range(3):
            client.send(query("COPY t FROM STDIN"), *[copy_data(b"not a number\tx\n" * 4000)] * 20, COPY_DONE)
            frames = client.until_ready()
            assert sqlstate(frames) == "22P02"
            assert other.value("SELECT count(*) FROM t") == "9"
        assert client.value("SELECT 1") == "1"


def test_a_client_that_flushes_and_goes_leaves_a_usable_pool(relay: RunningRelay) -> None:
    """pgdog PR 164, pg_doorman 3.2.4: Parse, Describe, Flush as asyncpg sends them, and no Sync ever."""
    for _ in range(5):
        with client_of(relay) as client:
            client.send(parse("a", "SELECT v FROM t"), describe("S", "a"), FLUSH)
            assert [client.frame().kind for _ in range(3)] == ["1", "t", "T"]
        with client_of(relay) as other:
            assert other.value("SELECT 1") == "1"


def test_a_slow_reader_keeps_its_link_until_it_has_been_told_all(relay: RunningRelay) -> None:
    """supavisor#1060: the next session got the link, and the rows of the one before."""
    with client_of(relay) as slow, client_of(relay) as other:
        slow.send(query("SELECT repeat('s', 1000000) FROM generate_series(1, 60)"))
        other.send(query("SELECT 'mine'"))
        relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "the other waits")
        frames = slow.until_ready()
        assert kinds(frames) == "T" + "D" * 60 + "CZ"
        assert {frame.body[6:7] for frame in frames if frame.kind == "D"} == {b"s"}
        assert other.until_ready()[1].body.endswith(b"mine")


def test_one_terminated_backend_is_no_failure_of_its_server(relay: RunningRelay) -> None:
    """Pgpool-II's restrictions: FATAL 57P01 of one connection took the whole node out."""
    with client_of(relay) as victim, client_of(relay) as other:
        victim.send(query("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert sqlstate(victim.until_ready()) == "57P01"
        assert other.value("SELECT 1") == "1"


def test_closing_and_parsing_one_name_in_one_batch(relay: RunningRelay) -> None:
    """pgdog: answers made by the proxy stood in a queue that an error did not clear."""
    with client_of(relay) as client:
        client.send(parse("a", "SELECT 1"), SYNC)
        client.until_ready()
        client.send(
            parse("", "SELECT 1/0"),
            ask(""),
            close("S", "a"),
            parse("a", "SELECT 'new'"),
            SYNC,
            ask("a"),
            SYNC,
        )
        assert sqlstate(client.until_ready()) == "22012"
        frames = client.until_ready()
        assert kinds(frames) == "2DCZ"
        assert frames[1].body.endswith(b"1"), (
            "the error made the server skip Close and Parse: `a` is what it was"
        )


# --- with a service whose reads go to a database of its own -------------------------------------------------


@pytest.fixture
def split(database_pair: tuple[Database, Database]) -> Iterator[RunningRelay]:
    """All plain reads of t go to the copy, where every v is 'copy'."""
    for database, name in zip(database_pair, ("shared", "copy"), strict=True):
        database.create_app()
        database.execute(
            f"CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL DEFAULT '{name}');"
            "CREATE SEQUENCE numbers; INSERT INTO t SELECT generate_series(1, 9)"
        )
    with RunningRelay(*database_pair, tables=("t", "numbers"), reads_percent=100) as running:
        yield running


@contextmanager
def app_of(relay: RunningRelay, reads: str = "SELECT v FROM t WHERE id = 1") -> Iterator[WireClient]:
    """A client as a user that both servers know, which has read from the copy already."""
    with WireClient(relay.connect()) as client:
        client.log_in("app", relay.shared.dbname)
        assert client.value(reads) == "copy"
        yield client


def values(frames: list[Frame]) -> list[bytes]:
    return [frame.body[6:] for frame in frames if frame.kind == "D"]


def test_executes_before_one_sync_are_not_split_over_databases(split: RunningRelay) -> None:
    """pgdog#1161: they are one implicit transaction, and a router that looks at each alone divides it."""
    read, write = "SELECT v FROM t WHERE id = 1", "UPDATE t SET id = id WHERE id = 1 RETURNING v"
    for batch in ((read, write), (write, read), (read, write, read)):
        with app_of(split) as client:
            client.send(*[parse("", sql) + ask("") for sql in batch], SYNC)
            assert values(client.until_ready()) == [b"shared"] * len(batch)


def test_a_transaction_does_not_move_when_the_weight_does(split: RunningRelay) -> None:
    """pgdog#1085 and #1086: the target changed inside BEGIN, and data was corrupted without a word."""
    with app_of(split) as client:
        client.query("BEGIN")
        backend = client.value("SELECT pg_backend_pid() FROM t LIMIT 1")
        for percent in (0, 100, 50):
            split.shift(percent)
            assert client.value("SELECT pg_backend_pid() FROM t LIMIT 1") == backend
        client.query("COMMIT")


def test_a_transaction_with_an_error_commits_nothing_anywhere(split: RunningRelay) -> None:
    """pgdog#454: COMMIT behind the error of one database committed at the others."""
    with app_of(split) as client:
        for sql in ("BEGIN", "SELECT v FROM t WHERE id = 1", "INSERT INTO t VALUES (300)"):
            assert kinds(client.query(sql))[-2:] == "CZ"
        assert sqlstate(client.query("INSERT INTO t VALUES (1)")) == "23505"
        assert client.query("COMMIT")[0].body == b"ROLLBACK\0"
    assert split.copy is not None
    for database in (split.shared, split.copy):
        assert database.execute("SELECT count(*) FROM t WHERE id = 300") == [[0]]


def test_what_is_known_of_one_users_statement_is_not_applied_to_anothers(
    database_pair: tuple[Database, Database],
) -> None:
    """Pgpool CVE-2024-45624: a cache without the user in its key; here "$user" makes it another table."""
    shared, copy = database_pair
    user = shared.server.user
    for database, name in zip(database_pair, ("shared", "copy"), strict=True):
        database.create_app()
        database.execute(f"CREATE TABLE t (v text); INSERT INTO t VALUES ('{name}')")
    shared.execute(
        f"CREATE SCHEMA {user}; CREATE TABLE {user}.t (v text); INSERT INTO {user}.t VALUES ('own')"
    )
    with (
        RunningRelay(shared, copy, tables=("t",), reads_percent=100) as relay,
        client_of(relay) as one,
        app_of(relay, "SELECT v FROM t") as another,
    ):
        for _ in range(2):
            assert one.value("SELECT v FROM t") == "own"
            assert another.value("SELECT v FROM t") == "copy"


@pytest.mark.parametrize(
    ("sql", "seen_in"),
    [
        ("SELECT v FROM t WHERE id = 1 \u00a7", "pgcat#884: what could not be parsed went to any server"),
        ("WITH x AS (DELETE FROM t WHERE id = 99) SELECT 1 FROM t", "pgcat#829: a write in a CTE"),
        ("SELECT v FROM t WHERE id = 1 FOR KEY SHARE", "row locks of every strength"),
        ("SELECT v INTO TEMP made FROM t", "SELECT INTO writes"),
        ("EXPLAIN ANALYZE DELETE FROM t WHERE id = 99", "EXPLAIN ANALYZE runs what it explains"),
        ("SELECT nextval('numbers'), v FROM t", "pgcat#489: nextval in a SELECT"),
        ("SELECT set_config('jit', 'off', false), v FROM t", "pgdog#57: asyncpg's introspection"),
    ],
)
def test_what_is_no_plain_read_stays_at_the_owner(sql: str, seen_in: str, split: RunningRelay) -> None:
    with app_of(split) as client:
        before = split.count("calls", "svc", "candidate")
        client.query(sql)
        assert split.count("calls", "svc", "candidate") == before, seen_in
        assert split.count("calls", "svc", "baseline") + split.count("calls", "", "baseline") > 0


def test_a_name_of_a_cte_is_not_the_table_it_hides(split: RunningRelay) -> None:
    """libpg_query#367: WITH t AS (SELECT … FROM t) lost the table."""
    with app_of(split) as client:
        assert client.value("WITH t AS (SELECT v FROM t WHERE id = 1) SELECT v FROM t") == "copy"
        assert client.value("WITH t AS (SELECT 'no table' AS v) SELECT v FROM t") == "no table"


def test_comments_of_tracing_do_not_defeat_the_cache(split: RunningRelay) -> None:
    """pgdog#929: every request has a comment of its own, so every text was parsed."""
    with app_of(split) as client:
        for number in range(200):
            client.query(f"SELECT v FROM t WHERE id = {number} /* traceparent='00-{number:032x}-01' */")
        split.call(lambda relay: relay.tick())
        split.count("calls")
        assert sum(delta.get("parses", 0) for delta in split.deltas) <= 3


def test_terminate_behind_a_batch_lets_it_finish(split: RunningRelay) -> None:
    """What was sent before the goodbye is carried out, at the owner once."""
    with app_of(split) as client:
        client.send(parse("", "INSERT INTO t VALUES (500)"), ask(""), SYNC, TERMINATE)
        assert kinds(client.until_ready()) == "12CZ"
    assert split.shared.execute("SELECT count(*) FROM t WHERE id = 500")[0][0] == 1
