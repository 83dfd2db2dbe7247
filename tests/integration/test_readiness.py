"""`pgshunt readiness` over a real serve: what two services do to each other's tables, and what
stands in the database, becomes a ranked report that outlives a restart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.fixtures import Database
from support.serve import Serving, address, configuration, until

from pgshunt.admin.cli import Exit, main
from pgshunt.demo.postgres import Server

SCHEMA = """
CREATE TABLE users (id int PRIMARY KEY, email text);
CREATE TABLE tokens (id int PRIMARY KEY, who int REFERENCES users);
CREATE TABLE orders (id int PRIMARY KEY, who int REFERENCES users);
CREATE TABLE order_lines (id int, of_order int REFERENCES orders);
CREATE TABLE countries (code text PRIMARY KEY);
CREATE SEQUENCE numbers;
ALTER TABLE tokens ALTER id SET DEFAULT nextval('numbers');
ALTER TABLE orders ALTER id SET DEFAULT nextval('numbers');
CREATE VIEW names AS SELECT email FROM users;
CREATE VIEW buyers AS SELECT names.email, orders.id FROM names, orders;
CREATE FUNCTION bought() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM users, orders; END;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN DELETE FROM countries WHERE code = NEW.id::text; RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
CREATE PUBLICATION reports FOR TABLE orders;
INSERT INTO users VALUES (1, 'secret@example.org')
"""
JOIN = "SELECT o.id FROM orders o JOIN users u ON u.id = o.who WHERE u.email = 'secret@example.org'"


@pytest.fixture
def shared(database: Database, postgres: Server) -> Database:
    database.execute(SCHEMA)
    return database


@pytest.fixture
def config(shared: Database) -> dict[str, Any]:
    here = {"primary": address(shared.server)}
    return configuration(
        shared.server,
        shared.dbname,
        databases={"users_db": here, "orders_db": here},
        services={
            "users": {"database": "users_db", "tables": ["users", "tokens"]},
            "orders": {"database": "orders_db", "tables": ["orders", "order_lines"]},
        },
    )


@pytest.fixture
def serving(config: dict[str, Any], tmp_path: Path) -> Iterator[Serving]:
    with Serving(tmp_path, config) as running:
        yield running


def session(serving: Serving, shared: Database, name: str) -> psycopg.Connection[Any]:
    server = shared.server
    return psycopg.connect(
        f"host=127.0.0.1 port={serving.port} dbname={shared.dbname} user={server.user}"
        f" password={server.password} application_name={name}",
        autocommit=True,
    )


def counts(serving: Serving) -> list[int]:
    """Calls of each fact."""
    return sorted(fact["calls"] for fact in serving.api.get("/api/v1/observations")["facts"])


def work(serving: Serving, shared: Database) -> None:
    """Nine joins and three transactions over both services, and much that is nobody else's business."""
    with session(serving, shared, "shop") as shop, session(serving, shared, "billing") as billing:
        for number in range(9):
            shop.execute(JOIN, prepare=number > 5)
            shop.execute("SELECT * FROM orders JOIN order_lines ON of_order = orders.id")
        for number in range(3):
            with billing.transaction():
                billing.execute("UPDATE users SET email = %s WHERE id = 1", (f"secret{number}@example.org",))
                billing.execute("INSERT INTO orders (who) VALUES (1)")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["pgshunt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_what_would_break_is_ranked_by_its_traffic_with_callers_and_remedies(
    serving: Serving, shared: Database
) -> None:
    work(serving, shared)
    until("all is counted", lambda: counts(serving) == [3, 9])
    report = serving.api.get("/api/v1/services/orders/readiness")
    join, transaction, *objects = report["findings"]
    assert (join["kind"], join["others"], join["remedies"]) == ("statement", ["users"], ["external_ref"])
    assert join["what"] == "select o.id from orders o join users u on u.id = o.who where u.email = ?"
    assert [caller["application_name"] for caller in join["callers"]] == ["shop"]
    assert join["remedy"] == "add external_refs: [users] to orders"
    assert (transaction["kind"], transaction["remedies"]) == ("transaction", ["move_together", "apart"])
    assert [caller["application_name"] for caller in transaction["callers"]] == ["billing"]
    assert join["calls_per_minute"] > transaction["calls_per_minute"] > 0
    assert {(found["kind"], found["what"]) for found in objects} == {
        ("foreign_key", "orders_who_fkey: public.orders → public.users"),
        ("view", "public.buyers"),
        ("function", "public.bought"),
        ("trigger", "on public.orders: touched (public.touch)"),
        ("sequence", "public.numbers"),
        ("publication", "reports"),
        ("table", "public.order_lines"),
    }
    assert report["fine"] == [
        "1 foreign key stays within the service",
        "1 of 2 tables can be replicated as they are",
    ]
    assert "secret" not in json.dumps(report)
    incoming = {
        found["kind"]: found for found in serving.api.get("/api/v1/services/users/readiness")["findings"]
    }
    assert incoming["foreign_key"]["remedy"].startswith("ALTER TABLE orders DROP CONSTRAINT orders_who_fkey")


def test_the_command_tells_it_and_a_restart_forgets_nothing(
    config: dict[str, Any],
    shared: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Serving(tmp_path, config) as serving:
        work(serving, shared)
        until("all is counted", lambda: counts(serving) == [3, 9])
    file = tmp_path / "pgshunt.state.observed.json"
    assert file.stat().st_mode & 0o777 == 0o600
    with Serving(tmp_path, config) as serving:
        assert run(monkeypatch, "readiness", "orders", "-c", str(serving.path)) == Exit.OK
        told = capsys.readouterr().out
        assert "orders: 9 things would break behind its switch, 12.0 calls a minute" in told
        assert "callers:" in told and "(shop)" in told and "add external_refs: [users] to orders" in told
        assert run(monkeypatch, "readiness", "nobody", "-c", str(serving.path)) == Exit.USAGE
