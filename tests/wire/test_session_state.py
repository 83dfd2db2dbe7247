"""What a session sets is there for its next statement, on whatever link, and for nobody else's.

Each story is played by sessions on connections of their own, directly, and by sessions that share one link:
every frame has to be equal, ParameterStatus included.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import SYNC, Frame, WireClient, bind, describe, execute, parse

from pgshunt.protocol.messages import query

A, B, C = range(3)

Step = tuple[int, str] | tuple[int, list[bytes]]

SETUP = (
    "CREATE TABLE public.t (id int PRIMARY KEY, v text);"
    "INSERT INTO public.t SELECT i, 'v' || i FROM generate_series(1, 10) i;"
    "CREATE SCHEMA tenant; CREATE TABLE tenant.t (id int PRIMARY KEY, v text);"
    "INSERT INTO tenant.t VALUES (1, 'of the tenant');"
    "CREATE SCHEMA one; CREATE SCHEMA two;"
    "CREATE TABLE owned (owner text, v text); ALTER TABLE owned ENABLE ROW LEVEL SECURITY;"
    "INSERT INTO owned SELECT o, o || i FROM unnest(ARRAY['alice', 'bob']) o, generate_series(1, 2) i;"
    "CREATE POLICY own ON owned USING (owner = current_setting('app.tenant', true));"
)
ROLES = (
    "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'state_alice') THEN"
    " CREATE ROLE state_alice; CREATE ROLE state_bob; END IF; END $$;"
    "GRANT SELECT ON owned TO state_alice, state_bob"
)

SHOWN = "SELECT current_setting('work_mem'), current_setting('datestyle'), current_setting('search_path')"

STORIES: dict[str, list[Step]] = {
    "a setting is there on the next link, and only for its session": [
        (A, "SET work_mem = '5MB'"),
        (B, SHOWN),
        (A, SHOWN),
        (B, "SET work_mem = '6MB'"),
        (A, SHOWN),
        (B, SHOWN),
        (A, "RESET work_mem"),
        (A, SHOWN),
        (B, SHOWN),
    ],
    "ParameterStatus comes when the session's own statement changes it, and then only": [
        (A, "SET datestyle = 'German'"),
        (B, "SELECT now()::date IS NOT NULL"),
        (A, "SELECT date '2020-02-01'"),
        (B, "SELECT date '2020-02-01'"),
        (A, "SET application_name = 'a'"),
        (B, "SET application_name = 'b'"),
        (A, "SHOW application_name"),
        (A, "RESET datestyle"),
        (B, "SHOW application_name"),
        (A, "RESET ALL"),
        (A, "SHOW application_name"),
    ],
    "a rollback takes a setting back": [
        (A, "SET work_mem = '5MB'"),
        (A, "BEGIN"),
        (A, "SET work_mem = '7MB'"),
        (A, SHOWN),
        (A, "ROLLBACK"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "BEGIN; SET work_mem = '8MB'; SAVEPOINT s; SET work_mem = '9MB'"),
        (A, "ROLLBACK TO s"),
        (A, "COMMIT"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "BEGIN"),
        (A, "SET work_mem = '1MB'"),
        (A, "SELECT 1/0"),
        (A, "COMMIT"),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "SET LOCAL ends with its transaction": [
        (A, "BEGIN"),
        (A, "SET LOCAL work_mem = '7MB'"),
        (A, SHOWN),
        (A, "COMMIT"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "SET LOCAL work_mem = '7MB'"),
        (A, SHOWN),
    ],
    "custom parameters": [
        (A, "SET app.tenant = 'alice'"),
        (B, "SET app.tenant = 'bob'"),
        (A, "SHOW app.tenant"),
        (C, "SELECT current_setting('app.tenant', true)"),
        (C, "SHOW app.tenant"),
        (B, "SHOW app.tenant"),
        (A, "RESET app.tenant"),
        (B, "SHOW app.tenant"),
        (A, "SHOW app.tenant"),
        (C, "SHOW app.tenant"),
        (C, "BEGIN"),
        (C, "SET LOCAL app.tenant = 'carol'"),
        (C, "SHOW app.tenant"),
        (C, "COMMIT"),
        (C, "SHOW app.tenant"),
        (B, "SELECT set_config('app.other', 'x', true)"),
        (B, "SELECT current_setting('app.other', true) IS NULL"),
        (A, "SELECT current_setting('app.other', true) IS NULL"),
    ],
    "set_config": [
        (A, "SELECT set_config('work_mem', '5MB', false), set_config('app.x', E'it''s\\\\ \\n ü €', false)"),
        (B, "SELECT current_setting('app.x', true), current_setting('work_mem')"),
        (A, "SELECT current_setting('app.x', true), current_setting('work_mem')"),
    ],
    "search_path": [
        (A, "SET search_path = tenant"),
        (A, "SELECT v FROM t WHERE id = 1"),
        (B, "SELECT v FROM t WHERE id = 1"),
        (A, "SELECT v FROM t WHERE id = 1"),
        (A, "SELECT v FROM public.t WHERE id = 1"),
        (B, "BEGIN"),
        (B, "SET LOCAL search_path = tenant, public"),
        (B, "SELECT v FROM t WHERE id = 1"),
        (B, "COMMIT"),
        (B, "SELECT v FROM t WHERE id = 1"),
        (A, "SET search_path = public; SELECT v FROM t WHERE id = 1"),
        (B, "SELECT v FROM t WHERE id = 1"),
        (A, "SHOW search_path"),
    ],
    "roles": [
        (A, "SET ROLE state_alice"),
        (B, "SELECT current_user = session_user"),
        (A, "SELECT current_user"),
        (A, "SET app.tenant = 'alice'"),
        (A, "SELECT * FROM owned"),
        (B, "SELECT count(*) FROM owned"),
        (A, "SELECT * FROM owned"),
        (B, "SET SESSION AUTHORIZATION state_bob"),
        (A, "SELECT current_user"),
        (B, "SELECT current_user, session_user"),
        (B, "SET app.tenant = 'bob'"),
        (A, "RESET ROLE"),
        (B, "SELECT * FROM owned"),
        (A, "SELECT count(*) FROM owned"),
        (B, "RESET SESSION AUTHORIZATION"),
        (A, "SELECT count(*) FROM owned"),
        (B, "SELECT count(*) FROM owned"),
        (A, "SET SESSION AUTHORIZATION state_alice"),
        (A, "SET ROLE NONE"),
        (B, "SELECT count(*) FROM owned"),
        (A, "SELECT current_user, session_user"),
        (A, "DISCARD ALL"),
        (B, "SELECT count(*) FROM owned"),
        (A, "SELECT count(*) FROM owned"),
    ],
    "what only a superuser may set, and a role that is none": [
        (A, "SET log_min_messages = error"),
        (A, "SET app.x = '1'"),
        (A, "SET ROLE state_alice"),
        (B, "SHOW log_min_messages"),
        (A, "SHOW log_min_messages"),
        (A, "SELECT current_user"),
        (B, "SELECT 1"),
        (A, "SELECT current_user, current_setting('app.x')"),
    ],
    "RESET ALL and DISCARD ALL": [
        (A, "SET work_mem = '5MB'"),
        (A, "SET datestyle = 'German'"),
        (A, "SET app.tenant = 'alice'"),
        (B, SHOWN),
        (A, "RESET ALL"),
        (A, SHOWN),
        (A, "SHOW app.tenant"),
        (A, "SET datestyle = 'SQL, DMY'"),
        (A, "SET ROLE state_alice"),
        (B, SHOWN),
        (A, "BEGIN"),
        (A, "RESET ALL"),
        (A, SHOWN),
        (A, "ROLLBACK"),
        (A, SHOWN),
        (B, SHOWN),
        (A, SHOWN),
        (A, "DISCARD ALL"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "SELECT current_user = session_user"),
    ],
    "session characteristics": [
        (A, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE"),
        (B, "INSERT INTO t VALUES (100, 'b')"),
        (A, "INSERT INTO t VALUES (101, 'a')"),
        (A, "SHOW transaction_isolation"),
        (B, "SHOW transaction_isolation"),
        (A, "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"),
        (B, "SELECT 1"),
        (A, "INSERT INTO t VALUES (101, 'a')"),
    ],
    "time zones and names": [
        (A, "SET TIME ZONE 'Asia/Tokyo'"),
        (B, "SET TIME ZONE -3"),
        (A, "SELECT timestamptz '2020-01-01 00:00+00'"),
        (B, "SELECT timestamptz '2020-01-01 00:00+00'"),
        (A, "SET TIME ZONE LOCAL"),
        (B, "SELECT timestamptz '2020-01-01 00:00+00'"),
        (A, "SHOW timezone"),
        (A, "SET NAMES 'LATIN1'"),
        (B, "SELECT 'ü'"),
        (A, "SELECT chr(252)"),
        (B, "SELECT chr(252)"),
        (A, "SET client_encoding = 'UTF8'"),
        (B, "SELECT 'ü'"),
        (A, "SELECT 'ü'"),
    ],
    "a setting that is not accepted": [
        (A, "SET work_mem = 'nonsense'"),
        (A, "SET no_such = 1"),
        (A, "SET app.x TO a b"),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "several statements in one text": [
        (A, "SET work_mem = '5MB'; SET datestyle = 'German'; SELECT 1/0"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "SET work_mem = '5MB'; COMMIT; SET datestyle = 'German'; SELECT 1/0"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "BEGIN; SET work_mem = '6MB'; COMMIT"),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "the extended protocol": [
        (A, [parse("", "SET work_mem = '5MB'"), bind("", ""), execute(), SYNC]),
        (B, SHOWN),
        (A, [parse("s", SHOWN), bind("", "s"), describe("P"), execute(), SYNC]),
        (B, [parse("s", SHOWN), bind("", "s"), describe("P"), execute(), SYNC]),
        (A, [parse("set", "SELECT set_config('work_mem', $1, false)"), SYNC]),
        (A, [bind("", "set", "6MB"), execute(), bind("", "set", "nonsense"), execute(), SYNC]),
        (A, [bind("", "s"), execute(), SYNC]),
        (A, [bind("", "set", "7MB"), execute(), bind("", "set", "8MB"), execute(), SYNC]),
        (B, [bind("", "s"), execute(), SYNC]),
        (A, [bind("", "s"), execute(), SYNC]),
        (A, [bind("", "set", "9MB"), execute(), SYNC, bind("", "s"), execute(), SYNC]),
    ],
    "pipelined": [
        (
            A,
            [
                query(b"SET work_mem = '5MB'"),
                query(SHOWN.encode()),
                query(b"RESET work_mem"),
                query(SHOWN.encode()),
            ],
        ),
        (B, SHOWN),
        (A, SHOWN),
        (A, [query(b"BEGIN"), query(b"SET work_mem = '5MB'"), query(b"COMMIT"), query(SHOWN.encode())]),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "a statement prepared under one path is run under another": [
        (A, [parse("s", "SELECT v FROM t WHERE id = 1"), bind("", "s"), execute(), SYNC]),
        (A, "SET search_path = tenant"),
        (B, "SELECT 1"),
        (A, [bind("", "s"), execute(), SYNC]),
        (B, [parse("s", "SELECT v FROM t WHERE id = 1"), bind("", "s"), execute(), SYNC]),
        (A, "SET search_path = nowhere"),
        (A, [parse("s2", "SELECT v FROM t WHERE id = 1"), SYNC]),
        (A, [bind("", "s"), execute(), SYNC]),
    ],
    "statements prepared in SQL": [
        (A, "PREPARE p AS SELECT v FROM t WHERE id = $1"),
        (B, "EXECUTE p(1)"),
        (B, "PREPARE p(text) AS SELECT $1 || 'b'"),
        (A, "EXECUTE p(1)"),
        (B, "EXECUTE p('x')"),
        (C, "DEALLOCATE p"),
        (A, "PREPARE p AS SELECT 1"),
        (A, "EXECUTE p(2)"),
        (A, "EXECUTE p"),
        (A, "BEGIN"),
        (A, "PREPARE q AS SELECT count(*) FROM t"),
        (A, "ROLLBACK"),
        (B, "SELECT 1"),
        (A, "EXECUTE q"),
        (A, "BEGIN"),
        (A, "EXECUTE q"),
        (A, "SELECT 1/0"),
        (A, "EXECUTE q"),
        (A, "COMMIT"),
        (A, "DEALLOCATE p"),
        (A, "EXECUTE p(1)"),
        (A, "EXPLAIN (COSTS OFF) EXECUTE q"),
        (B, "SELECT 1"),
        (A, "PREPARE \"Odd name\" AS SELECT 'odd'"),
        (B, 'EXECUTE "Odd name"'),
        (A, 'EXECUTE "Odd name"'),
        (A, "DEALLOCATE ALL"),
        (B, "EXECUTE p('y')"),
        (A, "EXECUTE q"),
        (A, "PREPARE p AS SELECT no_such_column FROM t"),
        (A, "EXECUTE p"),
        (B, "EXECUTE p('z')"),
        (B, "DISCARD ALL"),
        (B, "EXECUTE p('z')"),
    ],
    "a statement prepared in SQL sets something": [
        (A, "PREPARE s(text) AS SELECT set_config('work_mem', $1, false)"),
        (B, SHOWN),
        (A, "EXECUTE s('5MB')"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "SET search_path = tenant"),
        (A, "PREPARE r AS SELECT v FROM t WHERE id = 1"),
        (B, "SELECT 1"),
        (A, "EXECUTE r"),
        (A, "SET search_path = public"),
        (B, "SELECT 1"),
        (A, "EXECUTE r"),
    ],
    "a constant is read under the session's settings": [
        (A, "SET datestyle = 'ISO, DMY'"),
        (A, [parse("s", "SELECT date '02/03/2020'"), bind("", "s"), execute(), SYNC]),
        (B, [parse("s", "SELECT date '02/03/2020'"), bind("", "s"), execute(), SYNC]),
        (A, [bind("", "s"), execute(), SYNC]),
    ],
}


# Here some session keeps its link to itself, so that the others need another one.
PINNED: dict[str, list[Step]] = {
    "a code block sets something": [
        (A, "DO $$ BEGIN PERFORM set_config('work_mem', '5MB', false); END $$"),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "names of parameters that are no names": [
        (A, 'RESET "x\', true); SET work_mem = 1024; --"'),
        (B, SHOWN),
        (A, 'SET "x\', true); SET work_mem = 1024; --" TO DEFAULT'),
        (B, SHOWN),
        (A, 'SET LOCAL "x.y\', true); SET work_mem = 1024; --" = 1'),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "an UPDATE of pg_settings sets something": [
        (A, "UPDATE pg_settings SET setting = '5MB' WHERE name = 'work_mem'"),
        (B, SHOWN),
        (A, SHOWN),
    ],
    "what another session has prepared in SQL is not found by messages": [
        (B, "PREPARE p AS SELECT 'of b'"),
        (A, [bind("", "p"), execute(), SYNC]),
        (A, [describe("S", "p"), SYNC]),
        (B, "EXECUTE p"),
        (C, [parse("", "DEALLOCATE p"), bind("", ""), execute(), SYNC]),
        (B, "EXECUTE p"),
    ],
    "what another session has prepared in SQL is not found by a long message": [
        (B, "PREPARE p AS SELECT 'of b'"),
        (A, [parse("p", "SELECT 'of a'" + " " * 2_000_000), bind("", "p"), execute(), SYNC]),
        (B, "EXECUTE p"),
    ],
    "the names that servers know are not the clients'": [
        (B, [parse("s", "SELECT 'of b'"), bind("", "s"), execute(), SYNC]),
        (A, "EXECUTE pgshunt_1"),
        (A, "PREPARE pgshunt_1 AS SELECT 'of a'"),
        (A, [bind("", "pgshunt_1"), execute(), SYNC]),
        (C, "DEALLOCATE pgshunt_1"),
        (B, [bind("", "s"), execute(), SYNC]),
    ],
    "the names that servers know are not the clients', by messages": [
        (B, [parse("s", "SELECT 'of b'"), bind("", "s"), execute(), SYNC]),
        (A, [bind("", "pgshunt_1"), execute(), SYNC]),
        (A, [describe("S", "pgshunt_1"), SYNC]),
        (B, [bind("", "s"), execute(), SYNC]),
    ],
    "names of messages and names of SQL are the same names": [
        (B, "PREPARE p AS SELECT 'of b'"),
        (A, [parse("m", "SELECT 'of a'"), SYNC]),
        (A, "EXECUTE m"),
        (B, "EXECUTE p"),
        (A, "PREPARE m AS SELECT 1"),
        (A, "PREPARE q AS SELECT 'sql'"),
        (A, [bind("", "q"), describe("S", "q"), execute(), SYNC]),
        (A, [parse("q", "SELECT 2"), SYNC]),
        (A, "DEALLOCATE m"),
        (A, [bind("", "m"), execute(), SYNC]),
        (B, "EXECUTE q"),
        (A, "EXECUTE q"),
    ],
    "PREPARE and EXECUTE by messages": [
        (B, "PREPARE p AS SELECT 'of b'"),
        (A, [parse("", "PREPARE p AS SELECT 'of a'"), bind("", ""), execute(), SYNC]),
        (A, [parse("e", "EXECUTE p"), bind("", "e"), describe("P"), execute(), SYNC]),
        (B, "EXECUTE p"),
        (A, [bind("", "e"), execute(), SYNC]),
        (A, [parse("", "DEALLOCATE p"), bind("", ""), execute(), SYNC]),
        (A, [bind("", "e"), execute(), SYNC]),
    ],
    "what was prepared in SQL is executed by messages": [
        (A, "PREPARE p AS SELECT 'of a'"),
        (B, "PREPARE p AS SELECT 'of b'"),
        (A, [parse("", "EXECUTE p"), bind("", ""), execute(), SYNC]),
        (B, "EXECUTE p"),
        (A, "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY 1"),
    ],
    "several statements of which one prepares": [
        (A, "PREPARE p AS SELECT 1; EXECUTE p"),
        (B, "EXECUTE p"),
        (A, "EXECUTE p"),
        (A, "DEALLOCATE p; SELECT 2"),
        (A, "EXECUTE p"),
    ],
    "a parameter that cannot be told": [
        (A, "SELECT set_config(n, '6MB', false) FROM (VALUES ('work_mem')) AS v (n)"),
        (B, SHOWN),
        (A, SHOWN),
        (A, "RESET ALL"),
        (A, SHOWN),
        (B, SHOWN),
    ],
    "strings that are read differently": [
        (A, "SET standard_conforming_strings = off"),
        (A, "SET escape_string_warning = off"),
        (A, r"SELECT 'a\'; SET work_mem = ''1MB''; --'"),
        (B, r"SELECT 'a\'"),
        (A, r"SELECT 'a\\'"),
        (B, SHOWN),
        (A, SHOWN),
    ],
}


def answer(client: WireClient, step: str | list[bytes]) -> list[Frame]:
    messages = [query(step.encode())] if isinstance(step, str) else step
    client.send(*messages)
    ends = sum(message[:1] in b"QS" for message in messages)
    frames: list[Frame] = []
    while ends > 0:
        frames += client.until_ready()
        ends = 0 if frames[-1].kind == "" else ends - 1
    return frames


def play(
    story: list[Step], connect: Callable[[], socket.socket], user: str, dbname: str
) -> list[list[Frame]]:
    with ExitStack() as stack:
        clients = {
            who: stack.enter_context(WireClient(connect())).log_in(user, dbname)
            for who in sorted({step[0] for step in story})
        }
        return [answer(clients[who], what) for who, what in story]


@pytest.mark.parametrize("name", [*STORIES, *PINNED])
def test_each_session_finds_its_own_state(name: str, database: Database) -> None:
    story, links = (STORIES[name], 1) if name in STORIES else (PINNED[name], 3)
    server = database.server
    database.execute(SETUP)
    database.execute(ROLES)
    with LoginForwarder(server.host, server.port, server.user, server.password) as forwarder:
        direct = play(
            story, lambda: socket.create_connection(forwarder.address, 10), server.user, database.dbname
        )
    database.execute("DELETE FROM t WHERE id >= 100")
    with RunningRelay(database, config={"pools": {"default_pool_size": links}}) as relay:
        relayed = play(story, relay.connect, server.user, database.dbname)
        faults = [event for event in relay.events if event["kind"] in ("fault", "link_out_of_step")]
    assert not faults
    for step, expected, heard in zip(story, direct, relayed, strict=True):
        assert heard == expected, step


@pytest.mark.parametrize("whose", ["ROLE {user} IN DATABASE {dbname}", "DATABASE {dbname}"])
def test_what_sessions_begin_with_counts_from_the_next_login(whose: str, database: Database) -> None:
    """Links that are open keep what they began with, and so do their sessions."""
    user, dbname = database.server.user, database.dbname
    with RunningRelay(database) as relay, WireClient(relay.connect()) as before:
        before.log_in(user, dbname)
        assert before.value("SELECT date '2020-02-03'") == "2020-02-03"
        database.execute(f"ALTER {whose.format(user=user, dbname=dbname)} SET datestyle = 'German'")
        relay.read_catalogue()
        with WireClient(relay.connect()) as behind:
            behind.log_in(user, dbname)
            assert behind.parameters["DateStyle"] == "German, DMY"
            for _ in range(2):
                assert behind.value("SELECT date '2020-02-03'") == "03.02.2020"
                assert before.value("SELECT date '2020-02-03'") == "2020-02-03"
