"""`pgshunt explain --as USER` looks names up where that role's own sessions would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from support.fixtures import Database
from support.serve import Serving, configuration

from pgshunt.admin.cli import Exit, main

SCHEMAS = """
CREATE SCHEMA everybody; CREATE SCHEMA anywhere; CREATE SCHEMA "In here"; CREATE SCHEMA {role};
CREATE TABLE everybody.t (); CREATE TABLE anywhere.t ();
CREATE TABLE "In here".t (); CREATE TABLE {role}.t ();
ALTER DATABASE {dbname} SET search_path = everybody;
CREATE ROLE {role} LOGIN PASSWORD 'right';
GRANT USAGE ON SCHEMA everybody, anywhere, "In here", {role} TO {role}
"""
SETTINGS = (
    ("", "everybody.t"),
    ("ALTER ROLE {role} SET search_path = anywhere, public", "anywhere.t"),
    ("ALTER ROLE {role} IN DATABASE {dbname} SET Search_Path = 'In here', anywhere", "In here.t"),
    ("ALTER ROLE {role} SET search_path = public", "In here.t"),
    ("""ALTER ROLE {role} IN DATABASE {dbname} SET search_path = "$user", anywhere""", "{role}.t"),
    ("ALTER ROLE {role} IN DATABASE {dbname} RESET search_path; ALTER ROLE {role} RESET ALL", "everybody.t"),
)


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    name = f"role_of_{database.dbname}"
    database.execute(SCHEMAS.format(role=name, dbname=database.dbname))
    yield name
    database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_is_shown_what_its_sessions_see(database: Database, role: str, tmp_path: Path) -> None:
    config = configuration(database.server, database.dbname)
    with Serving(tmp_path, config) as serving:
        for setting, table in SETTINGS:
            if setting:
                database.execute(setting.format(role=role, dbname=database.dbname))
            where = {"host": database.server.host, "port": database.server.port, "dbname": database.dbname}
            with psycopg.connect(**where, user=role, password="right") as session:  # type: ignore[arg-type]
                row = session.execute(
                    "SELECT n.nspname || '.' || relname FROM pg_class c JOIN pg_namespace n "
                    "ON n.oid = relnamespace WHERE c.oid = 't'::regclass"
                ).fetchone()
            assert row == (table.format(role=role),)
            document = serving.api.get("/api/v1/explain", sql="SELECT FROM t", **{"as": role})
            assert [one["name"] for one in document["tables"]] == [table.format(role=role)]
            assert f"(as {role})" in document["lines"][-1]
        document = serving.api.get("/api/v1/explain", sql="SELECT FROM t", **{"as": "nobody_here"})
        assert document["lines"][-1] == "attention  the shared database has no role nobody_here"
        asked = {"as": role, "search_path": "anywhere"}
        document = serving.api.get("/api/v1/explain", sql="SELECT FROM t", **asked)
        assert document["search_path"] == ["anywhere"]


def test_offline_too(
    database: Database,
    role: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database.execute(f"ALTER ROLE {role} IN DATABASE {database.dbname} SET search_path = anywhere")
    path = tmp_path / "pgshunt.yaml"
    path.write_text(yaml.safe_dump(configuration(database.server, database.dbname)))
    asked = ["explain", "--offline", "-c", str(path), "--as", role, "-o", "json", "SELECT FROM t"]
    monkeypatch.setattr("sys.argv", ["pgshunt", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert int(ended.value.code or 0) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["tables"]] == ["anywhere.t"]
