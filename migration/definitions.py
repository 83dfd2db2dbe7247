"""Finds the tables of a service that are not defined alike in both databases: what is read at such a copy has
other columns than it should.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literals

Columns = tuple[tuple[str, str], ...]
"""In order: name, and type with what else a copy must have alike."""
Definitions = Mapping[str, Mapping[str, Columns]]
"""By table: the columns of it and of its partitions, by name; empty for a table that is not there."""

_COLUMNS: Final = """
SELECT n.nspname || '.' || c.relname, tn.nspname || '.' || t.relname,
       array_agg(a.attname::text ORDER BY a.attnum),
       array_agg(format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
                 || CASE WHEN a.attgenerated <> '' THEN ' generated' ELSE '' END ORDER BY a.attnum)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
     LATERAL (SELECT c.oid AS relid UNION SELECT relid FROM pg_partition_tree(c.oid)) AS tree
     JOIN pg_class t ON t.oid = tree.relid JOIN pg_namespace tn ON tn.oid = t.relnamespace
     LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname || '.' || c.relname = ANY ({tables})
GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """`tables`: one of the service's with its partitions, none of which may be read at the copy; `how` is a
    clause, which ends with where it has to be mended.
    """

    tables: frozenset[str]
    how: str


def read_definitions(link: Link, tables: Sequence[str]) -> Definitions:
    """Raises ServerError."""
    found: dict[str, dict[str, Columns]] = {table: {} for table in tables}
    for table, part, names, kinds in link.rows(_COLUMNS.format(tables=literals(tables))):
        found[table][part] = tuple((name, kind) for name, kind in zip(names, kinds, strict=True) if name)
    return found


def differences(shared: Definitions, own: Definitions, place: str) -> tuple[Difference, ...]:
    """The tables that differ, with how they first do; `place` is the name of the own database's endpoint."""
    return tuple(
        Difference(
            frozenset({table, *shared[table], *own[table]}), next(_ways(shared[table], own[table], place))
        )
        for table in shared
        if shared[table] != own[table]
    )


def _ways(shared: Mapping[str, Columns], own: Mapping[str, Columns], place: str) -> Iterator[str]:
    for part in sorted(shared.keys() | own.keys()):
        if part not in own:
            yield f"{part} is missing at {place}"
        elif part not in shared:
            yield f"{part} is still at {place}, but not, or as no partition, at the shared database"
        elif shared[part] != own[part]:
            yield _way(part, shared[part], own[part], place)


def _way(part: str, shared: Columns, own: Columns, place: str) -> str:
    there, here = dict(shared), dict(own)
    if lacking := [name for name in there if name not in here]:
        return f"{part} lacks {', '.join(lacking)} at {place}"
    if left := [name for name in here if name not in there]:
        return f"{part} still has {', '.join(left)} at {place}"
    for name, kind in there.items():
        if here[name] != kind:
            return f"{part}.{name} is {kind} at the shared database and {here[name]} at {place}"
    return f"the columns of {part} stand in another order at {place}"
