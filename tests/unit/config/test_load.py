"""A file becomes a configuration, or every one of its problems with place and remedy."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.certificates import PEM, Authority

from pgshunt.config import Config, ConfigError, Report, Severity, examine, load

Examine = Callable[..., Report]
Problems = Callable[..., list[str]]


def test_a_minimal_file_has_no_problem_and_gets_the_defaults(minimal: str, examined: Examine) -> None:
    report = examined(minimal)
    assert report.problems == ()
    config = report.config
    assert config is not None
    assert config.databases["auth_db"].dbname == "auth_db"
    assert config.services["auth"].tables == ("public.users", "public.roles")
    assert config.pools.default_pool_size == 20
    assert config.pools.server_connections.available == 950
    assert (config.rollback.error_rate_percent_max, config.rollback.latency_ms_max) == (3.0, 1000)
    assert config.max_client_conn == 5000


def test_every_problem_is_told_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = """\
version: 1
shared: {dbname: mono, primary: {host: 127.0.0.1, port: abc}}
control: {user: c, password: '${NOPE}'}
listn: {}
auth:
  method: trst
  users:
    - {name: a, password: '0123', password_env: X}
databases:
  auth_db:
    primary: {hots: h, host: 127.0.0.1}
services:
  auth:
    database: auth_dbb
    tables: [users, "x?"]
    shadow_writes: ack
    reads: 101
  auth: {}
  b: {database: auth_db, tables: [users]}
admin: {host: 0.0.0.0}
"""
    assert problems(text) == [
        "pgshunt.yaml:2:57: shared.primary.port: 'abc' is not a whole number; write digits only",
        "pgshunt.yaml:3:30: control.password: the environment variable NOPE is not set; "
        "set it, or write ${NOPE:-default}",
        "pgshunt.yaml:4:1: listn: is not a key of this section; did you mean 'listen'?",
        "pgshunt.yaml:6:11: auth.method: 'trst' is not known here; write 'scram-sha-256', 'cert' or 'trust'",
        "pgshunt.yaml:8:7: auth.users[0]: has password and password_env; keep one of them",
        "pgshunt.yaml:11:15: databases.auth_db.primary.hots: is not a key of this section; "
        "did you mean 'host'?",
        "pgshunt.yaml:14:15: services.auth.database: there is no database 'auth_dbb'; "
        "did you mean 'auth_db'?",
        "pgshunt.yaml:15:21: services.auth.tables[1]: is a pattern; name each table",
        "pgshunt.yaml:16:20: services.auth.shadow_writes: 'ack' is not in this version; "
        "write off or validate",
        "pgshunt.yaml:17:12: services.auth.reads: '101' is too large; the most is 100",
        "pgshunt.yaml:18:3: services.auth: is given twice; keep this one or the one in line 13",
        "pgshunt.yaml:19:35: services.b.tables[0]: public.users is claimed by auth too; "
        "leave it with the one that writes it; the other lists it in external_refs",
        "pgshunt.yaml:20:15: admin.host: 0.0.0.0 can be reached by others and there is no token; "
        "add token_file or token_env, or bind to 127.0.0.1",
    ]


def test_load_raises_what_examine_found(minimal: str, tmp_path: Path) -> None:
    path = tmp_path / "pgshunt.yaml"
    path.write_text(minimal + "pool: {}\nadmn: {}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert [problem.path for problem in caught.value.problems] == [("pool",), ("admn",)]
    assert str(caught.value).count("\n") == 1


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    (problem,) = examine(tmp_path / "none.yaml", {}).problems
    assert "No such file" in problem.message
    (tmp_path / "latin.yaml").write_bytes(b"version: 1 # \xe9\n")
    (problem,) = examine(tmp_path / "latin.yaml", {}).problems
    assert "byte 13 is not UTF-8" in problem.message


def test_an_empty_file_says_what_is_missing(problems: Problems) -> None:
    assert problems("") == [
        "pgshunt.yaml:1:1: version: is missing; add it",
        "pgshunt.yaml:1:1: shared: is missing; add it",
        "pgshunt.yaml:1:1: control: is missing; add it",
        "pgshunt.yaml:1:1: auth.users: is empty, so nobody can log in; "
        "list the services' login roles, or add auth.lookup",
    ]


@pytest.mark.parametrize(
    ("line", "without", "missing"),
    [
        ("version: 1\n", "", "version: is missing"),
        ("shared: {dbname: monolith, primary: {host: 127.0.0.1}}\n", "", "shared: is missing"),
        ("control: {user: pgshunt}", "control: {}", "control.user: is missing"),
        ("primary: {host: 127.0.0.1, port: 5433}", "", "databases.auth_db.primary: is missing"),
        ("{host: 127.0.0.1, port: 5433}", "{}", "databases.auth_db.primary.host: is missing"),
        ("database: auth_db, ", "", "services.auth.database: is missing"),
    ],
)
def test_what_is_missing_hides_nothing_else(
    minimal: str, problems: Problems, line: str, without: str, missing: str
) -> None:
    assert line in minimal
    text = minimal.replace(line, without).replace("database: audit_db", "database: audit_dv")
    told = [problem.split(": ", 1)[1] for problem in problems(text)]
    assert sorted(told, key=lambda problem: "audit_dv" in problem) == [
        f"{missing}; add it",
        "services.audit.database: there is no database 'audit_dv'; did you mean 'audit_db'?",
    ]


def test_a_wrong_number_of_the_format_is_refused(minimal: str, problems: Problems) -> None:
    (problem,) = problems(minimal.replace("version: 1", "version: 2"))
    assert problem == (
        "pgshunt.yaml:1:10: version: this pgshunt reads format 1 only; "
        "write `version: 1`, or install the pgshunt that this file was written for"
    )


def test_a_substituted_number_is_a_number_and_a_wrong_one_is_not_printed(
    minimal: str, examined: Examine, problems: Problems
) -> None:
    text = minimal + "listen: {port: '${PORT}'}\n"
    config = examined(text, PORT="7000").config
    assert config is not None
    assert config.listen.port == 7000
    (problem,) = problems(text, PORT="hunter2")
    assert "'${PORT}' is not a whole number" in problem
    assert "hunter2" not in problem


def test_a_rule_does_not_repeat_what_is_already_wrong(minimal: str, problems: Problems) -> None:
    # Without its port, auth_db would look like an endpoint of audit_db.
    text = minimal.replace("port: 5433", "port: x").replace("port: 5434", "port: 5432")
    assert [problem.partition(": ")[2] for problem in problems(text)] == [
        "databases.auth_db.primary.port: 'x' is not a whole number; write digits only"
    ]


def test_secrets_come_from_files_and_the_environment(minimal: str, examined: Examine, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\nnot this\n")
    (tmp_path / "token").chmod(0o600)
    text = minimal.replace("{user: pgshunt}", "{user: pgshunt, password_env: PW}")
    report = examined(text + "admin: {token_file: token}\n", PW="0123\n")
    assert report.problems == ()
    config = report.config
    assert config is not None
    assert config.admin.token is not None
    assert config.admin.token.reveal() == "s3cret"
    assert config.control.password is not None
    assert config.control.password.reveal() == "0123"


@pytest.mark.parametrize(
    ("content", "mode", "severity", "message"),
    [
        (None, 0, Severity.ERROR, "No such file"),
        ("", 0o600, Severity.ERROR, "is empty"),
        ("\nx", 0o600, Severity.ERROR, "is empty"),
        ("s3cret\n", 0o644, Severity.WARNING, "can be read by everyone"),
    ],
)
def test_secret_files_with_a_problem(
    minimal: str,
    examined: Examine,
    tmp_path: Path,
    content: str | None,
    mode: int,
    severity: Severity,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
        (tmp_path / "token").chmod(mode)
    report = examined(minimal + "admin: {token_file: token}\n")
    (problem,) = report.problems
    assert (problem.path, problem.severity) == (("admin", "token_file"), severity)
    assert message in problem.message
    assert problem.place is not None
    assert (report.config is None) == (severity is Severity.ERROR)


def test_an_unset_secret_variable_is_a_problem(minimal: str, problems: Problems) -> None:
    (problem,) = problems(minimal + "admin: {token_env: TOKEN}\n")
    assert "admin.token_env: the environment variable TOKEN is empty or not set" in problem


def test_relative_paths_start_at_the_folder_of_the_file(
    minimal: str, examined: Examine, tmp_path: Path
) -> None:
    config = examined(minimal + "state: {path: run/state.json}\n").config
    assert config is not None
    assert config.state.path == tmp_path / "run/state.json"


def test_a_configuration_survives_the_way_to_a_worker(minimal: str, examined: Examine) -> None:
    text = minimal.replace("{method: trust}", "{users: [{name: a, password_env: PW}]}")
    config = examined(text, PW="pa$$'\"w").config
    assert config is not None
    assert Config.model_validate(config.dump_revealed()) == config
    assert config.dump_revealed()["auth"]["users"] == [{"name": "a", "password": "pa$$'\"w"}]


def test_nothing_but_dump_revealed_shows_a_secret(minimal: str, examined: Examine) -> None:
    config = examined(minimal + "admin: {token: hunter2}\n").config
    assert config is not None
    assert "hunter2" not in repr(config) + str(config.model_dump()) + config.model_dump_json()


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("{mode: require}", "listen.tls: require needs a certificate; add certificate_file and key_file"),
        (
            "{certificate_file: own.crt}",
            "listen.tls: has only one of certificate_file and key_file; name both, or none",
        ),
        (
            "{mode: verify-full, certificate_file: own.crt, key_file: own.key}",
            "listen.tls: verify-full has nothing to verify clients by; add ca_file",
        ),
        (
            "{mode: require, certificate_file: own.crt, key_file: own.key, crl_file: own.crt}",
            "listen.tls: has a crl_file and no authorities; add ca_file",
        ),
        (
            "{mode: require, certificate_file: own.crt, key_file: none.key}",
            "listen.tls.key_file: {folder}/none.key: No such file or directory;"
            " name a file that pgshunt's user can read",
        ),
        (
            "{mode: require, certificate_file: own.crt, key_file: other.key}",
            "listen.tls: the certificates cannot be used: key values mismatch; give PEM files, and the key"
            " that belongs to the certificate, without a passphrase",
        ),
        (
            "{mode: require, certificate_file: own.crt, key_file: secret.key}",
            "listen.tls: the certificates cannot be used: the key has a passphrase; give PEM files, and the"
            " key that belongs to the certificate, without a passphrase",
        ),
        ("{mode: require, certificate_file: own.crt, key_file: own.key}", None),
    ],
)
def test_certificates_are_tried(
    minimal: str, examined: Examine, tmp_path: Path, tls: str, problem: str | None
) -> None:
    authority = Authority(tmp_path)
    authority.issue("own", "own")
    authority.issue("other", "other")
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(b"a passphrase")
    (tmp_path / "secret.key").write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked))
    found = [str(problem) for problem in examined(f"{minimal}\nlisten: {{tls: {tls}}}\n").problems]
    if problem is None:
        assert found == []
    else:
        (one,) = found
        assert one.partition(": ")[2] == problem.format(folder=tmp_path)


def test_a_mode_that_makes_no_use_of_files_refuses_them(minimal: str, problems: Problems) -> None:
    text = minimal.replace("shared: {", "shared: {tls: {mode: prefer, ca_file: some.crt}, ")
    unused, unread = problems(text)
    assert "prefer makes no use of ca_file; write require, or a verify mode" in unused
    assert "some.crt: No such file or directory" in unread
    unused, *_ = problems(minimal.replace("shared: {", "shared: {tls: {mode: require, crl_file: some.crl}, "))
    assert "require verifies nothing without authorities, nor looks into crl_file" in unused


# --- users and their proofs ---------------------------------------------------------------------------------

VERIFIER = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"


def test_users_come_from_a_file_as_pgbouncer_has_it(minimal: str, examined: Examine, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text(
        f'; a comment\n"a" "it""s"\n\n"b" "{VERIFIER}" whatever\n"c" "from the file"\n'
    )
    auth = "auth: {users_file: users.txt, users: [{name: c, password: 'from here'}]}"
    report = examined(minimal.replace("auth: {method: trust}", auth))
    assert report.config is not None, report.problems
    users = {user.name: user for user in report.config.auth.users}
    assert set(users) == {"a", "b", "c"}
    assert users["a"].password is not None and users["a"].password.reveal() == 'it"s'
    assert users["b"].verifier is not None and users["b"].verifier.reveal() == VERIFIER
    assert users["c"].password is not None and users["c"].password.reveal() == "from here"
    assert VERIFIER not in repr(report)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"a"', "users.txt:1: no user"),
        ("a b", "users.txt:1: no user"),
        ('"a" "md50123456789abcdef0123456789abcdef"', "users.txt:1: a has an MD5 hash"),
        ('"a" "SCRAM-SHA-256$x"', "users.txt:1: no name, or no verifier"),
        ('"" "x"', "users.txt:1: no name, or no password"),
    ],
)
def test_lines_that_name_no_user(
    minimal: str, problems: Problems, tmp_path: Path, line: str, problem: str
) -> None:
    (tmp_path / "users.txt").write_text(line)
    (found,) = problems(minimal.replace("{method: trust}", "{users_file: users.txt}"))
    assert problem in found and "0123456789abcdef" not in found


def test_a_users_file_that_is_not_there(minimal: str, problems: Problems) -> None:
    (found,) = problems(minimal.replace("{method: trust}", "{users_file: none.txt}"))
    assert "none.txt: No such file or directory" in found


@pytest.mark.parametrize(
    ("auth", "problem"),
    [
        ("{}", "auth.users: is empty, so nobody can log in"),
        ("{lookup: {user: asking}}", None),
        (f"{{users: [{{name: a, verifier: '{VERIFIER}'}}]}}", None),
        (f"{{users: [{{name: a, password: x, verifier: '{VERIFIER}'}}]}}", "has a password and a verifier"),
        ("{users: [{name: a, verifier: md5x}]}", "is no SCRAM-SHA-256 verifier"),
        ("{method: cert}", "cert needs client certificates that were verified"),
    ],
)
def test_ways_to_log_in(minimal: str, problems: Problems, auth: str, problem: str | None) -> None:
    found = problems(minimal.replace("{method: trust}", auth))
    assert found == [] if problem is None else problem in found[0]


def test_what_is_wrong_elsewhere_hides_no_rule_of_a_section(minimal: str, problems: Problems) -> None:
    text = minimal.replace("port: 5434", "port: x") + (
        "listen: {tls: {mode: require, certificate_file: c.crt, keyfile: k.key}}\nadmin: {port: -1}\n"
    )
    told = [problem.split(": ", 1)[1] for problem in problems(text)]
    assert [problem.partition(":")[0] for problem in told] == [
        "databases.audit_db.primary.port",
        "listen.tls",
        "listen.tls.certificate_file",
        "listen.tls.keyfile",
        "admin.port",
    ]
