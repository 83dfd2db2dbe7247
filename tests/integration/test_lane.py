"""Lanes between real servers: copy, stream, resume after a crash at any step, removal."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator

import pytest
from support.fixtures import Database
from support.moving import CONTROL, TARGET, databases, endpoint, moving

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server as Postgres
from pgshunt.demo.waiting import wait_for
from pgshunt.migration import likeness, preflight, roles
from pgshunt.migration.catalogue import read_catalogue
from pgshunt.migration.lane import Lane, LaneFailed
from pgshunt.migration.lane_state import TableProgress
from pgshunt.migration.schema import SchemaFailed, copy_schema, drop_copies
from pgshunt.migration.servers import Server, ServerError, Unreachable

SCHEMA = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE DOMAIN address AS text CHECK (VALUE LIKE '%@%');
CREATE SEQUENCE free_numbers;
CREATE FUNCTION shout(t text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN upper(t); END $$;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.note := shout('touched'); RETURN NEW; END $$;
CREATE FUNCTION unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE elsewhere (id int PRIMARY KEY);
CREATE TABLE users (
    id bigserial PRIMARY KEY, name text NOT NULL, m mood DEFAULT 'calm', mail address,
    n int DEFAULT nextval('free_numbers'), e int REFERENCES elsewhere, note text
);
CREATE INDEX ON users (lower(name));
CREATE TABLE "Odd names" (
    "Key" int, "a""b" text, PRIMARY KEY ("Key", "a""b"), "user" bigint REFERENCES users);
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION stamp();
"""
TABLES = ("public.users", "public.Odd names", "public.parts")

_numbers = itertools.count()


@pytest.fixture
def pair(postgres_pair: tuple[Postgres, Postgres]) -> Iterator[tuple[Database, Database]]:
    with databases(postgres_pair, f"lane_{next(_numbers)}") as made:
        made[0].execute(SCHEMA)
        yield made


@pytest.fixture
def same_server_pair(postgres: Postgres) -> Iterator[tuple[Database, Database]]:
    name = f"lane_{next(_numbers)}"
    with databases((postgres, postgres), name, f"{name}_own") as made:
        made[0].execute(SCHEMA)
        yield made


def _assert_nothing_left(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    name = shared.dbname
    slots = shared.execute("SELECT slot_name FROM pg_replication_slots WHERE database = :name", name=name)
    publications = shared.execute("SELECT pubname FROM pg_publication")
    subscriptions = own.execute(
        "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE datname = :name",
        name=own.dbname,
    )
    assert (slots, publications, subscriptions) == ([], [], [])


def _servers(pair: tuple[Database, Database]) -> tuple[Server, Server]:
    shared, own = pair
    return Server(endpoint(shared, "shared"), CONTROL, "lane"), Server(
        endpoint(own, "own_db"), CONTROL, "lane"
    )


def test_rows_from_before_and_after_the_copy_arrive_and_triggers_stay_quiet(
    pair: tuple[Database, Database],
) -> None:
    shared, own = pair
    shared.execute("INSERT INTO users (name, mail) SELECT 'user ' || i, 'a@b' FROM generate_series(1, 500) i")
    shared.execute(
        """INSERT INTO "Odd names" VALUES (1, 'x', 1); INSERT INTO parts VALUES (1, 'low'), (500, 'high')"""
    )
    shared.execute("ALTER TABLE users DISABLE TRIGGER stamp; UPDATE users SET note = 'by hand' WHERE id = 7")

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", TABLES) as running:
            shared.execute("UPDATE users SET name = 'changed' WHERE id = 8; DELETE FROM users WHERE id = 9")
            shared.execute("UPDATE parts SET v = 'moved', id = 600 WHERE id = 1")
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 5)
            for table in ("users", '"Odd names"', "parts"):
                query = f"SELECT t::text FROM {table} t ORDER BY 1"
                assert own.execute(query) == shared.execute(query)
            assert own.execute("SELECT note FROM users WHERE id IN (7, 8) ORDER BY id") == [
                ["by hand"],
                ["TOUCHED"],
            ]
            status = await running.lane.status()
            assert status.is_healthy, status.problem
            assert status.tables_streaming == status.tables_total == 5  # partitions count, and the heartbeat

    asyncio.run(scenario())


def test_copies_go_with_the_functions_on_their_rows_but_not_with_what_others_built_on_them(
    pair: tuple[Database, Database],
) -> None:
    shared, own = pair
    shared.execute(
        """
        CREATE FUNCTION label(u users) RETURNS text LANGUAGE sql AS 'SELECT (u).name';
        CREATE FUNCTION labelled() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.note := label(NEW); RETURN NEW; END';
        CREATE TRIGGER labelled BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION labelled()
        """
    )
    left = "SELECT to_regprocedure('label(users)')::text, to_regclass('users')::text"

    async def scenario() -> None:
        source, target = _servers(pair)
        copied = await copy_schema(source, target, TABLES)
        assert own.execute(left) == [["label(users)", "users"]]
        own.execute("CREATE VIEW names AS SELECT name FROM users")
        with pytest.raises(ServerError, match=r"view public\.names depends on table public\.users"):
            await target.run(lambda link: drop_copies(link, copied.tables))
        assert own.execute(left) == [["label(users)", "users"]]
        own.execute("DROP VIEW names")
        await target.run(lambda link: drop_copies(link, copied.tables))
        assert own.execute("SELECT to_regclass('users')::text") == [[None]]
        assert own.execute("SELECT count(*) FROM pg_proc WHERE proname = 'label'") == [[0]]

    asyncio.run(scenario())


def test_the_schema_brings_what_the_tables_need_and_nothing_else(pair: tuple[Database, Database]) -> None:
    shared, own = pair

    async def scenario() -> None:
        source, target = _servers(pair)
        copied = await copy_schema(source, target, TABLES)
        assert set(copied.tables) == {*TABLES, "public.parts_low", "public.parts_high"}
        assert copied.dropped_foreign_keys == ("public.users.users_e_fkey → public.elsewhere",)
        functions = own.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
        )
        assert functions == [["shout"], ["stamp"]]
        indexes = (
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid FROM pg_index "
            "WHERE indrelid::regclass::text IN ('users', '\"Odd names\"', 'parts', 'parts_low') ORDER BY 1"
        )
        assert own.execute(indexes) == shared.execute(indexes)
        assert own.execute("SELECT conname FROM pg_constraint WHERE contype = 'f'") == [
            ["Odd names_user_fkey"]
        ]
        own.execute("INSERT INTO users (name) VALUES ('x')")
        assert own.execute("SELECT m, n, note FROM users") == [["calm", 1, "TOUCHED"]]

        assert await copy_schema(source, target, TABLES) == copied  # once more changes nothing
        own.execute("ALTER TABLE users DROP COLUMN e")
        with pytest.raises(SchemaFailed, match=r"public\.users at own_db differs .* in e:"):
            await copy_schema(source, target, TABLES)
        await target.run(lambda link: drop_copies(link, copied.tables))
        await copy_schema(source, target, TABLES)  # types and functions are there still
        for server in (source, target):
            await server.close()

    asyncio.run(scenario())


def test_others_tables_that_the_control_role_may_not_read_are_no_hindrance(
    pair: tuple[Database, Database],
) -> None:
    shared, own = pair
    shared.execute(
        """
        CREATE ROLE pgshunt_mover LOGIN PASSWORD 'moving';
        ALTER TABLE users OWNER TO pgshunt_mover;
        CREATE TABLE "not ""yours" (id int PRIMARY KEY);
        CREATE SCHEMA theirs;
        CREATE TABLE theirs.parts (id int) PARTITION BY LIST (id);
        GRANT SELECT ON theirs.parts TO pgshunt_mover
        """
    )

    async def scenario() -> None:
        _, target = _servers(pair)
        mover = Control(user="pgshunt_mover", password=Secret("moving"))
        source = Server(endpoint(shared, "shared"), mover, "test")
        copied = await copy_schema(source, target, ["public.users"])
        assert copied.tables == ("public.users",)
        assert own.execute("SELECT count(*) FROM users") == [[0]]
        for server in (source, target):
            await server.close()

    try:
        asyncio.run(scenario())
    finally:
        shared.execute("DROP OWNED BY pgshunt_mover CASCADE; DROP ROLE pgshunt_mover")


@pytest.mark.parametrize("steps_done", range(4))
def test_a_lane_begun_again_after_a_crash_at_any_step_comes_up(
    pair: tuple[Database, Database], steps_done: int
) -> None:
    shared, own = pair
    shared.execute("INSERT INTO users (name) SELECT 'user' FROM generate_series(1, 100)")

    async def crash() -> None:
        source, target = _servers(pair)
        lane = Lane("auth_service", TABLES, source, target)
        steps = (
            lambda: copy_schema(source, target, TABLES),
            lane.ensure_publication,
            lane.ensure_slot,
            lane.ensure_subscription,
        )
        for step in steps[: steps_done + 1]:
            await step()
        for server in (source, target):
            await server.close()

    async def again() -> None:
        async with moving(shared, own, "auth_service", TABLES) as running:
            shared.execute("INSERT INTO users (name) VALUES ('late')")
            assert await running.heartbeat.waiting(TARGET, time.monotonic_ns(), 5)
            assert own.execute("SELECT count(*) FROM users") == [[101]]

    asyncio.run(crash())
    asyncio.run(again())
    _assert_nothing_left(pair)


def test_dropping_in_the_middle_of_a_copy_leaves_nothing_and_may_be_repeated(
    pair: tuple[Database, Database],
) -> None:
    shared, own = pair
    shared.execute("INSERT INTO users (name) SELECT 'user' FROM generate_series(1, 1000)")

    async def scenario() -> None:
        source, target = _servers(pair)
        lane = Lane("auth_service", TABLES, source, target)
        await copy_schema(source, target, TABLES)
        await lane.ensure_publication()
        await lane.ensure_slot()
        own.execute(
            "INSERT INTO users (id, name) VALUES (1, 'in the way')"
        )  # the copy fails and is tried again
        await lane.ensure_subscription()
        sync_slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'pg_%_sync_%'"
        wait_for("a copy that has begun", lambda: shared.execute(sync_slots) != [[0]], 30)
        with pytest.raises(
            LaneFailed, match=r"not ready within 1 s: .*public\.users is|copying public\.users"
        ):
            await lane.wait_ready(1)
        await lane.drop()
        _assert_nothing_left(pair)
        await lane.drop()
        for server in (source, target):
            await server.close()

    asyncio.run(scenario())


def test_progress_goes_from_waiting_to_streaming_with_true_counts(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    shared.execute("INSERT INTO users (name) SELECT 'user' FROM generate_series(1, 20000)")
    seen: list[list[TableProgress]] = []

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", ("public.users",)) as running:
            await running.lane.wait_ready(5, seen.append)

    asyncio.run(scenario())
    users = next(progress for progress in seen[-1] if progress.table == "public.users")
    assert (users.state, users.rows_copied, users.rows_total) == ("streaming", 20_000, 20_000)


def test_two_databases_of_one_server(same_server_pair: tuple[Database, Database]) -> None:
    shared, own = same_server_pair
    shared.execute("INSERT INTO users (name) SELECT 'user' FROM generate_series(1, 100)")

    async def scenario() -> None:
        async with moving(shared, own, "auth_service", TABLES):
            assert own.execute("SELECT count(*) FROM users") == [[100]]

    asyncio.run(scenario())
    _assert_nothing_left(same_server_pair)


def test_preflight_names_every_problem_at_once(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    shared.execute(
        "CREATE TABLE keyless (a int); CREATE UNLOGGED TABLE light (id int PRIMARY KEY); "
        "CREATE VIEW seen AS SELECT 1 AS id; ALTER TABLE users ENABLE ALWAYS TRIGGER stamp"
    )
    own.execute("CREATE TABLE users (id int)")
    tables = ("public.users", "public.keyless", "public.light", "public.seen", "public.absent")

    async def scenario() -> list[preflight.Problem]:
        source, target = _servers(pair)
        name = "pgshunt_auth_service"
        facts = [
            await server.run(lambda link: preflight.read_facts(link, name, tables))
            for server in (source, target)
        ]
        same = preflight.check(name, tables, facts[0], facts[0])
        assert any("this is the shared database" in problem.message for problem in same)
        for server in (source, target):
            await server.close()
        return preflight.check(name, tables, facts[0], facts[1])

    found = {(problem.subject, problem.message.split(" ")[0]) for problem in asyncio.run(scenario())}
    assert found == {
        ("shared database", "there"),
        ("own database", "public.users"),
        ("public.keyless", "without"),
        ("public.light", "unlogged"),
        ("public.seen", "only"),
        ("public.users", "trigger"),
    }


def test_preflight_tells_that_the_control_role_may_not_create(pair: tuple[Database, Database]) -> None:
    shared, _ = pair
    name, tables = "pgshunt_auth_service", ("public.users",)
    role = f"modest_{shared.dbname}"
    shared.execute(f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'word'")
    shared.execute(f"GRANT {role} TO CURRENT_USER; ALTER TABLE users OWNER TO {role}")
    control = Control(user=role, password=Secret("word"))
    grant = f"GRANT CREATE ON DATABASE {shared.dbname} TO {role}"

    async def scenario() -> list[str]:
        source, target = Server(endpoint(shared, "shared"), control, "test"), _servers(pair)[1]
        facts = [
            await server.run(lambda link: preflight.read_facts(link, name, tables))
            for server in (source, target)
        ]
        for server in (source, target):
            await server.close()
        return [each.remedy for each in preflight.check(name, tables, facts[0], facts[1])]

    try:
        assert grant in asyncio.run(scenario())
        shared.execute(grant)
        assert grant not in asyncio.run(scenario())
    finally:
        shared.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_slot_that_must_wait_for_an_open_transaction_says_for_which(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, _ = pair
    monkeypatch.setattr("pgshunt.migration.lane.SLOT_TIMEOUT_S", 0.5)

    async def scenario() -> None:
        source, target = _servers(pair)
        lane = Lane("auth_service", TABLES, source, target)
        writer = shared.connect()
        writer.run("BEGIN")
        writer.run("INSERT INTO elsewhere VALUES (1)")
        with pytest.raises(LaneFailed, match=r"pid \d+ of postgres in lane_"):
            await lane.ensure_slot()
        writer.close()
        await lane.ensure_slot()
        await lane.drop()
        for server in (source, target):
            await server.close()

    asyncio.run(scenario())
    _assert_nothing_left(pair)


def test_roles_come_with_their_rights_and_their_password(pair: tuple[Database, Database]) -> None:
    shared, own = pair
    name = shared.dbname
    shared.execute(
        f"CREATE ROLE {name}_group; "
        f"CREATE ROLE {name}_app LOGIN PASSWORD 'open sesame' IN ROLE {name}_group; "
        f"GRANT SELECT ON users TO {name}_group; GRANT UPDATE (name) ON users TO {name}_app; "
        f"GRANT USAGE ON SEQUENCE users_id_seq TO {name}_app; GRANT SELECT ON parts TO PUBLIC"
    )

    async def scenario() -> None:
        source, target = _servers(pair)
        await copy_schema(source, target, TABLES)
        grants = await source.run(lambda link: roles.read_grants(link, TABLES))
        wanted = {f"{name}_app", *(grant.role for grant in grants if grant.role != "public")}
        known = await source.run(lambda link: roles.read_roles(link, wanted))
        for _ in range(2):
            await target.run(lambda link: roles.create_roles(link, known, {}))
            await target.run(lambda link: roles.give(link, grants))
        for server in (source, target):
            await server.close()

    try:
        asyncio.run(scenario())
        connection = own.connect(f"{name}_app", "open sesame")
        assert connection.run("SELECT count(*) FROM users") == [[0]]
        connection.run("UPDATE users SET name = ''")
        assert connection.run("SELECT nextval('users_id_seq')") == [[1]]
        with pytest.raises(Exception, match="permission denied"):
            connection.run("UPDATE users SET note = ''")
        connection.close()
    finally:
        for database in pair:
            for role in (f"{name}_app", f"{name}_group"):
                exists = database.execute("SELECT 1 FROM pg_roles WHERE rolname = :role", role=role)
                if exists:
                    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_logins_that_have_their_rights_as_members_come_too(pair: tuple[Database, Database]) -> None:
    """Through a group in a group; the role that is there already is left as it is, which is told."""
    shared, own = pair
    group, inner, app, old, other = (
        f"{shared.dbname}_{each}" for each in ("g", "inner", "app", "old", "other")
    )
    shared.execute(
        f"CREATE ROLE {group}; CREATE ROLE {inner} IN ROLE {group}; GRANT SELECT ON users TO {group}; "
        f"CREATE ROLE {other}; CREATE ROLE {app} LOGIN PASSWORD 'open sesame' IN ROLE {inner}; "
        f"CREATE ROLE {old} LOGIN IN ROLE {group}, {other}; ALTER ROLE {app} SET timezone = 'Asia/Tokyo'; "
        f'ALTER ROLE {app} SET search_path = "$user", app, public'
    )
    own.execute(f"CREATE ROLE {old} LOGIN PASSWORD 'open sesame'; CREATE ROLE {other}")

    async def scenario() -> None:
        source, target = _servers(pair)
        await copy_schema(source, target, TABLES)
        grants = await source.run(lambda link: roles.read_grants(link, TABLES))
        granted = {grant.role for grant in grants if grant.role != "public"}
        known = await source.run(lambda link: roles.read_roles(link, granted))
        ways = [likeness.read_ways(server.endpoint, CONTROL) for server in (source, target)]
        settings = {name: likeness.carried(ways[0], name, own.dbname) for name in known}
        for _ in range(2):
            await target.run(lambda link: roles.create_roles(link, known, {}, settings))
            await target.run(lambda link: roles.give(link, grants))
        present = await target.run(roles.roles_present)
        held = await target.run(roles.read_memberships)
        assert roles.memberships_lacking(known, present, held) == ((old, group),)
        for server in (source, target):
            await server.close()

    try:
        asyncio.run(scenario())
        connection = own.connect(app, "open sesame")
        assert connection.run("SELECT count(*) FROM users") == [[0]]
        assert connection.run("SHOW timezone") == [["Asia/Tokyo"]]
        assert connection.run("SHOW search_path") == [['"$user", app, public']]
        connection.close()
        for name in (group, other):
            assert own.execute(f"SELECT pg_has_role('{old}', '{name}', 'MEMBER')") == [[False]]
    finally:
        for database in pair:
            for role in (app, old, other, inner, group):
                if database.execute("SELECT 1 FROM pg_roles WHERE rolname = :role", role=role):
                    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_passwords_make_a_role_only_where_the_verifier_cannot_be_read() -> None:
    unreadable = {"app": roles.Role("app", True, False, True, (), "")}
    assert roles.roles_without_password(unreadable, frozenset(), {}) == ("app",)
    assert roles.roles_without_password(unreadable, frozenset(), {"app": Secret("x")}) == ()
    assert roles.roles_without_password(unreadable, frozenset({"app"}), {}) == ()


def test_the_password_stands_in_no_error_and_no_server_log(pair: tuple[Database, Database]) -> None:
    _, own = pair
    own.execute(f"ALTER DATABASE {own.dbname} SET log_statement = 'all'")

    async def scenario() -> str:
        source, target = _servers(pair)
        lane = Lane("auth_service", TABLES, source, target)
        with pytest.raises(ServerError) as caught:  # there are no tables yet at the target
            await lane.ensure_publication()
            await lane.ensure_subscription()
        await lane.drop()
        for server in (source, target):
            await server.close()
        return str(caught.value)

    secret = CONTROL.password.reveal() if CONTROL.password else ""
    assert "does not exist" in (message := asyncio.run(scenario()))
    assert secret not in message
    log = getattr(own.server, "log", None)
    if log is not None:
        text = log.read_text(errors="replace")
        assert "CREATE SUBSCRIPTION" in text  # the block that makes it
        assert "password=" not in text
        assert "secret'" not in text


def test_the_catalogue_tells_safe_functions_and_the_default_search_path(
    pair: tuple[Database, Database],
) -> None:
    shared, _ = pair
    shared.execute(
        f'ALTER DATABASE {shared.dbname} SET search_path = app, "$user"; '
        "CREATE VIEW seen AS SELECT 1 AS id; "
        "CREATE TYPE temper AS ENUM ('good'); CREATE TYPE pair AS (a int, b int); "
        "CREATE DOMAIN whole AS int; CREATE DOMAIN humour AS temper; CREATE DOMAIN jest AS humour; "
        "CREATE TABLE moods (id int, m temper); CREATE TABLE lists (id int, m temper[]); "
        "CREATE TABLE pairs (p pair); CREATE TABLE jests (j jest); CREATE TABLE wholes (w whole, ws int[]); "
        "CREATE VIEW moody AS SELECT m FROM moods; "
        "CREATE FUNCTION lower(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'"
    )

    async def scenario() -> None:
        source, target = _servers(pair)
        catalogue = await source.run(lambda link: read_catalogue(link, 7))
        assert catalogue.version == 7
        assert catalogue.search_path == 'app, "$user"'
        assert catalogue.relations["public.users"] == "r"
        assert catalogue.relations["public.seen"] == "v"
        assert catalogue.relations["public.free_numbers"] == "S"
        assert not any(
            name.startswith(("pg_catalog.", "information_schema.")) for name in catalogue.relations
        )
        own = {"moods", "lists", "pairs", "jests", "moody"}
        assert {f"public.{name}" for name in own} <= catalogue.own_types
        assert "public.wholes" not in catalogue.own_types
        assert {"int4", "text", "timestamptz", "jsonb", "int4range", "record"} <= catalogue.types
        assert not {"temper", "pair", "moods", "whole"} & catalogue.types
        assert {"upper", "now", "count"} <= catalogue.safe_functions
        assert not {"lower", "random", "nextval", "pg_sleep"} & catalogue.safe_functions
        for server in (source, target):
            await server.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("of_our_role", "found"), [("", "files, public"), ("mine", '"$user", public')])
def test_the_search_path_of_the_servers_files_counts_and_not_that_of_our_role(
    pair: tuple[Database, Database], of_our_role: str, found: str
) -> None:
    shared, _ = pair

    async def scenario() -> str:
        source, _ = _servers(pair)
        catalogue = await source.run(lambda link: read_catalogue(link, 1))
        await source.close()
        return catalogue.search_path

    server = shared.server
    server.execute(f"ALTER DATABASE {shared.dbname} RESET search_path")
    server.execute("ALTER SYSTEM SET search_path = files, public")
    server.execute("SELECT pg_reload_conf(), pg_sleep(0.2)")
    if of_our_role:
        server.execute(f"ALTER ROLE pgshunt_control SET search_path = {of_our_role}")
    try:
        assert asyncio.run(scenario()) == found
    finally:
        server.execute("ALTER ROLE pgshunt_control RESET search_path")
        server.execute("ALTER SYSTEM RESET search_path")
        server.execute("SELECT pg_reload_conf()")


def test_a_server_bounds_every_statement_and_recovers(pair: tuple[Database, Database]) -> None:
    database, _ = pair

    async def scenario() -> None:
        server = Server(endpoint(database, "shared"), CONTROL, "test")
        with pytest.raises(ServerError) as slow:
            await server.run(lambda link: link.rows("SELECT pg_sleep(5)"), timeout_s=0.2)
        assert slow.value.sqlstate == "57014"
        first = await server.run(lambda link: link.value("SELECT pg_backend_pid()"))
        assert await server.run(lambda link: link.value("SELECT pg_backend_pid()")) == first
        database.execute("SELECT pg_terminate_backend(:pid, 5000)", pid=first)  # waits for its end
        assert await server.run(lambda link: link.value("SELECT pg_backend_pid()")) != first
        with pytest.raises(Unreachable):
            await server.run(lambda link: link.rows("SELECT pg_terminate_backend(pg_backend_pid())"))
        assert await server.run(lambda link: link.value("SELECT 1")) == 1
        await server.close()

    asyncio.run(scenario())
