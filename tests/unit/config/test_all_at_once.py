"""Whatever is wrong together is told together: one round of mending is enough."""

import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgshunt.config import Severity, examine
from pgshunt.config import schema as schema_module

Problems = Callable[..., list[str]]
Told = tuple[str, str, str, str]

EXAMPLE = (Path(schema_module.__file__).parent / "pgshunt.yaml").read_text(encoding="utf-8")
ENVIRON = {
    "PGSHUNT_CONTROL_PASSWORD": "p",
    "PGSHUNT_ADMIN_TOKEN": "t",
    **{
        f"{service}_PASSWORD": "p"
        for service in (
            *("AUTH_SERVICE", "CONSTITUTIONAL_AI", "INTEGRITY_SERVICE", "FORMAL_VERIFICATION"),
            *("GOVERNANCE_SYNTHESIS", "POLICY_GOVERNANCE", "EXECUTIVE_COUNCIL", "DGM_SERVICE"),
        )
    },
}
ROLE = "    - {{ name: {0}, password_env: {1}_PASSWORD }}"

# What is in the example, what is made of it, and how many errors and warnings that is alone.
BREAKS = {
    # scalars
    "version": ("version: 1\n", "version: 2\n", 1),
    "no number": ("  port: 6432\n", "  port: abc\n", 1),
    "too small": ("default_pool_size: 20 #", "default_pool_size: 0 #", 1),
    "too large": ("error_rate_percent_max: 3.0", "error_rate_percent_max: 300", 1),
    "unset variable": ("consistency_percent_min: 99.9", "consistency_percent_min: ${NOWHERE}", 1),
    "missing": ("  dbname: monolith\n", "", 1),
    # items of lists
    "pattern": ("[users, roles, permissions", '[users, "rol?s", permissions', 1),
    "no table": ("[audit_logs, integrity_checks, hash_chains]", "[audit_logs, a.b.c, hash_chains]", 1),
    "a text for a section": ("replicas: [{ host: auth-db-r1.internal }]", "replicas: [auth-db-r1]", 1),
    "wrong in a section in a list": (
        "{ host: integrity-db-r1.internal }, {",
        "{ host: /run/postgresql }, {",
        1,
    ),
    "wrong behind it": ("{ host: integrity-db-r2.internal }]", "{ host: h, port: x, prot: 1 }]", 2),
    "no name": (
        ROLE.format("constitutional_ai", "CONSTITUTIONAL_AI"),
        "    - { password_env: CONSTITUTIONAL_AI_PASSWORD }",
        1,
    ),
    "no list": ("tables: [policies, synthesis_results, llm_interactions]", "tables: 5", 1),
    # entries of maps
    "no name for a database": ("  verification_db:\n", '  "verification db":\n', 2),
    "no section": ("  council_db:\n", "  text_db: 5\n  council_db:\n", 1),
    "no user's name": ("    dgm_service: {max_client_conn: 200,", '    "": {max_client_conn: none,', 2),
    # keys
    "unknown key": ("  login_timeout_ms: 15000", "  login_timeout: 15000", 1),
    "key given twice": ("  query_timeout_ms: 0 #", "  query_timeout_ms: x\n  query_timeout_ms: 0 #", 2),
    "unknown key in a list": (
        ROLE.format("integrity_service", "INTEGRITY_SERVICE"),
        "    - { name: integrity_service, password_env: INTEGRITY_SERVICE_PASSWORD, pasword: x }",
        1,
    ),
    # relations within a section
    "two secrets": (
        ROLE.format("formal_verification", "FORMAL_VERIFICATION"),
        "    - { name: formal_verification, password_env: FORMAL_VERIFICATION_PASSWORD, password: x }",
        1,
    ),
    "no certificate": ("  # tls: { mode: require, cert", "  tls: { mode: require, tsl: 1 } # cert", 2),
    "unused file": ("  # tls: { mode: verify-full, ca_file: root.crt } #", "  tls: { ca_file: r.crt } #", 2),
    # secrets
    "unset secret": (
        ROLE.format("governance_synthesis", "GOVERNANCE_SYNTHESIS"),
        "    - { name: governance_synthesis, password_env: NOWHERE }",
        1,
    ),
    "no password": (
        ROLE.format("policy_governance", "POLICY_GOVERNANCE"),
        "    - { name: policy_governance }",
        1,
    ),
    # relations between sections
    "unknown database": ("    database: governance_db\n", "    database: governance_bd\n", 1),
    "claimed twice": ("    tables: [improvements,", "    tables: [improvements, tokens,", 1),
    "claimed twice, behind": (
        "    tables: [council_members,",
        "    tables: [council_members, hash_chains,",
        1,
    ),
    "listed twice": ("z3_models]", "z3_models, public.proof_results]", 1),
    "own reference": ("    external_refs: [users, sessions]", "    external_refs: [users, hash_chains]", 1),
    "user listed twice": (
        ROLE.format("dgm_service", "DGM_SERVICE"),
        ROLE.format("dgm_service", "DGM_SERVICE") + "\n" + ROLE.format("integrity_service", "DGM_SERVICE"),
        1,
    ),
    "endpoint twice": ("{ host: council-db-r1.internal }", "{ host: council-db.internal }", 1),
    "stands open": (
        "  host: 127.0.0.1\n  port: 6433\n  token_env: PGSHUNT_ADMIN_TOKEN",
        "  host: 0.0.0.0\n  port: 6433",
        1,
    ),
}


def told(text: str) -> set[Told]:
    """Errors and warnings, without their places."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pgshunt.yaml")
        path.write_text(text, encoding="utf-8")
        problems = examine(path, ENVIRON).problems
    assert all(problem.path and problem.place for problem in problems)
    return {
        (str(problem.path), problem.severity, problem.message.replace(folder, ""), _unplaced(problem.remedy))
        for problem in problems
        if problem.severity is not Severity.NOTE
    }


def _unplaced(remedy: str) -> str:
    """Without the number of a line, which depends on what is broken above it."""
    return re.sub(r"line \d+", "line N", remedy)


def broken(*names: str) -> str:
    text = EXAMPLE
    for name in names:
        old, new, _ = BREAKS[name]
        assert text.count(old) == 1, name
        text = text.replace(old, new)
    return text


@cache
def told_alone(name: str) -> set[Told]:
    return told(broken(name))


@pytest.mark.parametrize("name", BREAKS)
def test_each_alone_is_told(name: str) -> None:
    assert len(told_alone(name)) == BREAKS[name][2]


def test_all_together_are_told() -> None:
    assert told(broken(*BREAKS)) == set().union(*map(told_alone, BREAKS))


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(BREAKS)), min_size=2))
def test_any_of_them_together_are_told(names: set[str]) -> None:
    assert told(broken(*names)) == set().union(*map(told_alone, names))


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"{method: trust}": "{method: trst}"}, ["auth.method"]),
        ({"{method: trust}": "{method: trust}\nlisten: {port: x}\nadmin: {port: 6432}"}, ["listen.port"]),
        (
            {"{method: trust}": "{users: [{password: p}]}", "roles]": "roles], users: [app]"},
            ["auth.users[0].name"],
        ),
        (
            {"{method: trust}": "{users_file: none.txt}", "roles]": "roles], users: [app]"},
            ["auth.users_file"],
        ),
        ({"{method: trust}": "{lookup: {usr: a}}"}, ["auth.lookup.user", "auth.lookup.usr"]),
        ({"{method: trust}": "{lookup: asking}"}, ["auth.lookup"]),
        ({"{method: trust}": "{users: asking}"}, ["auth.users"]),
        ({"{method: trust}": "{users: [{name: a, password: ''}]}"}, ["auth.users[0].password"]),
        ({"{method: trust}": "{method: cert}\nlisten: {tls: {mode: verify}}"}, ["listen.tls.mode"]),
        (
            {"{method: trust}": "{method: trust}\nadmin: {host: 0.0.0.0, token: ''}"},
            ["admin.token"],
        ),
        (
            {"[users, roles]": "['users?', roles]", "audit_logs]": "audit_logs], external_refs: [users]"},
            ["services.auth.tables[0]"],
        ),
        ({"[users, roles]": "['us?', 'rol?']"}, ["services.auth.tables[0]", "services.auth.tables[1]"]),
        ({"port: 5433": "port: x", "port: 5434": "port: 5432"}, ["databases.auth_db.primary.port"]),
        (
            {
                "{primary: {host: 127.0.0.1, port: 5433}}": "one",
                "{primary: {host: 127.0.0.1, port: 5434}}": "two",
            },
            ["databases.auth_db", "databases.audit_db"],
        ),
    ],
)
def test_what_stands_in_for_a_wrong_value_makes_no_problem(
    minimal: str, problems: Problems, changes: dict[str, str], paths: list[str]
) -> None:
    text = minimal
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    assert [problem.split(": ")[1] for problem in problems(text)] == paths
