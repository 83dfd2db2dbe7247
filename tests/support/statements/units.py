"""Texts of no statement, of several, and of none that can be read."""

from __future__ import annotations

from pgshunt.routing.shape import Kind
from support.statements.row import read, row, write

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
        anywhere=True,
        literal_sensitive=True,
    ),
    row(
        "SET ROLE joe; SELECT * FROM users",
        Kind.UNKNOWN,
        statements=2,
        reason="search_path",
        touches=frozenset({"role"}),
        renames=True,
        anywhere=True,
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
        anywhere=True,
    ),
    row(
        "SET client_encoding = sjis; LISTEN jobs",
        Kind.UNKNOWN,
        statements=2,
        reason="set",
        pins=frozenset({"listen", "unreadable"}),
        anywhere=True,
        meets=True,
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
    row("SELECT 1; SELCT 2", Kind.UNKNOWN, reason="unparsable", unread=b"SELECT 1; SELCT 2", **UNKNOWN),
    row("SELECT 'open", Kind.UNKNOWN, reason="unparsable", unread=b"SELECT 'open", **UNKNOWN),
    row(
        "SELECT 1\0; DELETE FROM users",
        Kind.UNKNOWN,
        reason="unparsable",
        unread=b"SELECT 1\0; DELETE FROM users",
        **UNKNOWN,
    ),
]
