"""Names of tables, secrets, and what the published schema promises."""

import json
from itertools import dropwhile, takewhile
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic import ValidationError

from pgshunt.config import Secret, Severity, examine, qualified
from pgshunt.config import schema as schema_module
from pgshunt.config.model import Address, Service

FOLDER = Path(schema_module.__file__).parent


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("users", "public.users"),
        ("Users", "public.users"),
        ("audit.Logs", "audit.logs"),
        ('"Users"', "public.Users"),
        ('"My Schema"."a""b"', 'My Schema."a""b"'),
        ('x."a.b"', 'x."a.b"'),
        (" users ", "public.users"),
        ("straße$1", "public.straße$1"),
    ],
)
def test_tables_are_spelt_as_postgresql_stores_them(written: str, stored: str) -> None:
    assert qualified(written) == stored


@pytest.mark.parametrize("written", ["", "a.b.c", "1a", "a b", "a.", ".a", '"', '""'])
def test_what_is_no_table_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="not the name of one table"):
        qualified(written)


def test_a_secret_shows_itself_only_when_asked() -> None:
    secret = Secret("hunter2")
    assert (repr(secret), str(secret), f"{secret}") == ("***", "***", "***")
    assert secret.reveal() == "hunter2"
    assert secret.matches("hunter2")
    assert not secret.matches("hunter")
    assert secret == Secret("hunter2")
    assert secret != Secret("other")
    assert secret != "hunter2"
    assert {secret: 1}[Secret("hunter2")] == 1


def test_models_are_immutable() -> None:
    address = Address(host="db")
    with pytest.raises(ValidationError, match="frozen"):
        address.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("host", ["", "a b", "/var/run/postgresql"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValidationError):
        Address(host=host)


@pytest.mark.parametrize("percent", [-1, 101])
def test_reads_are_a_percentage(percent: int) -> None:
    with pytest.raises(ValidationError):
        Service(database="d", tables=("t",), reads=percent)


def test_the_published_schema_is_up_to_date() -> None:
    published = (FOLDER / "schema.json").read_text(encoding="utf-8")
    assert published == schema_module.rendered(), "run: python -m pgshunt.config.schema > config/schema.json"


def test_the_schema_lets_variables_stand_for_numbers_and_requires_little() -> None:
    described = json.loads(schema_module.rendered())
    assert described["required"] == ["version", "shared", "control"]
    assert {"type": "string", "pattern": r"\$\{"} in described["$defs"]["Listen"]["properties"]["workers"][
        "anyOf"
    ]
    assert "dbname" not in described["$defs"]["Database"]["required"]


def test_the_worked_example_is_clean() -> None:
    environ = {f"{service.upper()}_PASSWORD": "p" for service in SERVICES}
    environ |= {"PGSHUNT_CONTROL_PASSWORD": "p", "PGSHUNT_ADMIN_TOKEN": "t"}
    report = examine(FOLDER / "pgshunt.yaml", environ)
    assert [problem for problem in report.problems if problem.severity is not Severity.NOTE] == []
    assert report.config is not None
    assert {name: len(service.tables) for name, service in report.config.services.items()} == SERVICES
    assert sum(1 + len(database.replicas) for database in report.config.databases.values()) == 18


def test_the_smallest_example_of_the_readme_is_clean(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    lines = takewhile(str.strip, dropwhile(lambda line: line != "    version: 1", readme.splitlines()))
    path = tmp_path / "pgshunt.yaml"
    path.write_text(dedent("\n".join(lines)), encoding="utf-8")
    names = ("AUTH_APP_PASSWORD", "PGSHUNT_CONTROL_PASSWORD", "PGSHUNT_ADMIN_TOKEN")
    report = examine(path, dict.fromkeys(names, "secret"))
    assert report.problems == ()
    assert report.config is not None
    assert list(report.config.services) == ["auth_service"]


SERVICES = {
    "auth_service": 5,
    "constitutional_ai": 3,
    "integrity_service": 3,
    "formal_verification": 3,
    "governance_synthesis": 3,
    "policy_governance": 3,
    "executive_council": 3,
    "dgm_service": 3,
}
