"""Reads what is to be known of a shared database before its services have names: for `pgshunt init`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pgshunt.migration.servers import Link

# Partitions go with their parents, an extension's tables with it.
_OURS: Final = r"""
    c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgshunt') AND n.nspname NOT LIKE 'pg\_%'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.deptype = 'e')
"""

_TABLES: Final = f"""
SELECT n.nspname::text, c.relname::text, c.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_index i WHERE i.indrelid = c.oid
             AND (i.indisprimary AND c.relreplident = 'd' OR i.indisreplident))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_OURS}
ORDER BY 1, 2
"""

# In the order of the columns, which is mostly that of their weight to who wrote the table.
_REFERENCES: Final = f"""
SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text,
       (SELECT bool_and(a.attnotnull) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum = ANY (k.conkey)),
       k.confdeltype = 'c'
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> k.confrelid AND NOT r.relispartition AND {_OURS}
ORDER BY 1, 2, k.conkey
"""

# What a login may by itself or by its groups. What it may only as a member of another login is that one's.
_WRITERS: Final = f"""
WITH RECURSIVE granted AS (
    SELECT oid AS login, oid AS role FROM pg_roles WHERE rolcanlogin
    UNION
    SELECT g.login, m.roleid
    FROM granted g JOIN pg_auth_members m ON m.member = g.role JOIN pg_roles r ON r.oid = m.roleid
    WHERE NOT r.rolcanlogin
)
SELECT n.nspname::text, c.relname::text, u.rolname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN pg_roles u
WHERE u.rolcanlogin AND NOT u.rolsuper AND u.rolname NOT LIKE 'pg\\_%'
  AND has_table_privilege(u.oid, c.oid, 'INSERT, UPDATE, DELETE')
  AND EXISTS (
      SELECT FROM granted g
      WHERE g.login = u.oid AND (
          g.role IN (c.relowner, 'pg_write_all_data'::regrole)
          OR EXISTS (SELECT FROM aclexplode(c.relacl) a
                     WHERE a.grantee IN (g.role, 0) AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE'))))
  AND {_OURS}
ORDER BY 1, 2, 3
"""

# Called as README calls it, or able to do what README asks of it: replicate, and publish others' tables.
_CONTROL: Final = f"""
SELECT coalesce((
    SELECT u.rolname FROM pg_roles u
    WHERE u.rolcanlogin AND (u.rolname = 'pgshunt' OR u.rolreplication AND NOT u.rolsuper AND EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relowner <> u.oid AND pg_has_role(u.oid, c.relowner, 'USAGE') AND {_OURS}))
    ORDER BY u.rolname <> current_user, u.rolname <> 'pgshunt', u.rolname LIMIT 1), current_user)::text
"""

# What a role without pg_monitor may not see is NULL; a decoder's walsender holds a logical slot. On which
# port a standby listens its primary does not know.
_REPLICAS: Final = """
SELECT coalesce(r.client_hostname, host(r.client_addr)), r.application_name
FROM pg_stat_replication r
WHERE r.state IN ('streaming', 'catchup') AND r.client_addr IS NOT NULL
  AND r.application_name NOT IN ('pg_receivewal', 'pg_basebackup')
  AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """A table as the catalogue spells it."""

    schema: str
    table: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key. `required`: no column of it may be null; `owned`: the row goes with the one it names."""

    child: Name
    parent: Name
    required: bool
    owned: bool


@dataclass(frozen=True, slots=True)
class Replica:
    """A standby that streams from the server; `name` is what it calls itself (application_name)."""

    host: str
    name: str


@dataclass(frozen=True, slots=True)
class Survey:
    """`replicable`: tables with what identifies a row; `writers`: login roles that may write each table.

    `control`: the role that pgshunt itself seems to be given, or whoever asked; no writer. Empty: not known.
    """

    tables: tuple[Name, ...]
    replicable: frozenset[Name]
    references: tuple[Reference, ...]
    writers: dict[Name, tuple[str, ...]]
    max_connections: int
    replicas: tuple[Replica, ...] = ()
    control: str = ""


def read_survey(link: Link) -> Survey:
    """One consistent look. Raises ServerError."""
    with link.transaction("ISOLATION LEVEL REPEATABLE READ READ ONLY"):
        tables = [(Name(schema, table), replicable) for schema, table, replicable in link.rows(_TABLES)]
        references = [
            Reference(Name(*row[:2]), Name(*row[2:4]), bool(row[4]), bool(row[5]))
            for row in link.rows(_REFERENCES)
        ]
        control = str(link.value(_CONTROL))
        writers: dict[Name, tuple[str, ...]] = {}
        for schema, table, role in link.rows(_WRITERS):
            if role != control:
                name = Name(schema, table)
                writers[name] = (*writers.get(name, ()), role)
        return Survey(
            tables=tuple(name for name, _ in tables),
            replicable=frozenset(name for name, replicable in tables if replicable),
            references=tuple(references),
            writers=writers,
            max_connections=int(link.value("SELECT setting FROM pg_settings WHERE name = 'max_connections'")),
            replicas=tuple(Replica(*row) for row in link.rows(_REPLICAS)),
            control=control,
        )
