"""Patterns stand for tables of a real database: as `check` reads it, and while pgshunt runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from support.fixtures import Database
from support.serve import Serving, address, configuration

from pgshunt.admin.cli import Exit, main
from pgshunt.demo.postgres import Server

TABLES = """
CREATE SCHEMA billing;
CREATE TABLE billing.invoices (id int PRIMARY KEY);
CREATE TABLE auth_users (id int PRIMARY KEY);
CREATE TABLE auth_log (id int PRIMARY KEY);
CREATE TABLE auth_events (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE auth_events_low PARTITION OF auth_events FOR VALUES FROM (0) TO (100);
CREATE VIEW auth_names AS SELECT id FROM auth_users;
CREATE SEQUENCE auth_numbers
"""


def two_services(database: Database, **tables: list[str]) -> dict[str, Any]:
    """A configuration of services that stay where they are: their own databases are never asked."""
    server = database.server
    return configuration(
        server,
        database.dbname,
        databases={f"{name}_db": {"primary": {**address(server), "port": 1}} for name in tables},
        services={name: {"database": f"{name}_db", "tables": names} for name, names in tables.items()},
    )


def owner(serving: Serving, sql: str) -> str:
    document = serving.api.get("/api/v1/explain", sql=sql)
    return str(document["service"])


def test_new_tables_belong_to_the_service_whose_pattern_they_match(
    database: Database, tmp_path: Path
) -> None:
    database.execute(TABLES)
    config = two_services(database, auth=["auth_*"], bill=["billing.*", "auth_log"])
    with Serving(tmp_path, config) as serving:
        assert owner(serving, "SELECT FROM auth_users") == "auth"
        assert owner(serving, "SELECT FROM auth_events") == "auth"
        assert owner(serving, "SELECT FROM auth_log") == "bill"
        assert owner(serving, "SELECT FROM billing.invoices") == "bill"
        assert owner(serving, "SELECT FROM billing.made_later") == ""
        user = serving.config["auth"]["users"][0]
        with psycopg.connect(
            host="127.0.0.1", port=serving.port, dbname=database.dbname, user=user["name"],
            password=user["password"], autocommit=True,
        ) as client:  # fmt: skip
            client.execute("CREATE TABLE billing.made_later (id int PRIMARY KEY)")
            serving.until("it is found", lambda: owner(serving, "SELECT FROM billing.made_later") == "bill")
            client.execute("DROP TABLE billing.invoices")
            serving.until("it is missed", lambda: owner(serving, "SELECT FROM billing.invoices") == "")
        told = [(event["service"], event["detail"]) for event in serving.events("tables_changed")]
        assert told[-2:] == [
            ("bill", {"added": ["billing.made_later"], "gone": []}),
            ("bill", {"added": [], "gone": ["billing.invoices"]}),
        ]
        assert told[0] == ("auth", {"added": ["public.auth_events", "public.auth_users"], "gone": []})


def test_what_two_patterns_match_is_nobodys_and_told(database: Database, tmp_path: Path) -> None:
    database.execute(TABLES)
    config = two_services(database, auth=["auth_*"], log=["*_log"])
    with Serving(tmp_path, config) as serving:
        assert owner(serving, "SELECT FROM auth_log") == ""
        (told,) = serving.events("table_contested")
        assert told["detail"] == {"table": "public.auth_log", "services": ["auth", "log"]}
        (warning,) = serving.status()["warnings"]
        assert warning.startswith("public.auth_log matches patterns of auth and log, so it is nobody's")
        database.execute("DROP TABLE auth_log")
        serving.until("it is gone", lambda: not serving.status()["warnings"])


def test_check_asks_the_shared_database(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    database.execute(TABLES)
    path = tmp_path / "pgshunt.yaml"

    def checked(*options: str, **tables: list[str]) -> tuple[int, list[str]]:
        path.write_text(yaml.safe_dump(two_services(database, **tables)))
        monkeypatch.setattr("sys.argv", ["pgshunt", "check", "-c", str(path), *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err.splitlines()

    assert checked(auth=["auth_*"], bill=["billing.*"]) == (Exit.OK, [])
    code, said = checked(auth=["auth_*", "auth_user"], bill=["bill.*"], log=["*_log"])
    assert code == Exit.USAGE
    places = {line.split(": ")[0]: ": ".join(line.split(": ")[1:]) for line in said}
    lines = path.read_text().splitlines()
    for text, message in (
        ("- auth_user", "services.auth.tables[1]: the shared database has no table public.auth_user"),
        ("- bill.*", "warning: services.bill.tables[0]: no table matches bill.*"),
        ("- '*_log'", "services.log.tables[0]: public.auth_log matches, and it matches a pattern of auth"),
    ):
        line = next(number for number, one in enumerate(lines, 1) if one.endswith(text))
        place = f"{path}:{line}:{lines[line - 1].index('-') + 3}"
        assert places[place].startswith(message)
    assert checked("--file-only", auth=["auth_user"]) == (Exit.OK, [])


def test_check_of_a_server_that_is_down_warns(
    postgres: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configuration(postgres, "postgres")
    config["shared"]["primary"]["port"] = 1
    path = tmp_path / "pgshunt.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["pgshunt", "check", "-c", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert int(ended.value.code or 0) == Exit.OK
    assert "warning: shared.primary: it cannot be asked which tables there are" in capsys.readouterr().err
