"""Gives the service's roles the same rights at its own database as they have on the shared one.

Roles belong to a whole cluster, so those that the target lacks are created, with the password they have:
its SCRAM verifier if we may read it, else one made from the configured password. Nothing is taken away.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from scramp import ScramMechanism

from pgshunt.config.secret import Secret
from pgshunt.migration.hidden import run_hidden
from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literals, quoted, relation

# A table's owner becomes a grantee like others: the copies belong to the control role. NULL means the
# default.
_TABLE_GRANTS: Final = """
SELECT n.nspname || '.' || c.relname, c.relkind::text, coalesce(r.rolname, 'public'), a.privilege_type,
       NULL::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     CROSS JOIN aclexplode(coalesce(
         c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))) a
     LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE (n.nspname || '.' || c.relname = ANY ({tables}) OR c.relkind = 'S' AND EXISTS (
        SELECT FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
             JOIN pg_namespace tn ON tn.oid = t.relnamespace
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
          AND tn.nspname || '.' || t.relname = ANY ({tables})))
UNION ALL
SELECT n.nspname || '.' || c.relname, c.relkind::text, coalesce(r.rolname, 'public'), a.privilege_type,
       col.attname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute col ON col.attrelid = c.oid
     CROSS JOIN aclexplode(col.attacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE n.nspname || '.' || c.relname = ANY ({tables})
"""

# What a role has by way of others counts; a role that only the other server knows is nobody's here.
_REFUSED: Final = """
SELECT given.place
FROM unnest({relations}, {roles}, {columns}) WITH ORDINALITY AS given (relation, role, col, place)
     JOIN pg_namespace n ON n.nspname = split_part(given.relation, '.', 1)
     JOIN pg_class c ON c.relnamespace = n.oid AND n.nspname || '.' || c.relname = given.relation
     LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = given.col
WHERE (given.role = 'public' OR EXISTS (SELECT FROM pg_roles WHERE rolname = given.role))
  AND NOT CASE WHEN given.col = '' THEN has_table_privilege(given.role::name, c.oid, 'SELECT')
               WHEN a.attnum IS NULL THEN true
               ELSE has_column_privilege(given.role::name, c.oid, a.attnum, 'SELECT') END
ORDER BY 1
"""

# Down from who has rights to the logins that have them as members, and from all of these up to their groups.
# Since 16 a membership may give less (those that CREATEROLE makes give only ADMIN): it is left out.
_GROUPS: Final = """
WITH RECURSIVE membership AS (
    SELECT roleid, member FROM pg_auth_members m
    WHERE coalesce(to_jsonb(m) ->> 'inherit_option', 'true') = 'true'
      AND coalesce(to_jsonb(m) ->> 'set_option', 'true') = 'true'
), entitled AS (
    SELECT oid FROM pg_roles WHERE rolname = ANY ({grantees})
    UNION SELECT m.member FROM membership m JOIN entitled ON m.roleid = entitled.oid
), wanted AS (
    SELECT oid FROM pg_roles
    WHERE rolname = ANY ({grantees} || {users}) OR rolcanlogin AND oid IN (SELECT oid FROM entitled)
    UNION SELECT m.roleid FROM membership m JOIN wanted ON m.member = wanted.oid
)
SELECT r.rolname::text, r.rolcanlogin, r.rolsuper, r.rolinherit,
       ARRAY(SELECT g.rolname::text FROM membership m JOIN pg_roles g ON g.oid = m.roleid
             WHERE m.member = r.oid),
       EXISTS (SELECT FROM entitled WHERE entitled.oid = r.oid), rolname = ANY ({grantees} || {users})
FROM wanted JOIN pg_roles r USING (oid)
"""

# PUBLIC's right is that of a role which is not there yet.
_ADMISSION: Final = """
SELECT n.name, r.oid IS NOT NULL,
       coalesce(has_database_privilege(r.oid, d.oid, 'CONNECT'),
                EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba)))
                        WHERE grantee = 0 AND privilege_type = 'CONNECT')),
       coalesce(r.rolcanlogin AND (r.rolvaliduntil >= now()) IS NOT FALSE, true),
       coalesce(r.rolsuper OR pg_has_role(r.oid, 'pg_read_all_data', 'USAGE'), false)
FROM unnest({names}) AS n(name) LEFT JOIN pg_roles r ON r.rolname = n.name
     CROSS JOIN pg_database d
WHERE d.datname = current_database()
"""

_MEMBERSHIPS: Final = """
SELECT r.rolname::text, g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
     JOIN pg_roles r ON r.oid = m.member
"""


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the shared cluster.

    `verifier`: pg_authid.rolpassword, empty if there is none or we may not see it. `has_rights`: on what is
    copied, itself or as a member of one that has them. `is_named`: has them itself, or is a user of the
    service: the others may be people who never come through the proxy.
    """

    name: str
    login: bool
    superuser: bool
    inherit: bool
    groups: tuple[str, ...]
    verifier: str
    has_rights: bool = True
    is_named: bool = True


@dataclass(frozen=True, slots=True)
class Admission:
    """What a login may do at a database; one that is not there yet, what PUBLIC may."""

    exists: bool
    may_connect: bool
    may_log_in: bool
    reads_all: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """One right on a table or sequence; `column` None means all of it. `role` "public" is everybody."""

    relation: str
    is_sequence: bool
    role: str
    privilege: str
    column: str | None

    def sql(self) -> str:
        """The statement that gives it."""
        columns = f" ({quoted(self.column)})" if self.column else ""
        kind = "SEQUENCE" if self.is_sequence else "TABLE"
        return f"GRANT {self.privilege}{columns} ON {kind} {relation(self.relation)} TO {_grantee(self.role)}"


def read_grants(link: Link, tables: Sequence[str]) -> list[Grant]:
    """The rights on these tables and their own sequences. Raises ServerError."""
    # MAINTAIN came with 17, and nobody needs it to use a copy.
    return [
        Grant(name, relkind == "S", role, privilege, column)
        for name, relkind, role, privilege, column in link.rows(_TABLE_GRANTS.format(tables=literals(tables)))
        if privilege != "MAINTAIN"
    ]


def read_refused(link: Link, grants: Sequence[Grant]) -> list[Grant]:
    """Those grants to read a table that another database gives and this one does not. Raises ServerError."""
    reading = [grant for grant in grants if grant.privilege == "SELECT" and not grant.is_sequence]
    asked = _REFUSED.format(
        relations=literals(grant.relation for grant in reading),
        roles=literals(grant.role for grant in reading),
        columns=literals(grant.column or "" for grant in reading),
    )
    return [reading[place - 1] for (place,) in link.rows(asked)]


def read_roles(link: Link, grantees: Iterable[str], users: Iterable[str] = ()) -> dict[str, Role]:
    """Those that have rights, the logins that have them as their members, and these users; with the groups
    they belong to, directly or not. Raises ServerError.
    """
    rows = link.rows(_GROUPS.format(grantees=literals(sorted(grantees)), users=literals(sorted(users))))
    verifiers: dict[str, str] = {}
    if link.value("SELECT has_column_privilege('pg_authid', 'rolpassword', 'SELECT')"):
        wanted = literals(name for name, *_ in rows)
        verifiers = dict(
            link.rows(
                "SELECT rolname::text, coalesce(rolpassword, '') FROM pg_authid "
                f"WHERE rolname = ANY ({wanted})"
            )
        )
    return {
        name: Role(
            name, login, superuser, inherit, tuple(groups), verifiers.get(name, ""), has_rights, is_named
        )
        for name, login, superuser, inherit, groups, has_rights, is_named in rows
    }


def roles_present(link: Link) -> frozenset[str]:
    return frozenset(name for (name,) in link.rows("SELECT rolname::text FROM pg_roles"))


def read_memberships(link: Link) -> frozenset[tuple[str, str]]:
    """Of all roles: member, group. Raises ServerError."""
    return frozenset((member, group) for member, group in link.rows(_MEMBERSHIPS))


def memberships_lacking(
    roles: Mapping[str, Role], present: frozenset[str], held: frozenset[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Memberships by which a role has its rights, and that it will not be given, since one of the two is
    there already and may have rights on what else that server holds. Pure.
    """
    return tuple(
        (role.name, group)
        for role in roles.values()
        for group in role.groups
        if roles[group].has_rights
        and (role.name, group) not in held
        and (role.name in present or group in present or roles[group].superuser)
    )


def roles_without_password(
    roles: Mapping[str, Role], present: frozenset[str], passwords: Mapping[str, Secret]
) -> tuple[str, ...]:
    """Login roles that the target lacks and that we could only create locked."""
    return tuple(
        role.name
        for role in roles.values()
        if role.login and not role.verifier and role.name not in present and role.name not in passwords
    )


def read_admissions(link: Link, names: Iterable[str]) -> dict[str, Admission]:
    """Of every name, also of those that are no roles here. Raises ServerError."""
    rows = link.rows(_ADMISSION.format(names=literals(sorted(names))))
    return {name: Admission(*found) for name, *found in rows}


def shut_out(
    roles: Mapping[str, Role],
    users: Collection[str],
    source: Mapping[str, Admission],
    target: Mapping[str, Admission],
) -> dict[str, tuple[str, str]]:
    """Logins that the shared database admits and the service's own would not, or, of `users`, without rights;
    each with what is wrong and what to do there. Pure.
    """
    found = {}
    for role in roles.values():
        here, there = target[role.name], source[role.name]
        if not (role.login and there.may_log_in and there.may_connect):
            continue
        name = quoted(role.name)
        if not here.may_log_in:
            found[role.name] = "may not log in", f"ALTER ROLE {name} LOGIN VALID UNTIL 'infinity'"
        elif not here.may_connect:
            found[role.name] = "may not connect", f"GRANT CONNECT ON DATABASE … TO {name}, or to PUBLIC"
        elif role.name in users and there.reads_all and _has_none(role, here):
            found[role.name] = (
                "would have no rights on the tables, which it reads at the shared database without any",
                f"CREATE ROLE {name} LOGIN … if it is missing, and GRANT pg_read_all_data TO {name}",
            )
    return found


def _has_none(role: Role, here: Admission) -> bool:
    """Whether it would read by no right: it is no superuser when it is made, but has its groups."""
    return not role.has_rights and not here.reads_all and (here.exists or role.superuser)


def create_roles(
    link: Link,
    roles: Mapping[str, Role],
    passwords: Mapping[str, Secret],
    settings: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Creates those that are missing, with their memberships and the statements that are their `settings`.

    A superuser is created as an ordinary role. Who is there already is left as it is, and no group that is
    there gets members: what else it may do on that server is nothing we know. A login whose password nobody
    can tell is left out.
    """
    present = roles_present(link)
    locked = roles_without_password(roles, present, passwords)
    missing = {name: role for name, role in roles.items() if name not in present and name not in locked}
    with link.transaction():
        for role in missing.values():
            _create(link, role, passwords.get(role.name))
        for role in missing.values():
            for group in role.groups:
                if group in missing and not missing[group].superuser:
                    link.rows(f"GRANT {quoted(group)} TO {quoted(role.name)}")
        for role in missing.values():
            for statement in settings.get(role.name, ()):
                run_hidden(link, "%s", statement)


def give(link: Link, grants: Sequence[Grant]) -> None:
    """Gives the rights whose relation and role exist here, and the use of their schemas.

    Raises ServerError.
    """
    known = roles_present(link) | {"public"}
    relations = {
        name
        for (name,) in link.rows(
            "SELECT n.nspname || '.' || c.relname "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE n.nspname || '.' || c.relname = ANY ({literals({grant.relation for grant in grants})})"
        )
    }
    usable = [grant for grant in grants if grant.role in known and grant.relation in relations]
    schemas = {(grant.relation.partition(".")[0], grant.role) for grant in usable}
    with link.transaction():
        for schema, role in sorted(schemas):
            link.rows(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {_grantee(role)}")
        for grant in usable:
            link.rows(grant.sql())


def _create(link: Link, role: Role, password: Secret | None) -> None:
    verifier = role.verifier or (_verifier(password.reveal()) if password else "")
    login, inherit = "LOGIN" if role.login else "NOLOGIN", "INHERIT" if role.inherit else "NOINHERIT"
    statement = f"CREATE ROLE {quoted(role.name)} {login} {inherit}"
    if verifier:
        run_hidden(link, f"{statement.replace('%', '%%')} PASSWORD %L", verifier)
    else:
        link.rows(statement)


def _verifier(password: str) -> str:
    """The password as pg_authid keeps it, so that it never stands in a server's log."""
    salt, stored_key, server_key, iterations = ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def _grantee(role: str) -> str:
    return "PUBLIC" if role == "public" else quoted(role)
