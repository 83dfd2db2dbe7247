"""Reads what ties tables together in the database itself: keys, views, triggers, sequences, publications.

For `pgshunt readiness`. What pg_depend knows is exact; of functions it knows those with a body in standard
SQL (BEGIN ATOMIC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pgshunt.migration.catalogue import Table, read_tables
from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literals

# Keys of partitions are their parents' (conparentid).
_FOREIGN_KEYS: Final = """
SELECT k.conname::text, cn.nspname || '.' || c.relname, pn.nspname || '.' || p.relname
FROM pg_constraint k
     JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
     JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0
  AND (cn.nspname || '.' || c.relname = ANY ({tables}) OR pn.nspname || '.' || p.relname = ANY ({tables}))
ORDER BY 2, 1
"""

# Views may stand on views, so what they name is followed down to tables. A rule of a table is none of them.
_DEPENDENTS: Final = """
WITH RECURSIVE named AS (
  SELECT r.ev_class AS object, d.refobjid AS base
  FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class),
reached AS (
  SELECT object, base FROM named
  UNION SELECT reached.object, named.base FROM reached JOIN named ON named.object = reached.base),
dependent AS (
  SELECT CASE v.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' ELSE 'rule' END AS kind,
         n.nspname || '.' || v.relname AS name, reached.base,
         CASE WHEN v.relkind IN ('r', 'p') THEN v.oid END AS itself
  FROM reached JOIN pg_class v ON v.oid = reached.object JOIN pg_namespace n ON n.oid = v.relnamespace
  UNION ALL
  SELECT 'function', n.nspname || '.' || f.proname, d.refobjid, NULL
  FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
       JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = f.oid
                       AND d.refclassid = 'pg_class'::regclass
  UNION ALL
  SELECT 'policy', n.nspname || '.' || t.relname || '.' || p.polname, d.refobjid, t.oid
  FROM pg_policy p JOIN pg_class t ON t.oid = p.polrelid JOIN pg_namespace n ON n.oid = t.relnamespace
       JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                       AND d.refclassid = 'pg_class'::regclass)
SELECT kind, name, array_agg(DISTINCT bn.nspname || '.' || b.relname ORDER BY bn.nspname || '.' || b.relname)
FROM (SELECT kind, name, base FROM dependent
      UNION SELECT kind, name, itself FROM dependent WHERE itself IS NOT NULL) AS every
     JOIN pg_class b ON b.oid = every.base JOIN pg_namespace bn ON bn.oid = b.relnamespace
WHERE b.relkind IN ('r', 'p') AND bn.nspname NOT IN ('pg_catalog', 'information_schema')
GROUP BY kind, name
HAVING array_agg(bn.nspname || '.' || b.relname) && {tables} AND count(DISTINCT b.oid) > 1
ORDER BY 1, 2
"""

_SEQUENCES: Final = """
SELECT sn.nspname || '.' || s.relname,
       array_agg(DISTINCT n.nspname || '.' || t.relname ORDER BY n.nspname || '.' || t.relname)
FROM (SELECT d.refobjid AS sequence, a.adrelid AS user_of
      FROM pg_attrdef a JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid
                                        AND d.refclassid = 'pg_class'::regclass
      UNION SELECT objid, refobjid FROM pg_depend
      WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
        AND deptype IN ('a', 'i')) AS uses
     JOIN pg_class s ON s.oid = uses.sequence AND s.relkind = 'S'
     JOIN pg_namespace sn ON sn.oid = s.relnamespace
     JOIN pg_class t ON t.oid = uses.user_of JOIN pg_namespace n ON n.oid = t.relnamespace
GROUP BY 1
HAVING array_agg(n.nspname || '.' || t.relname) && {tables} AND count(DISTINCT t.oid) > 1
ORDER BY 1
"""

_TRIGGERS: Final = """
SELECT t.tgname::text, n.nspname || '.' || c.relname, fn.nspname || '.' || f.proname
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_proc f ON f.oid = t.tgfoid JOIN pg_namespace fn ON fn.oid = f.pronamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'D' AND fn.nspname <> 'pg_catalog'
  AND n.nspname || '.' || c.relname = ANY ({tables})
ORDER BY 2, 1
"""

# Our own lanes publish, too.
_PUBLICATIONS: Final = r"""
SELECT pubname::text, array_agg(schemaname || '.' || tablename ORDER BY schemaname, tablename)
FROM pg_publication_tables
WHERE schemaname || '.' || tablename = ANY ({tables}) AND pubname NOT LIKE 'pgshunt\_%'
GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A row of `child` names one of `parent`."""

    name: str
    child: str
    parent: str


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something that stands on several tables: a view, materialized view, rule, function or policy."""

    kind: str
    name: str
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trigger:
    """What runs when rows of `table` change."""

    name: str
    table: str
    function: str


@dataclass(frozen=True, slots=True)
class Couplings:
    """What touches certain tables, those in `tables`: their names and what can be copied of them.

    `sequences` maps a sequence of several tables to these; `publications` one that is not ours to those of
    the tables that it holds.
    """

    tables: Mapping[str, Table]
    foreign_keys: tuple[ForeignKey, ...] = ()
    dependents: tuple[Dependent, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    publications: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_couplings(link: Link, tables: Sequence[str]) -> Couplings:
    """One consistent look. Raises ServerError."""
    names = literals(tables)
    with link.transaction("ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        return Couplings(
            tables=read_tables(link, tables),
            foreign_keys=tuple(ForeignKey(*row) for row in link.rows(_FOREIGN_KEYS.format(tables=names))),
            dependents=tuple(
                Dependent(kind, name, tuple(on))
                for kind, name, on in link.rows(_DEPENDENTS.format(tables=names))
            ),
            triggers=tuple(Trigger(*row) for row in link.rows(_TRIGGERS.format(tables=names))),
            sequences={name: tuple(of) for name, of in link.rows(_SEQUENCES.format(tables=names))},
            publications={name: tuple(of) for name, of in link.rows(_PUBLICATIONS.format(tables=names))},
        )
