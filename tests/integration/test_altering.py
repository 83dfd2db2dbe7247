"""Columns for a moving table: at both databases or at none, with the lane running, and through the proxy."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.fixtures import Database
from support.moving import CONTROL, TARGET, Moving, databases, endpoint, moving
from support.serve import Serving, address, configuration

from pgshunt.admin.problem import Problem
from pgshunt.admin.waiting import copied
from pgshunt.demo.postgres import Server as Postgres
from pgshunt.migration import altering
from pgshunt.migration.altering import Impossible, add_columns, complete
from pgshunt.migration.servers import Link, Server, ServerError, Unreachable
from pgshunt.migration.wholeness import Wholeness
from pgshunt.routing.additions import Addition, Column
from pgshunt.routing.table import Endpoint

INT = 'pg_catalog."int4"'
SEVEN = Column("seven", f"{INT} DEFAULT 7 NOT NULL", False)
_numbers = itertools.count()

Pair = tuple[Database, Database]


@pytest.fixture
def pair(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[Pair]:
    with databases(postgres_pair, f"altering_{next(_numbers)}") as made:
        made[0].execute("CREATE TABLE notes (id bigint PRIMARY KEY); INSERT INTO notes VALUES (1)")
        yield made


def columns(database: Database) -> list[str]:
    rows = database.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'notes'::regclass AND attnum > 0 "
        "AND NOT attisdropped ORDER BY attnum"
    )
    return [name for (name,) in rows]


async def add(
    pair: Pair, *wanted: Column, user: str = CONTROL.user, table: str = "public.notes"
) -> list[str]:
    """Returns the copies that were lost; they have been made up for."""
    source, copy = endpoint(pair[0], "shared"), endpoint(pair[1], "own_db")
    owed: list[Addition] = []
    addition = Addition(table, wanted)
    try:
        await add_columns(addition, user, source, [copy], CONTROL, lambda _, addition: owed.append(addition))
    finally:
        server = Server(copy, CONTROL, "alter")
        for addition in owed:
            await complete(addition, server)
        await server.close()
    return [copy.name for _ in owed]


@asynccontextmanager
async def lane(pair: Pair) -> AsyncIterator[Moving]:
    async with moving(*pair, "auth_service", ("public.notes",)) as running:
        yield running


async def arrived(running: Moving) -> None:
    assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 10)


def test_rows_from_before_and_behind_arrive_with_the_new_columns(pair: Pair) -> None:
    shared, own = pair

    async def scenario() -> None:
        async with lane(pair) as running:
            await running.lane.set_enabled(False)
            shared.execute("INSERT INTO notes VALUES (2)")  # is still to come when the copy has the column
            assert await add(pair, SEVEN, Column("more", 'pg_catalog."text"', False)) == []
            shared.execute("INSERT INTO notes VALUES (3, 8, 'x')")
            await running.lane.set_enabled(True)
            await arrived(running)
            rows = [[1, 7, None], [2, 7, None], [3, 8, "x"]]
            assert own.execute("SELECT * FROM notes ORDER BY id") == rows
            assert shared.execute("SELECT * FROM notes ORDER BY id") == rows
            assert (await running.lane.status()).is_healthy

    asyncio.run(scenario())


def test_what_fails_at_the_copy_changes_nothing(pair: Pair) -> None:
    async def scenario() -> None:
        async with lane(pair):
            pair[1].execute("ALTER TABLE notes ADD seven text")
            with pytest.raises(Impossible, match='has another column "seven" at own_db'):
                await add(pair, Column("first", INT, False), SEVEN)
            assert (columns(pair[0]), columns(pair[1])) == (["id"], ["id", "seven"])
            pair[1].execute("ALTER TABLE notes DROP seven")
            with pytest.raises(ServerError, match="seven_types") as unknown:
                await add(pair, Column("seven", "pg_catalog.seven_types", False))
            assert unknown.value.endpoint == "own_db"
            assert columns(pair[0]) == columns(pair[1]) == ["id"]

    asyncio.run(scenario())


def test_what_fails_at_the_source_leaves_nothing_at_the_copy(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altering, "ATTEMPTS", 2)

    async def scenario() -> None:
        async with lane(pair) as running:
            holder = pair[0].connect()
            holder.run("BEGIN; LOCK TABLE notes IN ACCESS SHARE MODE")
            with pytest.raises(ServerError, match="lock timeout") as locked:
                await add(pair, SEVEN)
            assert locked.value.endpoint == "shared"
            assert columns(pair[1]) == ["id"]
            holder.run("ROLLBACK")
            assert await add(pair, SEVEN) == []
            holder.close()
            await arrived(running)

    asyncio.run(scenario())


def test_a_column_that_is_there_is_done_or_refused_as_by_postgresql(pair: Pair) -> None:
    async def scenario() -> None:
        async with lane(pair):
            assert await add(pair, SEVEN) == []
            with pytest.raises(
                Impossible, match='column "seven" of relation "notes" already exists'
            ) as taken:
                await add(pair, SEVEN)
            assert taken.value.sqlstate == "42701"
            assert await add(pair, Column("seven", INT, True), Column("more", INT, True)) == []
            assert columns(pair[0]) == columns(pair[1]) == ["id", "seven", "more"]

    asyncio.run(scenario())


def test_who_does_not_own_the_table_changes_neither(pair: Pair) -> None:
    async def scenario() -> None:
        async with lane(pair):
            pair[0].execute("CREATE ROLE altering_guest")
            try:
                with pytest.raises(Impossible, match="must be owner of table notes") as denied:
                    await add(pair, SEVEN, user="altering_guest")
            finally:
                pair[0].execute("DROP ROLE altering_guest")
            assert denied.value.sqlstate == "42501"
            assert columns(pair[0]) == columns(pair[1]) == ["id"]

    asyncio.run(scenario())


def test_a_copy_that_is_lost_between_the_commits_is_made_up_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, lost = altering._commit, []

    def losing(link: Link, held: altering._Held) -> None:
        if link.endpoint == "own_db" and not lost:
            lost.append(link)
            link.abort()
        commit(link, held)

    monkeypatch.setattr(altering, "_commit", losing)

    async def scenario() -> None:
        async with lane(pair) as running:
            assert await add(pair, SEVEN) == ["own_db"]
            assert len(lost) == 1
            pair[0].execute("INSERT INTO notes VALUES (2, 8)")
            await arrived(running)
            assert pair[1].execute("SELECT seven FROM notes ORDER BY id") == [[7], [8]]

    asyncio.run(scenario())


def test_a_copy_that_lacks_a_column_gets_it_when_the_statement_is_repeated(pair: Pair) -> None:
    """As after a kill between the two commits, or a change that was made past the proxy."""

    async def scenario() -> None:
        async with lane(pair) as running:
            pair[0].execute(
                f"ALTER TABLE notes ADD seven {SEVEN.definition}; INSERT INTO notes VALUES (2, 8)"
            )
            with pytest.raises(Impossible, match="already exists"):
                await add(pair, SEVEN)
            await arrived(running)
            assert pair[1].execute("SELECT seven FROM notes ORDER BY id") == [[7], [8]]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_source_that_is_lost_in_its_commit_is_asked_what_became_of_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    commit = altering._commit

    def losing(link: Link, held: altering._Held) -> None:
        if link.endpoint == "shared":
            if is_committed:
                commit(link, held)
            link.abort()
            raise Unreachable(link.endpoint, "the connection was lost")
        commit(link, held)

    monkeypatch.setattr(altering, "_commit", losing)

    async def scenario() -> None:
        async with lane(pair) as running:
            if is_committed:
                assert await add(pair, SEVEN) == []
            else:
                with pytest.raises(Unreachable):
                    await add(pair, SEVEN)
            expected = ["id", "seven"] if is_committed else ["id"]
            assert columns(pair[0]) == columns(pair[1]) == expected
            pair[0].execute("INSERT INTO notes (id) VALUES (2)")
            await arrived(running)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_known_in_time", [True, False])
def test_a_commit_that_is_only_slow_is_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_known_in_time: bool
) -> None:
    """It waits for a synchronous standby; nobody may be told that nothing has changed."""
    monkeypatch.setattr(altering, "HOLD_S_MAX", 1.0)
    monkeypatch.setattr(altering, "DOUBT_S_MAX", 10.0 if is_known_in_time else 0.5)
    shared, own = pair
    asked, are_there = threading.Event(), altering._are_there

    def asking(link: Link, addition: Addition, number: int) -> bool | None:
        asked.set()
        return are_there(link, addition, number)

    def lets_go() -> None:
        shared.server.execute("ALTER SYSTEM RESET synchronous_standby_names")
        shared.server.execute("SELECT pg_reload_conf()")

    monkeypatch.setattr(altering, "_are_there", asking)

    async def scenario() -> None:
        async with lane(pair) as running:
            shared.server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            shared.server.execute("SELECT pg_reload_conf()")
            try:
                adding = asyncio.create_task(add(pair, SEVEN))
                await asyncio.to_thread(asked.wait, 10)
                if is_known_in_time:
                    lets_go()
                    await adding
                else:
                    with pytest.raises(Impossible, match="connection was lost") as doubtful:
                        await adding
                    assert doubtful.value.sqlstate == "08007"
                    assert columns(own) == ["id", "seven"]
            finally:
                lets_go()
            shared.execute("INSERT INTO notes VALUES (2, 8)")  # waits for the table, and so for the commit
            await arrived(running)
            assert own.execute("SELECT seven FROM notes ORDER BY id") == [[7], [8]]

    asyncio.run(scenario())


def test_no_default_where_changes_are_found_by_the_whole_row(pair: Pair) -> None:
    shared, own = pair
    shared.execute("CREATE TABLE logs (v text); ALTER TABLE logs REPLICA IDENTITY FULL")
    shared.execute("INSERT INTO logs VALUES ('a'), ('b')")

    async def scenario() -> None:
        async with moving(*pair, "auth_service", ("public.logs",)) as running:
            await running.lane.set_enabled(False)
            shared.execute("UPDATE logs SET v = 'A' WHERE v = 'a'; DELETE FROM logs WHERE v = 'b'")
            with pytest.raises(Impossible, match="has REPLICA IDENTITY FULL"):
                await add(pair, SEVEN, table="public.logs")
            assert await add(pair, Column("seven", INT, False), table="public.logs") == []
            await running.lane.set_enabled(True)
            await arrived(running)
            assert own.execute("SELECT * FROM logs") == [["A", None]]

    asyncio.run(scenario())


def test_the_server_takes_the_users_word_and_rights(pair: Pair) -> None:
    shared, _ = pair
    shared.execute("CREATE ROLE altering_owner; ALTER TABLE notes OWNER TO altering_owner")
    shared.execute("CREATE SCHEMA own AUTHORIZATION altering_owner")
    shared.execute(
        "CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_user = 'altering_owner' THEN RAISE 'for others to do'; END IF; END $$"
    )
    source, copy = endpoint(shared, "shared"), endpoint(pair[1], "own_db")
    named = Addition("public.notes", (SEVEN,), '"notes"', ("own", "public"))

    async def scenario() -> None:
        async with lane(pair):
            shared.execute("CREATE TABLE own.notes (id int)")
            with pytest.raises(Impossible, match=r"is not public\.notes"):
                await add_columns(named, "altering_owner", source, [copy], CONTROL, never)
            shared.execute("DROP TABLE own.notes")
            shared.execute("CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION guard()")
            with pytest.raises(ServerError, match="for others to do"):
                await add_columns(named, "altering_owner", source, [copy], CONTROL, never)
            shared.execute("DROP EVENT TRIGGER guard")
            assert columns(shared) == columns(pair[1]) == ["id"]
            await add_columns(named, "altering_owner", source, [copy], CONTROL, never)
            assert columns(shared) == columns(pair[1]) == ["id", "seven"]

    try:
        asyncio.run(scenario())
    finally:
        shared.execute(
            "ALTER TABLE notes OWNER TO CURRENT_USER; DROP SCHEMA own CASCADE; DROP ROLE altering_owner"
        )


def never(copy: Endpoint, owed: Addition) -> None:
    raise AssertionError(f"{copy.name} was lost")


def test_a_copy_in_doubt_is_not_known_to_be_fresh_until_it_is_whole(pair: Pair) -> None:
    """As after a restart: nobody knows what was being added."""
    told: list[tuple[str, str]] = []

    class Told:
        def add(self, kind: str, service: str = "", /, **detail: Any) -> None:
            told.append((kind, service))

    async def scenario() -> None:
        async with lane(pair) as running:
            await arrived(running)
            pair[0].execute("ALTER TABLE notes ADD seven int")
            wholeness = Wholeness(endpoint(pair[0], "shared"), CONTROL, running.heartbeat, Told())
            wholeness.doubt("auth_service", endpoint(pair[1], "own_db"), ("public.notes",))
            assert running.heartbeat.freshness_ns(TARGET) == 0
            assert not await running.heartbeat.waiting(TARGET, 1, 0.5)
            assert "it lacks public.notes.seven" in wholeness.troubles["auth_service"]
            pair[1].execute("ALTER TABLE notes ADD seven int")
            await arrived(running)
            assert (wholeness.troubles, told) == ({}, [("columns_complete", "auth_service")])
            await wholeness.close()

    asyncio.run(scenario())


def test_a_vacuum_of_the_servers_own_is_sent_away_in_time(pair: Pair) -> None:
    """The server does that when a deadlock may be one, and not for who has given up by then."""

    async def scenario() -> None:
        server = Server(endpoint(pair[0], "shared"), CONTROL, "alter")
        addition = Addition("public.notes", (SEVEN,))
        await server.run(lambda link: altering._hold(link, addition, 400))
        settings = "SELECT name, setting::int FROM pg_settings WHERE name ~ '^(deadlock|lock)_timeout$'"
        found = dict(await server.run(lambda link: link.rows(settings)))
        assert found["deadlock_timeout"] < found["lock_timeout"] == 400
        await server.close()

    asyncio.run(scenario())


@dataclass(frozen=True, slots=True)
class Served:
    serving: Serving
    shared: Database
    own: Database
    where: dict[str, Any]


@pytest.fixture
def served(postgres_pair: tuple[Postgres, Postgres], tmp_path: Path) -> Iterator[Served]:
    """A pgshunt whose service `notes` is copied, with `ddl: both`."""
    with databases(postgres_pair, "serve_altering") as (shared, own):
        shared.execute("CREATE TABLE notes (id bigint PRIMARY KEY); INSERT INTO notes VALUES (1)")
        assert CONTROL.password is not None
        role = {"user": CONTROL.user, "password": CONTROL.password.reveal()}
        config = configuration(
            shared.server,
            shared.dbname,
            auth={"users": [{"name": role["user"], "password": role["password"]}]},
            control=role,
            databases={"own_db": {"dbname": own.dbname, "primary": address(own.server)}},
            services={"notes": {"database": "own_db", "tables": ["notes"], "ddl": "both"}},
        )
        with Serving(tmp_path, config) as serving:
            copied(serving.api, "/api/v1/services/notes", 60.0)
            where = {"host": "127.0.0.1", "port": serving.port, "dbname": shared.dbname, **role}
            yield Served(serving, shared, own, where)
            serving.api.post("/api/v1/services/notes/abandon", 60.0)


def test_through_the_proxy_with_a_session_that_goes_on(served: Served) -> None:
    with psycopg.connect(**served.where, autocommit=True) as client:
        assert client.execute("ALTER TABLE notes ADD a int DEFAULT 7 NOT NULL").statusmessage == "ALTER TABLE"
        assert client.execute("SELECT * FROM notes").fetchall() == [(1, 7)]
        assert columns(served.own) == ["id", "a"]
        with pytest.raises(psycopg.errors.DuplicateColumn):
            client.execute("ALTER TABLE notes ADD a int")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as refused:
            client.execute("ALTER TABLE notes DROP a")
        assert "Only ADD COLUMN is done in both" in (refused.value.diag.message_hint or "")
        with pytest.raises(psycopg.errors.FeatureNotSupported), client.transaction():
            client.execute("ALTER TABLE notes ADD b int")
        client.execute("INSERT INTO notes VALUES (2, 8)")
        served.serving.until(
            "it has arrived",
            lambda: served.own.execute("SELECT * FROM notes ORDER BY id") == [[1, 7], [2, 8]],
        )
    (told,) = served.serving.events("columns_added")
    assert told["detail"]["columns"] == ["a"]


def test_readers_and_writers_see_each_column_from_one_moment_on(served: Served) -> None:
    """The copy shows a column once the shared database has it: not before, and at once."""
    served.serving.until("it takes reads", lambda: shifted(served.serving))
    ended = threading.Event()

    def reading() -> list[int]:
        widths = []
        with psycopg.connect(**served.where, autocommit=True) as client:
            client.prepare_threshold = None
            while not ended.is_set():
                widths.append(len(client.execute("SELECT * FROM notes LIMIT 1").fetchone() or ()))
        return widths

    def writing() -> int:
        count = 0
        with psycopg.connect(**served.where, autocommit=True) as client:
            while not ended.is_set():
                count += 1
                client.execute(f"INSERT INTO notes (id) VALUES ({1000 + count})")
        return count

    with ThreadPoolExecutor() as pool:
        readers, writer = [pool.submit(reading) for _ in range(3)], pool.submit(writing)
        try:
            with psycopg.connect(**served.where, autocommit=True) as client:
                for number in range(5):
                    client.execute(f"ALTER TABLE notes ADD c{number} int DEFAULT {number} NOT NULL")
        finally:
            ended.set()
        for reader in readers:
            widths = reader.result()
            assert widths == sorted(widths)
            assert widths[0] == 1
        count = writer.result()
    counted = "SELECT count(*), sum(c0 + c1 + c2 + c3 + c4) FROM notes"
    served.serving.until(
        "all has arrived", lambda: served.own.execute(counted) == [[count + 1, 10 * (count + 1)]]
    )
    assert served.serving.events("rolled_back") == []
    assert served.serving.api.get("/api/v1/services/notes")["candidate"]["calls_per_s"] > 0


def test_a_copy_that_could_not_commit_takes_no_reads_until_it_has_the_column(served: Served) -> None:
    own, serving = served.own, served.serving
    serving.until("it takes reads", lambda: shifted(serving))
    own.execute(_COMMITS_FAIL)
    with psycopg.connect(**served.where, autocommit=True) as client:
        client.prepare_threshold = None
        client.execute("ALTER TABLE notes ADD late int DEFAULT 5")
        assert columns(own) == ["id"]
        widths = {len(client.execute("SELECT * FROM notes LIMIT 1").fetchone() or ()) for _ in range(40)}
        assert widths == {2}
        serving.until("it is told", lambda: "takes no reads until" in trouble(serving))
        own.execute("DROP EVENT TRIGGER fails")
        serving.until("it has the column", lambda: columns(own) == ["id", "late"])
        serving.until("it takes reads again", lambda: bool(serving.events("columns_complete")))
        assert {len(client.execute("SELECT * FROM notes LIMIT 1").fetchone() or ()) for _ in range(40)} == {2}
    assert len(serving.events("columns_lacking")) == 1


_COMMITS_FAIL = """
CREATE TABLE altered (x int);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'lost'; END $$;
CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON altered DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fail();
CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.altered VALUES (1); END $$;
CREATE EVENT TRIGGER fails ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION note();
"""


def trouble(serving: Serving) -> str:
    return str(serving.api.get("/api/v1/services/notes"))


def shifted(serving: Serving) -> bool:
    """Whether the service reads 50 % at its own database; not yet while its copy is late."""
    try:
        serving.api.post("/api/v1/services/notes/shift", reads=50)
    except Problem:
        return False
    return True


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ("ADD dev text DEFAULT 'x', DROP more", "public.notes lacks dev at "),
        ("ALTER more TYPE bigint", "public.notes.more is bigint at the shared database and integer at "),
    ],
)
def test_a_copy_is_not_read_while_its_table_is_defined_otherwise_past_the_proxy(
    served: Served, change: str, how: str
) -> None:
    """Although nobody writes the table, so that its lane goes on."""
    serving, service = served.serving, "/api/v1/services/notes"
    with psycopg.connect(**served.where, autocommit=True) as client:
        client.prepare_threshold = None  # a prepared statement would tell of the change itself
        client.execute("ALTER TABLE notes ADD more int")
        serving.until("it takes reads", lambda: shifted(serving))
        served.own.execute("INSERT INTO notes VALUES (2)")  # tells where a read was answered

        def rows() -> set[int]:
            return {len(client.execute("SELECT * FROM notes").fetchall()) for _ in range(40)}

        serving.until("the copy is read", lambda: 2 in rows())
        served.shared.execute(f"ALTER TABLE notes {change}")
        serving.until("that is told", lambda: bool(serving.events("definitions_differ")))
        assert rows() == {1}
        (told,) = serving.events("definitions_differ")
        assert told["detail"]["how"][0].startswith(how)
        standing = serving.api.get(service)
        assert standing["reads"] == 50
        assert any("until both are alike" in what for what in standing["attention"])
        with pytest.raises(Problem, match="not alike in both"):
            serving.api.post(f"{service}/shift", reads=60)
        served.own.execute(f"ALTER TABLE notes {change}")
        serving.until("the copy is read again", lambda: 2 in rows())
        assert len(serving.events("definitions_alike")) == 1
        assert serving.events("rolled_back") == []


def test_a_copy_is_not_read_while_a_role_may_read_it_that_has_lost_that_right(served: Served) -> None:
    serving = served.serving
    for database in (served.shared, served.own):
        database.execute("CREATE ROLE altering_reader")
        database.execute("GRANT SELECT ON notes TO altering_reader")
    try:
        serving.until("it takes reads", lambda: shifted(serving))
        served.shared.execute("REVOKE SELECT ON notes FROM altering_reader")
        serving.until("that is told", lambda: bool(serving.events("definitions_differ")))
        (told,) = serving.events("definitions_differ")
        how = told["detail"]["how"][0]
        assert how.startswith("altering_reader may read public.notes at ")
        served.own.execute("REVOKE SELECT ON notes FROM altering_reader")
        serving.until("it is read again", lambda: bool(serving.events("definitions_alike")))
    finally:
        for database in (served.shared, served.own):
            database.execute("DROP OWNED BY altering_reader; DROP ROLE altering_reader")
