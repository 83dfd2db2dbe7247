"""Reads how a lane stands, at both of its ends: slot, subscription, and how far each table is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literals, relation

SYNC_STATES: Final = {"i": "waiting", "d": "copying", "f": "copied", "s": "catching up", "r": "streaming"}
"""pg_subscription_rel.srsubstate in words."""
SMALL_BYTES: Final = 16_000_000

_SLOT: Final = """
SELECT active, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,
       coalesce(wal_status, '')
FROM pg_replication_slots WHERE slot_name = :name
"""

_SUBSCRIPTION: Final = """
SELECT s.oid::bigint, s.subenabled,
       EXISTS (SELECT FROM pg_stat_subscription w
               WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL)
FROM pg_subscription s
WHERE s.subname = :name AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_STATES: Final = """
SELECT n.nspname || '.' || c.relname, r.srsubstate::text
FROM pg_subscription_rel r JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.srsubid = :oid::oid ORDER BY 1
"""

_ERRORS: Final = """
SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats WHERE subid = :oid::oid
"""

_TOTALS: Final = """
SELECT n.nspname || '.' || c.relname, c.reltuples::bigint, pg_table_size(c.oid)
FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname
     JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
WHERE p.pubname = :name
"""

_COPYING: Final = """
SELECT n.nspname || '.' || c.relname, p.tuples_processed, p.bytes_processed
FROM pg_stat_progress_copy p JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.datname = current_database() AND n.nspname || '.' || c.relname = ANY ({tables})
"""


@dataclass(frozen=True, slots=True)
class TableProgress:
    """How far one table is copied.

    Totals are estimates, 0 if unknown; after the copy both counts are the totals.
    """

    table: str
    state: str  # a value of SYNC_STATES
    rows_copied: int
    rows_total: int
    bytes_copied: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot. `lag_bytes`: log not yet confirmed by the target."""

    active: bool
    lag_bytes: int
    wal_status: str

    @property
    def is_lost(self) -> bool:
        """The log it stood for is gone: what comes from it now would have a gap."""
        return self.wal_status == "lost"


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription of the database asked; `states`: SYNC_STATES' key by table."""

    oid: int
    enabled: bool
    running: bool
    states: Mapping[str, str]
    apply_errors: int
    copy_errors: int

    @property
    def tables_streaming(self) -> int:
        return sum(state == "r" for state in self.states.values())


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """`problem` is empty while the lane carries changes. `lag_bytes`: log not yet confirmed by the target."""

    problem: str
    lag_bytes: int
    wal_status: str
    tables_streaming: int
    tables_total: int
    apply_errors: int

    @property
    def is_healthy(self) -> bool:
        return not self.problem


def status_of(slot: Slot | None, subscription: Subscription | None) -> LaneStatus:
    """What both ends make together; pure."""
    return LaneStatus(
        _problem(slot, subscription),
        lag_bytes=slot.lag_bytes if slot else 0,
        wal_status=slot.wal_status if slot else "",
        tables_streaming=subscription.tables_streaming if subscription else 0,
        tables_total=len(subscription.states) if subscription else 0,
        apply_errors=subscription.apply_errors if subscription else 0,
    )


def _problem(slot: Slot | None, subscription: Subscription | None) -> str:
    if subscription is None:
        return "the target has no subscription: begin again"
    if slot is None:
        return "the shared database has no slot (dropped, or lost in a failover): abandon, then begin again"
    if slot.is_lost:
        return "the slot lost its log (max_slot_wal_keep_size): abandon, then begin again"
    if not subscription.enabled:
        return "the subscription is disabled at the target: enable it"
    if not (slot.active and subscription.running):
        return "no worker applies changes; the target's log says why"
    total = len(subscription.states)
    if subscription.tables_streaming < total or not total:
        return f"{total - subscription.tables_streaming} of {total} tables are not streaming yet"
    return ""


def read_slot(link: Link, name: str) -> Slot | None:
    """The slot of this name, or None. Raises ServerError."""
    rows = link.rows(_SLOT, name=name)
    return Slot(*rows[0]) if rows else None


def read_subscription(link: Link, name: str) -> Subscription | None:
    """The subscription of this name, or None. Raises ServerError."""
    rows = link.rows(_SUBSCRIPTION, name=name)
    if not rows:
        return None
    ((oid, enabled, running),) = rows
    states = dict(link.rows(_STATES, oid=oid))
    errors = link.rows(_ERRORS, oid=oid) if link.version() >= 150_000 else []
    apply_errors, copy_errors = errors[0] if errors else (0, 0)
    return Subscription(oid, enabled, running, states, apply_errors, copy_errors)


def read_totals(link: Link, publication: str) -> dict[str, tuple[int, int]]:
    """Rows and bytes of each published table. Raises ServerError.

    reltuples is -1 before the first ANALYZE: a small table is counted.
    """
    totals = {}
    for table, rows, size in link.rows(_TOTALS, name=publication):
        counted = (
            link.value(f"SELECT count(*) FROM {relation(table)}") if size < SMALL_BYTES else max(rows, 0)
        )
        totals[table] = (counted, size)
    return totals


def read_progress(link: Link, name: str, totals: Mapping[str, tuple[int, int]]) -> list[TableProgress]:
    """How far each table of the subscription is copied. Raises ServerError."""
    subscription = read_subscription(link, name)
    copying = {
        table: (rows, size) for table, rows, size in link.rows(_COPYING.format(tables=literals(totals)))
    }
    progress = []
    for table, state in (subscription.states if subscription else {}).items():
        total = totals.get(table, (0, 0))
        copied = copying.get(table, (0, 0)) if state in ("i", "d") else total
        progress.append(TableProgress(table, SYNC_STATES[state], copied[0], total[0], copied[1], total[1]))
    return progress
