"""What functions, triggers and so on leave behind in a session stays with it, whatever link it gets.

Each story is played by sessions on connections of their own, directly, and by sessions that share one link:
every frame has to be equal.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import SYNC, Frame, WireClient, bind, execute, parse

from pgshunt.protocol.messages import query

A, B = range(2)
Step = tuple[int, str | list[bytes]]

SETUP = """
CREATE TABLE t (id serial PRIMARY KEY, v text);
CREATE TABLE quiet (id serial PRIMARY KEY, v text);
CREATE TABLE audited (id serial PRIMARY KEY, v text);
CREATE TABLE audit (id serial PRIMARY KEY, v text);
CREATE TABLE noisy (id serial PRIMARY KEY, v text);
CREATE TABLE defaulted (id serial PRIMARY KEY,
  v text DEFAULT set_config('app.tenant_id', 'by default', false));
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int REFERENCES parent ON DELETE CASCADE);
INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1), (2);

CREATE FUNCTION become(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant_id', $1, false) $$;
CREATE FUNCTION become_deeply(name text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text; BEGIN result := become(name); RETURN result; END $$;
CREATE FUNCTION become_locally(name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN PERFORM set_config('app.tenant_id', name, true); RETURN current_setting('app.tenant_id'); END $$;
CREATE FUNCTION set_any(name text, value text) RETURNS text LANGUAGE sql AS $$
SELECT set_config(name, value, false) $$;
CREATE FUNCTION run(command text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; END $$;
CREATE PROCEDURE tenant_of(INOUT name text) LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('SET app.tenant_id = %L', name); name := name || '!'; END $$;
CREATE FUNCTION scratch() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint; BEGIN CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT 1 AS i;
SELECT count(*) INTO n FROM scratch; RETURN n; END $$;
CREATE FUNCTION leave_table() RETURNS void LANGUAGE plpgsql AS $$
BEGIN CREATE TEMP TABLE left_here (i int); END $$;
CREATE FUNCTION locked() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_lock(77); RETURN pg_advisory_unlock(77); END $$;
CREATE FUNCTION path_to_nowhere() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET search_path = nowhere; END $$;

CREATE FUNCTION as_who(t) RETURNS text LANGUAGE sql AS $$ SELECT become('by an attribute') $$;
CREATE SCHEMA tenant; CREATE TABLE tenant.inbox (v text); CREATE TABLE inbox (v text);
CREATE FUNCTION to_tenant() RETURNS void LANGUAGE plpgsql AS $$
BEGIN SET LOCAL search_path = tenant, public; END $$;
CREATE FUNCTION deliver() RETURNS void LANGUAGE plpgsql AS $$
BEGIN PERFORM to_tenant(); INSERT INTO inbox VALUES ('delivered'); END $$;

CREATE FUNCTION on_noisy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM set_config('app.tenant_id', NEW.v, false); RETURN NEW; END $$;
CREATE FUNCTION on_quiet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM set_config('app.tenant_id', NEW.v, true); RETURN NEW; END $$;
CREATE FUNCTION on_audited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('INSERT INTO %I.%I (v) VALUES ($1)', TG_TABLE_SCHEMA, 'audit') USING NEW.v;
RETURN NEW; END $$;
CREATE FUNCTION on_child() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM become('of a child'); RETURN OLD; END $$;
CREATE TRIGGER t BEFORE INSERT ON noisy FOR EACH ROW EXECUTE FUNCTION on_noisy();
CREATE TRIGGER t BEFORE INSERT ON quiet FOR EACH ROW EXECUTE FUNCTION on_quiet();
CREATE TRIGGER t BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION on_audited();
CREATE TRIGGER t BEFORE DELETE ON child FOR EACH ROW EXECUTE FUNCTION on_child();
CREATE TRIGGER t BEFORE INSERT ON tenant.inbox FOR EACH ROW EXECUTE FUNCTION on_noisy();
CREATE VIEW seen AS SELECT id, become('by a view') AS who FROM t;
CREATE RULE r AS ON INSERT TO t WHERE NEW.v LIKE 'r%' DO ALSO SELECT become('by a rule');
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM set_config('app.ddl', tg_tag, false); END $$;
CREATE EVENT TRIGGER e ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION on_ddl();
"""

WHO = "SELECT current_setting('app.tenant_id', true)"
BOTH: list[Step] = [(B, WHO), (A, WHO), (B, WHO)]

STORIES: dict[str, list[Step]] = {
    "a function in SQL": [(A, "SELECT become('alice')"), *BOTH],
    "a function that calls one": [(A, "SELECT become_deeply('alice')"), *BOTH],
    "a function in FROM": [(A, "SELECT * FROM become_deeply('alice')"), *BOTH],
    "a procedure": [(A, "CALL tenant_of('alice')"), *BOTH],
    "a prepared call": [
        (A, [parse("s", "SELECT become($1)"), SYNC]),
        (A, [bind("", "s", "alice"), execute(), SYNC]),
        *BOTH,
        (B, [parse("s", "SELECT become($1)"), bind("", "s", "bob"), execute(), SYNC]),
        *BOTH,
    ],
    "PREPARE and EXECUTE": [
        (A, "PREPARE p AS SELECT become($1)"),
        (A, "EXECUTE p('alice')"),
        *BOTH,
        (A, "EXECUTE p(lower('CAROL'))"),
        *BOTH,
    ],
    "a local setting in a function": [(A, "SELECT become_locally('alice')"), *BOTH],
    "a trigger": [
        (A, "INSERT INTO noisy (v) VALUES ('alice')"),
        *BOTH,
        (B, "INSERT INTO noisy (v) VALUES ('bob')"),
        *BOTH,
        (A, "BEGIN"),
        (A, "INSERT INTO noisy (v) VALUES ('carol')"),
        (A, WHO),
        (A, "ROLLBACK"),
        *BOTH,
    ],
    "a trigger, by COPY": [
        (A, [query(b"COPY noisy (v) FROM STDIN"), b"d\0\0\0\x0aalice\n", b"c\0\0\0\x04"]),
        *BOTH,
    ],
    "a trigger with a local setting": [(A, "INSERT INTO quiet (v) VALUES ('alice')"), *BOTH],
    "a trigger with a computed statement": [(A, "INSERT INTO audited (v) VALUES ('alice')"), *BOTH],
    "a trigger behind a foreign key": [
        (A, "DELETE FROM parent WHERE id = (SELECT min(id) FROM parent)"),
        *BOTH,
    ],
    "a rule": [(A, "INSERT INTO t (v) VALUES ('ruled')"), *BOTH],
    "a default": [(A, "INSERT INTO defaulted DEFAULT VALUES"), *BOTH],
    "a view": [(A, "INSERT INTO t (v) VALUES ('x')"), (A, "SELECT DISTINCT who FROM seen"), *BOTH],
    "a column that is a function": [
        (A, "INSERT INTO t (v) VALUES ('x')"),
        (A, "SELECT DISTINCT t.as_who FROM t"),
        *BOTH,
    ],
    "a search path that another function sets": [(A, "SELECT deliver()"), *BOTH],
    "an event trigger": [
        (A, "CREATE TABLE made (i int)"),
        (B, "SELECT current_setting('app.ddl', true)"),
        (A, "SELECT current_setting('app.ddl', true)"),
        (A, "DROP TABLE made"),
    ],
    "a code block": [
        (A, "DO $$ BEGIN PERFORM become('alice'); END $$"),
        *BOTH,
        (A, "DO $$ BEGIN SET app.tenant_id = 'bob'; END $$"),
        *BOTH,
    ],
    "a search path": [
        (A, "SELECT path_to_nowhere()"),
        (A, "SHOW search_path"),
        (B, "SHOW search_path"),
        (A, "SELECT 1 FROM t"),
        (B, "SELECT count(*) > 0 FROM parent"),
    ],
    "a temporary table that is gone": [
        (A, "SELECT scratch()"),
        *BOTH,
        (B, "SELECT scratch()"),
        (A, "SELECT scratch()"),
    ],
    "a lock that is gone": [(A, "SELECT locked()"), *BOTH, (B, "SELECT locked()")],
    "a function made and called": [
        (
            A,
            "CREATE FUNCTION fresh(text) RETURNS text LANGUAGE sql"
            " AS 'SELECT set_config(''app.tenant_id'', $1, false)'",
        ),
        (A, "SELECT fresh('alice')"),
        *BOTH,
        (B, "SELECT fresh('bob')"),
        *BOTH,
        (A, "DROP FUNCTION fresh(text)"),
    ],
    "a function replaced and called": [
        (A, "CREATE FUNCTION changed() RETURNS text LANGUAGE sql AS 'SELECT ''nothing''::text'"),
        (B, [parse("s", "SELECT changed()"), bind("", "s"), execute(), SYNC]),
        (A, "CREATE OR REPLACE FUNCTION changed() RETURNS text LANGUAGE sql AS 'SELECT become(''alice'')'"),
        (B, [bind("", "s"), execute(), SYNC]),
        (A, WHO),
        (B, WHO),
        (A, "DROP FUNCTION changed()"),
    ],
    "a trigger made and fired": [
        (A, "CREATE TABLE late (v text)"),
        (A, "CREATE TRIGGER t BEFORE INSERT ON late FOR EACH ROW EXECUTE FUNCTION on_noisy()"),
        (A, "INSERT INTO late VALUES ('alice')"),
        *BOTH,
        (A, "DROP TABLE late"),
    ],
}
KEPT = {
    "a computed name": ("SELECT set_any('app.tenant_id', 'alice')", "function"),
    "any statement": ("SELECT run('SET app.tenant_id = ''alice''')", "function"),
    "a temporary table": ("SELECT leave_table()", "temp_table"),
}


def play(story: list[Step], clients: list[WireClient]) -> list[list[Frame]]:
    heard = []
    for who, step in story:
        clients[who].send(*([query(step.encode())] if isinstance(step, str) else step))
        heard.append(clients[who].until_ready())
    return heard


def played(story: list[Step], relay: RunningRelay) -> list[list[Frame]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(WireClient(relay.connect())) for _ in (A, B)]
        for client in clients:
            client.log_in(relay.shared.server.user, relay.shared.dbname)
        return play(story, clients)


def directly(story: list[Step], database: Database) -> list[list[Frame]]:
    server = database.server
    with (
        LoginForwarder(server.host, server.port, server.user, server.password) as forwarder,
        ExitStack() as stack,
    ):
        clients = [
            stack.enter_context(WireClient(socket.create_connection(forwarder.address, 10))) for _ in (A, B)
        ]
        for client in clients:
            client.log_in(server.user, database.dbname)
        return play(story, clients)


@pytest.mark.parametrize("name", STORIES)
def test_what_code_sets_is_its_sessions_own(name: str, database: Database) -> None:
    database.execute(SETUP)
    expected = directly(STORIES[name], database)
    pools = {"default_pool_size": 1, "query_wait_timeout_ms": 2000}
    with RunningRelay(database, config={"pools": pools}) as relay:
        assert played(STORIES[name], relay) == expected
        assert [event for event in relay.events if event["kind"] == "fault"] == []


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_told_keeps_the_link(name: str, database: Database) -> None:
    database.execute(SETUP)
    statement, cause = KEPT[name]
    with (
        RunningRelay(database, config={"pools": {"default_pool_size": 2}}) as relay,
        WireClient(relay.connect()) as first,
        WireClient(relay.connect()) as second,
    ):
        for client in (first, second):
            client.log_in(database.server.user, database.dbname)
        first.query(statement)
        assert second.value(WHO) in (None, "")
        assert relay.count("pins", cause) == 1
        assert relay.call(lambda r: [link.pins for link in r.links if link.pins]) == [{cause}]


def test_a_local_setting_keeps_no_link(database: Database) -> None:
    database.execute(SETUP)
    with RunningRelay(database) as relay, WireClient(relay.connect()) as client:
        client.log_in(database.server.user, database.dbname)
        for _ in range(3):
            client.query("INSERT INTO quiet (v) VALUES ('alice')")
            client.query("INSERT INTO audited (v) VALUES ('alice')")
            client.query("SELECT become_locally('alice')")
        assert relay.count("pins") == 0
