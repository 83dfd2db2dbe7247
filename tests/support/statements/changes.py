"""Statements that change rows, COPY and EXPLAIN."""

from __future__ import annotations

from pgshunt.routing.shape import Kind
from support.statements.row import read, row, volatile, write

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
    write(
        "WITH p AS (SELECT * FROM policies) MERGE INTO users u USING p ON u.id = p.id"
        " WHEN MATCHED AND EXISTS (SELECT FROM roles) THEN UPDATE SET name = 'x'"
        " WHEN NOT MATCHED BY SOURCE THEN DELETE RETURNING merge_action(), u.*",
        "users",
        "policies roles",
    ),
    write(
        "WITH a AS (INSERT INTO users VALUES (1) RETURNING id), b AS (DELETE FROM roles USING a RETURNING 1)"
        " UPDATE policies SET id = 1 FROM b",
        "users roles policies",
    ),
    write(
        "INSERT INTO users AS u (id) VALUES (1) ON CONFLICT ON CONSTRAINT users_pkey DO UPDATE"
        " SET (id, name) = (SELECT r.id, 'x' FROM roles r) WHERE u.id < 9 RETURNING (SELECT 1 FROM policies)",
        "users",
        "roles policies",
    ),
    write("INSERT INTO active_users (id) TABLE roles", "active_users", "roles"),
    write(
        "UPDATE users SET (id, name) = (SELECT id, 'x' FROM roles) WHERE name IN (TABLE policies)",
        "users",
        "roles policies",
    ),
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

COPIES = [
    row("COPY users FROM STDIN", Kind.COPY_IN, writes="users", local="copy"),
    row(
        "COPY users (a, b) FROM STDIN WITH (FORMAT csv) WHERE a > 1",
        Kind.COPY_IN,
        writes="users",
        local="copy",
    ),
    read("COPY users TO STDOUT", "users", local="copy"),
    write(
        "COPY (WITH a AS (UPDATE users SET id = 1 RETURNING id) SELECT * FROM a, roles) TO STDOUT",
        "users",
        "roles",
        local="copy",
    ),
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
    read("EXPLAIN EXECUTE p", local="explain", reason="explain", executes=frozenset({"p"})),
    write("EXPLAIN ANALYZE EXECUTE p", local="explain", reason="execute", executes=frozenset({"p"})),
    volatile("EXPLAIN SELECT random() FROM users", "random", "users", local="explain"),
]
