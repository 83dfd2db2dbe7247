"""What each kind of statement is. A row says everything: a field it does not name must have its default.

Which definitions it changes has rows of its own, in test_alterations.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
from postgast import scan

from pgshunt.routing.classify import classify, classify_bytes
from pgshunt.routing.lexer import strip
from pgshunt.routing.shape import ALL_STATEMENTS, Kind, Shape
from pgshunt.routing.table import Catalogue

PATH = ("$user", "public")


@dataclass(frozen=True)
class Row:
    sql: str
    shape: Shape


def row(sql: str, kind: Kind, reads: str = "", writes: str = "", **traits: Any) -> Row:
    """`reads` and `writes` list names, those without a schema in public."""

    def names(text: str) -> frozenset[str]:
        return frozenset(
            name.lstrip("=") if name[0] == "=" or "." in name else f"public.{name}" for name in text.split()
        )

    return Row(sql, Shape(kind, names(reads), names(writes), **traits))


def read(sql: str, reads: str = "", **traits: Any) -> Row:
    return row(sql, Kind.READ, reads, **traits)


def write(sql: str, writes: str = "", reads: str = "", **traits: Any) -> Row:
    defines = traits.get("reason") == "definition" and traits.get("local") != "temp_table"
    return row(sql, Kind.WRITE, reads, writes, defines=defines, **traits)


def session(sql: str, reason: str, **traits: Any) -> Row:
    return row(sql, Kind.SESSION, reason=reason, **traits)


def volatile(sql: str, function: str, reads: str = "", writes: str = "", **traits: Any) -> Row:
    return write(sql, writes, reads, volatile=True, reason=f"volatile:{function}", **traits)


TEMPORARY = frozenset({"temp_table"})
RELEASED_BY_DISCARD = frozenset({"temp_table", "listen", "advisory_lock", "hold_cursor", "prepare"})

QUERIES = [
    read("SELECT 1"),
    read("SELECT"),
    read("VALUES (1), (2)"),
    read("SELECT * FROM users", "users"),
    read("TABLE users", "users"),
    read("select * from ONLY users", "users"),
    read('SELECT * FROM "users"', "users"),
    read('SELECT * FROM "Users"', "public.Users"),
    read("SELECT * FROM Users u, PUBLIC.ROLES", "users roles"),
    read('SELECT * FROM U&"\\0075sers"', "users"),
    read("SELECT * FROM audit.users", "audit.users"),
    read("SELECT * FROM logs", "=logs"),
    read('SELECT * FROM "odd.name"', 'public."odd.name"'),
    read('SELECT * FROM "public.users"', '="public.users"'),
    read("SELECT * FROM db.public.users", "users"),
    read(
        "SELECT u.id FROM users u JOIN roles r ON r.id = u.role_id LEFT JOIN audit.logs USING (id)",
        "users roles audit.logs",
    ),
    read(
        "SELECT * FROM users, LATERAL (SELECT * FROM roles WHERE roles.id = users.role_id) r", "users roles"
    ),
    read("SELECT (SELECT count(*) FROM roles) FROM users", "users roles"),
    read("SELECT * FROM users WHERE id IN (SELECT user_id FROM audit.logs)", "users audit.logs"),
    read("SELECT * FROM users WHERE EXISTS (SELECT FROM roles) ORDER BY 1", "users roles", ordered=True),
    read("SELECT * FROM (SELECT * FROM users ORDER BY 1) u", "users"),
    read(
        "SELECT id FROM users UNION ALL SELECT id FROM roles ORDER BY 1 LIMIT 3", "users roles", ordered=True
    ),
    read(
        "SELECT id FROM users EXCEPT (SELECT id FROM roles INTERSECT SELECT id FROM policies)",
        "users roles policies",
    ),
    read("SELECT lower(name), count(*) FILTER (WHERE abs(x) > 1) FROM users GROUP BY 1", "users"),
    read("SELECT row_number() OVER (PARTITION BY a ORDER BY lower(b)) FROM users", "users"),
    read(
        "SELECT extract(year FROM d), substring(a FROM 1 FOR 2), trim(b), position('a' IN c) FROM users",
        "users",
    ),
    read("SELECT COALESCE(a, 1), NULLIF(a, b), GREATEST(1, 2), CASE WHEN a THEN 1 END FROM users", "users"),
    read("SELECT a::int, CAST(b AS text), interval '1 day', date '2020-01-01' FROM users", "users"),
    read("SELECT 1 OPERATOR(pg_catalog.+) 2 FROM users", "users"),
    read("SELECT data ? 'key', data -> 'a' FROM users", "users"),
    read("SELECT * FROM generate_series(1, 3), users", "users"),
    read("SELECT $1::int FROM users WHERE id = $2", "users"),
    read("SELECT * FROM active_users", "active_users"),
    read("SELECT current_user, session_user FROM users", "users"),
]

TIME = [
    read(f"SELECT {call} FROM users", "users", time_dependent=True)
    for call in (
        "now()",
        "pg_catalog.now()",
        "transaction_timestamp()",
        "statement_timestamp()",
        "current_timestamp",
        "current_timestamp(3)",
        "current_date",
        "current_time",
        "localtime",
        "localtimestamp(0)",
        "age(born)",
        "age(a, b)",
    )
]

CTES = [
    read("WITH a AS (SELECT * FROM users) SELECT * FROM a", "users"),
    read("WITH users AS (SELECT * FROM users) SELECT * FROM users", "users"),
    read("WITH users AS (SELECT 1) SELECT * FROM users", ""),
    read("WITH users AS (SELECT 1) SELECT * FROM public.users", "users"),
    read("WITH RECURSIVE users AS (SELECT 1 UNION ALL SELECT * FROM users) SELECT * FROM users", ""),
    read("WITH RECURSIVE a AS (SELECT * FROM roles), roles AS (SELECT 1) SELECT * FROM a", ""),
    read("WITH a AS (SELECT * FROM roles), roles AS (SELECT 1) SELECT * FROM a, roles", "roles"),
    read("WITH roles AS (SELECT 1), a AS (SELECT * FROM roles) SELECT * FROM a", ""),
    read("SELECT * FROM (WITH users AS (SELECT 1) SELECT * FROM users) x, users", "users"),
    read("WITH users AS (SELECT 1) SELECT * FROM (SELECT * FROM users) x", ""),
    read("WITH users AS (SELECT 1) SELECT (WITH users AS (SELECT * FROM users) SELECT 1 FROM users)", ""),
    read("WITH users AS (SELECT 1) (SELECT * FROM users) UNION SELECT * FROM roles", "roles"),
    write("WITH gone AS (DELETE FROM users RETURNING *) SELECT * FROM gone", "users"),
    write(
        "WITH a AS (UPDATE users SET x = 1 RETURNING *), b AS (SELECT * FROM roles) SELECT * FROM a, b",
        "users",
        "roles",
    ),
    write("WITH users AS (SELECT * FROM roles) INSERT INTO users SELECT * FROM users", "users", "roles"),
    write("WITH users AS (SELECT 1) UPDATE users SET x = (SELECT 1 FROM users)", "users"),
]

LOCKS = [
    read(f"SELECT * FROM users {clause}", "users", locks=True, reason="locks")
    for clause in (
        "FOR UPDATE",
        "FOR NO KEY UPDATE",
        "FOR SHARE",
        "FOR KEY SHARE",
        "FOR UPDATE OF users NOWAIT",
        "FOR SHARE SKIP LOCKED",
    )
] + [
    read(
        "SELECT * FROM (SELECT * FROM users FOR UPDATE) u, roles", "users roles", locks=True, reason="locks"
    ),
    read("WITH a AS (SELECT * FROM users FOR SHARE) SELECT * FROM a", "users", locks=True, reason="locks"),
    write("LOCK TABLE users, roles IN EXCLUSIVE MODE", "users roles", locks=True, reason="locks"),
]

CHANGES = [
    write("INSERT INTO users VALUES (1, 'a')", "users"),
    write("INSERT INTO users DEFAULT VALUES RETURNING id", "users"),
    write("INSERT INTO users SELECT * FROM roles", "users", "roles"),
    write(
        "INSERT INTO users VALUES (1) ON CONFLICT (id) DO UPDATE SET n = (SELECT 1 FROM roles)",
        "users",
        "roles",
    ),
    write("INSERT INTO users VALUES (1) ON CONFLICT DO NOTHING", "users"),
    write("UPDATE users SET a = r.a FROM roles r WHERE r.id = users.id", "users", "roles"),
    write("UPDATE ONLY audit.users AS u SET a = 1", "audit.users"),
    write("UPDATE users SET a = a + 1 FROM users other", "users", "users"),
    write("UPDATE users SET a = 1 WHERE CURRENT OF c", "users", local="cursor"),
    write("DELETE FROM users USING roles WHERE true", "users", "roles"),
    write("DELETE FROM users", "users"),
    write("MERGE INTO users u USING roles r ON true WHEN MATCHED THEN DELETE", "users", "roles"),
    write(
        "MERGE INTO users u USING (SELECT * FROM policies) p ON true WHEN NOT MATCHED THEN INSERT VALUES (1)",
        "users",
        "policies",
    ),
    write("TRUNCATE users, ONLY roles RESTART IDENTITY", "users roles"),
    write("INSERT INTO users VALUES (now())", "users", time_dependent=True),
    write("SELECT * INTO report FROM users", "=report", "users", reason="creates_table"),
    write(
        "SELECT * INTO report FROM users UNION SELECT * FROM roles",
        "=report",
        "users roles",
        reason="creates_table",
    ),
    write(
        "SELECT * INTO TEMP report FROM users",
        "=report",
        "users",
        reason="creates_table",
        pins=frozenset({"temp_table"}),
        local="temp_table",
    ),
]

DEFINITIONS = [
    write("CREATE TABLE report AS SELECT * FROM users", "=report", "users", reason="creates_table"),
    write(
        "CREATE MATERIALIZED VIEW report AS SELECT * FROM users", "=report", "users", reason="creates_table"
    ),
    write("CREATE TABLE report (id int REFERENCES users)", "=report users", reason="definition"),
    write(
        "CREATE TEMP TABLE t (a int)",
        "=t",
        reason="definition",
        pins=frozenset({"temp_table"}),
        local="temp_table",
    ),
    write(
        "CREATE TABLE pg_temp.t (a int)",
        "pg_temp.t",
        reason="definition",
        pins=frozenset({"temp_table"}),
        local="temp_table",
    ),
    write("CREATE TEMP TABLE t (a int) ON COMMIT DROP", "=t", reason="definition", local="temp_table"),
    write(
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        reason="definition",
        pins=frozenset({"temp_table"}),
    ),
    write("CREATE VIEW v AS SELECT * FROM users", "=v users", reason="definition"),
    write("CREATE INDEX ON users (lower(name))", "users", reason="definition"),
    write("ALTER TABLE users ADD COLUMN a int", "users", reason="definition"),
    write("ALTER TABLE users RENAME TO people", "users", reason="definition"),
    write("DROP TABLE users, audit.logs", "users audit.logs", reason="definition", releases=TEMPORARY),
    write("DROP TRIGGER t ON audit.logs", "audit.logs", reason="definition", releases=TEMPORARY),
    write("DROP FUNCTION users", reason="definition", releases=TEMPORARY),
    write("CREATE TABLE t (a text DEFAULT 'pg_temp')", "=t", reason="definition"),
    write("CREATE TRIGGER t BEFORE INSERT ON users EXECUTE FUNCTION f()", "users", reason="definition"),
    write("GRANT SELECT ON users TO joe", "users", reason="definition"),
    write("COMMENT ON TABLE users IS 'x'", reason="definition"),
    write("REFRESH MATERIALIZED VIEW users", "users", reason="definition"),
    write("VACUUM ANALYZE users", "users", reason="definition"),
    write("REINDEX TABLE users", "users", reason="definition"),
    write("CREATE EXTENSION hstore", reason="definition"),
    write("ALTER SYSTEM SET work_mem = '1MB'", reason="definition"),
    write("CHECKPOINT", reason="definition"),
]

COPIES = [
    row("COPY users FROM STDIN", Kind.COPY_IN, writes="users", local="copy"),
    row(
        "COPY users (a, b) FROM STDIN WITH (FORMAT csv) WHERE a > 1",
        Kind.COPY_IN,
        writes="users",
        local="copy",
    ),
    read("COPY users TO STDOUT", "users", local="copy"),
    read("COPY (SELECT * FROM users) TO STDOUT", "users", local="copy"),
    write("COPY (DELETE FROM users RETURNING *) TO STDOUT", "users", local="copy"),
    write("COPY users FROM '/tmp/x'", "users", local="copy", reason="server_file"),
    write("COPY users TO '/tmp/x'", "", "users", local="copy", reason="server_file"),
    write("COPY users FROM PROGRAM 'cat'", "users", local="copy", reason="server_file"),
    write("COPY users TO PROGRAM 'cat'", "", "users", local="copy", reason="server_file"),
]

EXPLAINS = [
    read("EXPLAIN SELECT * FROM users", "users", local="explain", reason="explain"),
    read("EXPLAIN (COSTS OFF) INSERT INTO users VALUES (1)", "users", local="explain", reason="explain"),
    read(
        "EXPLAIN (ANALYZE false) DELETE FROM users",
        "users",
        local="explain",
        reason="explain",
        literal_sensitive=True,
    ),
    read(
        "EXPLAIN (ANALYZE 0) DELETE FROM users",
        "users",
        local="explain",
        reason="explain",
        literal_sensitive=True,
    ),
    read("EXPLAIN ANALYZE SELECT * FROM users", "users", local="explain"),
    write("EXPLAIN ANALYZE DELETE FROM users", "users", local="explain"),
    write("EXPLAIN (ANALYZE 1) DELETE FROM users", "users", local="explain", literal_sensitive=True),
    write(
        "EXPLAIN (ANALYZE off, ANALYZE) DELETE FROM users", "users", local="explain", literal_sensitive=True
    ),
    write(
        "EXPLAIN ANALYZE CREATE TABLE x AS SELECT * FROM users",
        "=x",
        "users",
        local="explain",
        reason="creates_table",
    ),
    volatile("EXPLAIN SELECT random() FROM users", "random", "users", local="explain"),
]

CALLS = [
    volatile("SELECT random() FROM users", "random", "users"),
    volatile("SELECT clock_timestamp()", "clock_timestamp"),
    volatile("SELECT public.lower('x') FROM users", "lower", "users", local="function", strange=True),
    volatile("SELECT my_function(id) FROM users", "my_function", "users", local="function", strange=True),
    volatile("SELECT * FROM my_function(1)", "my_function", local="function", strange=True),
    volatile("SELECT 1 OPERATOR(public.+) 2 FROM users", "operator", "users"),
    volatile("SELECT * FROM users ORDER BY name USING OPERATOR(public.<)", "operator", "users", ordered=True),
    volatile("SELECT nextval('users_id_seq')", "nextval", writes="users_id_seq", literal_sensitive=True),
    volatile(
        "SELECT nextval('public.users_id_seq'::regclass)",
        "nextval",
        writes="users_id_seq",
        literal_sensitive=True,
        local="object_identifier",
    ),
    volatile("SELECT setval('USERS_ID_SEQ', 1)", "setval", writes="users_id_seq", literal_sensitive=True),
    volatile("SELECT currval('nobodys')", "currval", writes="=nobodys", literal_sensitive=True),
    volatile("SELECT lastval()", "lastval", literal_sensitive=True),
    volatile("SELECT setseed(0.5)", "setseed", pins=frozenset({"seed"})),
    volatile("SELECT pg_terminate_backend(7)", "pg_terminate_backend", signals=True),
    volatile("SELECT pg_catalog.pg_cancel_backend($1)", "pg_cancel_backend", signals=True),
    volatile(
        "INSERT INTO users VALUES (nextval('users_id_seq'))",
        "nextval",
        writes="users users_id_seq",
        literal_sensitive=True,
    ),
    volatile(
        "SELECT set_config('app.tenant', '1', false)",
        "set_config",
        literal_sensitive=True,
        touches=frozenset({"app.tenant"}),
    ),
    volatile(
        "SELECT set_config('app.tenant', '1', true)",
        "set_config",
        literal_sensitive=True,
        creates=frozenset({"app.tenant"}),
    ),
    volatile("SELECT set_config('work_mem', '1MB', true)", "set_config", literal_sensitive=True),
    volatile(
        "SELECT set_config('SEARCH_PATH', $1, true)", "set_config", literal_sensitive=True, renames=True
    ),
    volatile(
        "SELECT pg_catalog.set_config('client_encoding', 'utf8', false)",
        "set_config",
        literal_sensitive=True,
        touches=frozenset({"client_encoding"}),
        rereads=True,
        obscures=True,
    ),
    volatile(
        "SELECT set_config('app.tenant', '1', 't')",
        "set_config",
        literal_sensitive=True,
        touches=frozenset({"app.tenant"}),
    ),
    volatile(
        "SELECT set_config(name, '1', $1) FROM users",
        "set_config",
        "users",
        literal_sensitive=True,
        pins=frozenset({"set_config"}),
        rereads=True,
        renames=True,
    ),
    volatile("SELECT pg_advisory_lock(1)", "pg_advisory_lock", pins=frozenset({"advisory_lock"})),
    volatile(
        "SELECT pg_try_advisory_lock_shared(1, 2)",
        "pg_try_advisory_lock_shared",
        pins=frozenset({"advisory_lock"}),
    ),
    volatile("SELECT pg_advisory_xact_lock(1)", "pg_advisory_xact_lock"),
    volatile("SELECT pg_advisory_unlock(1)", "pg_advisory_unlock", releases=frozenset({"advisory_lock"})),
    volatile(
        "SELECT pg_advisory_unlock_all()", "pg_advisory_unlock_all", releases=frozenset({"advisory_lock"})
    ),
    volatile("SELECT pg_temp.f()", "f", pins=frozenset({"temp_table"})),
    write("CALL tidy(1)", volatile=True, reason="procedure", local="function", strange=True),
    *(
        write(
            f"DO $$BEGIN {body}; END$$",
            writes,
            volatile=True,
            literal_sensitive=True,
            reason="code_block",
            **traits,
        )
        for body, writes, traits in (
            ("DELETE FROM users", "users", {}),
            ("IF true THEN UPDATE users SET a = 1; END IF", "users", {}),
            ("PERFORM set_config('a.b', 'c', false)", "", {"touches": frozenset({"a.b"})}),
            ("PERFORM set_config('a.b', 'c', true)", "", {"creates": frozenset({"a.b"})}),
            ("SET work_mem = '1MB'", "", {"touches": frozenset({"work_mem"})}),
            ("EXECUTE 'SET a.b = 1'", "", {"touches": frozenset({"a.b"})}),
            ("EXECUTE format('INSERT INTO %I SELECT 1', 'users')", "", {}),
            ("EXECUTE format('SET %s = 1', name)", "", {"pins": frozenset({"code_block"})}),
            (
                "IF true THEN RESET ALL; END IF",
                "",
                {"resets": frozenset("*"), "renames": True, "rereads": True},
            ),
            ("CREATE TEMP TABLE x (i int)", "=x", {"pins": TEMPORARY, "releases": TEMPORARY}),
            (
                "PERFORM pg_advisory_lock_shared(1)",
                "",
                {"pins": frozenset({"advisory_lock"}), "releases": frozenset({"advisory_lock"})},
            ),
        )
    ),
]

SERVER_LOCAL = [
    read("SELECT * FROM pg_class", "pg_catalog.pg_class", local="system_catalogue"),
    read("SELECT * FROM pg_catalog.pg_locks, users", "pg_catalog.pg_locks users", local="system_catalogue"),
    read("SELECT * FROM information_schema.tables", "information_schema.tables", local="system_catalogue"),
    read(
        "SELECT name FROM pg_prepared_statements",
        "pg_catalog.pg_prepared_statements",
        local="system_catalogue",
        pins=frozenset({"prepared_statements"}),
    ),
    volatile(
        "SELECT * FROM pg_prepared_statement()",
        "pg_prepared_statement",
        pins=frozenset({"prepared_statements"}),
    ),
    read(
        "SELECT * FROM pg_temp.scratch", "pg_temp.scratch", local="temp_table", pins=frozenset({"temp_table"})
    ),
    read("SELECT ctid, * FROM users", "users", local="system_column"),
    read("SELECT * FROM users u WHERE u.xmin::text = '1'", "users", local="system_column"),
    read("SELECT (u).tableoid FROM users u", "users", local="system_column"),
    read("SELECT * FROM users TABLESAMPLE system (10)", "users", local="tablesample"),
    read("SELECT version() FROM users", "users", local="server_state"),
    read("SELECT current_setting('x'), pg_backend_pid()", local="backend_pid"),
    read("SELECT pg_is_in_recovery()", local="server_state"),
    read("SELECT current_schema, current_catalog FROM users", "users", local="server_state"),
    read("SELECT has_table_privilege('users', 'SELECT')", local="server_state"),
    read("SELECT pg_get_viewdef('v') FROM users", "users", local="server_state"),
    read("SELECT to_regclass('users')", local="server_state"),
    read(
        "SELECT table_to_xml('roles', true, true, '') FROM users",
        "users",
        local="reads_by_name",
        literal_sensitive=True,
    ),
    read("SELECT 'users'::regclass", local="object_identifier", literal_sensitive=True),
    read("SELECT regclass 'users'", local="object_identifier", literal_sensitive=True),
    read(
        "SELECT CAST($1 AS regtype[]) FROM users", "users", local="object_identifier", literal_sensitive=True
    ),
]

TRANSACTIONS = [
    row("BEGIN", Kind.BEGIN),
    row(
        "BEGIN WORK ISOLATION LEVEL REPEATABLE READ READ ONLY",
        Kind.BEGIN,
        isolation="repeatable read",
        read_only=True,
    ),
    row("START TRANSACTION READ WRITE", Kind.BEGIN, read_only=False, reason="start"),
    row("COMMIT", Kind.COMMIT),
    row("END", Kind.COMMIT),
    row("COMMIT AND CHAIN", Kind.COMMIT, chain=True),
    row("ROLLBACK", Kind.ROLLBACK),
    row("ABORT", Kind.ROLLBACK),
    row("ROLLBACK AND CHAIN", Kind.ROLLBACK, chain=True),
    row("SAVEPOINT a", Kind.SAVEPOINT, reason="savepoint"),
    row("RELEASE a", Kind.SAVEPOINT, reason="release"),
    row("ROLLBACK TO a", Kind.SAVEPOINT, reason="rollback_to"),
    write("PREPARE TRANSACTION 'x'", reason="two_phase"),
    write("COMMIT PREPARED 'x'", reason="two_phase"),
    write("ROLLBACK PREPARED 'x'", reason="two_phase"),
    session(
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
        "set_transaction",
        isolation="serializable",
        read_only=True,
    ),
    session("SET TRANSACTION SNAPSHOT '0001'", "set_transaction"),
    session("SET CONSTRAINTS ALL DEFERRED", "set_constraints"),
]

SESSIONS = [
    session("SET work_mem = '1MB'", "set", touches=frozenset({"work_mem"})),
    session("SET SESSION search_path TO a, b", "set", touches=frozenset({"search_path"}), renames=True),
    session("SET SCHEMA 'a'", "set", touches=frozenset({"search_path"}), renames=True),
    session("SET App.Tenant_Id = 7", "set", touches=frozenset({"app.tenant_id"})),
    session("SET x FROM CURRENT", "set", touches=frozenset({"x"})),
    session("SET TIME ZONE 'UTC'", "set", touches=frozenset({"timezone"}), rereads=True),
    session("SET TIME ZONE LOCAL", "reset", resets=frozenset({"timezone"}), rereads=True),
    session(
        "SET NAMES 'utf8'",
        "set",
        touches=frozenset({"client_encoding"}),
        rereads=True,
        literal_sensitive=True,
    ),
    session("SET NAMES DEFAULT", "reset", resets=frozenset({"client_encoding"}), rereads=True),
    session(
        "SET client_encoding TO gb18030",
        "set",
        touches=frozenset({"client_encoding"}),
        rereads=True,
        literal_sensitive=True,
        obscures=True,
    ),
    session(
        "SET standard_conforming_strings = on",
        "set",
        touches=frozenset({"standard_conforming_strings"}),
        rereads=True,
        literal_sensitive=True,
    ),
    session(
        "SET LOCAL standard_conforming_strings = off",
        "set_local",
        literal_sensitive=True,
        obscures=True,
        rereads=True,
    ),
    session("SET ROLE joe", "set", touches=frozenset({"role"}), renames=True),
    session("SET LOCAL ROLE joe", "set_local", renames=True),
    session("RESET ROLE", "reset", resets=frozenset({"role"}), renames=True),
    session(
        "SET SESSION AUTHORIZATION joe",
        "set",
        touches=frozenset({"session_authorization", "role"}),
        renames=True,
    ),
    session(
        "SET SESSION AUTHORIZATION DEFAULT",
        "reset",
        resets=frozenset({"session_authorization", "role"}),
        renames=True,
    ),
    session("SET x TO DEFAULT", "reset", resets=frozenset({"x"})),
    session(
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
        "set",
        touches=frozenset({"default_transaction_read_only", "default_transaction_isolation"}),
    ),
    session("SET transaction_isolation = 'serializable'", "set_transaction"),
    session("SET LOCAL work_mem = '1MB'", "set_local"),
    session("SET LOCAL app.tenant_id = 7", "set_local", creates=frozenset({"app.tenant_id"})),
    session("SET seed = 0.5", "set", pins=frozenset({"seed"})),
    session("RESET work_mem", "reset", resets=frozenset({"work_mem"})),
    session("RESET ALL", "reset_all", resets=frozenset({"*"}), rereads=True, renames=True),
    session("SHOW search_path", "show"),
    session("SHOW ALL", "show"),
    session(
        "DISCARD ALL",
        "discard",
        releases=RELEASED_BY_DISCARD,
        resets=frozenset({"*", "role", "session_authorization"}),
        rereads=True,
        renames=True,
    ),
    session("DISCARD TEMP", "discard", releases=frozenset({"temp_table"})),
    session("DISCARD PLANS", "discard"),
    session("LISTEN jobs", "listen", pins=frozenset({"listen"})),
    session("UNLISTEN jobs", "unlisten", releases=frozenset({"listen"})),
    session("UNLISTEN *", "unlisten", releases=frozenset({"listen"})),
    session("LOAD 'auto_explain'", "load", pins=frozenset({"load"})),
    write("NOTIFY jobs, 'x'", reason="notify"),
    row(
        "PREPARE p AS SELECT * FROM users WHERE id = $1",
        Kind.SESSION,
        reason="prepare",
        prepares=frozenset({"p"}),
        prepared=read("", "users").shape,
    ),
    row(
        'PREPARE "P q" AS DELETE FROM users',
        Kind.SESSION,
        reason="prepare",
        prepares=frozenset({"P q"}),
        prepared=write("", "users").shape,
    ),
    write("EXECUTE p (1)", reason="execute", executes=frozenset({"p"})),
    write(
        "EXECUTE p (nextval('s'))",
        "=s",
        volatile=True,
        literal_sensitive=True,
        reason="execute",
        executes=frozenset({"p"}),
    ),
    session("DEALLOCATE p", "deallocate", deallocates="p"),
    session('DEALLOCATE PREPARE "P q"', "deallocate", deallocates="P q"),
    session('DEALLOCATE "*"', "deallocate", deallocates="*"),
    session("DEALLOCATE ALL", "deallocate_all", deallocates=ALL_STATEMENTS, releases=frozenset({"prepare"})),
    read("DECLARE c CURSOR FOR SELECT * FROM users", "users", local="cursor", reason="cursor"),
    read(
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM users ORDER BY 1",
        "users",
        local="cursor",
        reason="cursor",
        pins=frozenset({"hold_cursor"}),
        ordered=True,
    ),
    write("FETCH ALL FROM c", local="cursor", reason="cursor"),
    write("MOVE 2 IN c", local="cursor", reason="cursor"),
    session("CLOSE c", "cursor", releases=frozenset({"hold_cursor"})),
    session("CLOSE ALL", "cursor", releases=frozenset({"hold_cursor"})),
]

UNKNOWN = {"volatile": True, "literal_sensitive": True}

UNITS = [
    row("", Kind.EMPTY, statements=0),
    row(" ; -- nothing", Kind.EMPTY, statements=0),
    read("SELECT * FROM users;", "users"),
    read("SELECT * FROM users; SELECT * FROM roles ORDER BY 1", "users roles", statements=2),
    write("SELECT * FROM users; DELETE FROM roles", "roles", "users", statements=2),
    write("BEGIN; SELECT * FROM users; COMMIT", "", "users", statements=3, reason="transaction_block"),
    write("SELECT 1; ROLLBACK", statements=2, reason="transaction_block"),
    row("COPY users FROM STDIN; SELECT 1", Kind.COPY_IN, writes="users", local="copy", statements=2),
    row(
        "SELECT * FROM users; SET work_mem = '1MB'",
        Kind.SESSION,
        "users",
        statements=2,
        reason="set",
        touches=frozenset({"work_mem"}),
    ),
    row(
        "SET search_path = a; SELECT * FROM users",
        Kind.UNKNOWN,
        statements=2,
        reason="search_path",
        touches=frozenset({"search_path"}),
        renames=True,
    ),
    row(
        "SET ROLE joe; SELECT * FROM users",
        Kind.UNKNOWN,
        statements=2,
        reason="search_path",
        touches=frozenset({"role"}),
        renames=True,
    ),
    row(
        "SELECT set_config($1, 'x', true); SELECT * FROM users",
        Kind.UNKNOWN,
        statements=2,
        reason="search_path",
        pins=frozenset({"set_config"}),
        rereads=True,
        renames=True,
        volatile=True,
        literal_sensitive=True,
    ),
    row(
        "SET client_encoding = sjis; LISTEN jobs",
        Kind.UNKNOWN,
        statements=2,
        reason="set",
        pins=frozenset({"listen", "unreadable"}),
        touches=frozenset({"client_encoding"}),
        rereads=True,
        literal_sensitive=True,
        obscures=True,
    ),
    # What asyncpg sends when a connection goes back to its pool.
    row(
        "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
        Kind.WRITE,
        volatile=True,
        statements=4,
        reason="volatile:pg_advisory_unlock_all",
        releases=frozenset({"advisory_lock", "hold_cursor", "listen"}),
        resets=frozenset({"*"}),
        rereads=True,
        renames=True,
    ),
    row("SELECT 1; SELCT 2", Kind.UNKNOWN, reason="unparsable", **UNKNOWN),
    row("SELECT 'open", Kind.UNKNOWN, reason="unparsable", **UNKNOWN),
    row("SELECT 1\0; DELETE FROM users", Kind.UNKNOWN, reason="unparsable", **UNKNOWN),
]

ROWS = [
    *QUERIES,
    *TIME,
    *CTES,
    *LOCKS,
    *CHANGES,
    *DEFINITIONS,
    *COPIES,
    *EXPLAINS,
    *CALLS,
    *SERVER_LOCAL,
    *TRANSACTIONS,
    *SESSIONS,
    *UNITS,
]


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.sql[:60])
def test_a_statement_has_this_shape(case: Row, catalogue: Catalogue) -> None:
    assert replace(classify(case.sql, PATH, catalogue), alters=frozenset()) == case.shape


def test_only_plain_reads_of_tables_may_be_split() -> None:
    splittable = {case.sql for case in ROWS if case.shape.splittable}
    plain = {
        case.sql
        for case in [*QUERIES, *TIME, *CTES, *UNITS]
        if case.shape.kind is Kind.READ and case.shape.reads
    }
    assert splittable == plain


def test_names_resolve_along_the_search_path(catalogue: Catalogue) -> None:
    def reads(*path: str) -> frozenset[str]:
        return classify("SELECT * FROM users, logs", path, catalogue).reads

    assert reads("audit", "public") == {"audit.users", "audit.logs"}
    assert reads("public", "audit") == {"public.users", "audit.logs"}
    assert reads() == {"users", "logs"}


def test_a_call_is_volatile_when_the_catalogue_is_not_known() -> None:
    assert classify("SELECT lower(a) FROM users", PATH, Catalogue()).volatile


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        (b"SELECT 1" + b"+1" * 100_000, "too_large"),
        (b"SELECT 1" + b"+1" * 7_000, "too_deep"),
        (b"SELECT " + b"(SELECT " * 1_500 + b"1" + b")" * 1_500, "too_deep"),
        (b"SELECT * FROM users" + b" JOIN roles ON true" * 10_000, "too_large"),
        (b"SELECT '" + b"x" * 300_000 + b"'", "too_large"),
        (b"SELECT '\xff' FROM users", "not_utf8"),
    ],
)
def test_hostile_texts_are_unknown(sql: bytes, reason: str, catalogue: Catalogue) -> None:
    shape = classify_bytes(sql, PATH, catalogue)
    assert (shape.kind, shape.reason, shape.writing) == (Kind.UNKNOWN, reason, True)


def test_many_rows_of_literals_are_no_hostile_text(catalogue: Catalogue) -> None:
    sql = "INSERT INTO users VALUES " + ", ".join(f"({n}, 'name {n}')" for n in range(5_000))
    assert classify(sql, PATH, catalogue).writes == {"public.users"}


LITERALS = {"SCONST", "ICONST", "FCONST", "BCONST", "XCONST", "USCONST"}
STRINGS = (
    "'x'",
    "'it''s'",
    r"E'\''",
    "$$users$$",
    "$a$ $$ $a$",
    "'a'\n'b'",
    "'-- /*'",
    "'true'",
    "'pg_temp'",
    "'public.roles'",
)
NUMBERS = ("0", "7", "1.5", ".5", "1e10", "0x1F", "5000000000", "1_000")


def with_other_literals(sql: str, seed: int) -> str:
    """`sql` with every literal replaced by another of its sort, and with more space between tokens."""
    die = random.Random(seed)
    text = sql.encode()
    parts: list[bytes] = []
    end = 0
    for token in scan(sql).tokens:
        name = token.DESCRIPTOR.fields_by_name["token"].enum_type.values_by_number[token.token].name
        between = text[end : token.start]
        parts.append(between + die.choice((b" ", b"\n", b" /* 'x */ ", b"\t")) if between else b"")
        source = text[token.start : token.end]
        if name in LITERALS:
            source = die.choice(NUMBERS if name in ("ICONST", "FCONST") else STRINGS).encode()
        parts.append(source)
        end = token.end
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    "case", [r for r in ROWS if r.shape.kind is not Kind.UNKNOWN], ids=lambda case: case.sql[:60]
)
def test_texts_of_one_key_have_one_shape(case: Row, catalogue: Catalogue) -> None:
    key = strip(case.sql.encode())
    for seed in range(25):
        other = with_other_literals(case.sql, seed)
        shape = classify(other, PATH, catalogue)
        if shape.reason == "unparsable":
            continue  # PostgreSQL refuses it too; it takes no key (test_shapes).
        if key is None or strip(other.encode()) != key:
            assert 'U&"' in case.sql, f"{other!r} should have the key of {case.sql!r}"
            continue
        assert shape.literal_sensitive == case.shape.literal_sensitive
        if not shape.literal_sensitive:
            assert shape == classify(case.sql, PATH, catalogue), other


@pytest.mark.parametrize(
    ("sql", "local"),
    [
        ("SELECT id FROM audit.logs", "own_types"),
        ("SELECT 1 FROM users WHERE EXISTS (SELECT FROM audit.logs)", "own_types"),
        ("SELECT name::mood FROM users", "own_types"),
        ("SELECT CAST(name AS public.mood[]) FROM users", "own_types"),
        ("SELECT u FROM users u", "own_types"),
        ("SELECT users FROM users", "own_types"),
        ("SELECT (u).id, name FROM users AS u", "own_types"),
        ("SELECT id::text, '{1}'::int[], 'x'::varchar(3), now()::timestamptz FROM users", None),
        ("SELECT u.id, u.* FROM users u", None),
        ("SELECT id FROM users", None),
    ],
)
def test_rows_with_types_of_the_databases_own_stay_at_the_owner(
    sql: str, local: str | None, catalogue: Catalogue
) -> None:
    """Clients are told a type by its OID, and they look it up at the owner."""
    known = frozenset({"int4", "text", "varchar", "timestamptz"})
    catalogue = replace(catalogue, types=known, own_types=frozenset({"audit.logs"}))
    shape = classify(sql, PATH, catalogue)
    assert shape.local == local
    assert shape.splittable == (local is None)
