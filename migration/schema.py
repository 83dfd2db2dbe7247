"""Creates a service's tables, and all they need, in the service's own database.

What they need is found in pg_depend; the SQL is pg_dump's. Left out, and reported: foreign keys to tables
that do not move along. Triggers come along and stay quiet, because a subscription applies as
session_replication_role replica.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgshunt.migration.catalogue import read_columns, read_partitions
from pgshunt.migration.dump import Entry, dump_script, find_programs
from pgshunt.migration.servers import Link, Server
from pgshunt.migration.sql import literals, relations

SCRIPT_TIMEOUT_S: Final = 120.0

Address = tuple[int, int]  # catalogue and oid, as in pg_depend

# Others' tables that the control role may not read: pg_dump would fail to lock them.
_UNREADABLE: Final = """
SELECT format('"%s"."%s"', replace(nspname, '"', '""'), replace(relname, '"', '""'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind IN ('r', 'p') AND nspname !~ '^(pg_|information_schema$)'
  AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
"""

# Everything that belongs to the tables (indexes, defaults, constraints, own sequences, triggers, policies,
# extended statistics), then, again and again, what any of that refers to. A foreign key to a table that is
# not moved is left out, so that it does not pull in its table. Built-in objects have oids below 16384
# (FirstNormalObjectId).
_CLOSURE: Final = """
WITH RECURSIVE moved AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname || '.' || c.relname = ANY ({tables})
), parts AS (
    SELECT d.classid, d.objid FROM pg_depend d JOIN moved ON d.refobjid = moved.oid
    WHERE d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      AND (d.classid IN ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_trigger'::regclass,
                         'pg_policy'::regclass, 'pg_statistic_ext'::regclass)
           OR d.classid = 'pg_class'::regclass
              AND (SELECT relkind FROM pg_class WHERE oid = d.objid) IN ('i', 'I', 'S'))
      AND NOT (d.classid = 'pg_constraint'::regclass AND EXISTS (
                   SELECT FROM pg_constraint k WHERE k.oid = d.objid AND k.contype = 'f'
                     AND k.confrelid NOT IN (SELECT oid FROM moved)))
), needed AS (
    SELECT 'pg_class'::regclass::oid AS classid, oid AS objid FROM moved
    UNION SELECT classid, objid FROM parts
    UNION SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM moved)
    UNION SELECT 'pg_proc'::regclass, unnest({functions}::oid[])
    UNION
    SELECT d.refclassid, d.refobjid
    FROM pg_depend d JOIN needed ON (d.classid, d.objid) = (needed.classid, needed.objid)
    WHERE d.refobjid >= 16384 OR d.refclassid = 'pg_extension'::regclass
)
SELECT n.classid::bigint, n.objid::bigint, i.type, i.identity,
       coalesce(s.nspname::text, ''), coalesce(c.relname::text, ''), c.relkind::text
FROM needed n CROSS JOIN pg_identify_object(n.classid, n.objid, 0) i
     LEFT JOIN pg_class c ON n.classid = 'pg_class'::regclass AND c.oid = n.objid
     LEFT JOIN pg_namespace s ON s.oid = c.relnamespace
WHERE i.identity IS NOT NULL
"""

# Functions that the bodies of others may call: pg_depend does not know them.
_FUNCTIONS: Final = """
SELECT p.oid::bigint, p.proname::text, p.prosrc FROM pg_proc p
WHERE p.oid >= 16384 AND p.prokind IN ('f', 'p')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND
  d.deptype = 'e')
"""

# What may be there already without harm: made by an earlier copy or another service's.
_PRESENT: Final = """
SELECT i.type, i.identity FROM (
    SELECT 'pg_namespace'::regclass AS classid, oid FROM pg_namespace
    UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension
    UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE oid >= 16384
    UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relkind = 'S'
) AS o, pg_identify_object(o.classid, o.oid, 0) i
"""

# Made by us, hence with the copy: functions that take or return rows of the tables, or arrays of them.
_ROUTINES_ON_ROWS: Final = """
SELECT DISTINCT p.oid::regprocedure::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_type t ON c.reltype IN (t.oid, t.typelem)
     JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = t.oid
     JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
WHERE n.nspname || '.' || c.relname = ANY ({tables}) AND p.proowner = current_user::regrole
"""

# Entries without a row of their own, whose name is that of the object they complete.
_COMPLETIONS: Final = ("SEQUENCE OWNED BY", "TABLE ATTACH", "INDEX ATTACH")


class SchemaFailed(Exception):
    """The tables cannot be created at the target; the message names what is in the way and what to do."""


@dataclass(frozen=True, slots=True)
class CopiedSchema:
    """What was done. `tables`: all created, partitions included; `dropped_foreign_keys`: "table.key →
    table"."""

    tables: tuple[str, ...]
    dropped_foreign_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Object:
    """A catalogue row; `schema`, `name`, `relkind` only for rows of pg_class."""

    address: Address
    kind: str
    identity: str
    schema: str
    name: str
    relkind: str | None


async def copy_schema(
    source: Server, target: Server, tables: Sequence[str], pg_bin: Path | None = None
) -> CopiedSchema:
    """Creates `tables` at the target in one transaction; does nothing if they are all there and alike.

    `pg_bin` is the directory of pg_dump. Raises SchemaFailed, DumpFailed, ServerError.
    """
    everything = await source.run(lambda link: read_partitions(link, tables))
    dropped = await source.run(lambda link: _foreign_keys_left_out(link, everything))
    copied = CopiedSchema(everything, dropped)
    existing = await target.run(lambda link: read_columns(link, everything))
    if existing:
        _require_alike(await source.run(lambda link: read_columns(link, everything)), existing, target)
        return copied
    needed = await source.run(lambda link: _needed(link, everything))
    _require_complete(needed, everything)
    present = await target.run(lambda link: {(kind, identity) for kind, identity in link.rows(_PRESENT)})
    missing = [found for found in needed if (found.kind, found.identity) not in present]
    programs = await find_programs(await source.run(lambda link: link.version() // 10_000), pg_bin)
    unreadable = [pattern for (pattern,) in await source.run(lambda link: link.rows(_UNREADABLE))]
    script = await dump_script(programs, source.endpoint, source.control, _chooser(missing), unreadable)
    # The script changes settings of its session for good, hence a connection of its own.
    builder = Server(target.endpoint, target.control, "schema")
    try:
        await builder.run(lambda link: _apply(link, script), SCRIPT_TIMEOUT_S)
    finally:
        await builder.close()
    return copied


def drop_copies(link: Link, tables: Sequence[str]) -> None:
    """Drops copied tables at the target, all or none; those already gone are no error.

    Functions that stand on the tables' rows go too, as they cannot be without them. What else was built on
    the tables since is not ours to drop. Raises ServerError.
    """
    if not tables:
        return
    with link.transaction():
        routines = [name for (name,) in link.rows(_ROUTINES_ON_ROWS.format(tables=literals(tables)))]
        if routines:
            link.rows(f"DROP ROUTINE {', '.join(routines)}")
        link.rows(f"DROP TABLE IF EXISTS {relations(tables)}")


def _apply(link: Link, script: str) -> None:
    with link.transaction():
        link.rows(script)


def _needed(link: Link, tables: Sequence[str]) -> list[_Object]:
    functions = {oid: (name, body) for oid, name, body in link.rows(_FUNCTIONS)}
    called: set[int] = set()
    while True:
        oids = f"ARRAY[{', '.join(map(str, sorted(called)))}]"
        rows = link.rows(_CLOSURE.format(tables=literals(tables), functions=oids))
        found = [_Object((catalogue, oid), *rest) for catalogue, oid, *rest in rows]
        more = _called(
            {thing.address[1] for thing in found if thing.kind in ("function", "procedure")}, functions
        )
        if more <= called:
            return found
        called |= more


def _called(oids: set[int], functions: Mapping[int, tuple[str, str]]) -> set[int]:
    """Functions named in the bodies of these, recognised by text: one too many does no harm."""
    words = {
        word for oid in oids if oid in functions for word in re.findall(r"\b(\w++)\s*+\(", functions[oid][1])
    }
    return {oid for oid, (name, _) in functions.items() if name in words} - oids


def _foreign_keys_left_out(link: Link, tables: Sequence[str]) -> tuple[str, ...]:
    rows = link.rows(
        f"""
        SELECT n.nspname || '.' || c.relname || '.' || k.conname || ' → ' || rn.nspname || '.' || r.relname
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid =
        c.relnamespace
             JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
        WHERE k.contype = 'f' AND n.nspname || '.' || c.relname = ANY ({literals(tables)})
          AND NOT rn.nspname || '.' || r.relname = ANY ({literals(tables)})
        ORDER BY 1
        """
    )
    return tuple(text for (text,) in rows)


def _require_alike(
    wanted: Mapping[str, tuple[tuple[str, str], ...]],
    existing: Mapping[str, tuple[tuple[str, str], ...]],
    target: Server,
) -> None:
    absent = sorted(set(wanted) - set(existing))
    if absent:
        raise SchemaFailed(
            f"{target.endpoint.name} has {', '.join(sorted(existing))} but not {', '.join(absent)}: "
            "drop or rename there what is not a copy, then begin again"
        )
    for table, columns in wanted.items():
        differing = sorted({name for name, _ in set(columns) ^ set(existing[table])})
        if differing:
            raise SchemaFailed(
                f"{table} at {target.endpoint.name} differs from the shared one in {', '.join(differing)}: "
                "abandon the service and begin again, or make the columns alike"
            )


def _require_complete(needed: Sequence[_Object], tables: Sequence[str]) -> None:
    """Other tables and views may be needed by a function or a type; moving them is not for us to decide."""
    others = [
        thing.identity
        for thing in needed
        if thing.relkind in ("r", "p", "v", "m", "f") and f"{thing.schema}.{thing.name}" not in tables
    ]
    if others:
        raise SchemaFailed(
            f"the tables need {', '.join(sorted(others))}, which the service does not own: "
            "add it to `tables` or `external_refs`, or remove what refers to it"
        )


def _chooser(objects: Sequence[_Object]) -> Callable[[Entry], bool]:
    """Picks an archive's entries that are, or complete, one of the objects."""
    addresses = {thing.address for thing in objects}
    oids = {oid for _, oid in addresses}
    titles = tuple(
        f"{kind} {thing.schema} {thing.name} " for thing in objects if thing.relkind for kind in _COMPLETIONS
    )

    def choose(entry: Entry) -> bool:
        if entry.catalogue:
            return (entry.catalogue, entry.oid) in addresses
        if entry.oid:  # ROW SECURITY carries the oid of its table
            return entry.oid in oids
        return entry.title.startswith(titles)

    return choose
