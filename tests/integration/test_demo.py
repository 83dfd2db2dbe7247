"""The demo: its workload tells right from wrong, its faults break and mend, its story comes true."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pg8000.exceptions
import pytest

from pgshunt.demo import evidence
from pgshunt.demo.data import create_shared
from pgshunt.demo.faults import AUTH, Divergence, Errors
from pgshunt.demo.postgres import PostgresServer, Servers
from pgshunt.demo.services import SERVICES, SHARED_DBNAME
from pgshunt.demo.waiting import wait_for
from pgshunt.demo.workload import Workload

PASSWORDS = {service.name: f"password of {service.name}" for service in SERVICES}
SEEN_TIMEOUT_S = 30.0

# Of the faults in the order of the story: rights revoked, reads held back, rows changed, servers killed.
TRIGGERS = ["error_rate", "latency", "consistency", "error_rate"]


@pytest.fixture(scope="module")
def monolith(servers: Servers) -> PostgresServer:
    """A server with the shared database of the demo. Its workloads leave it consistent."""
    server = servers.start("monolith", {"max_connections": "100"})
    create_shared(server, PASSWORDS)
    return server


@pytest.fixture
def workload(monolith: PostgresServer) -> Iterator[Workload]:
    """The eight services, directly at the database: there is no lag to forgive."""
    with Workload(monolith.host, monolith.port, PASSWORDS, lag_ms_max=0) as workload:
        yield workload


def until(what: str, condition: Callable[[], bool]) -> None:
    wait_for(what, condition, SEEN_TIMEOUT_S)


def test_every_service_works_and_gets_only_right_answers(
    monolith: PostgresServer, workload: Workload
) -> None:
    operations = {"read_one", "read_joined", "read_many", "read_across", "read_twice", "touch", "record"}
    auth = workload.tallies[AUTH.name]
    until(
        "auth does everything", lambda: operations | {"record_audited"} <= set(auth.ok) and auth.expected > 0
    )
    until(
        "all services work", lambda: all(sum(tally.ok.values()) > 10 for tally in workload.tallies.values())
    )
    workload.stop()
    assert workload.wrong() == 0, workload.to_dict()
    assert workload.failures() == []
    assert evidence.chain_breaks(monolith) == []


def test_a_row_that_somebody_else_changed_is_noticed(monolith: PostgresServer, workload: Workload) -> None:
    changed = "UPDATE users SET display_name = '{}' || display_name WHERE id <= 200"
    monolith.execute(changed.format("not "), SHARED_DBNAME)
    until("the lie is noticed", lambda: workload.wrong() > 0)
    workload.stop()
    monolith.execute("UPDATE users SET display_name = substr(display_name, 5) WHERE id <= 200", SHARED_DBNAME)
    assert "users" in workload.tallies[AUTH.name].wrong_examples[0]


def test_an_update_that_is_lost_is_noticed(monolith: PostgresServer, workload: Workload) -> None:
    lost = (
        "UPDATE decisions SET version = version - 1, motion = format('decisions %s at %s', id, version - 1)"
    )
    council = workload.tallies["executive_council"]
    until("something was written", lambda: council.ok["touch"] > 3)
    monolith.execute(f"{lost} WHERE version > 1", SHARED_DBNAME)
    until("the loss is noticed", lambda: council.wrong > 0)


def test_a_restart_of_the_database_costs_errors_but_no_wrong_answer(
    monolith: PostgresServer, workload: Workload
) -> None:
    until("it is busy", lambda: workload.succeeded() > 200)
    monolith.kill()
    monolith.start()
    before = {name: sum(tally.ok.values()) for name, tally in workload.tallies.items()}
    until(
        "every service is back",
        lambda: all(sum(tally.ok.values()) > before[name] + 5 for name, tally in workload.tallies.items()),
    )
    workload.stop()
    assert {failure.sqlstate[:2] for failure in workload.failures()} <= {"57", "08"}
    assert workload.failures()
    assert workload.wrong() == 0, workload.to_dict()
    assert evidence.chain_breaks(monolith) == []


def test_an_altered_audit_entry_breaks_the_chain(monolith: PostgresServer) -> None:
    owner = monolith.connect(SHARED_DBNAME)
    owner.run("BEGIN")
    owner.run("UPDATE audit_logs SET action = 'forged' WHERE chain = 'auth_service' AND position = 17")
    owner.run("DELETE FROM tokens WHERE audit_log_id = 400")
    owner.run("DELETE FROM audit_logs WHERE id = 400")
    breaks = owner.run("SELECT * FROM audit_breaks() ORDER BY 2")
    owner.run("ROLLBACK")
    owner.close()
    assert breaks == [["auth_service", 17], ["auth_service", 401]]


def test_faults_break_and_are_mended(servers: Servers, monolith: PostgresServer) -> None:
    """The copy is made by hand: CREATE TABLE and COPY are enough for what the faults touch."""
    target = servers.start("broken_auth")
    target.execute(f"CREATE DATABASE {AUTH.database}")
    target.execute(f"CREATE ROLE {AUTH.name} LOGIN PASSWORD '{PASSWORDS[AUTH.name]}'")
    for table in AUTH.tables:
        columns = monolith.execute(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = :name::text::regclass AND attnum > 0 ORDER BY attnum",
            SHARED_DBNAME,
            name=table,
        )
        listed = ", ".join(f"{name} {kind}" for name, kind in columns)
        target.execute(
            f"CREATE TABLE {table} ({listed}); GRANT SELECT ON {table} TO {AUTH.name}", AUTH.database
        )
    divergence = Divergence(monolith, target)
    divergence.repair()  # on empty tables it is the copy of the tokens that the fault will change
    dormant = "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM tokens t WHERE user_id > 200"
    right = monolith.execute(dormant, SHARED_DBNAME)

    divergence.inject()
    assert target.execute(dormant, AUTH.database) != right
    divergence.repair()
    assert target.execute(dormant, AUTH.database) == right

    errors = Errors(target)
    errors.inject()
    client = target.connect(AUTH.database, AUTH.name, PASSWORDS[AUTH.name])
    with pytest.raises(pg8000.exceptions.DatabaseError, match="42501"):
        client.run("SELECT 1 FROM users")
    errors.repair()
    assert client.run("SELECT count(*) FROM users") == [[0]]


@pytest.mark.timeout(300)
def test_the_story_comes_true() -> None:
    """Every step of `pgshunt demo` is observed: every rollback by itself, nothing left behind."""
    run = subprocess.run(
        [sys.executable, "-m", "pgshunt", "demo", "--fast", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    document = json.loads(run.stdout)
    assert run.returncode == 0, (document["problem"], run.stderr)
    assert document["ok"] and all(step["ok"] for step in document["steps"])
    assert [rollback["trigger"] for rollback in document["rollbacks"]] == TRIGGERS
    for rollback in document["rollbacks"]:
        assert rollback["clients_saw_after_rollback"] == 0
        assert rollback["other_services_saw"] == 0
        assert rollback["fault_to_rollback_ms"] > 0
        assert rollback["why"]
    assert sum(seen["wrong"] for seen in document["workload"].values()) == 0
    assert {seen["driver"] for seen in document["workload"].values()} == {
        "psycopg",
        "psycopg_async",
        "asyncpg",
        "pg8000",
    }
