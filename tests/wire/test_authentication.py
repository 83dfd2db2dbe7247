"""Who gets in as whom: by passwords that only the databases know, by certificates; and how failures look."""

from __future__ import annotations

import select
import ssl
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from support.certificates import Authority, Pair, start_encrypting
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient, sqlstate

from pgshunt.config.model import ServerTls
from pgshunt.demo.postgres import PostgresServer, Server, Servers
from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error
from pgshunt.protocol.scram import ScramClient, derive_keys

DELAY_MS = 50

ROLES = """
CREATE ROLE keeper LOGIN PASSWORD 'kept';
CREATE ROLE late LOGIN PASSWORD 'late' VALID UNTIL 'yesterday';
CREATE ROLE barred NOLOGIN PASSWORD 'barred';
CREATE ROLE empty LOGIN;
CREATE ROLE app LOGIN PASSWORD 'app';
SET password_encryption = 'md5'; CREATE ROLE ancient LOGIN PASSWORD 'ancient'
"""


@pytest.fixture(scope="module")
def shared(servers: Servers) -> Iterator[Database]:
    """Roles with passwords of all kinds; pgshunt is told none of them."""
    server = servers.start("authentication")
    server.execute(ROLES)
    yield Database(server, "postgres")
    server.stop("immediate")


def looking_up(server: Server, **auth: Any) -> dict[str, Any]:
    lookup = {"user": server.user, "password": server.password}
    return {"auth": {"lookup": lookup, "failure_delay_ms": DELAY_MS} | auth}


@pytest.fixture(scope="module")
def relay(shared: Database) -> Iterator[RunningRelay]:
    with RunningRelay(shared, config=looking_up(shared.server)) as running:
        yield running


def refused(relay: RunningRelay, user: str, password: str, **more: str) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect(relay.dsn(user, password), **more).close()  # type: ignore[arg-type]
    return raised.value


# --- verifiers of the shared database ---------------------------------------------------------------------


def test_a_user_keeps_its_own_password(relay: RunningRelay) -> None:
    """The proof towards us makes the proof towards the server; nobody has configured a password."""
    with psycopg.connect(relay.dsn("keeper", "kept")) as client:
        assert client.execute("SELECT session_user").fetchone() == ("keeper",)


def test_a_replication_connection_logs_in_with_its_own_proof(relay: RunningRelay, shared: Database) -> None:
    shared.execute("ALTER ROLE keeper REPLICATION")
    with psycopg.connect(f"{relay.dsn('keeper', 'kept')} replication=database", autocommit=True) as client:
        assert client.pgconn.exec_(b"IDENTIFY_SYSTEM").status == psycopg.pq.ExecStatus.TUPLES_OK


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("keeper", "wrong"),
        ("nobody", "kept"),
        ("late", "late"),
        ("barred", "barred"),
        ("empty", ""),
        ("ancient", "ancient"),
        ("no'body\N{SNOWMAN}", "x"),
    ],
)
def test_all_failures_look_the_same(relay: RunningRelay, user: str, password: str) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:
        psycopg.connect(relay.dsn(), user=user, password=password or "none").close()
    assert raised.value.sqlstate in (None, "28P01")
    assert f'password authentication failed for user "{user}"' in str(raised.value)


def test_a_challenge_does_not_tell_who_exists(relay: RunningRelay) -> None:
    """Mechanisms, length of salt, iterations: and the salt is the same at every attempt."""

    def challenge(user: str) -> bytes:
        with WireClient(relay.connect()) as client:
            client.send(messages.startup_message({b"user": user.encode(), b"database": b"postgres"}))
            assert client.frame().body[4:] == b"SCRAM-SHA-256\0\0"
            client.send(messages.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc"))
            return client.frame().body[4:].partition(b",")[2]

    known, unknown = challenge("keeper"), challenge("nobody")
    assert len(known) == len(unknown) and known.endswith(b",i=4096") and unknown.endswith(b",i=4096")
    assert challenge("nobody") == unknown and challenge("keeper") == known
    assert challenge("somebody") != unknown


def test_a_new_password_counts_from_the_next_login(relay: RunningRelay, shared: Database) -> None:
    shared.execute("CREATE ROLE changing LOGIN PASSWORD 'old'")
    with psycopg.connect(relay.dsn("changing", "old"), autocommit=True) as before:
        assert before.execute("SELECT 1").fetchone() == (1,)
        shared.execute("ALTER ROLE changing PASSWORD 'new'")
        assert "password authentication failed" in str(refused(relay, "changing", "old"))
        # A link of its own, so that one is opened with the new keys.
        with psycopg.connect(relay.dsn("changing", "new"), application_name="after") as after:
            assert after.execute("SELECT 1").fetchone() == (1,)
        assert before.execute("SELECT 1").fetchone() == (1,)
        shared.execute("ALTER ROLE changing VALID UNTIL 'yesterday'")
        refused(relay, "changing", "new")


def test_many_logins_at_once(relay: RunningRelay) -> None:
    def log_in(number: int) -> tuple[Any, ...] | None:
        with psycopg.connect(relay.dsn("keeper", "kept")) as client:
            return client.execute("SELECT %s::int", [number]).fetchone()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(log_in, range(24))) == [(number,) for number in range(24)]


def test_another_verifier_at_the_server_is_named_with_its_remedy(shared: Database, postgres: Server) -> None:
    """Two servers salt one password differently: keys of the one do not open the other."""
    postgres.execute("CREATE ROLE keeper LOGIN PASSWORD 'kept'")
    try:
        verifier = shared.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'keeper'")[0][0]
        users = [{"name": "keeper", "verifier": verifier}]
        with RunningRelay(Database(postgres, "postgres"), config={"auth": {"users": users}}) as relay:
            error = str(refused(relay, "keeper", "kept"))
            assert "server keeps another verifier" in error and "ALTER ROLE" in error
            postgres.execute(f"ALTER ROLE keeper PASSWORD '{verifier}'")
            with psycopg.connect(relay.dsn("keeper", "kept")) as client:
                assert client.execute("SELECT session_user").fetchone() == ("keeper",)
    finally:
        postgres.execute("DROP ROLE keeper")


def test_a_lookup_that_is_not_possible_is_no_wrong_password(shared: Database) -> None:
    shared.execute("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    lookup = {"user": "weak", "password": "weak"}
    with RunningRelay(shared, config={"auth": {"lookup": lookup}}) as relay:
        error = str(refused(relay, "keeper", "kept"))
        assert "authentication is not possible now" in error and "pg_authid" not in error
        assert "HINT" in error and "pgshunt status" in error
        assert relay.count("failed_logins", "lookup") == 1


def test_whether_verifiers_can_be_read_is_told_before_anybody_logs_in(shared: Database) -> None:
    shared.execute("CREATE ROLE unable LOGIN PASSWORD 'unable'")
    lookup = {"user": "unable", "password": "unable"}
    with RunningRelay(shared, config={"auth": {"lookup": lookup}}) as relay:
        relay.wait_for(lambda: bool(relay.events), "the failure is told")
        shared.execute("GRANT SELECT ON pg_authid TO unable")
        relay.wait_for(lambda: len(relay.events) > 1, "its end is told")
        assert [event["kind"] for event in relay.events] == ["lookup_failed", "lookup_works"]
        assert "pg_authid" in relay.events[0]["reason"]
        with psycopg.connect(relay.dsn("keeper", "kept")) as client:
            assert client.execute("SELECT session_user").fetchone() == ("keeper",)


def test_a_function_may_stand_for_pg_authid(shared: Database) -> None:
    """The one that the README proposes."""
    shared.execute(
        "CREATE ROLE pgshunt_lookup LOGIN PASSWORD 'asking';"
        "CREATE FUNCTION public.pgshunt_verifier(text) RETURNS text"
        " SECURITY DEFINER SET search_path = pg_catalog"
        " LANGUAGE sql AS $$ SELECT rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin"
        " AND (rolvaliduntil >= now()) IS NOT FALSE $$;"
        "REVOKE EXECUTE ON FUNCTION public.pgshunt_verifier(text) FROM PUBLIC;"
        "GRANT EXECUTE ON FUNCTION public.pgshunt_verifier(text) TO pgshunt_lookup"
    )
    lookup = {"user": "pgshunt_lookup", "password": "asking", "query": "SELECT public.pgshunt_verifier($1)"}
    with RunningRelay(shared, config={"auth": {"lookup": lookup, "failure_delay_ms": 0}}) as relay:
        with psycopg.connect(relay.dsn("keeper", "kept")) as client:
            assert client.execute("SELECT session_user").fetchone() == ("keeper",)
        for user in ("late", "barred"):
            assert "password authentication failed" in str(refused(relay, user, user))


def test_nothing_a_stranger_sets_reaches_a_server(relay: RunningRelay, shared: Database) -> None:
    """CVE-2025-12819: the lookup's link is opened as we say, whatever the one who is looked up wants set."""
    wanted = {b"search_path": b"evil", b"application_name": b"stranger", b"options": b"-c geqo=off"}
    with WireClient(relay.connect()) as client:
        client.send(messages.startup_message({b"user": b"keeper", b"database": b"postgres"} | wanted))
        assert client.frame().kind == "R"  # the lookup is over
        names = shared.execute(
            "SELECT application_name FROM pg_stat_activity WHERE backend_type LIKE 'client%'"
        )
        assert ["pgshunt lookup"] in names and ["stranger"] not in names


def test_a_lookup_is_made_on_its_own_search_path(shared: Database) -> None:
    """The same: this query finds a verifier on no other one."""
    shared.execute("CREATE ROLE astray LOGIN PASSWORD 'astray'; ALTER ROLE astray SET search_path = evil")
    query = (
        "SELECT rolpassword FROM pg_authid WHERE rolname = $1"
        " AND current_setting('search_path') = 'pg_catalog, pg_temp'"
    )
    lookup = {"user": shared.server.user, "password": shared.server.password, "query": query}
    with (
        RunningRelay(shared, config={"auth": {"lookup": lookup}}) as relay,
        psycopg.connect(relay.dsn("astray", "astray"), options="-c search_path=elsewhere") as client,
    ):
        assert client.execute("SHOW search_path").fetchone() == ("elsewhere",)


# --- failures take their time -----------------------------------------------------------------------------


def failed_login(relay: RunningRelay) -> WireClient:
    """A client that has sent a wrong proof, and has had no answer yet."""
    client = WireClient(relay.connect())
    client.send(messages.startup_message({b"user": b"nobody", b"database": b"postgres"}))
    client.frame()
    client.send(messages.sasl_initial_response(b"SCRAM-SHA-256", b"n,,n=,r=abc"))
    nonce = client.frame().body[4:].partition(b",")[0]
    client.send(messages.sasl_response(b"c=biws," + nonce + b",p=" + b64encode(bytes(32))))
    return client


def test_a_failed_login_waits_and_holds_up_nobody(shared: Database) -> None:
    config = looking_up(shared.server, failure_delay_ms=5000)
    with (
        RunningRelay(shared, config=config) as slow,
        failed_login(slow) as one,
        failed_login(slow) as another,
    ):
        slow.wait_for(lambda: slow.count("failed_logins", "password") == 2, "both have failed")
        with psycopg.connect(slow.dsn("keeper", "kept")) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
        readable, _, _ = select.select([one.socket, another.socket], [], [], 0)
        assert readable == []
        one.send(b"more" * 10_000)  # is not listened to any more


def test_a_failed_login_is_told_in_the_end(relay: RunningRelay) -> None:
    with failed_login(relay) as client:
        assert sqlstate(client.until_ready()) == "28P01"
    relay.wait_for(lambda: relay.call(lambda it: it.clients) == 0, "it is gone")
    told = [event for event in relay.events if event["kind"] == "login_failed"]
    reason = 'password authentication failed for user "nobody"'
    assert told[-1] == {"type": "event", "kind": "login_failed", "client": "127.0.0.1", "reason": reason}


# --- certificates -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("proxy", "proxy", "localhost")


def listening(pair: Pair, mode: str, **more: str) -> dict[str, Any]:
    files = {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}
    return {"tls": {"mode": mode, **files, **more}}


@pytest.mark.parametrize(
    ("common_name", "user", "message"),
    [
        ("app", "app", None),
        ("team", "app", None),
        ("team", "keeper", 'certificate authentication failed for user "keeper"'),
        ("team", "team", 'certificate authentication failed for user "team"'),
        ("app", "keeper", 'certificate authentication failed for user "keeper"'),
    ],
)
def test_a_certificate_stands_for_its_users(
    shared: Database, authority: Authority, pair: Pair, common_name: str, user: str, message: str | None
) -> None:
    own = authority.issue("client", common_name)
    config = {
        "auth": {
            "method": "cert",
            "users": [{"name": "app", "password": "app"}],
            "certificates": {"team": ["app"]},
            "failure_delay_ms": 0,
        },
        "listen": listening(pair, "verify-full", ca_file=str(authority.file)),
    }
    with RunningRelay(shared, config=config) as relay:
        where = f"{relay.dsn(user)} sslmode=require sslcert={own.certificate} sslkey={own.key}"
        if message is None:
            with psycopg.connect(where) as client:
                assert client.execute("SELECT session_user").fetchone() == (user,)
        else:
            with pytest.raises(psycopg.OperationalError, match=message):
                psycopg.connect(where).close()
            assert relay.count("failed_logins", "authorization") == 1


# --- channel binding --------------------------------------------------------------------------------------


def test_a_client_may_insist_on_channel_binding(shared: Database, authority: Authority, pair: Pair) -> None:
    config = looking_up(shared.server) | {"listen": listening(pair, "prefer")}
    with RunningRelay(shared, config=config) as encrypting:
        bound = f"{encrypting.dsn('keeper', 'kept')} channel_binding=require sslmode=require"
        with psycopg.connect(bound) as client:
            assert client.execute("SELECT session_user").fetchone() == ("keeper",)
        with pytest.raises(psycopg.OperationalError, match="channel binding"):
            psycopg.connect(
                f"{encrypting.dsn('keeper', 'kept')} channel_binding=require sslmode=disable"
            ).close()


def test_a_login_bound_to_another_certificate_is_refused(
    shared: Database, authority: Authority, pair: Pair
) -> None:
    """A man in the middle has a certificate that its victim trusts, and passes the exchange on."""
    config = looking_up(shared.server) | {"listen": listening(pair, "require")}
    with RunningRelay(shared, config=config) as encrypting:
        plain = encrypting.connect()
        plain.sendall(messages.ssl_request())
        assert plain.recv(1) == b"S"
        context = ssl.create_default_context(cafile=authority.file)
        with WireClient(context.wrap_socket(plain, server_hostname="localhost")) as client:
            client.send(messages.startup_message({b"user": b"keeper", b"database": b"postgres"}))
            assert client.frame().body[4:] == b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
            scram = ScramClient(partial(derive_keys, "kept"), binding=bytes(32))
            client.send(messages.sasl_initial_response(b"SCRAM-SHA-256-PLUS", scram.first()))
            client.send(messages.sasl_response(scram.final(client.frame().body[4:])))
            error = read_error(client.frame().body)
            assert (error.sqlstate, error.message) == ("28000", "SCRAM channel binding check failed")


@pytest.fixture(scope="module")
def encrypting(servers: Servers) -> Iterator[PostgresServer]:
    directory = servers.directory / "binding-files"
    directory.mkdir()
    pair = Authority(directory).issue("server", "server")
    files = {"ssl_cert_file": str(pair.certificate), "ssl_key_file": str(pair.key)}
    server = start_encrypting(servers, "binding", files, (directory, pair.certificate, pair.key))
    yield server
    server.stop("immediate")


def test_links_insist_on_channel_binding(encrypting: PostgresServer, shared: Database) -> None:
    """With it they get in over TLS; without TLS they give nothing away."""
    required = ServerTls(mode="require", channel_binding="require")
    with (
        RunningRelay(Database(encrypting, "postgres"), tls=required) as relay,
        psycopg.connect(relay.dsn()) as client,
    ):
        assert client.execute("SELECT 1").fetchone() == (1,)
    prefers = ServerTls(mode="prefer", channel_binding="require")
    with RunningRelay(shared, tls=prefers) as relay:
        assert "cannot be bound" in str(refused(relay, "", ""))


# --- old servers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ancient(servers: Servers) -> Iterator[PostgresServer]:
    """A server that wants MD5."""
    server = servers.start("ancient")
    server.execute(f"SET password_encryption = 'md5'; ALTER ROLE postgres PASSWORD '{server.password}'")
    rules = server.data / "pg_hba.conf"
    rules.write_text("host all all 127.0.0.1/32 md5\nlocal all all trust\n")
    server.restart()
    yield server
    server.stop("immediate")


@pytest.mark.parametrize("allowed", [True, False])
def test_md5_only_where_it_is_allowed(ancient: PostgresServer, allowed: bool) -> None:
    users = [{"name": ancient.user, "password": ancient.password}]
    config = {"auth": {"method": "trust", "users": users, "md5_to_servers": allowed}}
    with RunningRelay(Database(ancient, "postgres"), config=config) as relay:
        if allowed:
            with psycopg.connect(relay.dsn()) as client:
                assert client.execute("SELECT 1").fetchone() == (1,)
        else:
            assert "nothing but a SCRAM-SHA-256 proof" in str(refused(relay, "", ""))
