"""Where statements really go: two databases that answer differently tell which one was asked."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.split import TABLES, asked, client_of, databases, fill, moving, query
from support.wire import FLUSH, SYNC, TERMINATE, Frame, WireClient, bind, execute, kinds, parse, sqlstate

from pgshunt.demo.postgres import Servers
from pgshunt.proxy._relay import Relay

__all__ = ["databases"]


@pytest.mark.parametrize(
    ("sql", "where"),
    [
        ("SELECT v FROM t WHERE id = 1", "copy"),
        ("SELECT v FROM public.t WHERE id = 2 ORDER BY id LIMIT 1", "copy"),
        ("WITH x AS (SELECT v FROM t WHERE id = 3) SELECT v FROM x", "copy"),
        ("SELECT t.v FROM t LEFT JOIN u USING (id) WHERE id = 1", "copy"),
        ("SELECT v FROM t WHERE id = 1 FOR UPDATE", "shared"),
        ("SELECT v FROM t, other WHERE t.id = 1 UNION ALL SELECT v FROM t WHERE id = 1", "shared"),
        ("SELECT v FROM t WHERE id = 1 AND random() < 2", "shared"),
        ("UPDATE t SET id = id WHERE id = 1 RETURNING v", "shared"),
        ("WITH x AS (UPDATE t SET id = id WHERE id = 1 RETURNING v) SELECT v FROM x", "shared"),
        ("SELECT v FROM t WHERE id = 1 AND ctid IS NOT NULL", "shared"),
        ("BEGIN; SELECT v FROM t WHERE id = 1; COMMIT", "shared"),
        ("/* pgshunt: primary */ SELECT v FROM t WHERE id = 1", "shared"),
        ("SELECT v FROM t WHERE id = 1 -- pgshunt: primary", "shared"),
        ("SELECT v /* pgshunt: Primary */ FROM t WHERE id = $$1$$", "shared"),
        ("SELECT v /* pgshunt */ FROM t WHERE id = 1 -- trace 17", "copy"),
    ],
)
def test_only_plain_reads_of_copied_tables_go_to_the_copy(
    sql: str, where: str, databases: tuple[Database, Database]
) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert asked(client, sql) == where


def test_what_is_prepared_in_sql_is_read_at_the_copy(databases: tuple[Database, Database]) -> None:
    shared, copy = databases
    with moving(databases) as relay, client_of(relay) as client:
        client.query("PREPARE p AS SELECT v FROM t WHERE id = 1")
        client.query("PREPARE q AS SELECT v FROM t /* pgshunt: primary */ WHERE id = 1")
        assert (client.value("EXECUTE p"), client.value("EXECUTE q")) == ("copy", "shared")
        assert kinds(client.query("CREATE TABLE made AS EXECUTE p")) == "CZ"
    assert shared.execute("SELECT v FROM made") == [["shared"]]
    assert copy.execute("SELECT to_regclass('made') IS NULL") == [[True]]


def test_what_was_prepared_means_the_tables_of_the_search_path_as_it_is(
    databases: tuple[Database, Database],
) -> None:
    databases[0].execute(
        "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.t AS SELECT 1 AS id, text 'elsewhere' AS v"
    )
    with moving(databases) as relay, client_of(relay) as client:
        client.query("PREPARE p AS SELECT v FROM t WHERE id = 1")
        assert client.value("EXECUTE p") == "copy"
        client.query("SET search_path = elsewhere")
        assert client.value("EXECUTE p") == "elsewhere"
        client.query("RESET search_path")
        assert client.value("EXECUTE p") == "copy"


def test_the_weight_is_kept(databases: tuple[Database, Database]) -> None:
    with moving(databases, reads_percent=50) as relay, client_of(relay) as client:
        answers = [asked(client) for _ in range(400)]
        assert 120 < answers.count("copy") < 280  # 8 standard deviations: a false alarm in 10^15 runs
        relay.shift(0)
        assert {asked(client) for _ in range(50)} == {"shared"}
        relay.shift(100)
        assert {asked(client) for _ in range(50)} == {"copy"}


def test_extended_batches_are_split_only_when_all_of_them_is_here(
    databases: tuple[Database, Database],
) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        client.send(parse("", "SELECT v FROM t WHERE id = $1::int"), bind("", "", "1"), execute(), SYNC)
        assert client.until_ready()[2].body.endswith(b"copy")
        client.send(parse("named", "SELECT v FROM t WHERE id = $1::int"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(bind("", "named", "2"), execute(), SYNC)
        assert client.until_ready()[1].body.endswith(b"copy")
        update = parse("", "UPDATE t SET id = id WHERE id = 1")
        client.send(bind("", "named", "2"), execute(), update, bind("", ""), execute(), SYNC)
        assert client.until_ready()[1].body.endswith(b"shared")
        # The weight, which is 100 %, sent none of them to the owner.
        assert relay.count("routes", "svc", "baseline") == 0
        assert relay.count("routes", "svc", "not_whole") == 2


def test_a_transaction_at_the_owner_stays_there(databases: tuple[Database, Database]) -> None:
    with moving(databases, reads_percent=0) as relay, client_of(relay) as client:
        for begin in ("BEGIN", "BEGIN READ ONLY"):
            client.query(begin)
            assert asked(client) == "shared"
            relay.shift(100)
            assert asked(client) == "shared"
            client.query("COMMIT")
            relay.shift(0)


def test_a_session_never_reads_a_copy_older_than_its_own_write(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as writer, client_of(relay) as reader:
        assert asked(writer) == "copy"
        relay.fresh = False  # the copy's freshness stands still from here on
        writer.query("UPDATE t SET v = 'new' WHERE id = 1")
        assert asked(writer) == "new"
        assert asked(reader) == "copy"  # who has not written may still read there
        relay.fresh = True
        relay.wait_for(lambda: asked(writer) == "copy", "the copy is fresh enough again")
        assert relay.count("routes", "svc", "not_fresh") >= 1


def test_a_write_inside_a_transaction_counts_from_its_commit(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as writer:
        writer.query("BEGIN")
        writer.query("UPDATE t SET v = 'new' WHERE id = 1")
        relay.fresh = False
        writer.query("COMMIT")
        assert asked(writer) == "new"


def test_a_copy_that_lags_behind_the_limit_is_not_read(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert asked(client) == "copy"
        relay.fresh = False
        relay.wait_for(lambda: asked(client) == "shared", "the copy is late")


def test_an_error_of_the_copy_is_answered_by_the_owner(databases: tuple[Database, Database]) -> None:
    """The client sees the right answer, the counters see the failure."""
    with moving(databases) as relay, client_of(relay) as client:
        assert asked(client) == "copy"
        databases[1].execute("ALTER TABLE t RENAME TO t_hidden")
        for _ in range(5):
            assert asked(client) == "shared"
            client.send(parse("", "SELECT v FROM t WHERE id = 1"), bind("", ""), execute(), SYNC)
            assert client.until_ready()[2].body.endswith(b"shared")
        assert relay.count("sqlstates", "svc", "candidate", "42P01") == 10
        assert relay.count("routes", "svc", "retried") == 10
        runs = [run for delta in relay.deltas for run in delta.get("runs", ())]
        assert runs[-1][:2] == ["svc", 10]


def test_an_error_that_the_owner_makes_as_well_is_the_clients(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert sqlstate(client.query("SELECT v, 1 / (id - id) FROM t WHERE id = 1")) == "22012"
        assert sqlstate(client.query("SELECT nope FROM t")) == "42703"
        assert client.value("SELECT v FROM t WHERE id = 1") == "copy"


def test_what_is_sent_behind_a_unit_asked_again_is_not_lost(databases: tuple[Database, Database]) -> None:
    """An empty batch, then the client's farewell, while the copy has not yet answered."""
    databases[1].execute("ALTER TABLE t RENAME v TO w")
    with moving(databases) as relay:
        for behind, answer in ((SYNC, "12DCZZ"), (SYNC + TERMINATE, "12DCZZ"), (TERMINATE, "12DCZ")):
            with client_of(relay) as client:
                client.send(parse("", "SELECT v FROM t WHERE id = 1"), bind("", ""), execute(), SYNC, behind)
                heard = "".join(kinds(client.until_ready()) for _ in answer[answer.index("Z") :])
                assert heard == answer
                if TERMINATE in behind:
                    assert client.until_ready() == [Frame("", b"closed")]


def test_a_read_with_a_flush_before_its_sync_may_go_to_the_copy(
    databases: tuple[Database, Database],
) -> None:
    """As pg8000 sends all that has parameters."""
    with moving(databases) as relay, client_of(relay) as client:
        client.send(parse("one", "SELECT v FROM t WHERE id = 1"), SYNC)
        assert kinds(client.until_ready()) == "1Z"
        client.send(bind("", "one"), execute(), FLUSH, SYNC)
        frames = client.until_ready()
        assert (kinds(frames), frames[1].body[-4:]) == ("2DCZ", b"copy")


def test_a_copy_that_dies_under_a_read_costs_the_client_nothing(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert asked(client) == "copy"
        databases[1].execute(
            "ALTER TABLE t RENAME COLUMN v TO w; CREATE FUNCTION slow() RETURNS text LANGUAGE sql"
            " AS 'SELECT ''x'' FROM pg_sleep(30)'; ALTER TABLE t RENAME TO real_t;"
            "CREATE VIEW t AS SELECT id, slow() AS v FROM real_t"
        )
        client.send(b"Q" + (33).to_bytes(4) + b"SELECT v FROM t WHERE id = 1" + b"\0")
        kill = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'SELECT v FROM t%' AND state = 'active'"
        )
        relay.wait_for(lambda: bool(databases[1].execute(kill)), "the copy runs the read")
        assert client.until_ready()[1].body.endswith(b"shared")


def test_a_copy_that_crashes_under_reads_costs_the_clients_nothing(
    database: Database, servers: Servers
) -> None:
    """All its processes warn their clients before they go: of the copy's end these are not to hear."""
    server = servers.start("crashing")
    server.execute(f"CREATE DATABASE {database.dbname}")
    copy = Database(server, database.dbname)
    fill((database, copy))
    with ExitStack() as stack:
        relay = stack.enter_context(moving((database, copy)))
        simple, extended, within, between = (stack.enter_context(client_of(relay)) for _ in range(4))
        for client in (within, between):
            client.query("BEGIN")
            assert asked(client) == "copy"
        blocker = copy.connect()
        blocker.run("BEGIN")
        # Not of `t`, which the open transactions have locked for reading.
        blocker.run("LOCK TABLE u IN ACCESS EXCLUSIVE MODE")
        read = "SELECT v FROM t WHERE id = 1 AND NOT EXISTS (SELECT FROM u)"
        for client in (simple, within):
            client.send(query(read))
        extended.send(parse("", read), bind("", ""), execute(), SYNC)
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        relay.wait_for(lambda: len(copy.execute(waits)) == 3, "the reads hang")
        server.stop("immediate")
        blocker.close()
        for client, answer in ((simple, "TDCZ"), (extended, "12DCZ"), (within, "TDCZ")):
            frames = client.until_ready()
            assert kinds(frames) == answer
            assert next(frame for frame in frames if frame.kind == "D").body.endswith(b"shared")
        assert kinds(between.query(read)) == "TDCZ"
        assert asked(between) == "shared"


def test_reads_that_hang_at_the_copy_are_called_back_by_a_rollback(
    databases: tuple[Database, Database],
) -> None:
    with moving(databases) as relay, client_of(relay) as client:
        assert asked(client) == "copy"
        blocker = databases[1].connect()
        blocker.run("BEGIN")
        blocker.run("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        client.send(b"Q" + (33).to_bytes(4) + b"SELECT v FROM t WHERE id = 1" + b"\0")
        waits = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        relay.wait_for(lambda: bool(databases[1].execute(waits)), "the read hangs")
        relay.wait_for(lambda: relay.count("calls", "svc", "candidate") >= 1, "counted")
        relay.shift(0)
        assert client.until_ready()[1].body.endswith(b"shared")
        assert asked(client) == "shared"
        blocker.close()


def test_reads_that_wait_for_a_link_to_the_copy_are_called_back_too(
    databases: tuple[Database, Database],
) -> None:
    """After a rollback was acknowledged nothing new goes to the copy, not even what stood in line for it."""
    config = {"pools": {"default_pool_size": 1}}
    with RunningRelay(*databases, tables=TABLES, reads_percent=100, config=config) as relay:
        blocker = databases[1].connect()
        blocker.run("BEGIN")
        blocker.run("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with client_of(relay) as hanging, client_of(relay) as waiting:
            for client in (hanging, waiting):
                client.send(b"Q" + (33).to_bytes(4) + b"SELECT v FROM t WHERE id = 1" + b"\0")
            relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "the second read waits for a link")
            relay.shift(0)
            for client in (hanging, waiting):
                assert client.until_ready()[1].body.endswith(b"shared")
        blocker.close()


def test_a_hanging_read_is_counted_as_slow_while_it_hangs(databases: tuple[Database, Database]) -> None:
    config = {"rollback": {"latency_ms_max": 50}}
    with (
        RunningRelay(*databases, tables=TABLES, reads_percent=100, config=config) as relay,
        client_of(relay) as client,
    ):
        blocker = databases[1].connect()
        blocker.run("BEGIN")
        blocker.run("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        client.send(b"Q" + (33).to_bytes(4) + b"SELECT v FROM t WHERE id = 1" + b"\0")

        def slow() -> int:
            relay.count("calls")
            rows = [row for delta in relay.deltas for row in delta["calls"]]
            return sum(row[7] for row in rows if row[:2] == ["svc", "candidate"])

        relay.wait_for(lambda: slow() == 1, "counted as slow")
        blocker.run("COMMIT")
        assert client.until_ready()[1].body.endswith(b"copy")
        relay.call(lambda _: None)
        assert slow() == 1, "one slow statement is counted once"
        blocker.close()


def test_reads_that_have_no_answer_are_told_of_until_they_have_one(
    databases: tuple[Database, Database],
) -> None:
    config = {"rollback": {"latency_ms_max": 50}}
    with (
        RunningRelay(*databases, tables=TABLES, reads_percent=100, config=config) as relay,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(client_of(relay)) for _ in range(3)]
        blocker = databases[1].connect()
        blocker.run("BEGIN")
        blocker.run("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        for client in clients:
            client.send(b"Q" + (33).to_bytes(4) + b"SELECT v FROM t WHERE id = 1" + b"\0")

        def stuck() -> list[list[Any]]:
            relay.count("calls")
            return next((delta["stuck"] for delta in reversed(relay.deltas)), [])

        relay.wait_for(lambda: [row[:2] for row in stuck()] == [["svc", 3]], "all three are told of")
        before = stuck()[0][2]
        relay.wait_for(lambda: stuck()[0][2] > before + 3, "they grow older")
        blocker.run("COMMIT")
        for client in clients:
            assert client.until_ready()[1].body.endswith(b"copy")
        relay.wait_for(lambda: stuck() == [], "they are not told of any more")
        blocker.close()


def test_statements_for_which_the_shared_database_is_not_there_count_as_failed(
    databases: tuple[Database, Database],
) -> None:
    with RunningRelay(*databases, tables=TABLES) as relay, client_of(relay) as client:
        assert asked(client) == "shared"
        server, dbname = databases[0].server, databases[0].dbname
        server.execute(f"ALTER DATABASE {dbname} WITH ALLOW_CONNECTIONS false")
        try:
            server.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{dbname}'"
            )
            relay.wait_for(lambda: relay.call(lambda relay: len(relay.links)) == 0, "its links are gone")
            assert client.query("SELECT v FROM t WHERE id = 1")[0].kind == "E"
        finally:
            server.execute(f"ALTER DATABASE {dbname} WITH ALLOW_CONNECTIONS true")
        relay.count("calls")
        rows = [row for delta in relay.deltas for row in delta["calls"]]
        assert sum(row[5] for row in rows if row[0] == "svc" and row[3] == "read") == 1


def test_a_service_database_that_is_down_costs_reads_nothing(databases: tuple[Database, Database]) -> None:
    with moving(databases) as relay:
        databases[1].server.execute(f"ALTER DATABASE {databases[1].dbname} WITH ALLOW_CONNECTIONS false")
        with client_of(relay) as client:
            for _ in range(20):
                assert asked(client) == "shared"
        assert [event["kind"] for event in relay.events][:1] == ["link_failed"]
        databases[1].server.execute(f"ALTER DATABASE {databases[1].dbname} WITH ALLOW_CONNECTIONS true")


# --- shadow writes ------------------------------------------------------------------------------------


def shadowed(databases: tuple[Database, Database], config: dict[str, Any] | None = None) -> RunningRelay:
    return RunningRelay(*databases, tables=TABLES, shadow_writes="validate", config=config)


def test_writes_are_validated_at_the_target_and_leave_nothing_there(
    databases: tuple[Database, Database],
) -> None:
    with shadowed(databases) as relay, client_of(relay) as client:
        assert kinds(client.query("INSERT INTO t (id) VALUES (100)")) == "CZ"
        assert kinds(client.query("UPDATE t SET v = 'x' WHERE id = 5")) == "CZ"
        client.send(parse("", "DELETE FROM t WHERE id = $1::int"), bind("", "", "6"), execute(), SYNC)
        assert kinds(client.until_ready()) == "12CZ"
        client.query("BEGIN")
        client.query("INSERT INTO t (id) VALUES (101)")
        client.query("UPDATE t SET v = 'y' WHERE id = 7")
        client.query("COMMIT")
        relay.wait_for(lambda: relay.count("shadow", "svc", "match") == 4, "four transactions match")
        assert databases[1].execute("SELECT count(*), count(*) FILTER (WHERE v <> 'copy') FROM t") == [
            [10, 0]
        ]
        assert databases[0].execute("SELECT count(*) FROM t") == [[11]]


def test_what_only_the_target_refuses_is_a_mismatch(databases: tuple[Database, Database]) -> None:
    databases[1].execute("ALTER TABLE t ADD CONSTRAINT narrow CHECK (id < 50)")
    with shadowed(databases) as relay, client_of(relay) as client:
        assert kinds(client.query("INSERT INTO t (id) VALUES (100)")) == "CZ"
        relay.wait_for(lambda: relay.count("shadow", "svc", "mismatch") == 1, "the mismatch is counted")
        found = [row for delta in relay.deltas for row in delta.get("shadow_mismatches", ())]
        assert found == [["svc", "public.t", "shadow_write", "ok", "23514"]]


def test_what_the_lane_could_explain_is_undecided(databases: tuple[Database, Database]) -> None:
    databases[1].execute("INSERT INTO t (id) VALUES (100)")  # as if the lane had been faster
    databases[1].execute("DELETE FROM t WHERE id = 3")
    with shadowed(databases) as relay, client_of(relay) as client:
        client.query("INSERT INTO t (id) VALUES (100)")
        client.query("UPDATE t SET v = 'x' WHERE id = 3")
        relay.wait_for(lambda: relay.count("shadow", "svc", "undecided") == 2, "both are undecided")
        assert relay.count("shadow", "svc", "mismatch") == 0


def test_what_could_not_be_undone_is_never_run_at_the_target(databases: tuple[Database, Database]) -> None:
    with shadowed(databases) as relay, client_of(relay) as client:
        client.query("BEGIN; INSERT INTO t (id) VALUES (200); COMMIT")
        client.query("TRUNCATE u")
        client.query("ALTER TABLE t ADD COLUMN z int")
        client.query("INSERT INTO t (id) VALUES (201 + length(pg_sleep(0)::text))")
        client.query("BEGIN")
        client.query("INSERT INTO t (id) VALUES (202)")
        client.query("ROLLBACK")
        client.query("INSERT INTO t (id) VALUES (203)")
        relay.wait_for(lambda: relay.count("shadow", "svc", "match") >= 1, "the last one was validated")
        assert relay.count("shadow", "svc", "match") == 1
        assert databases[1].execute("SELECT max(id) FROM t") == [[10]]
        assert databases[1].execute(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'z'"
        ) == [[0]]


def test_a_target_that_hangs_delays_no_client(databases: tuple[Database, Database]) -> None:
    with shadowed(databases) as relay, client_of(relay) as client:
        blocker = databases[1].connect()
        blocker.run("BEGIN")
        blocker.run("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        for number in range(300, 320):
            assert kinds(client.query(f"INSERT INTO t (id) VALUES ({number})")) == "CZ"
        relay.wait_for(lambda: relay.count("shadow", "svc", "undecided") >= 1, "lock timeouts are undecided")
        assert relay.count("shadow", "svc", "mismatch") == 0
        blocker.close()


def test_links_for_validation_are_few_and_counted(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside_the_pools(relay: Relay) -> int:
        return relay.links_open - len(relay.links)

    with shadowed(databases) as relay, ExitStack() as stack:
        for number in range(5):
            client = stack.enter_context(WireClient(relay.connect()))
            client.log_in("app", relay.shared.dbname, application_name=f"a{number}")
            client.query(f"INSERT INTO t (id) VALUES ({400 + number})")
            relay.wait_for(
                lambda done=number + 1: relay.count("shadow", "svc", "match") == done, "it matches"
            )
            assert 1 <= relay.call(beside_the_pools) <= 2
        monkeypatch.setattr("pgshunt.proxy.spares.IDLE_S_MAX", 0.0)
        relay.wait_for(lambda: relay.call(beside_the_pools) == 0, "those that nobody needs are closed")


def test_links_for_validation_make_room(databases: tuple[Database, Database]) -> None:
    """One link in all: what was opened to validate a write is given up for the next statement."""
    limits = {"server_connections": {"total": 2, "reserved": 0, "monitoring": 0}}
    with shadowed(databases, config={"pools": limits}) as relay, client_of(relay) as first:
        first.query("INSERT INTO t (id) VALUES (500)")
        relay.wait_for(lambda: relay.count("shadow", "svc", "match") == 1, "it matches")
        assert first.query("BEGIN") + first.query("SELECT 1 FROM other")
        with client_of(relay) as second:
            assert second.value("SELECT 1") == "1"
            assert relay.call(lambda r: r.links_open) == 2


def test_what_one_worker_has_written_is_not_missed_by_another(databases: tuple[Database, Database]) -> None:
    split = {"tables": TABLES, "reads_percent": 100}
    with (
        RunningRelay(*databases, workers=2, **split) as relay,  # type: ignore[arg-type]
        RunningRelay(*databases, beside=relay, **split) as another,  # type: ignore[arg-type]
        client_of(relay) as writer,
        client_of(another) as reader,
    ):
        relay.fresh = another.fresh = False
        for causality, read_at in (("session", "copy"), ("service", "shared")):
            for one in (relay, another):
                one.shift(100, causality=causality)
            relay.board.freshness[1] = time.monotonic_ns()
            assert asked(reader) == "copy"
            assert kinds(writer.query("UPDATE t SET v = v WHERE id = 2")) == "CZ"
            assert asked(reader) == read_at
            assert asked(writer) == "shared", "which it has written itself"
            relay.board.freshness[1] = time.monotonic_ns()
            assert asked(reader) == asked(writer) == "copy"
