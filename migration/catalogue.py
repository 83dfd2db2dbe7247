"""Reads what a database says about itself: for classifying statements, and for checking what can move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from pgshunt.migration.code import read_code
from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literals
from pgshunt.routing.effects import NO_CODE, Code
from pgshunt.routing.names import qualified
from pgshunt.routing.table import Catalogue

LOCK_WAIT_MS: Final = 1000

DEFAULT_SEARCH_PATH: Final = '"$user", public'

# pg_toast holds nothing a statement can name; the temporary schemas belong to other sessions.
_RELATIONS: Final = r"""
SELECT n.nspname::text, c.relname::text, c.relkind::text,
       c.relispartition OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                                   AND d.objid = c.oid AND d.deptype = 'e')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND n.nspname NOT LIKE 'pg\_temp\_%' AND n.nspname NOT LIKE 'pg\_toast\_temp\_%'
"""

# By name, because the statement's text gives no argument types: one volatile overload spoils the name. So
# does an overload outside pg_catalog, which a search_path may put first, and one that was put there by
# somebody: what is below FirstNormalObjectId (access/transam.h) came with the server.
_SAFE_FUNCTIONS: Final = """
SELECT proname::text FROM pg_proc
GROUP BY proname
HAVING bool_and(provolatile IN ('i', 's') AND pronamespace = 'pg_catalog'::regnamespace AND oid < 16384)
"""

_TYPES: Final = """
SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype <> 'c'
"""

# Rows tell a domain's base type. What is behind FirstNormalObjectId (access/transam.h) was made by somebody.
_OWN_TYPES: Final = r"""
WITH RECURSIVE made AS (
  SELECT oid, typtype, typbasetype FROM pg_type WHERE oid >= 16384),
shown AS (
  SELECT oid, oid AS base, typtype, typbasetype FROM made
  UNION ALL
  SELECT shown.oid, shown.typbasetype, coalesce(made.typtype, 'b'), coalesce(made.typbasetype, 0)
  FROM shown LEFT JOIN made ON made.oid = shown.typbasetype WHERE shown.typtype = 'd')
SELECT DISTINCT n.nspname || '.' || c.relname
FROM shown JOIN pg_attribute a ON a.atttypid = shown.oid JOIN pg_class c ON c.oid = a.attrelid
     JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE shown.typtype <> 'd' AND shown.base >= 16384 AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
"""

# Indexes, and the sequences of columns, with their tables.
_BELONGS: Final = """
SELECT pn.nspname::text, p.relname::text, n.nspname::text, c.relname::text
FROM (SELECT indexrelid, indrelid FROM pg_index
      UNION ALL SELECT objid, refobjid FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND refobjsubid > 0
                  AND deptype IN ('a', 'i')) AS belonging(part, whole)
     JOIN pg_class p ON p.oid = part JOIN pg_namespace pn ON pn.oid = p.relnamespace
     JOIN pg_class c ON c.oid = whole JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.relkind IN ('i', 'I', 'S') AND c.oid >= 16384 AND n.nspname <> 'pg_toast'
      AND c.relpersistence <> 't'
"""

# Of what is made of a type: arrays, domains, ranges, and the rows of composite types and tables.
_TYPED: Final = r"""
WITH RECURSIVE within(part, whole) AS (
  SELECT typelem, oid FROM pg_type WHERE typtype = 'b' AND typcategory = 'A'
  UNION ALL SELECT typbasetype, oid FROM pg_type WHERE typtype = 'd'
  UNION ALL SELECT rngsubtype, rngtypid FROM pg_range
  UNION ALL SELECT rngtypid, rngmultitypid FROM pg_range
  UNION ALL SELECT a.atttypid, c.reltype FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            WHERE c.relkind IN ('c', 'r', 'p') AND c.relpersistence <> 't' AND a.attnum > 0
              AND NOT a.attisdropped),
reached(made, type) AS (
  SELECT t.oid, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  WHERE t.oid >= 16384 AND NOT (typtype = 'b' AND typcategory = 'A') AND n.nspname NOT LIKE 'pg\_temp\_%'
  UNION SELECT made, whole FROM reached JOIN within ON part = type)
SELECT DISTINCT tn.nspname::text, t.typname::text, n.nspname::text, c.relname::text
FROM reached JOIN pg_type t ON t.oid = made JOIN pg_namespace tn ON tn.oid = t.typnamespace
     JOIN pg_attribute a ON a.atttypid = type JOIN pg_class c ON c.oid = a.attrelid
     JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND a.attnum > 0 AND NOT a.attisdropped
"""

# Children with several parents go with the first of them.
_PARENTS: Final = """
SELECT n.nspname::text, c.relname::text, pn.nspname::text, p.relname::text
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE i.inhseqno = 1 AND c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
"""

_SEARCH_PATH: Final = """
SELECT substring(setting FROM length('search_path=') + 1)
FROM pg_db_role_setting, unnest(setconfig) AS setting
WHERE setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND setting LIKE 'search_path=%'
"""

_DEFAULTS: Final = """
SELECT coalesce(r.rolname::text, ''),
       md5(string_agg(s.setdatabase::text || s.setconfig::text, ',' ORDER BY s.setdatabase))
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
GROUP BY 1
"""

# A role's setting in this database goes before its setting in all of them.
_SEARCH_PATH_OF: Final = r"""
SELECT coalesce((SELECT substring(setting FROM length('search_path=') + 1)
                 FROM pg_db_role_setting, unnest(setconfig) AS setting
                 WHERE setrole = r.oid AND setting LIKE 'search\_path=%'
                   AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                 ORDER BY setdatabase DESC LIMIT 1), '')
FROM pg_roles r WHERE rolname = :user
"""

# What the server's own files say, unless something is set for the role we are.
_RESET_PATH: Final = """
SELECT reset_val FROM pg_settings
WHERE name = 'search_path' AND NOT EXISTS (
  SELECT FROM pg_db_role_setting, unnest(setconfig) AS setting
  WHERE setrole = (SELECT oid FROM pg_roles WHERE rolname = session_user)
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND setting LIKE 'search_path=%')
"""

_TABLES: Final = """
SELECT n.nspname || '.' || c.relname, c.relkind::text, c.relreplident::text, c.relpersistence::text,
       c.relrowsecurity,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident),
       ARRAY(SELECT tgname::text FROM pg_trigger t
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') ORDER BY 1),
       ARRAY(SELECT k.conname::text || '>' || rn.nspname || '.' || r.relname
             FROM pg_constraint k JOIN pg_class r ON r.oid = k.confrelid
                  JOIN pg_namespace rn ON rn.oid = r.relnamespace
             WHERE k.conrelid = c.oid AND k.contype = 'f' ORDER BY 1),
       pg_table_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY ({tables})
"""

_COLUMNS: Final = """
SELECT n.nspname || '.' || c.relname, a.attname::text,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
         || CASE WHEN a.attgenerated <> '' THEN ' generated' ELSE '' END
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE a.attnum > 0 AND NOT a.attisdropped AND n.nspname || '.' || c.relname = ANY ({tables})
ORDER BY 1, a.attnum
"""

# One index a table, the primary key if there is one; its columns in the index's order.
_KEYS: Final = """
SELECT k.name, a.attname::text,
       (SELECT quote_ident(tn.nspname) || '.' || quote_ident(t.typname) FROM pg_type t
        JOIN pg_namespace tn ON tn.oid = t.typnamespace WHERE t.oid = a.atttypid)
FROM (SELECT DISTINCT ON (1) n.nspname || '.' || c.relname AS name, i.indrelid, i.indkey::int2[] AS columns
      FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE (i.indisprimary OR i.indisreplident) AND n.nspname || '.' || c.relname = ANY ({tables})
      ORDER BY 1, i.indisprimary DESC) k,
     unnest(k.columns) WITH ORDINALITY AS place(attnum, number)
     JOIN pg_attribute a ON a.attnum = place.attnum
WHERE a.attrelid = k.indrelid
ORDER BY 1, place.number
"""


@dataclass(frozen=True, slots=True)
class Table:
    """What decides whether a table can be copied and kept in step.

    `foreign_keys`: name → referenced table.
    """

    name: str
    relkind: str
    replica_identity: str  # pg_class.relreplident: d default, n nothing, f full, i index
    persistence: str
    row_security: bool
    has_primary_key: bool
    has_identity_index: bool
    always_triggers: tuple[str, ...]
    foreign_keys: tuple[tuple[str, str], ...]
    size_bytes: int

    @property
    def is_replicable(self) -> bool:
        """Whether UPDATE and DELETE can be published; if not, they fail once the table is published."""
        match self.replica_identity:
            case "d":
                return self.has_primary_key
            case "i":
                return self.has_identity_index
            case identity:
                return identity == "f"


def read_catalogue(
    link: Link, version: int, before: Code = NO_CODE, definitions: tuple[int, ...] = ()
) -> Catalogue:
    """The catalogue of the shared database, numbered `version`. Raises ServerError.

    `before` is its code as it was read last. `definitions` is what the catalogue says of itself.
    """
    with link.transaction("ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        # To print a view's definition takes a lock on its tables, which a long ALTER TABLE does not share.
        link.rows(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
        named = read_relations(link)
        typed: dict[str, frozenset[str]] = {}
        for schema, name, *table in link.rows(_TYPED):
            kind = qualified(schema, name)
            typed[kind] = typed.get(kind, frozenset()) | {qualified(*table)}
        catalogue = replace(
            named,
            version=version,
            safe_functions=frozenset(name for (name,) in link.rows(_SAFE_FUNCTIONS)),
            search_path=link.value(_SEARCH_PATH) or link.value(_RESET_PATH) or DEFAULT_SEARCH_PATH,
            types=frozenset(name for (name,) in link.rows(_TYPES)),
            own_types=frozenset(name for (name,) in link.rows(_OWN_TYPES)),
            belongs=MappingProxyType(
                {qualified(*row[:2]): qualified(*row[2:]) for row in link.rows(_BELONGS)}
            ),
            typed=MappingProxyType(typed),
            definitions=definitions,
            parents=MappingProxyType(
                {qualified(*names[:2]): qualified(*names[2:]) for names in link.rows(_PARENTS)}
            ),
            defaults=MappingProxyType(dict(link.rows(_DEFAULTS))),
        )
        return replace(catalogue, code=read_code(link, catalogue, before))


def read_search_path(link: Link, user: str) -> str | None:
    """What the sessions of a role begin with, as SHOW prints it; empty if it is what the database has for
    everybody, None if there is no such role. Raises ServerError.
    """
    found: str | None = link.value(_SEARCH_PATH_OF, user=user)
    return found


def read_relations(link: Link) -> Catalogue:
    """No more than what relations there are, and which are parts of others. Raises ServerError."""
    found = [
        (qualified(schema, name), kind, is_part) for schema, name, kind, is_part in link.rows(_RELATIONS)
    ]
    return Catalogue(
        relations=MappingProxyType({name: kind for name, kind, _ in found}),
        parts=frozenset(name for name, _, is_part in found if is_part),
    )


def read_tables(link: Link, names: Sequence[str]) -> dict[str, Table]:
    """The tables of these names that exist. Raises ServerError."""
    tables = {}
    for name, relkind, identity, persistence, secured, primary, index, triggers, keys, size in link.rows(
        _TABLES.format(tables=literals(names))
    ):
        foreign_keys = tuple((key, table) for key, _, table in (text.partition(">") for text in keys))
        tables[name] = Table(
            name, relkind, identity, persistence, secured, primary, index, tuple(triggers), foreign_keys, size
        )
    return tables


def read_columns(link: Link, names: Sequence[str]) -> dict[str, tuple[tuple[str, str], ...]]:
    """For each existing table its columns in order: name, and type with what else a copy must have alike."""
    columns: dict[str, tuple[tuple[str, str], ...]] = {}
    for table, column, kind in link.rows(_COLUMNS.format(tables=literals(names))):
        columns[table] = (*columns.get(table, ()), (column, kind))
    return columns


def read_keys(link: Link, names: Sequence[str]) -> dict[str, tuple[tuple[str, str], ...]]:
    """For each table that has one, the columns that identify a row, and their types as SQL names them.

    That is the primary key, else the replica identity index.
    """
    keys: dict[str, tuple[tuple[str, str], ...]] = {}
    for table, column, kind in link.rows(_KEYS.format(tables=literals(names))):
        keys[table] = (*keys.get(table, ()), (column, kind))
    return keys


def read_partitions(link: Link, names: Sequence[str]) -> tuple[str, ...]:
    """The tables and every partition below them: what really holds rows, and what a subscription names."""
    rows = link.rows(
        f"""
        SELECT DISTINCT n.nspname || '.' || c.relname
        FROM unnest({literals(names)}) AS wanted(name),
             LATERAL (SELECT w.oid FROM pg_class w JOIN pg_namespace wn ON wn.oid = w.relnamespace
                      WHERE wn.nspname || '.' || w.relname = wanted.name) AS root,
             LATERAL (SELECT root.oid AS relid UNION SELECT relid FROM pg_partition_tree(root.oid)) AS tree
             JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY 1
        """
    )
    return tuple(name for (name,) in rows)
