"""Each rule between sections, seen to speak and seen to stay silent."""

from collections.abc import Callable

import pytest

from pgshunt.config import Problem, Report, Severity
from pgshunt.config.check import is_loopback

Examine = Callable[..., Report]

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
AUTH = "auth: {database: auth_db, tables: [users, roles]}"
TRUST = "auth: {method: trust}"


def only(report: Report) -> Problem:
    (problem,) = report.problems
    return problem


@pytest.mark.parametrize(
    ("old", "new", "severity", "path", "message"),
    [
        (
            AUTH,
            "auth: {database: auht_db, tables: [users]}",
            ERROR,
            ("services", "auth", "database"),
            "there is no database 'auht_db'",
        ),
        (
            AUTH,
            "auth: {database: audit_db, tables: [users]}",
            WARNING,
            ("services", "audit", "database"),
            "audit_db is also the database of auth",
        ),
        (
            AUTH,
            "auth: {database: auth_db, tables: [users, public.users]}",
            ERROR,
            ("services", "auth", "tables", 1),
            "public.users is listed twice",
        ),
        (
            AUTH,
            "auth: {database: auth_db, tables: [users, Audit_Logs]}",
            ERROR,
            ("services", "audit", "tables", 0),
            "public.audit_logs is claimed by auth too",
        ),
        (
            AUTH,
            "auth: {database: auth_db, tables: [users], external_refs: [audit_logs, nobodys]}",
            NOTE,
            ("services", "auth", "external_refs", 1),
            "no service owns public.nobodys",
        ),
        (
            AUTH,
            "auth: {database: auth_db, tables: [users], external_refs: [users]}",
            WARNING,
            ("services", "auth", "external_refs", 0),
            "public.users is this service's own table",
        ),
        (
            "  audit_db:",
            "  shared: {primary: {host: elsewhere}}\n  audit_db:",
            ERROR,
            ("databases", "shared"),
            "is the name of the shared database",
        ),
        (
            "port: 5434}",
            "port: 5433}, dbname: auth_db",
            ERROR,
            ("databases", "audit_db", "primary"),
            "127.0.0.1:5433/auth_db is already an endpoint of databases.auth_db",
        ),
        (
            "port: 5433}",
            "port: 5432}, dbname: monolith",
            ERROR,
            ("databases", "auth_db", "primary"),
            "127.0.0.1:5432/monolith is already an endpoint of shared",
        ),
        (TRUST, "auth: {}", ERROR, ("auth", "users"), "nobody can log in"),
        (TRUST, "auth: {users: [{name: a}]}", ERROR, ("auth", "users", 0), "'a' has no password"),
        (
            TRUST,
            "auth: {method: trust, users: [{name: a}, {name: b}, {name: a}]}",
            ERROR,
            ("auth", "users", 2, "name"),
            "'a' is listed twice",
        ),
        (
            TRUST,
            TRUST + "\nlisten: {host: 10.0.0.1}",
            ERROR,
            ("auth", "method"),
            "trust lets everyone who reaches 10.0.0.1 in",
        ),
        (TRUST, TRUST + "\nadmin: {host: '::'}", ERROR, ("admin", "host"), "there is no token"),
        (TRUST, TRUST + "\nadmin: {port: 6432}", ERROR, ("admin", "port"), "6432 is listen.port too"),
        (
            TRUST,
            TRUST + "\npools: {default_pool_size: 101}",
            ERROR,
            ("shared", "max_connections"),
            "100 is less than one pool (101)",
        ),
        (
            TRUST,
            TRUST + "\npools: {server_connections: {total: 250}}",
            ERROR,
            ("pools", "server_connections"),
            "nothing is left",
        ),
        (
            TRUST,
            "auth: {method: trust, users: [{name: a}, {name: b}]}\n"
            "pools: {server_connections: {total: 300, reserved: 150, monitoring: 50}}",
            WARNING,
            ("pools", "server_connections"),
            "full pools take 120 server connections, 100 are left",
        ),
    ],
)
def test_a_rule_speaks(
    minimal: str, examined: Examine, old: str, new: str, severity: Severity, path: object, message: str
) -> None:
    assert old in minimal
    report = examined(minimal.replace(old, new))
    found = [problem for problem in report.problems if problem.path == path]
    assert [problem.severity for problem in found] == [severity]
    assert message in found[0].message
    assert found[0].place is not None
    assert found[0].remedy
    assert (report.config is None) == (severity is ERROR)


@pytest.mark.parametrize(
    "new",
    [
        TRUST + "\nlisten: {host: '::1'}",
        "auth: {method: trust, trust_remote: true}\nlisten: {host: 0.0.0.0}",
        TRUST + "\nadmin: {host: 0.0.0.0, token: t}",
        TRUST + "\nadmin: {port: 0}\nlisten: {port: 0}",
        "auth: {users: [{name: a, password: p}]}\nlisten: {host: 0.0.0.0}",
        TRUST + "\npools: {server_connections: {total: 251}}",
    ],
)
def test_rules_stay_silent(minimal: str, examined: Examine, new: str) -> None:
    assert examined(minimal.replace(TRUST, new)).problems == ()


def test_a_service_user_that_cannot_log_in_is_a_warning(minimal: str, examined: Examine) -> None:
    text = minimal.replace(TRUST, "auth: {method: trust, users: [{name: auth_app}]}")
    text = text.replace("tables: [users, roles]", "tables: [users, roles], users: [auth_ap]")
    problem = only(examined(text))
    assert (problem.path, problem.severity) == (("services", "auth", "users", 0), WARNING)
    assert problem.remedy == "did you mean 'auth_app'?"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
