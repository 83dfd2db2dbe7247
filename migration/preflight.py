"""Asks both servers, before anything is touched, for all that would stop a move later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgshunt.migration.catalogue import Table, read_tables
from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literal, literals

VERSION_MIN, VERSION_MAX = 140_000, 190_000  # from, and up to but without

_FACTS: Final = """
SELECT json_build_object(
  'version', current_setting('server_version_num')::int,
  'wal_level', current_setting('wal_level'),
  'encoding', current_setting('server_encoding'),
  'recovery', pg_is_in_recovery(),
  'identity', (SELECT system_identifier::text FROM pg_control_system()) || '/' || current_database(),
  'slots_free', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
  'senders_free', current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
  'origins_free', coalesce(current_setting('max_active_replication_origins', true),  -- from 18
                           current_setting('max_replication_slots'))::int
                  - (SELECT count(*) FROM pg_replication_origin),
  'workers_free', current_setting('max_logical_replication_workers')::int
                  - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
  'slot', EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {name}),
  'subscribed', (SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname, s.subname), '{{}}')
                 FROM pg_subscription_rel r JOIN pg_subscription s ON s.oid = r.srsubid
                 JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace),
  'superuser', rolsuper, 'replication', rolreplication,
  'creates', has_database_privilege(current_database(), 'CREATE'),
  'grant', format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user),
  'subscriber', rolsuper OR current_setting('server_version_num')::int >= 160000
                AND pg_has_role(current_user,
                                (SELECT oid FROM pg_roles WHERE rolname = 'pg_create_subscription'), 'USAGE'),
  'not_owned', (SELECT coalesce(json_agg(n.nspname || '.' || c.relname), '[]')
                FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname || '.' || c.relname = ANY ({tables})
                  AND NOT pg_has_role(current_user, c.relowner, 'USAGE'))
)::text FROM pg_roles WHERE rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing found. `fatal`: the move does not start; else it is only told."""

    subject: str
    message: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What one server says; `settings` has the keys of the query above."""

    settings: Mapping[str, Any]
    tables: Mapping[str, Table]


def read_facts(link: Link, lane: str, tables: Sequence[str]) -> Facts:
    """What preflight needs of one server. Raises ServerError."""
    text = link.value(_FACTS.format(name=literal(lane), tables=literals(tables)))
    return Facts(json.loads(text), read_tables(link, tables))


def check(
    lane: str, tables: Sequence[str], source: Facts, target: Facts, copied: Sequence[str] = ()
) -> list[Problem]:
    """All problems at once; pure. `copied`: tables at the target that are known to be our own copies."""
    return [
        *_check_source(source, tables),
        *_check_target(lane, tables, source, target, copied),
        *(problem for table in source.tables.values() for problem in check_table(table)),
    ]


def _check_source(source: Facts, tables: Sequence[str]) -> list[Problem]:
    facts = source.settings
    found = [*_check_version("shared database", facts["version"])]
    if facts["recovery"]:
        found.append(Problem("shared database", "this is a standby", "name the primary in `shared.primary`"))
    if facts["wal_level"] != "logical":
        found.append(
            Problem(
                "shared database",
                f"wal_level is {facts['wal_level']}",
                "ALTER SYSTEM SET wal_level = 'logical', then restart the server",
            )
        )
    for key, setting in (("slots_free", "max_replication_slots"), ("senders_free", "max_wal_senders")):
        if facts[key] < 1 and not facts["slot"]:
            found.append(
                Problem("shared database", f"no {setting} left", f"raise {setting}, then restart the server")
            )
    if not (facts["superuser"] or facts["replication"]):
        found.append(
            Problem("shared database", "the control role may not replicate", "ALTER ROLE … REPLICATION")
        )
    if not facts["creates"]:
        found.append(
            Problem(
                "shared database",
                "the control role may not create there: neither the publication nor the heartbeat's schema",
                facts["grant"],
            )
        )
    if facts["not_owned"] and not facts["superuser"]:
        found.append(
            Problem(
                "shared database",
                f"the control role does not own {', '.join(facts['not_owned'])}",
                "only owners publish: grant it the owner's role",
            )
        )
    missing = sorted(set(tables) - set(source.tables))
    if missing:
        found.append(
            Problem("shared database", f"there is no {', '.join(missing)}", "correct `tables` of the service")
        )
    return found


def _check_target(
    lane: str, tables: Sequence[str], source: Facts, target: Facts, copied: Sequence[str]
) -> list[Problem]:
    facts, subject = target.settings, "own database"
    found = [*_check_version(subject, facts["version"])]
    if facts["identity"] == source.settings["identity"]:
        return [Problem(subject, "this is the shared database", "give the service a database of its own")]
    if facts["recovery"]:
        found.append(Problem(subject, "this is a standby", "name the primary of the database"))
    if facts["encoding"] != source.settings["encoding"]:
        found.append(
            Problem(
                subject,
                f"its encoding is {facts['encoding']}, the shared database has {source.settings['encoding']}",
                "create it with the same encoding",
            )
        )
    if not facts["subscriber"]:
        found.append(
            Problem(
                subject,
                "the control role may not subscribe",
                "make it superuser, or from 16 on GRANT pg_create_subscription",
            )
        )
    subscribed = facts["subscribed"]
    for key, setting in (
        ("workers_free", "max_logical_replication_workers"),
        ("origins_free", "max_replication_slots"),
    ):
        if facts[key] < 1 and lane not in subscribed.values():
            found.append(Problem(subject, f"no {setting} left", f"raise {setting}, then restart the server"))
    foreign = {table: by for table, by in subscribed.items() if table in tables and by != lane}
    found += [
        Problem(subject, f"{table} is already filled by subscription {by}", "let one service bring it")
        for table, by in foreign.items()
    ]
    others = {by for by in subscribed.values() if by.startswith("pgshunt_") and by != lane}
    if source.settings["version"] < 150_000 and others:
        found.append(
            Problem(
                subject,
                f"{', '.join(sorted(others))} uses it, and PostgreSQL 14 cannot publish single rows",
                "give each service a database of its own, or run 15 or newer as the shared database",
            )
        )
    ours = {table for table, by in subscribed.items() if by == lane} | set(copied)
    present = sorted(set(target.tables) - ours - set(foreign))
    if present:
        found.append(
            Problem(subject, f"{', '.join(present)} exist there", "drop or rename what is not a copy")
        )
    return found


def check_table(table: Table) -> list[Problem]:
    found = []
    if table.relkind not in ("r", "p"):
        found.append(
            Problem(table.name, "only tables can be replicated", "take it out of the service's `tables`")
        )
    elif table.persistence != "p":
        found.append(Problem(table.name, "unlogged tables are not in the log", "ALTER TABLE … SET LOGGED"))
    elif not table.is_replicable:
        found.append(
            Problem(
                table.name,
                "without replica identity its UPDATEs and DELETEs would fail once published",
                "add a primary key, or ALTER TABLE … REPLICA IDENTITY USING INDEX …",
            )
        )
    elif table.replica_identity == "f" and not table.has_primary_key:
        found.append(
            Problem(
                table.name,
                "REPLICA IDENTITY FULL without a key: each change scans the copy",
                "add a primary key if it is large",
                fatal=False,
            )
        )
    for trigger in table.always_triggers:
        found.append(
            Problem(
                table.name,
                f"trigger {trigger} is ENABLE ALWAYS or REPLICA and would also fire at the copy",
                "ALTER TABLE … ENABLE TRIGGER …, so that it fires for clients only",
            )
        )
    return found


def _check_version(subject: str, version: int) -> list[Problem]:
    if VERSION_MIN <= version < VERSION_MAX:
        return []
    return [Problem(subject, f"PostgreSQL {version // 10_000} is not supported", "use 14 to 18")]
