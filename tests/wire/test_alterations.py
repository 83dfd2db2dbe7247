"""A moving table keeps its definition: what would change it is refused, and the session goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import FLUSH, SYNC, WireClient, bind, describe, execute, kinds, parse, sqlstate

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error

REFUSED = "0A000"
COLUMNS = ["id", "number", "mood"]
ALTER = "ALTER TABLE t ADD COLUMN more int"


@pytest.fixture
def relay(database_pair: tuple[Database, Database]) -> Iterator[RunningRelay]:
    """The service that owns t is moving; nobody owns `other`."""
    for database in database_pair:
        database.create_app()
        database.execute(
            "CREATE TYPE mood AS ENUM ('fine'); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; "
            "CREATE TABLE t (id int PRIMARY KEY, number serial, mood mood[]); CREATE INDEX i ON t (number); "
            "CREATE TABLE other (id int); CREATE INDEX other_i ON other (id)"
        )
    with RunningRelay(*database_pair, tables=("t",), reads_percent=100) as running:
        yield running


@pytest.fixture
def client(relay: RunningRelay) -> Iterator[WireClient]:
    with WireClient(relay.connect()) as connected:
        yield connected.log_in("app", relay.shared.dbname)


def columns(relay: RunningRelay) -> list[str]:
    rows = relay.shared.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum"
    )
    return [str(name) for (name,) in rows]


def others(relay: RunningRelay) -> int:
    return int(relay.shared.execute("SELECT count(*) FROM other")[0][0])


def test_the_error_says_what_to_do(relay: RunningRelay, client: WireClient) -> None:
    frames = client.query(ALTER)
    assert kinds(frames) == "EZ"
    error = read_error(frames[0].body)
    assert (error.sqlstate, error.severity) == (REFUSED, "ERROR")
    assert "public.t" in error.message
    assert "svc" in error.message
    assert error.hint is not None
    assert "services.svc.ddl" in error.hint
    assert frames[1].body == b"I"
    assert columns(relay) == COLUMNS
    assert client.value("SELECT count(*) FROM other") == "0"
    assert relay.count("routes", "svc", "frozen") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO s",
        "ALTER TABLE public.t RENAME COLUMN id TO number",
        "CREATE INDEX ON t (id)",
        "CREATE POLICY p ON t",
        "REVOKE SELECT ON t FROM PUBLIC",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC",
        "CREATE TABLE child () INHERITS (t)",
        "CREATE RULE r AS ON INSERT TO t DO NOTHING",
        "DROP SCHEMA public CASCADE",
        "DROP INDEX i",
        "DROP INDEX CONCURRENTLY IF EXISTS public.i",
        "ALTER INDEX i RENAME TO j",
        "REINDEX INDEX CONCURRENTLY i",
        "REINDEX TABLE t",
        "CREATE INDEX CONCURRENTLY j ON t (mood)",
        "ALTER TYPE mood ADD VALUE 'so-so'",
        "DROP TYPE mood CASCADE",
        "ALTER SEQUENCE t_number_seq AS bigint",
        "DROP FUNCTION f() CASCADE",
        "INSERT INTO other VALUES (1); ALTER TABLE t ADD COLUMN more int",
    ],
)
def test_every_change_of_its_definition_is_refused(relay: RunningRelay, client: WireClient, sql: str) -> None:
    frames = client.query(sql)
    assert (kinds(frames), sqlstate(frames)) == ("EZ", REFUSED)
    assert others(relay) == 0


@pytest.mark.parametrize(
    "sql",
    [
        "VACUUM t",
        "ANALYZE t",
        "COMMENT ON TABLE t IS 'moving'",
        "ALTER TABLE t SET (fillfactor = 90)",
        "ALTER TABLE t ALTER COLUMN id SET STATISTICS 100",
        "ALTER TABLE other ADD COLUMN more int",
        "ALTER INDEX other_i RENAME TO renamed",
        "DROP INDEX other_i",
        "ALTER SEQUENCE t_number_seq RESTART WITH 100",
        "CREATE VIEW v AS SELECT id FROM t",
        "CREATE TEMP TABLE t (id int)",
        "TRUNCATE t",
    ],
)
def test_what_leaves_it_as_it_is_runs(client: WireClient, sql: str) -> None:
    assert "E" not in kinds(client.query(sql))


def test_a_transaction_fails_as_by_any_error(relay: RunningRelay, client: WireClient) -> None:
    client.query("BEGIN")
    client.query("INSERT INTO other VALUES (1)")
    client.query("SAVEPOINT s")
    refused = client.query(ALTER)
    assert (sqlstate(refused), refused[-1].body) == (REFUSED, b"E")
    assert sqlstate(client.query("SELECT 1")) == "25P02"
    assert sqlstate(client.query(ALTER)) == "25P02"
    assert client.query("ROLLBACK TO s")[-1].body == b"T"
    assert client.query("INSERT INTO other VALUES (2)")[-1].body == b"T"
    assert client.query("COMMIT")[0].body == b"COMMIT\0"
    assert others(relay) == 2


def test_a_transaction_that_begins_with_it_fails_too(client: WireClient) -> None:
    client.query("BEGIN")
    refused = client.query(ALTER)
    assert (kinds(refused), sqlstate(refused), refused[-1].body) == ("EZ", REFUSED, b"E")
    assert client.query("COMMIT")[0].body == b"ROLLBACK\0"


def test_a_batch_is_rolled_back_whole(relay: RunningRelay, client: WireClient) -> None:
    insert = parse("", "INSERT INTO other VALUES (1)") + bind("", "") + execute()
    client.send(insert + parse("", ALTER) + bind("", "") + execute() + insert + SYNC)
    frames = client.until_ready()
    assert (kinds(frames), sqlstate(frames), frames[-1].body) == ("12CEZ", REFUSED, b"I")
    assert others(relay) == 0
    assert client.value("SELECT 7") == "7"


def test_a_batch_of_several_is_answered_once(client: WireClient) -> None:
    alter = parse("", ALTER) + bind("", "") + describe("P") + execute()
    client.send(alter + alter + SYNC)
    frames = client.until_ready()
    assert (kinds(frames), sqlstate(frames), frames[-1].body) == ("EZ", REFUSED, b"I")
    client.send(parse("a", "SELECT 1") + SYNC + parse("", "SELECT 2") + bind("", "") + execute())
    client.send(parse("b", "SELECT 1") + alter + alter + SYNC)
    assert kinds(client.until_ready()) == "1Z"
    assert kinds(client.until_ready()) == "12DC1EZ"
    assert client.value("SELECT 7") == "7"


def test_answers_stay_in_order(client: WireClient) -> None:
    queries = ("SELECT 1", ALTER, "SELECT 2", ALTER, "SELECT 3")
    client.send(*(messages.query(sql.encode()) for sql in queries))
    answers = [kinds(client.until_ready()) for _ in queries]
    assert answers == ["TDCZ", "EZ", "TDCZ", "EZ", "TDCZ"]


def test_a_statement_prepared_before_the_move_is_refused_in_it(
    relay: RunningRelay, client: WireClient
) -> None:
    relay.shift(100, stage="shared")
    client.send(parse("a", ALTER) + SYNC)
    assert kinds(client.until_ready()) == "1Z"
    relay.shift(100, stage="reading")
    client.send(bind("", "a") + FLUSH + execute() + SYNC)
    frames = client.until_ready()
    assert (kinds(frames), sqlstate(frames)) == ("EZ", REFUSED)
    relay.shift(100, stage="shared")
    client.send(bind("", "a") + execute() + SYNC)
    assert kinds(client.until_ready()) == "2CZ"
    assert columns(relay) == [*COLUMNS, "more"]


def test_the_owner_takes_it_where_the_configuration_says_so(relay: RunningRelay, client: WireClient) -> None:
    relay.shift(100, ddl="owner")
    assert kinds(client.query(ALTER)) == "CZ"
    assert columns(relay) == [*COLUMNS, "more"]


def test_who_is_refused_is_told_so_when_its_turn_has_come(database_pair: tuple[Database, Database]) -> None:
    """Its settings must be brought to the only link, and others with other settings wait for that as well."""
    for database in database_pair:
        database.create_app()
        database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)")
    with (
        RunningRelay(
            *database_pair, tables=("t",), reads_percent=100, config={"pools": {"default_pool_size": 1}}
        ) as relay,
        ExitStack() as stack,
    ):
        holder, refused, other = (
            stack.enter_context(WireClient(relay.connect(timeout_s=5))).log_in("app", relay.shared.dbname)
            for _ in range(3)
        )
        for client, memory in ((refused, "5MB"), (other, "6MB")):
            client.query(f"SET work_mem = '{memory}'")
        for _ in range(2):
            holder.query("BEGIN; SELECT 1 FROM other")
            refused.send(messages.query(ALTER.encode()))
            relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 1, "it waits")
            other.send(messages.query(b"BEGIN; SELECT 1 FROM other"))
            relay.wait_for(lambda: relay.call(lambda r: r.waiting) == 2, "another one waits behind it")
            holder.query("COMMIT")
            assert sqlstate(refused.until_ready()) == REFUSED
            assert other.until_ready()[-1].body == b"T"
            other.query("COMMIT")
