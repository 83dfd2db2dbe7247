"""Statements that read: plain queries, the time, WITH, row locks."""

from __future__ import annotations

from support.statements.row import read, write

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
    read("SELECT * FROM U&\"!0075sers\" UESCAPE '!'", "users"),
    read('SELECT * FROM u&"public".U&"\\+000055sers"', "public.Users"),
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
    read("SELECT '/* pgshunt: primary */' FROM users", "users"),
    read("SELECT * FROM users /* pgshunt: replica */", "users"),
    read("SELECT * FROM users /* use pgshunt: primary */ -- trace 7", "users"),
    read("SELECT u.* FROM ((users u NATURAL JOIN roles) CROSS JOIN policies) x", "users roles policies"),
    read("SELECT ARRAY(SELECT id FROM roles), ROW(u.*) FROM users u", "users roles"),
    read("SELECT * FROM ROWS FROM (generate_series(1, 2), generate_series(1, 3)) x, users", "users"),
    read(
        "SELECT max(id) FROM users GROUP BY CUBE (name) HAVING sum(id) > (SELECT 1 FROM roles)",
        "users roles",
    ),
    read(
        "SELECT id FROM users WINDOW w AS (ORDER BY (SELECT 1 FROM roles)) LIMIT (SELECT 1 FROM policies)",
        "users roles policies",
    ),
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

HINTS = [
    read("/* pgshunt: primary */ SELECT * FROM users", "users", local="hint"),
    read("SELECT * FROM /*PGSHUNT:PRIMARY*/ users", "users", local="hint"),
    read("SELECT * FROM users -- pgshunt: primary", "users", local="hint"),
    read('SELECT * FROM U&"users" /* pgshunt: primary */', "users", local="hint"),
    read(
        "SELECT * FROM users, /* pgshunt: primary */ pg_class",
        "users pg_catalog.pg_class",
        local="system_catalogue",
    ),
    write("DELETE /* pgshunt: primary */ FROM users", "users", local="hint"),
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
