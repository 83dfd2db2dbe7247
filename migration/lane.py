"""Carries a service's tables to its own database: publication, slot and subscription of PostgreSQL.

All three have one name, `pgshunt_<service>`. Every method may be repeated after a crash at any point: it
looks at what is there and does what is missing. The slot is always made before the subscription: CREATE
SUBSCRIPTION with create_slot waits for itself when both databases are in one cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pgshunt.migration.heartbeat import TABLE as HEARTBEAT
from pgshunt.migration.heartbeat import ensure_table
from pgshunt.migration.servers import Link, Server, ServerError, Unreachable
from pgshunt.migration.sql import conninfo, literal, literals, quoted, relation, relations

CHANGE_TIMEOUT_S: Final = 30.0
SLOT_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.1
COPY_ERRORS_MAX: Final = 3

QUERY_CANCELED: Final = "57014"
UNDEFINED_OBJECT: Final = "42704"
OBJECT_IN_USE: Final = "55006"

_OTHER_LANES: Final = r"""
SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
WHERE d.datname = current_database() AND s.subname LIKE 'pgshunt\_%'
"""

# pg_subscription_rel.srsubstate
SyncState = Literal["i", "d", "f", "s", "r"]
SYNC_STATES: Final = {"i": "waiting", "d": "copying", "f": "copied", "s": "catching up", "r": "streaming"}


class LaneFailed(Exception):
    """The lane cannot be made or does not come up; the message says why and what to do."""


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


@dataclass(frozen=True, slots=True)
class _Target:
    enabled: bool
    running: bool
    states: dict[str, str]
    apply_errors: int
    copy_errors: int


class Lane:
    """The forward lane of one service."""

    def __init__(self, service: str, tables: Sequence[str], source: Server, target: Server) -> None:
        """`tables`: schema-qualified, the heartbeat's not among them."""
        self.service = service
        self.tables = tuple(tables)
        self.name = f"pgshunt_{service}"
        self._source = source
        self._target = target
        self._totals: dict[str, tuple[int, int]] = {}

    async def ensure_publication(self) -> None:
        """Publishes the tables and the service's own heartbeat row. Raises ServerError."""
        await self._source.run(self._publish, CHANGE_TIMEOUT_S)

    async def ensure_slot(self) -> None:
        """Makes the slot, from which the shared database keeps its log. Raises LaneFailed, ServerError."""
        try:
            await self._source.run(self._make_slot, SLOT_TIMEOUT_S)
        except ServerError as error:
            if error.sqlstate != QUERY_CANCELED:
                raise
            raise LaneFailed(
                f"creating the slot waits for every open write transaction of the shared database's cluster; "
                f"still open: {await self._source.run(_oldest_writers)}. End them and begin again"
            ) from None

    async def ensure_subscription(self) -> None:
        """Starts the copy, then the stream. Raises ServerError, whose message never holds the password."""
        await self._target.run(self._subscribe, CHANGE_TIMEOUT_S)

    async def progress(self) -> list[TableProgress]:
        """What the live view shows. Raises ServerError."""
        if not self._totals:
            self._totals = await self._source.run(self._read_totals)
        return await self._target.run(self._read_progress)

    async def status(self) -> LaneStatus:
        """Whether the lane carries changes. Raises ServerError."""
        slot, target = await asyncio.gather(
            self._source.run(self._read_slot), self._target.run(self._read_target)
        )
        streaming = sum(state == "r" for state in (target.states if target else {}).values())
        total = len(target.states) if target else 0
        problem = _problem(slot, target, streaming, total)
        return LaneStatus(
            problem,
            lag_bytes=slot[1] if slot else 0,
            wal_status=slot[2] if slot else "",
            tables_streaming=streaming,
            tables_total=total,
            apply_errors=target.apply_errors if target else 0,
        )

    async def wait_ready(
        self, timeout_s: float, report: Callable[[list[TableProgress]], None] | None = None
    ) -> None:
        """Returns once every table is copied and streaming; reports progress while it waits.

        Raises LaneFailed.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            target = await self._target.run(self._read_target)
            if report is not None:
                report(await self.progress())
            if target is None:
                raise LaneFailed(f"subscription {self.name} is gone; begin again")
            behind = {table: SYNC_STATES[state] for table, state in target.states.items() if state != "r"}
            if target.states and not behind:
                return
            if target.copy_errors >= COPY_ERRORS_MAX:
                raise LaneFailed(
                    f"copying {', '.join(behind)} failed {target.copy_errors} times; "
                    f"the log of {self._target.endpoint.name} says why"
                )
            if time.monotonic() > deadline_s:
                states = ", ".join(f"{table} is {state}" for table, state in behind.items())
                raise LaneFailed(
                    f"not ready within {timeout_s:g} s: {states}. The lane goes on; begin again to wait on"
                )
            await asyncio.sleep(POLL_S)

    async def set_enabled(self, enabled: bool) -> None:
        """Stops or restarts applying at the target; the slot keeps what comes meanwhile.

        Raises ServerError.
        """
        verb = "ENABLE" if enabled else "DISABLE"
        await self._target.run(lambda link: link.rows(f"ALTER SUBSCRIPTION {quoted(self.name)} {verb}"))

    async def drop(self, even_if_target_is_gone: bool = False) -> None:
        """Removes all of it; what is gone already is no error.

        The slots go before the subscription, whose oid names those of copies under way. With
        `even_if_target_is_gone` an unreachable target keeps its subscription, and the shared database is
        freed all the same. Raises ServerError.
        """
        oid = 0
        try:
            oid = await self._target.run(self._detach, CHANGE_TIMEOUT_S)
        except Unreachable:
            if not even_if_target_is_gone:
                raise
        await self._source.run(lambda link: self._drop_slots(link, oid), CHANGE_TIMEOUT_S)
        if oid:
            await self._target.run(
                lambda link: link.rows(f"DROP SUBSCRIPTION IF EXISTS {quoted(self.name)}"), CHANGE_TIMEOUT_S
            )
        await self._source.run(
            lambda link: link.rows(f"DROP PUBLICATION IF EXISTS {quoted(self.name)}"), CHANGE_TIMEOUT_S
        )

    # At the shared database

    def _publish(self, link: Link) -> None:
        ensure_table(link)
        published = link.rows(
            "SELECT n.nspname || '.' || c.relname FROM pg_publication p "
            "LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid LEFT JOIN pg_class c ON c.oid = r.prrelid "
            "LEFT JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = :name",
            name=self.name,
        )
        if {table for (table,) in published} == {*self.tables, HEARTBEAT}:
            return
        heartbeat = relation(HEARTBEAT)
        if (
            link.version() >= 150_000
        ):  # before, a lane carries every service's row, and preflight allows one a database
            heartbeat += f" WHERE (service = {literal(self.service)})"
        verb, joint = ("ALTER", "SET") if published else ("CREATE", "FOR")
        tables = f"{relations(self.tables)}, {heartbeat}"
        link.rows(f"{verb} PUBLICATION {quoted(self.name)} {joint} TABLE {tables}")

    def _make_slot(self, link: Link) -> None:
        slot = self._read_slot(link)
        if slot is not None and slot[2] == "lost":
            self._drop_slots(link, 0)
            slot = None
        if slot is None:
            link.rows("SELECT pg_create_logical_replication_slot(:name, 'pgoutput')", name=self.name)

    def _read_slot(self, link: Link) -> tuple[bool, int, str] | None:
        """Active, bytes of log not yet confirmed, wal_status; None if there is no such slot."""
        rows = link.rows(
            "SELECT active, coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint, "
            "coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = :name",
            name=self.name,
        )
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    def _read_totals(self, link: Link) -> dict[str, tuple[int, int]]:
        """Rows and bytes of each table.

        reltuples is -1 before the first ANALYZE: then a small table is counted.
        """
        totals = {}
        for table, rows, size in link.rows(
            "SELECT n.nspname || '.' || c.relname, c.reltuples::bigint, pg_table_size(c.oid) "
            "FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname "
            "JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename WHERE p.pubname = :name",
            name=self.name,
        ):
            is_small = size < 16_000_000
            totals[table] = (
                link.value(f"SELECT count(*) FROM {relation(table)}") if is_small else max(rows, 0),
                size,
            )
        return totals

    def _drop_slots(self, link: Link, subscription_oid: int) -> None:
        """Drops the lane's slot and those of its unfinished copies (ReplicationSlotNameForTablesync)."""
        pattern = f"pg\\_{subscription_oid}\\_sync\\_%" if subscription_oid else ""
        find = (
            "SELECT slot_name::text, active_pid FROM pg_replication_slots "
            f"WHERE slot_name = {literal(self.name)} OR slot_name LIKE {literal(pattern)}"
        )
        deadline_s = time.monotonic() + CHANGE_TIMEOUT_S / 2
        while slots := link.rows(find):
            for name, active_pid in slots:
                if active_pid is not None:  # a worker that has not noticed yet
                    link.rows(f"SELECT pg_terminate_backend({active_pid})")
                try:
                    link.rows("SELECT pg_drop_replication_slot(:name)", name=name)
                except ServerError as error:
                    if (
                        error.sqlstate not in (OBJECT_IN_USE, UNDEFINED_OBJECT)
                        or time.monotonic() > deadline_s
                    ):
                        raise
                    time.sleep(POLL_S)  # in the server's own thread, waiting for its sender to end

    # At the target

    def _subscribe(self, link: Link) -> None:
        ensure_table(link)
        control = self._source.control
        endpoint = self._source.endpoint
        password = {"password": control.password.reveal()} if control.password else {}
        connection = literal(
            conninfo(
                host=endpoint.host, port=endpoint.port, dbname=endpoint.dbname, user=control.user, **password
            )
        )
        name = quoted(self.name)
        if link.value("SELECT current_setting('is_superuser')") == "on":
            # The statement below holds a password: neither success nor failure may write it to the server's
            # log.
            link.rows(
                "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; "
                "SET log_min_duration_statement = -1"
            )
        target = self._read_target(link)
        if target is None:
            # Rows of an earlier lane would stop the copy of the heartbeat. Before 15 a lane brings every
            # service's.
            link.rows(
                f"DELETE FROM {HEARTBEAT} "
                f"WHERE service = {literal(self.service)} OR NOT EXISTS ({_OTHER_LANES})"
            )
            link.rows(
                f"CREATE SUBSCRIPTION {name} CONNECTION {connection} PUBLICATION {name} "
                f"WITH (create_slot = false, slot_name = {quoted(self.name)}, copy_data = true)"
            )
            return
        link.rows(f"ALTER SUBSCRIPTION {name} CONNECTION {connection}")
        link.rows(f"ALTER SUBSCRIPTION {name} SET (slot_name = {quoted(self.name)})")
        if not target.enabled:
            link.rows(f"ALTER SUBSCRIPTION {name} ENABLE")
        link.rows(f"ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = true)")

    def _read_target(self, link: Link) -> _Target | None:
        rows = link.rows(
            "SELECT s.oid::bigint, s.subenabled, EXISTS (SELECT FROM pg_stat_subscription w "
            "WHERE w.subid = s.oid AND w.relid IS NULL AND w.pid IS NOT NULL) FROM pg_subscription s "
            "WHERE s.subname = :name "
            "AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            name=self.name,
        )
        if not rows:
            return None
        ((oid, enabled, running),) = rows
        states = dict(
            link.rows(
                "SELECT n.nspname || '.' || c.relname, r.srsubstate::text FROM pg_subscription_rel r "
                "JOIN pg_class c ON c.oid = r.srrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE r.srsubid = :oid::oid ORDER BY 1",
                oid=oid,
            )
        )
        errors = [[0, 0]]
        if link.version() >= 150_000:
            errors = (
                link.rows(
                    "SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats "
                    "WHERE subid = :oid::oid",
                    oid=oid,
                )
                or errors
            )
        return _Target(enabled, running, states, *errors[0])

    def _read_progress(self, link: Link) -> list[TableProgress]:
        target = self._read_target(link)
        copying = {
            table: (rows, size)
            for table, rows, size in link.rows(
                "SELECT n.nspname || '.' || c.relname, p.tuples_processed, p.bytes_processed "
                "FROM pg_stat_progress_copy p JOIN pg_class c ON c.oid = p.relid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE p.datname = current_database() "
                f"AND n.nspname || '.' || c.relname = ANY ({literals(self._totals)})"
            )
        }
        progress = []
        for table, state in (target.states if target else {}).items():
            total = self._totals.get(table, (0, 0))
            copied = copying.get(table, (0, 0)) if state in ("i", "d") else total
            progress.append(
                TableProgress(table, SYNC_STATES[state], copied[0], total[0], copied[1], total[1])
            )
        return progress

    def _detach(self, link: Link) -> int:
        """Parts the subscription from its slot, so that it can be dropped without reaching the source; its
        oid or 0.
        """
        oid = link.value(
            "SELECT oid::bigint FROM pg_subscription WHERE subname = :name "
            "AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            name=self.name,
        )
        if oid is None:
            return 0
        link.rows(f"ALTER SUBSCRIPTION {quoted(self.name)} DISABLE")
        link.rows(f"ALTER SUBSCRIPTION {quoted(self.name)} SET (slot_name = NONE)")
        return int(oid)


def _problem(slot: tuple[bool, int, str] | None, target: _Target | None, streaming: int, total: int) -> str:
    if target is None:
        return "the target has no subscription: begin again"
    if slot is None:
        return "the shared database has no slot (dropped, or lost in a failover): abandon, then begin again"
    active, _, wal_status = slot
    if wal_status == "lost":
        return "the slot lost its log (max_slot_wal_keep_size): abandon, then begin again"
    if not target.enabled:
        return "the subscription is disabled at the target: enable it"
    if not (active and target.running):
        return "no worker applies changes; the target's log says why"
    if streaming < total or not total:
        return f"{total - streaming} of {total} tables are not streaming yet"
    return ""


def _oldest_writers(link: Link) -> str:
    rows = link.rows(
        "SELECT format('pid %s of %s in %s, open for %s', pid, usename, datname, "
        "date_trunc('second', now() - xact_start)) FROM pg_stat_activity "
        "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3"
    )
    return "; ".join(text for (text,) in rows) or "none any more"
