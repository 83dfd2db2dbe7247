"""What PostgreSQL did while a statement ran, by the locks its transaction holds: every relation it opened is
among them, with a mode that tells reading (AccessShare) from writing.

`Observer` looks from a connection of its own, so that nothing of the looking is seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from pgshunt.routing.names import qualified
from pgshunt.routing.table import Catalogue

READ = "AccessShareLock"
LOCK = "RowShareLock"
LOOK_MS_MAX = 1000
"""A statement that locks the system catalogue itself keeps everybody from looking."""

LOOKED_AT = frozenset({"pg_catalog.pg_class", "pg_catalog.pg_namespace"})
"""Where names are looked up from within the session."""

_LOCKS = """
SELECT l.relation::bigint, l.mode, n.nspname, c.relname, c.relkind::text
FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.pid = %s AND l.locktype = 'relation' AND l.mode <> 'SIReadLock'
"""

_RELATIONS = r"""
SELECT n.nspname, c.relname, c.relkind::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND n.nspname NOT LIKE 'pg\_temp\_%' AND n.nspname NOT LIKE 'pg\_toast\_temp\_%'
"""

_SAFE_FUNCTIONS = """
SELECT proname::text FROM pg_proc
GROUP BY proname
HAVING bool_and(provolatile IN ('i', 's') AND pronamespace = 'pg_catalog'::regnamespace)
"""

# Whoever names the first relation may find the second one opened: a view's tables, partitions and children,
# what foreign keys refer to, an index's table, a column's sequence, a policy's tables.
_BEHIND = """
SELECT r.ev_class, d.refobjid FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
  WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
UNION SELECT inhparent, inhrelid FROM pg_inherits
UNION SELECT inhrelid, inhparent FROM pg_inherits
UNION SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f'
UNION SELECT confrelid, conrelid FROM pg_constraint WHERE contype = 'f'
UNION SELECT indexrelid, indrelid FROM pg_index
UNION SELECT a.adrelid, d.refobjid FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
  WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
UNION SELECT refobjid, objid FROM pg_depend
  WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
UNION SELECT objid, refobjid FROM pg_depend
  WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass
UNION SELECT a.attrelid, d.refobjid FROM pg_depend d JOIN pg_attribute a ON a.atttypid = d.objid
  WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'n'
UNION SELECT p.polrelid, d.refobjid FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
  WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_class'::regclass
"""

# Functions may open anything: those of triggers, and those that views, defaults, indexes and policies call.
_OPAQUE = """
SELECT tgrelid FROM pg_trigger WHERE NOT tgisinternal
UNION SELECT evtfoid FROM pg_event_trigger
UNION SELECT r.ev_class FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
  WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
UNION SELECT c.conrelid FROM pg_depend d JOIN pg_constraint c ON c.oid = d.objid
  WHERE d.classid = 'pg_constraint'::regclass AND d.refclassid = 'pg_proc'::regclass
UNION SELECT a.adrelid FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
  WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_proc'::regclass
UNION SELECT i.indrelid FROM pg_depend d JOIN pg_index i ON i.indexrelid = d.objid
  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_proc'::regclass
UNION SELECT p.polrelid FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
  WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass
"""


@dataclass(frozen=True, slots=True)
class Observed:
    """`modes`: lock modes by relation; one that was renamed has two names. `wrote`: a transaction id was
    given. `held`: what was locked before, so that it cannot be seen whether it was opened again. `unknown`:
    what the transaction has made before, which nobody else can see.
    """

    modes: Mapping[frozenset[str], frozenset[str]]
    wrote: bool = False
    held: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def without(self, before: Observed) -> Observed:
        """What is seen of the last statement of a transaction. Looking `before` has left locks, too."""
        new = {
            names: modes - before.modes.get(names, frozenset())
            for names, modes in self.modes.items()
            if not names & LOOKED_AT
        }
        wrote = self.wrote and not before.wrote
        held = frozenset(name for names in before.modes for name in names)
        return Observed({names: modes for names, modes in new.items() if modes}, wrote, held, before.unknown)


class Unseen(Exception):
    """Nobody may look now."""


class Observer:
    """Watches one server process."""

    def __init__(self, dsn: str, pid: int) -> None:
        self.pid = pid
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(f"SET statement_timeout = {LOOK_MS_MAX}")

    def close(self) -> None:
        self.connection.close()

    def locks(self) -> list[tuple[int, str, tuple[str, str, str] | None]]:
        """Oid, mode, and schema, name and kind of each relation that is locked; the last as committed, None
        where it is not. Raises Unseen.
        """
        rows = self._rows(_LOCKS, (self.pid,))
        return [(oid, mode, (schema, name, kind) if name else None) for oid, mode, schema, name, kind in rows]

    def catalogue(self) -> Catalogue:
        """What the data plane would know of this database. Raises Unseen."""
        relations = {qualified(schema, name): kind for schema, name, kind in self._rows(_RELATIONS)}
        safe = frozenset(name for (name,) in self._rows(_SAFE_FUNCTIONS))
        return Catalogue(version=1, relations=relations, safe_functions=safe)

    def behind(self) -> Behind:
        """Raises Unseen."""
        names = {
            oid: qualified("pg_temp" if schema.startswith("pg_temp_") else schema, name)
            for oid, schema, name in self._rows(
                "SELECT c.oid::bigint, n.nspname, c.relname FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
            )
        }
        edges: dict[str, set[str]] = {}
        for above, below in self._rows(_BEHIND):
            if above in names and below in names:
                edges.setdefault(names[above], set()).add(names[below])
        opaque = frozenset(names[oid] for (oid,) in self._rows(_OPAQUE) if oid in names)
        bare: dict[str, set[str]] = {}
        for name in names.values():
            bare.setdefault(name.rpartition(".")[2], set()).add(name)
        return Behind(edges, opaque, bare)

    def _rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        try:
            return self.connection.execute(sql, parameters or None).fetchall()
        except psycopg.Error as error:
            raise Unseen from error


@dataclass(frozen=True, slots=True)
class Behind:
    """What naming a relation may open besides. `opaque` are those at which a function runs."""

    edges: Mapping[str, set[str]]
    opaque: frozenset[str]
    bare: Mapping[str, set[str]]

    def joined(self, later: Behind) -> Behind:
        """Both of what held before and what holds now."""

        def both(first: Mapping[str, set[str]], second: Mapping[str, set[str]]) -> dict[str, set[str]]:
            return {name: first.get(name, set()) | second.get(name, set()) for name in {*first, *second}}

        return Behind(both(self.edges, later.edges), self.opaque | later.opaque, both(self.bare, later.bare))

    def reach(self, names: Collection[str]) -> frozenset[str]:
        seen = set(names)
        for name in names:
            if "." not in name:
                seen |= self.bare.get(name, set())
        todo = list(seen)
        while todo:
            more = self.edges.get(todo.pop(), set()) - seen
            seen |= more
            todo.extend(more)
        return frozenset(seen)
