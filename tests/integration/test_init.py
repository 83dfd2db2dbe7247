"""`pgshunt init` against a real database: what it finds, what `check` says of it, what it never writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fixtures import Database

from pgshunt.admin.cli import Exit, main
from pgshunt.demo.postgres import Servers
from pgshunt.migration.observed import Observed

SCHEMA = """
CREATE SCHEMA billing;
CREATE TABLE billing.invoices (id int PRIMARY KEY);
CREATE TABLE users (id int PRIMARY KEY, invoice int REFERENCES billing.invoices);
CREATE TABLE user_logins (at timestamptz, who int NOT NULL REFERENCES users);
CREATE TABLE tokens (id int PRIMARY KEY, who int NOT NULL REFERENCES users ON DELETE CASCADE);
CREATE TABLE "Odd one" (id int PRIMARY KEY);
CREATE TABLE parts (id int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY);
CREATE VIEW user_names AS SELECT id FROM users
"""


@pytest.fixture
def shared(database: Database) -> Iterator[Database]:
    database.execute(SCHEMA)
    role = f"web_{database.dbname}"
    database.execute(f"CREATE ROLE {role} LOGIN; GRANT INSERT ON users, tokens, billing.invoices TO {role}")
    yield database
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["pgshunt", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_draft_of_a_real_database_passes_check_and_holds_no_password(
    shared: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pgshunt.yaml"
    assert run(monkeypatch, "init", shared.dsn(), "-c", str(path), "-o", "json") == Exit.OK
    answer = json.loads(capsys.readouterr().out)
    web = [f"web_{shared.dbname}"]
    assert [
        (one["name"], one["tables"], one["external_refs"], one["users"]) for one in answer["services"]
    ] == [
        ("billing", ["billing.invoices"], [], web),
        ("users", ["tokens", "user_logins", "users"], ["billing.invoices"], web),
    ]
    assert answer["unowned"] == ['"Odd one"', "parts"]
    assert answer["problems"] == []
    assert shared.server.password not in path.read_text() + json.dumps(answer)
    assert "- user_logins # has no primary key" in path.read_text()

    assert run(monkeypatch, "check", "-c", str(path)) == Exit.USAGE
    assert "BILLING_DB_HOST is empty or not set" in capsys.readouterr().err
    for variable in answer["variables"]:
        monkeypatch.setenv(variable, "set")
    assert run(monkeypatch, "check", "-c", str(path)) == Exit.OK
    assert "2 services" in capsys.readouterr().out

    before = path.read_text()
    assert run(monkeypatch, "init", shared.dsn(), "-c", str(path)) == Exit.USAGE
    assert path.read_text() == before


def test_a_database_that_cannot_be_read_leaves_no_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pgshunt.yaml"
    url = database.dsn().replace(database.dbname, "no_such_database")
    assert run(monkeypatch, "init", url, "-c", str(path)) == Exit.FAILED
    assert "no_such_database" in capsys.readouterr().err
    assert not path.exists()


ROLES = """
CREATE ROLE auth_app LOGIN; CREATE ROLE pay_owner; CREATE ROLE pay_app LOGIN IN ROLE pay_owner;
CREATE ROLE alice LOGIN IN ROLE auth_app, pay_app;
CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE tokens (id int PRIMARY KEY);
CREATE TABLE bills (id int PRIMARY KEY); CREATE TABLE dues (id int PRIMARY KEY);
ALTER TABLE users OWNER TO auth_app;
ALTER TABLE bills OWNER TO pay_owner; ALTER TABLE dues OWNER TO pay_owner;
GRANT INSERT ON tokens TO auth_app
"""


def test_what_a_role_may_as_a_member_of_a_login_is_not_its_own(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = servers.start("memberships")
    server.create_database("shop")
    server.execute(ROLES, "shop")

    def proposed(name: str) -> tuple[list[list[str]], str]:
        """Services' users, and the control role."""
        options = ("-c", str(tmp_path / name), "-o", "json")
        assert run(monkeypatch, "init", server.dsn("shop"), *options) == Exit.OK
        answer = json.loads(capsys.readouterr().out)
        assert answer["unowned"] == []
        assert "PGSHUNT_PASSWORD" not in answer["variables"]
        return [one["users"] for one in answer["services"]], answer["control"]["user"]

    services = [["auth_app"], ["pay_app"]]
    assert proposed("before") == (services, "postgres")
    server.execute("CREATE ROLE mover LOGIN REPLICATION IN ROLE auth_app, pay_owner")
    assert proposed("granted") == (services, "mover")
    server.execute("CREATE ROLE pgshunt LOGIN REPLICATION IN ROLE auth_app, pay_owner; DROP ROLE mover")
    assert proposed("recommended") == (services, "pgshunt")


def test_a_standby_is_proposed_and_what_was_written_together_moves_together(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    primary = servers.start("surveyed", {"wal_level": "logical"})
    servers.replica(primary, "surveyed_standby")
    primary.create_database("shop")
    primary.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE order_items (id int)", "shop")
    primary.execute("CREATE TABLE stock (id int PRIMARY KEY)", "shop")
    observed = Observed()
    observed.take([["transaction", "", [], ["public.orders", "public.stock"], "app", "", 3]], 0, 1.8e9)
    seen, path = tmp_path / "seen.json", tmp_path / "pgshunt.yaml"
    seen.write_text(json.dumps(observed.to_document()))
    options = ("-c", str(path), "--observed", str(seen), "-o", "json")
    assert run(monkeypatch, "init", primary.dsn("shop"), *options) == Exit.OK
    answer = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["tables"]) for one in answer["services"]] == [
        ("orders", ["order_items", "orders", "stock"])
    ]
    assert "SHARED_REPLICA_1_PORT" in answer["variables"]
    assert f'- {{ host: "{primary.host}", port: "${{SHARED_REPLICA_1_PORT:?' in path.read_text()
