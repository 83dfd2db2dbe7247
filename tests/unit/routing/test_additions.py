"""Of all changes of a table only columns that mean the same everywhere are read."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from pgshunt.routing.additions import Addition, read_addition
from pgshunt.routing.table import Catalogue

CATALOGUE = Catalogue(
    relations=MappingProxyType(
        dict.fromkeys(("public.t", "public.Odd", "app.t", "public.part", "public.base"), "r")
        | {"public.v": "v", "public.parts": "p"}
    ),
    parents=MappingProxyType({"public.part": "public.base"}),
    types=frozenset(
        {
            *("int4", "int8", "text", "varchar", "numeric", "bool", "timestamptz", "jsonb", "char", "date"),
            *("regclass", "pg_class"),
        }
    ),
)


def read(sql: str, *path: str) -> Addition | None:
    return read_addition(sql.encode(), path or ("public",), CATALOGUE)


@pytest.mark.parametrize(
    ("sql", "definitions"),
    [
        ("a int", ['a pg_catalog."int4"']),
        ("COLUMN IF NOT EXISTS a text", ['a? pg_catalog."text"']),
        ("a varchar(10) DEFAULT 'it''s' NOT NULL", ["a pg_catalog.\"varchar\"(10) DEFAULT 'it''s' NOT NULL"]),
        ("a numeric(10, 2) DEFAULT -1.5", ['a pg_catalog."numeric"(10, 2) DEFAULT -1.5']),
        ("a int DEFAULT '7'::int", ["a pg_catalog.\"int4\" DEFAULT '7'"]),
        ("a bool DEFAULT false NOT NULL", ['a pg_catalog."bool" DEFAULT false NOT NULL']),
        ("a text[] DEFAULT '{}'", ["a pg_catalog.\"text\"[] DEFAULT '{}'"]),
        ("a timestamptz NULL DEFAULT NULL", ['a pg_catalog."timestamptz" DEFAULT NULL']),
        ('"A b" "char", ADD b int8', ['A b pg_catalog."char"', 'b pg_catalog."int8"']),
        ("a jsonb DEFAULT '{}', ADD b bool", ["a pg_catalog.\"jsonb\" DEFAULT '{}'", 'b pg_catalog."bool"']),
    ],
)
def test_columns_are_written_anew(sql: str, definitions: list[str]) -> None:
    found = read(f"ALTER TABLE t ADD {sql}")
    assert found is not None
    assert found.table == "public.t"
    assert [
        f"{column.name}{'?' if column.missing_ok else ''} {column.definition}" for column in found.columns
    ] == definitions
    assert Addition.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    "sql",
    [
        "a serial",
        "a mood",
        "a public.text",
        "a t.x%TYPE",
        "a int NOT NULL",
        "a int NOT NULL DEFAULT NULL",
        "a int UNIQUE",
        "a int PRIMARY KEY",
        "a int REFERENCES t",
        "a int CHECK (a > 0)",
        "a int GENERATED ALWAYS AS IDENTITY",
        "a int GENERATED ALWAYS AS (1) STORED",
        'a text COLLATE "C"',
        "a text STORAGE external",
        "a timestamptz DEFAULT now()",
        "a timestamptz DEFAULT 'now'",
        "a date DEFAULT '2026-01-02'",
        "a int DEFAULT 1 + 1",
        "a int DEFAULT random()",
        "a text DEFAULT 5",
        "a text DEFAULT E'\\\\x'",
        "a int DEFAULT '7'::text",
        "a int, DROP COLUMN id",
        "CONSTRAINT c CHECK (true)",
        "a int; SELECT 1",
        "é int",
        "a int NOT NULL NULL DEFAULT 1",
        "a int NULL NOT NULL DEFAULT 1",
        "a int DEFAULT 1 NOT NULL NO INHERIT",
        "a int DEFAULT 1_000",
        "a int DEFAULT 0x10",
        "a varchar(1_0)",
        "a regclass",
        "a pg_class",
        "a int, ADD a int",
        "a int, ADD IF NOT EXISTS a int",
    ],
)
def test_anything_else_is_not_read(sql: str) -> None:
    assert read(f"ALTER TABLE t ADD {sql}") is None


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE part ADD a int",
        "ALTER TABLE base ADD a int",
        "ALTER TABLE parts ADD a int",
        "ALTER TABLE gone ADD a int",
        "ALTER VIEW v ALTER a SET DEFAULT 5",
        "ALTER TABLE t DROP COLUMN a",
        "CREATE INDEX i ON t (a)",
        "ALTER TABLE otherdb.public.t ADD a int",
        "ALTER TABLE",
    ],
)
def test_nor_for_any_other_table(sql: str) -> None:
    assert read(sql) is None


def test_names_are_those_of_the_search_path() -> None:
    assert (found := read("ALTER TABLE t ADD a int", "app", "public")) is not None
    assert (found.table, found.written, found.path) == ("app.t", '"t"', ("app", "public"))
    assert (found := read('ALTER TABLE ONLY "Odd" ADD a int')) is not None
    assert (found.table, found.written) == ("public.Odd", '"Odd"')
    assert read("ALTER TABLE t ADD a int", "public", "pg_catalog") is None  # int may be another one there
