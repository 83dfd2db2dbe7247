"""Calls that do something besides, and reads that belong to one server."""

from __future__ import annotations

from support.statements.row import read, volatile, write

TEMPORARY = frozenset({"temp_table"})

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
    volatile("SELECT pg_advisory_lock(1)", "pg_advisory_lock", pins=frozenset({"advisory_lock"}), meets=True),
    volatile(
        "SELECT pg_try_advisory_lock_shared(1, 2)",
        "pg_try_advisory_lock_shared",
        pins=frozenset({"advisory_lock"}),
        meets=True,
    ),
    volatile("SELECT pg_advisory_xact_lock(1)", "pg_advisory_xact_lock", meets=True),
    volatile("SELECT pg_notify('jobs', name) FROM users", "pg_notify", "users", meets=True),
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
            ("EXECUTE 'DO $b$ BEGIN SET a.b = 1; END $b$'", "", {"touches": frozenset({"a.b"})}),
            ("EXECUTE format('INSERT INTO %I SELECT 1', 'users')", "", {"anywhere": True}),
            ("EXECUTE format('SET %s = 1', name)", "", {"pins": frozenset({"code_block"}), "anywhere": True}),
            (
                "IF true THEN RESET ALL; END IF",
                "",
                {"resets": frozenset("*"), "renames": True, "rereads": True},
            ),
            ("CREATE TEMP TABLE x (i int)", "=x", {"pins": TEMPORARY, "releases": TEMPORARY}),
            (
                "PERFORM pg_advisory_lock_shared(1)",
                "",
                {
                    "pins": frozenset({"advisory_lock"}),
                    "releases": frozenset({"advisory_lock"}),
                    "meets": True,
                },
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
        anywhere=True,
    ),
    read("SELECT 'users'::regclass", local="object_identifier", literal_sensitive=True),
    read("SELECT regclass 'users'", local="object_identifier", literal_sensitive=True),
    read(
        "SELECT CAST($1 AS regtype[]) FROM users", "users", local="object_identifier", literal_sensitive=True
    ),
]
