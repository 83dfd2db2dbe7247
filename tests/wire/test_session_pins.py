"""What keeps a link with its session and what lets go of it; settings that a server will not take back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import SYNC, WireClient, bind, execute, function_call, kinds, parse, sqlstate

from pgshunt.protocol.messages import query
from pgshunt.proxy.policy import STATEMENT_BYTES_MAX

ENDED = {
    "LISTEN jobs; UNLISTEN *": "listen",
    "SELECT pg_advisory_lock(7); SELECT pg_advisory_unlock_all()": "advisory_lock",
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

COMPATIBILITY = Path(__file__).parents[2] / "docs" / "compatibility.md"
LONG = "x" * 70_000
ANY_NAME = "set_config(name, '6MB', false) FROM (VALUES ('work_mem')) AS parameters (name)"
BY_CAUSE: dict[str, list[str | bytes]] = {
    "prepared_statements": ["SELECT count(*) FROM pg_prepared_statements"],
    "prepare": [f"PREPARE p AS SELECT '{LONG}'"],
    "statement": [parse("", "SELECT 1" + " " * STATEMENT_BYTES_MAX) + SYNC],
    "listen": ["LISTEN jobs"],
    "advisory_lock": ["SELECT pg_advisory_lock(7)"],
    "hold_cursor": ["DECLARE c CURSOR WITH HOLD FOR SELECT 1"],
    "temp_table": ["CREATE TEMP TABLE mine (i int)"],
    "seed": ["SET seed = 0.5"],
    "load": ["LOAD 'plpgsql'"],
    "set_config": [f"SELECT {ANY_NAME}"],
    "unreadable": [function_call(177, "20", "3")],
    "function": ["SELECT run('SET work_mem = 1024')"],
    "code_block": [f"DO $$ BEGIN PERFORM {ANY_NAME}; END $$"],
    "settings_size": [f"SET app.tenant = '{LONG}'"],
    "encoding": [parse("s", "SELECT 'ü'") + SYNC, "SET client_encoding = 'LATIN1'"],
    "not_told": ["BEGIN; SET dynamic_library_path = '$libdir'; SET ROLE may_read_nothing; COMMIT"],
    "signalled": [],  # by another session
    "replication": ["IDENTIFY_SYSTEM"],
}


@pytest.fixture
def single(database: Database) -> Iterator[tuple[RunningRelay, Callable[[], WireClient]]]:
    """A relay with one link, and clients of it."""
    database.execute("CREATE TABLE filled (id serial, v text)")
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
        assert sqlstate(heard) == "53300"  # the only link is kept
        assert relay.count("pins", LASTING[statements]) == 1
        keeper.socket.close()
        relay.wait_for(lambda: kinds(other.query("SELECT 1")) == "TDCZ", "the link is free")


@pytest.mark.parametrize("cause", BY_CAUSE)
def test_pins_are_counted_by_cause(cause: str, database: Database) -> None:
    """And what the session leaves behind goes with the link: nobody else finds anything of it."""
    database.execute(
        "CREATE FUNCTION run(command text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; END $$;"
        "DROP ROLE IF EXISTS may_read_nothing; CREATE ROLE may_read_nothing"
    )
    more = {"replication": "database"} if cause == "replication" else {}
    with (
        RunningRelay(database) as relay,
        WireClient(relay.connect()) as client,
        WireClient(relay.connect()) as other,
    ):
        client.log_in(database.server.user, database.dbname, **more)
        other.log_in(database.server.user, database.dbname)
        for sent in BY_CAUSE[cause]:
            client.send(query(sent.encode()) if isinstance(sent, str) else sent)
            assert kinds(client.until_ready())[-1] == "Z"
        if cause == "signalled":
            assert other.value(f"SELECT pg_cancel_backend({client.process_id})") == "t"
        relay.wait_for(lambda: relay.count("pins") > 0, "it is counted")
        assert [relay.count("pins", one) for one in (cause, None)] == [1, 1]
        pinned = relay.call(lambda r: {link for link in r.links if link.pins})
        client.socket.close()
        relay.wait_for(lambda: relay.call(lambda r: not pinned & set(r.links)), "the link is gone")
    database.execute("DROP ROLE may_read_nothing")


def test_every_cause_is_documented_and_tried() -> None:
    documented = re.findall(r"pinned: ([^|]*) \|", COMPATIBILITY.read_text())
    assert {cause for cell in documented for cause in re.findall(r"`(\w+)`", cell)} == set(BY_CAUSE)


def test_a_long_insert_that_calls_nextval_does_not_keep_the_link(
    single: tuple[RunningRelay, Callable[[], WireClient]],
) -> None:
    _, connect = single
    writer, other = connect(), connect()
    rows = ", ".join(f"(nextval('filled_id_seq'), '{'x' * 100}')" for _ in range(500))
    assert kinds(writer.query(f"INSERT INTO filled VALUES {rows}")) == "CZ"
    assert other.value("SELECT count(*) FROM filled") == "500"


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
    first.send(
        parse("s", "INSERT INTO done VALUES ('x')"), bind("", "s"), execute(), SYNC, query(b"SELECT 1")
    )
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
    _, connect = single
    tenant, plain = connect(), connect()
    before = tenant.value("SET app.tenant = '1'; SELECT pg_backend_pid()")
    assert tenant.value("SELECT pg_backend_pid()") == before
    plain.query("SET app.tenant = '2'")  # who sets it first does not see that it is there
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
    shared.create_app()
    copy.create_app()
    with (
        RunningRelay(shared, copy, tables=("t",), reads_percent=100) as relay,
        WireClient(relay.connect()) as client,
    ):
        client.log_in("app", shared.dbname)
        client.query("SET work_mem = '5MB'")
        assert client.value("SELECT 1") == "1"  # behind it the link is free
        assert client.value("SELECT id FROM t") == "1"
        assert relay.count("calls", "svc", "candidate") == 1
        client.query("SET ROLE state_here")
        assert client.value("SELECT 1") == "1"
        assert client.value("SELECT id FROM t") == "1"
        assert client.value("SELECT id FROM t WHERE id = 1") == "1"
        assert relay.count("routes", "svc", "retried") == 2
    shared.execute("REVOKE ALL ON t FROM state_here; DROP ROLE state_here")
