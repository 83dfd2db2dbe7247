"""`pgshunt serve` as it runs: a supervisor and two worker processes, real clients, real trouble."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fixtures import Database
from support.moving import CONTROL, databases
from support.serve import Serving, address, configuration

from pgshunt.admin import show
from pgshunt.admin.problem import Problem
from pgshunt.admin.waiting import copied
from pgshunt.demo.postgres import Server, Servers, free_port
from pgshunt.proxy.signals import worker_of as worker_of_process

Client = psycopg.Connection[tuple[Any, ...]]
Connect = Callable[..., Client]

TABLE = """
CREATE TABLE item (id int PRIMARY KEY, name text);
INSERT INTO item SELECT i, 'n' || i FROM generate_series(1, 50) i
"""


@pytest.fixture(scope="module")
def shared(postgres: Server) -> Iterator[Database]:
    """One table and two login roles; `stranger` has another password there than pgshunt thinks."""
    database = Database(postgres, "serve_shared")
    postgres.execute(f"CREATE DATABASE {database.dbname} TEMPLATE template0")
    postgres.execute(
        "CREATE ROLE friend LOGIN PASSWORD 'right'; CREATE ROLE stranger LOGIN PASSWORD 'at the server'"
    )
    database.execute(f"{TABLE}; GRANT SELECT ON item TO friend")
    try:
        yield database
    finally:
        postgres.execute(f"DROP DATABASE {database.dbname} WITH (FORCE)")
        postgres.execute("DROP ROLE friend; DROP ROLE stranger")


def common(shared: Database) -> dict[str, Any]:
    """The configuration of most tests: three users, no service."""
    users = [
        {"name": shared.server.user, "password": shared.server.password},
        {"name": "friend", "password": "right"},
        {"name": "stranger", "password": "at the proxy"},
    ]
    return configuration(shared.server, shared.dbname, auth={"users": users})


@pytest.fixture(scope="module")
def serving(shared: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One pgshunt for the tests that leave it as they found it."""
    with Serving(tmp_path_factory.mktemp("serve"), common(shared)) as running:
        yield running


def keywords(serving: Serving, database: Database, **changes: Any) -> dict[str, Any]:
    server = database.server
    return {
        "host": "127.0.0.1",
        "port": serving.port,
        "dbname": database.dbname,
        "user": server.user,
        "password": server.password,
        "autocommit": True,
    } | changes


@pytest.fixture
def connect(serving: Serving, shared: Database) -> Iterator[Connect]:
    """Makes clients of `serving` that are closed at the end, and waits until pgshunt has seen that."""
    with contextlib.ExitStack() as stack:

        def make(**changes: Any) -> Client:
            return stack.enter_context(psycopg.connect(**keywords(serving, shared, **changes)))

        yield make
    serving.until("the clients are gone", lambda: serving.status()["clients"] == 0)


def worker_of(client: Client) -> int:
    """The worker that serves a client, from the process id it was given."""
    return worker_of_process(client.info.backend_pid)


# -- login ------------------------------------------------------------------------------------------------


def refusal(**where: Any) -> tuple[str | None, str]:
    """What a client is told that is not let in: SQLSTATE and message, without the place it connected to."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(**where).close()
    said = str(caught.value).partition("FATAL: ")[2]
    return caught.value.sqlstate, said.strip().splitlines()[0] if said else str(caught.value)


def test_scram_to_client_and_server(connect: Connect) -> None:
    client = connect(user="friend", password="right")
    assert client.execute("SELECT session_user, count(*) FROM item").fetchone() == ("friend", 50)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        client.execute("DELETE FROM item")


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "friend", "password": "wrong"},
        {"user": "nobody", "password": "right"},
        {"dbname": "nowhere"},
    ],
    ids=["wrong password", "unknown user", "unknown database"],
)
def test_refused_in_the_words_of_postgresql(
    changes: dict[str, str], serving: Serving, shared: Database
) -> None:
    direct = keywords(serving, shared, port=shared.server.port, **changes)
    assert refusal(**keywords(serving, shared, **changes)) == refusal(**direct)


def test_a_password_that_the_server_refuses(serving: Serving, shared: Database) -> None:
    """Right at the proxy, wrong behind it: the server's words, for they name what is to be mended."""
    _, said = refusal(**keywords(serving, shared, user="stranger", password="at the proxy"))
    assert said == 'password authentication failed for user "stranger"'


def test_trust(shared: Database, tmp_path: Path) -> None:
    """Without a password; a service's own database that is down from the start is nobody else's trouble."""
    users = [{"name": shared.server.user, "password": shared.server.password}]
    config = configuration(
        shared.server,
        shared.dbname,
        auth={"method": "trust", "users": users},
        databases={"own_db": {"dbname": "own", "primary": {"host": "127.0.0.1", "port": free_port()}}},
        services={"items": {"database": "own_db", "tables": ["item"]}},
    )
    with Serving(tmp_path, config) as serving:
        with psycopg.connect(**keywords(serving, shared, password=None)) as client:
            assert client.execute("SELECT count(*) FROM item").fetchone() == (50,)
            client.execute("UPDATE item SET name = name WHERE id = 1")
        assert serving.readiness() == []
        with pytest.raises(Problem, match="own_db"):  # told at once, and nothing was begun
            serving.api.post("/api/v1/services/items/begin")
        assert serving.api.get("/api/v1/services/items")["stage"] == "shared"
        with psycopg.connect(**keywords(serving, shared, password=None)) as client:
            assert client.execute("SELECT count(*) FROM item").fetchone() == (50,)


def test_tls_is_declined(connect: Connect, serving: Serving, shared: Database) -> None:
    assert connect(sslmode="prefer").execute("SELECT 1").fetchone() == (1,)
    _, said = refusal(**keywords(serving, shared, sslmode="require"))
    assert "server does not support SSL" in said


# -- two workers ------------------------------------------------------------------------------------------


def test_clients_are_shared_evenly(connect: Connect, serving: Serving) -> None:
    clients = [connect() for _ in range(10)]
    assert sorted(worker_of(client) for client in clients) == [0] * 5 + [1] * 5
    assert [worker["clients"] for worker in serving.workers()] == [5, 5]


def test_a_cancel_reaches_the_other_worker(connect: Connect, serving: Serving) -> None:
    """Worker 0 has no client, so the cancel request arrives there; the statement runs on worker 1."""
    first, second = sorted((connect(), connect()), key=worker_of)
    first.close()
    serving.until("worker 0 is free", lambda: [worker["clients"] for worker in serving.workers()] == [0, 1])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(second.execute, "SELECT pg_sleep(60) /* to be cancelled */")
        serving.until("the statement runs", lambda: bool(is_running("to be cancelled", serving)))
        second.cancel_safe()
        assert isinstance(running.exception(), psycopg.errors.QueryCanceled)
    assert second.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("end", [0, 1])
def test_a_session_of_the_other_worker_is_terminated(end: int, connect: Connect, serving: Serving) -> None:
    """By the process id it was given at login, which only its own worker knows."""
    victim, caller = sorted((connect(), connect()), key=worker_of, reverse=bool(end))
    assert worker_of(victim) != worker_of(caller)
    assert victim.execute("SELECT 1").fetchone() == (1,)
    cancel = caller.execute("SELECT pg_cancel_backend(%s)", [victim.info.backend_pid])
    assert cancel.fetchone() == (True,)
    assert victim.execute("SELECT 2").fetchone() == (2,)
    terminate = caller.execute("SELECT pg_terminate_backend(%s)", [victim.info.backend_pid])
    assert terminate.fetchone() == (True,)
    with pytest.raises(psycopg.errors.AdminShutdown):
        victim.execute("SELECT 3")
    again = caller.execute("SELECT pg_terminate_backend(%s)", [victim.info.backend_pid])
    assert again.fetchone() == (False,)


def is_running(mark: str, serving: Serving) -> list[Any]:
    """The server's own view, asked directly."""
    shared = serving.config["shared"]["primary"]
    control = serving.config["control"]
    with psycopg.connect(**shared, **control, dbname="postgres") as direct:
        return direct.execute(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND position(%s in query) > 0"
            " AND pid <> pg_backend_pid()",
            [mark],
        ).fetchall()


def test_a_killed_worker_is_replaced(connect: Connect, serving: Serving) -> None:
    """Its clients get a clean close, the other worker's go on in the middle of a transaction."""
    victim, neighbour = sorted((connect(), connect()), key=worker_of)
    assert [worker_of(victim), worker_of(neighbour)] == [0, 1]
    before = serving.workers()
    assert victim.execute("SELECT 1").fetchone() == (1,)
    with neighbour.transaction():
        assert neighbour.execute("SELECT count(*) FROM item").fetchone() == (50,)
        os.kill(before[worker_of(victim)]["pid"], signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            victim.execute("SELECT 2")
        serving.until(
            "the worker is replaced",
            lambda: (
                all(one["stage"] == "live" for one in serving.workers())
                and serving.workers()[0]["pid"] != before[0]["pid"]
            ),
        )
        assert neighbour.execute("SELECT count(*) FROM item").fetchone() == (50,)
    after = serving.workers()
    assert [one["restarts"] for one in after] == [before[0]["restarts"] + 1, before[1]["restarts"]]
    assert after[1]["pid"] == before[1]["pid"]
    ended = serving.events("worker_ended")[-1]["detail"]
    assert ended == {"worker": 0, "pid": before[0]["pid"], "exit_code": -signal.SIGKILL}
    restarted = serving.events("worker_restarted")[-1]["detail"]
    assert restarted == {"worker": 0, "pid": after[0]["pid"], "restarts": after[0]["restarts"]}
    assert "pgshunt.events: worker_restarted" in serving.said()
    again = connect()
    assert (worker_of(again), again.execute("SELECT 3").fetchone()) == (0, (3,))


# -- the admin API ----------------------------------------------------------------------------------------


def scrape(serving: Serving) -> dict[tuple[str, ...], float]:
    """pgshunt_queries_total by (service, backend, op, outcome); all of the exposition must parse."""
    with urllib.request.urlopen(f"{serving.api.url}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        tuple(sample.labels[name] for name in ("service", "backend", "op", "outcome")): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "pgshunt_queries_total"
    }


def test_metrics_count_what_was_sent(connect: Connect, serving: Serving) -> None:
    sent = {("read", "ok"): 7, ("write", "ok"): 5, ("read", "application_error"): 2}
    clients = connect(), connect()
    # What a worker tells comes in order: behind this error of each, nothing of other tests is still to come.
    told = ("", "shared", "write", "application_error")
    earlier = scrape(serving).get(told, 0)
    for client in clients:
        with pytest.raises(psycopg.errors.DivisionByZero):
            client.execute("UPDATE item SET id = 1 / (id - id)")
    serving.until("both workers have told of an error", lambda: scrape(serving).get(told) == earlier + 2)
    before = scrape(serving)
    for client in clients:
        for _ in range(sent["read", "ok"]):
            client.execute("SELECT count(*) FROM item")
        for _ in range(sent["write", "ok"]):
            client.execute("UPDATE item SET name = name WHERE id = 1")
        for _ in range(sent["read", "application_error"]):
            with pytest.raises(psycopg.errors.DivisionByZero):
                client.execute("SELECT 1 / (id - id) FROM item")

    def counted() -> dict[tuple[str, str], float]:
        return {
            (op, outcome): count - before.get((service, backend, op, outcome), 0)
            for (service, backend, op, outcome), count in scrape(serving).items()
            if (service, backend) == ("", "shared") and (op, outcome) in sent
        }

    wanted = {key: 2.0 * count for key, count in sent.items()}
    serving.until("both workers have told what they counted", lambda: counted() == wanted)


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic cGdzaHVudDpwZ3NodW50"])
def test_no_answer_without_the_token(authorization: str | None, serving: Serving) -> None:
    request = urllib.request.Request(f"{serving.api.url}/api/v1/status")
    if authorization:
        request.add_header("Authorization", authorization)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert (caught.value.code, caught.value.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert b"workers" not in caught.value.read()


def test_a_broken_configuration_changes_nothing(connect: Connect, serving: Serving) -> None:
    client = connect()
    failures = len(serving.events("reload_failed"))
    serving.write("version: 1\nlisten: {port: many}\nrollbakc: {}\n")
    try:
        serving.signal(signal.SIGHUP)
        serving.until("the reload is refused", lambda: len(serving.events("reload_failed")) == failures + 1)
        told = serving.events("reload_failed")[-1]["detail"]
        wrong = ["shared", "control", "auth.users", "listen.port", "rollbakc"]
        assert [problem.split(": ")[1] for problem in told["problems"]] == wrong
        assert told["reason"].startswith(told["problems"][0]) and "4 more: pgshunt check" in told["reason"]
        (warning,) = serving.status()["warnings"]
        assert told["reason"] in warning
        lines = show.status(serving.status()).splitlines()
        assert [line.startswith("  attention: ") for line in lines] == [False, True]
        assert client.execute("SELECT 1").fetchone() == (1,)
        assert connect().execute("SELECT 1").fetchone() == (1,)
    finally:
        serving.write(serving.config)
    serving.signal(signal.SIGHUP)
    serving.until("the old one is good again", lambda: serving.status()["warnings"] == [])


def test_check_names_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "version: 1\n"
        "listen: {host: 127.0.0.1, port: many}\n"
        "shared:\n"
        "  dbname: monolith\n"
        "  primary: {host: 127.0.0.1}\n"
        "  replica: []\n"
        "control: {user: pgshunt, password_env: PGSHUNT_NOT_SET_ANYWHERE}\n"
        "services:\n"
        "  items: {database: nowhere_db, tables: [item]}\n"
    )
    command = [sys.executable, "-m", "pgshunt", "check", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    places = [re.search(r"wrong\.yaml:(\d+):(\d+)", line) for line in done.stderr.splitlines()]
    assert {int(place[1]) for place in places if place} >= {2, 6, 7, 9}
    assert "did you mean" in done.stderr and "replicas" in done.stderr
    served = subprocess.run(
        [*command[:3], "serve", *command[4:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert (served.returncode, served.stderr) == (2, done.stderr)


def test_the_start_is_told_with_its_addresses(serving: Serving) -> None:
    (started,) = serving.events("started")
    assert started["detail"] == {
        "listen": f"127.0.0.1:{serving.port}",
        "admin": f"127.0.0.1:{serving.config['admin']['port']}",
        "workers": 2,
        "epoch": serving.status()["epoch"],
    }


# -- trouble ----------------------------------------------------------------------------------------------


def test_the_shared_database_comes_up_late(servers: Servers, tmp_path: Path) -> None:
    server = servers.start("late")
    database = Database(server, "postgres")
    database.execute(TABLE)
    server.stop()
    with Serving(tmp_path, configuration(server, "postgres"), ready=False) as serving:
        (reason,) = serving.readiness()
        assert "shared database" in reason and str(server.port) in reason
        assert reason in serving.status()["warnings"]
        state, said = refusal(**keywords(serving, database))
        assert str(server.port) in said, said
        assert state is None or state.startswith("08")
        pids = serving.processes()
        server.start()
        serving.until("pgshunt is ready", lambda: not serving.readiness())
        with psycopg.connect(**keywords(serving, database)) as client:
            assert client.execute("SELECT count(*) FROM item").fetchone() == (50,)
        assert serving.processes() == pids
        (lost,), (back,) = serving.events("shared_lost"), serving.events("shared_back")
        assert lost["detail"]["reason"] in reason and back["detail"]["after_s"] > 0
        server.stop()
        serving.until("it is missed", lambda: len(serving.events("shared_lost")) == 2)
        assert serving.readiness()
        server.start()
        serving.until("it is found", lambda: len(serving.events("shared_back")) == 2)
        assert not serving.readiness()
        assert "WARNING pgshunt.events: shared_lost" in serving.said()


def test_a_wrong_password_of_the_control_role_is_told(shared: Database, tmp_path: Path) -> None:
    config = common(shared) | {"control": {"user": shared.server.user, "password": "wrong"}}
    with Serving(tmp_path, config, ready=False) as serving:
        (lost,) = serving.events("shared_lost")
        assert "password authentication failed" in lost["detail"]["reason"]
        assert "`control`" in lost["detail"]["remedy"]
        assert lost["detail"]["reason"] in serving.readiness()[0]


def test_a_failing_lookup_of_verifiers_is_seen_without_a_client(shared: Database, tmp_path: Path) -> None:
    shared.execute("CREATE ROLE asking LOGIN PASSWORD 'another'; GRANT SELECT ON pg_authid TO asking")
    lookup = {"user": "asking", "password": "one"}
    config = configuration(shared.server, shared.dbname, auth={"lookup": lookup})
    config["listen"]["workers"] = 1
    try:
        with Serving(tmp_path, config, ready=False) as serving:
            serving.until("it is not ready", lambda: bool(serving.readiness()))
            (reason,) = serving.readiness()
            assert "verifiers cannot be looked up" in reason and "auth.lookup" in reason
            assert 'password authentication failed for user "asking"' in reason
            assert reason in serving.status()["warnings"]
            shared.execute("ALTER ROLE asking PASSWORD 'one'")
            serving.until("it is ready", lambda: not serving.readiness())
            assert serving.status()["warnings"] == []
            with psycopg.connect(**keywords(serving, shared, user="friend", password="right")) as client:
                assert client.execute("SELECT count(*) FROM item").fetchone() == (50,)
    finally:
        shared.execute("REVOKE SELECT ON pg_authid FROM asking; DROP ROLE asking")


def test_sigterm_drains(shared: Database, tmp_path: Path) -> None:
    """An open transaction may finish, an idle client is told to go, and then everything ends by itself."""
    with Serving(tmp_path, common(shared)) as serving:
        busy, idle = (psycopg.connect(**keywords(serving, shared)) for _ in range(2))
        with busy.transaction():
            busy.execute("UPDATE item SET name = 'drained' WHERE id = 2")
            idle.execute("SELECT 1")
            serving.signal(signal.SIGTERM)
            assert select.select([idle], [], [], 30)[0], "the idle client was told nothing"
            with pytest.raises(psycopg.errors.AdminShutdown):
                idle.execute("SELECT 1")
            assert busy.execute("SELECT name FROM item WHERE id = 2").fetchone() == ("drained",)
        assert select.select([busy], [], [], 30)[0], "the busy client was told nothing"
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")
        assert serving.process.wait(30) == 0
        assert "stopped" in serving.said().splitlines()[-1]
        assert shared.execute("SELECT name FROM item WHERE id = 2") == [["drained"]]
        idle.close()
        busy.close()


def test_weights_and_latch(postgres_pair: tuple[Server, Server], tmp_path: Path) -> None:
    """A new weight is in force on every worker when the API answers; a rollback holds beyond a restart."""
    with databases(postgres_pair, "serve_moving") as (source, own):
        source.execute(TABLE)
        role = {"user": CONTROL.user, "password": CONTROL.password.reveal()}  # the same on both servers
        config = configuration(
            source.server,
            source.dbname,
            auth={"users": [{"name": role["user"], "password": role["password"]}]},
            control=role,
            databases={"own_db": {"dbname": own.dbname, "primary": address(own.server)}},
            services={"items": {"database": "own_db", "tables": ["item"]}},
        )
        with Serving(tmp_path, config) as serving:
            service = "/api/v1/services/items"
            assert copied(serving.api, service, 60.0)["stage"] == "shadowing"
            clients = [psycopg.connect(**keywords(serving, source, **role)) for _ in range(2)]
            with contextlib.ExitStack() as stack:
                for client in clients:
                    stack.enter_context(client.transaction())
                    client.execute("SELECT count(*) FROM item")
                assert_acknowledged(serving, serving.api.post(f"{service}/shift", reads=50))
                for row, client in enumerate(clients, 3):
                    assert client.execute("SELECT count(*) FROM item").fetchone() == (50,)
                    client.execute("UPDATE item SET name = 'moved' WHERE id = %s", [row])
            for client in clients:
                read_from_copy(serving, client)
            rolled_back = serving.api.post(f"{service}/rollback", reason="a test")
            assert_acknowledged(serving, rolled_back)
            assert (rolled_back["stage"], rolled_back["latch"]["trigger"]) == ("shadowing", "manual")
            for client in clients:
                assert client.execute("SELECT name FROM item WHERE id = 3").fetchone() == ("moved",)
                client.close()
        with Serving(tmp_path, config) as serving:
            held = serving.api.get(service)
            assert (held["stage"], held["reads"], held["latch"]["trigger"]) == ("shadowing", 0, "manual")
            with pytest.raises(Problem) as caught:
                serving.api.post(f"{service}/shift", reads=10)
            assert caught.value.kind == "latched"
            serving.until("it is armed again", lambda: rearmed(serving))
            assert serving.api.get(service)["latch"] is None
            serving.api.post(f"{service}/abandon", 60.0)
            serving.until("the lane is gone", lambda: serving.api.get(service)["stage"] == "shared")


def rearmed(serving: Serving) -> bool:
    """Whether pgshunt agrees; it wants a clean pass of verification since the rollback."""
    try:
        serving.api.post("/api/v1/services/items/rearm", reason="looked into")
    except Problem as problem:
        assert problem.kind == "held", problem
        return False
    return True


def assert_acknowledged(serving: Serving, reply: dict[str, Any]) -> None:
    """No worker routes by an older table than the one that `reply` came from."""
    assert reply["name"] == "items"
    status = serving.status()
    assert [worker["epoch"] for worker in status["workers"]] == [status["epoch"]] * 2


def read_from_copy(serving: Serving, client: Client) -> None:
    """Reads until one was answered by the service's own database: a copy that is not fresh is passed over."""
    key = ("items", "own_db", "read", "ok")
    before = scrape(serving)[key]

    def answered() -> bool:
        assert client.execute("SELECT name FROM item WHERE id = 3").fetchone() == ("moved",)
        return scrape(serving)[key] > before

    serving.until("a read goes to own_db", answered)
