"""Says what calling a function by name does to a statement's shape.

A call is harmless only if the catalogue lists the name as safe (every overload in pg_catalog immutable or
stable). The functions named here do something a proxy must know beyond that: they keep session state, tell
the time, speak of the server they run on, or send signals to its processes. What a function outside
pg_catalog does is in the catalogue's Code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Effect:
    """`sequence`: the first argument names one. `local`: why the answer belongs to this server. The rest
    is as in Shape.
    """

    volatile: bool = False
    time_dependent: bool = False
    literal_sensitive: bool = False
    sequence: bool = False
    pins: str | None = None
    releases: str | None = None
    local: str | None = None
    signals: bool = False
    meets: bool = False
    anywhere: bool = False


SAFE: Final = Effect()
VOLATILE: Final = Effect(volatile=True)
OWN: Final = Effect()
"""Of a function that is not PostgreSQL's own."""
TIME: Final = Effect(time_dependent=True)
SERVER_STATE: Final = Effect(local="server_state")
READS_BY_NAME: Final = Effect(local="reads_by_name", literal_sensitive=True, anywhere=True)
SEQUENCE: Final = Effect(volatile=True, literal_sensitive=True, sequence=True)
SESSION_LOCK: Final = Effect(volatile=True, pins="advisory_lock", meets=True)
MEETING: Final = Effect(volatile=True, meets=True)
SIGNAL: Final = Effect(volatile=True, signals=True)

EFFECTS: Final[dict[str, Effect]] = {
    # Without the number of arguments: a run of literals is one in the key, so age('a') and age('a', 'b')
    # share a shape.
    **dict.fromkeys(("now", "transaction_timestamp", "statement_timestamp", "age"), TIME),
    **dict.fromkeys(("nextval", "setval", "currval"), SEQUENCE),
    "lastval": Effect(volatile=True, literal_sensitive=True),
    "setseed": Effect(volatile=True, pins="seed"),
    # Pins only where it cannot be told which parameter it sets.
    "set_config": Effect(volatile=True, literal_sensitive=True, pins="set_config"),
    **dict.fromkeys(
        (
            "pg_advisory_lock",
            "pg_advisory_lock_shared",
            "pg_try_advisory_lock",
            "pg_try_advisory_lock_shared",
        ),
        SESSION_LOCK,
    ),
    "pg_backend_pid": Effect(local="backend_pid"),
    **dict.fromkeys(("pg_cancel_backend", "pg_terminate_backend"), SIGNAL),
    # They run the text they are given.
    **dict.fromkeys(
        ("query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "ts_stat", "ts_rewrite"),
        Effect(volatile=True, pins="function", anywhere=True),
    ),
    "pg_prepared_statement": Effect(volatile=True, pins="prepared_statements"),
    **dict.fromkeys(
        ("pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all"),
        Effect(volatile=True, releases="advisory_lock"),
    ),
    **dict.fromkeys(
        (
            "pg_advisory_xact_lock",
            "pg_advisory_xact_lock_shared",
            "pg_try_advisory_xact_lock",
            "pg_try_advisory_xact_lock_shared",
            "pg_notify",
        ),
        MEETING,
    ),
    # Volatile in pg_proc, yet they only look.
    **dict.fromkeys(
        (
            "pg_is_in_recovery",
            "pg_current_wal_lsn",
            "pg_current_wal_insert_lsn",
            "pg_current_wal_flush_lsn",
            "pg_last_wal_receive_lsn",
            "pg_last_wal_replay_lsn",
            "pg_last_xact_replay_timestamp",
        ),
        SERVER_STATE,
    ),
}

SERVER_STATE_NAMES: Final = frozenset(
    {
        "version",
        "current_setting",
        "current_database",
        "current_catalog",
        "current_schema",
        "current_schemas",
        "current_query",
        "col_description",
        "obj_description",
        "shobj_description",
        "format_type",
        "row_security_active",
        "mxid_age",
    }
)
SERVER_STATE_PREFIXES: Final = ("pg_", "inet_", "txid_", "has_", "to_reg", "acl", "makeacl", "brin_", "gin_")

# Stable in pg_proc, but they read the tables their arguments name.
READING_MARKS: Final = ("_to_xml", "ts_stat", "ts_rewrite")


def effect_of(schema: str, name: str, safe: frozenset[str], system: frozenset[str]) -> Effect:
    """What a call of this function does, as far as it is one of pg_catalog's; OWN if it is none."""
    if schema not in ("", "pg_catalog"):
        return OWN
    known = EFFECTS.get(name)
    if known is not None:
        return known
    if name not in safe:
        return VOLATILE if name in system or schema else OWN
    if any(mark in name for mark in READING_MARKS):
        return READS_BY_NAME
    if name in SERVER_STATE_NAMES or name.startswith(SERVER_STATE_PREFIXES):
        return SERVER_STATE
    return SAFE
