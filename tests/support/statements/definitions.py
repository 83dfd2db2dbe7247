"""Statements that define relations and what belongs to them."""

from __future__ import annotations

from support.statements.row import write

TEMPORARY = frozenset({"temp_table"})

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
    write("COMMENT ON TABLE users IS 'x'", "users", reason="definition"),
    write("COMMENT ON COLUMN audit.logs.id IS 'x'", "audit.logs", reason="definition"),
    write("COMMENT ON TRIGGER t ON users IS NULL", "users", reason="definition"),
    write("COMMENT ON CONSTRAINT users_pkey ON users IS NULL", "users", reason="definition"),
    write("COMMENT ON FUNCTION users(int) IS 'x'", reason="definition"),
    write("SECURITY LABEL ON COLUMN users.name IS 'x'", "users", reason="definition"),
    write("DROP POLICY IF EXISTS p ON audit.users", "audit.users", reason="definition", releases=TEMPORARY),
    write("DROP VIEW active_users CASCADE", "active_users", reason="definition", releases=TEMPORARY),
    write("CREATE SEQUENCE tickets OWNED BY users.id", "=tickets users", reason="definition"),
    write(
        "ALTER SEQUENCE users_id_seq OWNED BY audit.logs.id",
        "users_id_seq audit.logs",
        reason="definition",
        local="sequence",
    ),
    write("ALTER SEQUENCE users_id_seq OWNED BY NONE", "users_id_seq", reason="definition", local="sequence"),
    write("ALTER SEQUENCE users_id_seq RESTART", "users_id_seq", reason="definition", local="sequence"),
    write("CREATE RULE r AS ON DELETE TO users DO ALSO SELECT 1", "users", reason="definition"),
    write(
        "CREATE POLICY p ON users USING (id IN (SELECT id FROM roles))", "users roles", reason="definition"
    ),
    write("CREATE PUBLICATION p FOR TABLE users, audit.logs", "users audit.logs", reason="definition"),
    write("CREATE STATISTICS s ON id, name FROM users", "users", reason="definition"),
    write("CREATE TABLE copied (LIKE users INCLUDING ALL)", "=copied users", reason="definition"),
    write("CREATE TABLE child () INHERITS (users)", "=child users", reason="definition"),
    write("ALTER TABLE audit.logs SET SCHEMA public", "audit.logs", reason="definition"),
    write("CREATE TABLE users AS EXECUTE p", "users", reason="creates_table", executes=frozenset({"p"})),
    write(
        "CREATE SCHEMA new CREATE TABLE users (id int REFERENCES roles) CREATE VIEW v AS SELECT * FROM users",
        "new.users roles new.v",
        reason="definition",
    ),
    write("CREATE SCHEMA AUTHORIZATION joe CREATE SEQUENCE q", "joe.q", reason="definition"),
    write("REFRESH MATERIALIZED VIEW users", "users", reason="definition"),
    write("VACUUM ANALYZE users", "users", reason="definition"),
    write("REINDEX TABLE users", "users", reason="definition"),
    write("CREATE EXTENSION hstore", reason="definition"),
    write("ALTER SYSTEM SET work_mem = '1MB'", reason="definition"),
    write("CHECKPOINT", reason="definition"),
]
