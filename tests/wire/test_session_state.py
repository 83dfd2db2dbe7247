"""What a session sets is there for its next statement, on whatever link, and for nobody else's.

Each story is played by sessions on connections of their own, directly, and by sessions that share one link:
every frame has to be equal, ParameterStatus included.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import SYNC, Frame, WireClient, bind, describe, execute, kinds, parse, sqlstate

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
    story, links = (STORIES[name], 1) if name in STORIES else (PINNED[name], 2)
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


# --- pins: what keeps the link, what lets go of it ------------------------------------------------------

ENDED = {
    "LISTEN jobs; UNLISTEN *": "listen",
    "SELECT pg_advisory_lock(7); SELECT pg_advisory_lock(8); SELECT pg_advisory_unlock_all()": "advisory_lock",
    "SELECT pg_advisory_lock_shared(7); SELECT pg_advisory_unlock_shared(7)": "advisory_lock",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1; CLOSE c": "hold_cursor",
    "CREATE TEMP TABLE mine (i int); DROP TABLE mine": "temp_table",
    "CREATE TEMP TABLE mine (i int); DISCARD TEMP": "temp_table",
    "CREATE TEMP VIEW mine AS SELECT 1; DISCARD ALL": "temp_table",
    "LISTEN jobs; CREATE TEMP TABLE mine (i int); DISCARD ALL": "listen",
}
LASTING = {
    "LISTEN jobs; LISTEN more; UNLISTEN jobs": "listen",
    "SELECT pg_advisory_lock(7); SELECT pg_advisory_lock(7); SELECT pg_advisory_unlock(7)": "advisory_lock",
    "CREATE TEMP TABLE mine (i int); CREATE TEMP TABLE other (i int); DROP TABLE mine": "temp_table",
    "LISTEN jobs; BEGIN; UNLISTEN *; ROLLBACK": "listen",
    "SELECT setseed(0.5); DISCARD ALL": "seed",
    "LOAD 'plpgsql'; DISCARD ALL": "load",
}


@pytest.fixture
def single(database: Database) -> Iterator[tuple[RunningRelay, Callable[[], WireClient]]]:
    """A relay with one link, and clients of it."""
    pools = {"default_pool_size": 1, "query_wait_timeout_ms": 300}
    with RunningRelay(database, config={"pools": pools}) as relay, ExitStack() as stack:

        def connect() -> WireClient:
            client = stack.enter_context(WireClient(relay.connect()))
            return client.log_in(database.server.user, database.dbname)

        yield relay, connect


@pytest.mark.parametrize("statements", [*ENDED, *LASTING])
def test_a_pin_ends_with_its_state_and_not_before(
    statements: str, single: tuple[RunningRelay, Callable[[], WireClient]]
) -> None:
    relay, connect = single
    keeper, other = connect(), connect()
    for statement in statements.split("; "):
        assert kinds(keeper.query(statement))[-1] == "Z"
    heard = other.query("SELECT 1")
    if statements in ENDED:
        assert kinds(heard) == "TDCZ"
        assert relay.count("pins", ENDED[statements]) == 1
    else:
        assert sqlstate(heard) == "53300"      # the only link is kept
        assert relay.count("pins", LASTING[statements]) == 1
        keeper.socket.close()
        relay.wait_for(lambda: kinds(other.query("SELECT 1")) == "TDCZ", "the link is free")


def test_a_statement_that_fails_to_parse_does_not_keep_the_link(
    single: tuple[RunningRelay, Callable[[], WireClient]],
) -> None:
    relay, connect = single
    first, second = connect(), connect()
    for statement in ("SELEC 1", "SELECT 'open", "BEGIN", "SELEC", "ROLLBACK"):
        first.query(statement)
    first.send(parse("", "SELEC"), bind("", ""), execute(), SYNC)
    assert sqlstate(first.until_ready()) == "42601"
    assert kinds(second.query("SELECT 1")) == "TDCZ"
    assert relay.call(lambda r: [link.pins for link in r.links]) == [set()]


def test_a_notification_reaches_a_session_that_asks_nothing(
    single: tuple[RunningRelay, Callable[[], WireClient]], database: Database
) -> None:
    _, connect = single
    listener = connect()
    listener.query("LISTEN jobs")
    database.execute("NOTIFY jobs, 'one'")
    notification = listener.frame()
    assert notification.kind == "A" and notification.body[4:] == b"jobs\0one\0"
    assert kinds(listener.query("UNLISTEN jobs")) == "CZ"


def test_a_statement_that_cannot_be_prepared_again_says_why(
    single: tuple[RunningRelay, Callable[[], WireClient]], database: Database
) -> None:
    _, connect = single
    first, other = connect(), connect()
    database.execute("CREATE TABLE gone (i int)")
    first.query("PREPARE p AS SELECT i FROM gone")
    other.query("DISCARD ALL")
    database.execute("DROP TABLE gone")
    for _ in range(2):
        heard = first.query("EXECUTE p")
        assert (kinds(heard), sqlstate(heard)) == ("EZ", "42P01")
    database.execute("CREATE TABLE gone (i int)")
    assert kinds(first.query("EXECUTE p")) == "TCZ"
    assert sqlstate(first.query("SELECT 1/0")) == "22012"


# --- settings that cannot be restored -------------------------------------------------------------------


def lose_role(database: Database, *clients: WireClient) -> None:
    """The first session stands in a role, another has the link, and the role is gone."""
    database.execute("DROP ROLE IF EXISTS state_lost; CREATE ROLE state_lost")
    clients[0].query("SET work_mem = '5MB'; SET ROLE state_lost")
    for client in clients[1:]:
        assert client.value("SELECT 1") == "1"
    database.execute("DROP ROLE state_lost")


@pytest.mark.parametrize("begun", [False, True])
def test_a_statement_never_runs_with_other_settings_than_its_sessions(
    begun: bool, single: tuple[RunningRelay, Callable[[], WireClient]], database: Database
) -> None:
    relay, connect = single
    database.execute("CREATE TABLE done (v text)")
    first, other = connect(), connect()
    lose_role(database, first, other)
    if begun:
        first.query("BEGIN")
    heard = first.query("INSERT INTO done VALUES ('in the wrong role')")
    assert (kinds(heard), sqlstate(heard)) == ("EZ", "22023")
    assert b'role "state_lost" does not exist' in heard[0].body
    assert heard[1].body == (b"E" if begun else b"I")
    if begun:
        assert sqlstate(first.query("SELECT 1")) == "22023"
        assert first.query("COMMIT")[0].body == b"ROLLBACK\0"
    first.send(parse("s", "INSERT INTO done VALUES ('x')"), bind("", "s"), execute(), SYNC, query(b"SELECT 1"))
    assert kinds(first.until_ready()) + kinds(first.until_ready()) == "EZEZ"
    assert database.execute("SELECT * FROM done") == []
    assert other.value("SELECT count(*) FROM done") == "0"
    assert kinds(first.query("RESET ROLE")) == "CZ"
    assert first.value("SELECT current_setting('work_mem') || current_user") == "5MB" + database.server.user
    first.send(parse("s", "INSERT INTO done VALUES ('x')"), bind("", "s"), execute(), SYNC)
    assert kinds(first.until_ready()) == "12CZ"
    assert other.value("SELECT count(*) FROM done") == "1"
    assert [event for event in relay.events if event["kind"] == "fault"] == []


def test_a_link_that_cannot_lose_a_custom_parameter_is_not_lent_to_who_has_none(
    single: tuple[RunningRelay, Callable[[], WireClient]],
) -> None:
    relay, connect = single
    tenant, plain = connect(), connect()
    before = tenant.value("SET app.tenant = '1'; SELECT pg_backend_pid()")
    assert tenant.value("SELECT pg_backend_pid()") == before
    plain.query("SET app.tenant = '2'")                    # who sets it first does not see that it is there
    assert plain.value("SELECT pg_backend_pid()") == before
    clean = connect()
    assert clean.value("SELECT pg_backend_pid()") != before
    assert clean.value("SELECT current_setting('app.tenant', true) IS NULL") == "t"
    assert tenant.value("SHOW app.tenant") == "1"


def test_settings_travel_with_a_read_that_goes_to_a_copy(database_pair: tuple[Database, Database]) -> None:
    """On a copy whose server refuses the settings, the owner answers instead."""
    shared, copy = database_pair
    for database in database_pair:
        database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    shared.execute("DROP ROLE IF EXISTS state_here; CREATE ROLE state_here; GRANT SELECT ON t TO state_here")
    shared.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') THEN"
        " CREATE ROLE app LOGIN SUPERUSER PASSWORD 'app'; END IF; END $$"
    )
    copy.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') THEN"
        " CREATE ROLE app LOGIN SUPERUSER PASSWORD 'app'; END IF; END $$"
    )
    with RunningRelay(shared, copy, tables=("t",), reads_percent=100) as relay:
        with WireClient(relay.connect()) as client:
            client.log_in("app", shared.dbname)
            client.query("SET work_mem = '5MB'")
            assert client.value("SELECT 1") == "1"         # behind it the link is free
            assert client.value("SELECT id FROM t") == "1"
            assert relay.count("calls", "svc", "candidate") == 1
            client.query("SET ROLE state_here")
            assert client.value("SELECT 1") == "1"
            assert client.value("SELECT id FROM t") == "1"
            assert client.value("SELECT id FROM t WHERE id = 1") == "1"
            assert relay.count("routes", "svc", "retried") == 2
    shared.execute("REVOKE ALL ON t FROM state_here; DROP ROLE state_here")
