"""Carries a service's tables to its own database: publication, slot and subscription of PostgreSQL.

All three have one name, `pgshunt_<service>`. Every method may be repeated after a crash at any point: it
looks at what is there and does what is missing. The slot is always made before the subscription: CREATE
SUBSCRIPTION with create_slot waits for itself when both databases are in one cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pgshunt.migration.heartbeat import TABLE as HEARTBEAT
from pgshunt.migration.heartbeat import ensure_table
from pgshunt.migration.hidden import run_hidden
from pgshunt.migration.lane_state import (
    SYNC_STATES,
    LaneStatus,
    TableProgress,
    read_progress,
    read_slot,
    read_subscription,
    read_totals,
    status_of,
)
from pgshunt.migration.reaching import REACH_S_MAX, Refusal, connection_of, reach
from pgshunt.migration.servers import Link, Server, ServerError
from pgshunt.migration.sql import literal, quoted, relation, relations

CHANGE_TIMEOUT_S: Final = 30.0
SLOT_TIMEOUT_S: Final = 60.0
LEFTOVERS_S_MAX: Final = 10.0
POLL_S: Final = 0.1
COPY_ERRORS_MAX: Final = 3

QUERY_CANCELED: Final = "57014"
UNDEFINED_OBJECT: Final = "42704"
OBJECT_IN_USE: Final = "55006"

_OTHER_LANES: Final = r"""
SELECT FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
WHERE d.datname = current_database() AND s.subname LIKE 'pgshunt\_%'
"""

_LEFTOVERS: Final = """
SELECT pid, state FROM pg_stat_activity
WHERE application_name = current_setting('application_name') AND datname = current_database()
  AND usename = current_user AND pid <> pg_backend_pid()
"""


class LaneFailed(Exception):
    """The lane cannot be made or does not come up; the message says why and what to do."""


class Lane:
    """The forward lane of one service."""

    def __init__(self, service: str, tables: Sequence[str], source: Server, target: Server) -> None:
        """`tables`: schema-qualified, the heartbeat's not among them. The servers' purpose is this lane's."""
        self.service = service
        self.tables = tuple(tables)
        self.name = f"pgshunt_{service}"
        self._source = source
        self._target = target
        self._totals: dict[str, tuple[int, int]] = {}

    async def end_leftovers(self) -> None:
        """Ends what earlier connections of ours still do at either server, and waits until they are gone.

        A statement outlives the connection it came by: after a crash, or broken off, it might still make what
        was just found missing. Raises LaneFailed, ServerError.
        """
        for server in (self._source, self._target):
            await server.run(_end_leftovers, LEFTOVERS_S_MAX + CHANGE_TIMEOUT_S)

    async def ensure_publication(self) -> None:
        """Publishes the tables and the service's own heartbeat row. Raises ServerError."""
        await self._source.run(self._publish, CHANGE_TIMEOUT_S)

    async def ensure_slot(self) -> None:
        """Makes the slot, from which the shared database keeps its log. Raises LaneFailed, ServerError.

        What comes from a new slot does not go on where an older one ended. So a subscription that is there
        goes before, with the rows it brought.
        """
        slot = await self._source.run(partial(read_slot, name=self.name))
        if slot is not None and not slot.is_lost:
            return
        if slot is not None:
            await self._source.run(lambda link: self._drop_slots(link, 0), CHANGE_TIMEOUT_S)
        await self._target.run(self._empty, CHANGE_TIMEOUT_S)
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
        connection = connection_of(self._source.endpoint, self._source.control)
        await self._target.run(partial(self._subscribe, connection=connection), CHANGE_TIMEOUT_S)

    async def refusal(self) -> Refusal | None:
        """Why the target's server cannot log in to the shared database; None if it can.

        Raises ServerError.
        """
        connection = connection_of(self._source.endpoint, self._source.control)
        work = partial(reach, connection=connection, name=f"{self.name}_try")
        return await self._target.run(work, REACH_S_MAX)

    async def progress(self) -> list[TableProgress]:
        """What the live view shows. Raises ServerError."""
        if not self._totals:
            self._totals = await self._source.run(partial(read_totals, publication=self.name))
        return await self._target.run(partial(read_progress, name=self.name, totals=self._totals))

    async def status(self) -> LaneStatus:
        """Whether the lane carries changes. Raises ServerError."""
        slot, subscription = await asyncio.gather(
            self._source.run(partial(read_slot, name=self.name)),
            self._target.run(partial(read_subscription, name=self.name)),
        )
        return status_of(slot, subscription)

    async def wait_ready(
        self, timeout_s: float, report: Callable[[list[TableProgress]], None] | None = None
    ) -> None:
        """Returns once every table is copied and streaming; reports progress while it waits.

        Raises LaneFailed.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            subscription = await self._target.run(partial(read_subscription, name=self.name))
            if report is not None:
                report(await self.progress())
            if subscription is None:
                raise LaneFailed(f"subscription {self.name} is gone; begin again")
            behind = {
                table: SYNC_STATES[state] for table, state in subscription.states.items() if state != "r"
            }
            if subscription.states and not behind:
                return
            if subscription.copy_errors >= COPY_ERRORS_MAX:
                raise LaneFailed(
                    f"copying {', '.join(behind)} failed {subscription.copy_errors} times; "
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

    async def drop(self) -> None:
        """Removes all of it; what is gone already is no error. Raises LaneFailed, ServerError.

        The slots go before the subscription, whose oid names those of copies under way.
        """
        await self.end_leftovers()
        oid = await self._target.run(self._detach, CHANGE_TIMEOUT_S)
        await self._source.run(lambda link: self._drop_slots(link, oid), CHANGE_TIMEOUT_S)
        if oid:
            await self._target.run(self._drop_subscription, CHANGE_TIMEOUT_S)
        await self._source.run(self._drop_publication, CHANGE_TIMEOUT_S)

    async def drop_at_source(self) -> None:
        """Frees the shared database; the target keeps its subscription. Raises LaneFailed, ServerError."""
        await self._source.run(_end_leftovers, LEFTOVERS_S_MAX + CHANGE_TIMEOUT_S)
        await self._source.run(lambda link: self._drop_slots(link, 0), CHANGE_TIMEOUT_S)
        await self._source.run(self._drop_publication, CHANGE_TIMEOUT_S)

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
        link.rows("SELECT pg_create_logical_replication_slot(:name, 'pgoutput')", name=self.name)

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

    def _drop_publication(self, link: Link) -> None:
        link.rows(f"DROP PUBLICATION IF EXISTS {quoted(self.name)}")

    # At the target

    def _subscribe(self, link: Link, connection: str) -> None:
        ensure_table(link)
        name = quoted(self.name)
        escaped = name.replace("%", "%%")
        subscription = read_subscription(link, self.name)
        if subscription is None:
            # Rows of an earlier lane would stop the copy of the heartbeat. Before 15 a lane brings every
            # service's.
            link.rows(
                f"DELETE FROM {HEARTBEAT} "
                f"WHERE service = {literal(self.service)} OR NOT EXISTS ({_OTHER_LANES})"
            )
            with link.transaction():
                run_hidden(
                    link,
                    f"CREATE SUBSCRIPTION {escaped} CONNECTION %L PUBLICATION {escaped} "
                    f"WITH (create_slot = false, slot_name = {escaped}, copy_data = true)",
                    connection,
                )
            return
        with link.transaction():
            run_hidden(link, f"ALTER SUBSCRIPTION {escaped} CONNECTION %L", connection)
        link.rows(f"ALTER SUBSCRIPTION {name} SET (slot_name = {name})")
        if not subscription.enabled:
            link.rows(f"ALTER SUBSCRIPTION {name} ENABLE")
        link.rows(f"ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = true)")

    def _detach(self, link: Link) -> int:
        """Parts the subscription from its slot, so that it can be dropped without reaching the source; its
        oid or 0.
        """
        subscription = read_subscription(link, self.name)
        if subscription is None:
            return 0
        link.rows(f"ALTER SUBSCRIPTION {quoted(self.name)} DISABLE")
        link.rows(f"ALTER SUBSCRIPTION {quoted(self.name)} SET (slot_name = NONE)")
        return subscription.oid

    def _drop_subscription(self, link: Link) -> None:
        link.rows(f"DROP SUBSCRIPTION {quoted(self.name)}")

    def _empty(self, link: Link) -> None:
        """Drops the subscription and empties the copies; they are ours, or preflight had refused them."""
        if self._detach(link):
            self._drop_subscription(link)
        there = [
            table for table in self.tables if link.value("SELECT to_regclass(:name)", name=relation(table))
        ]
        if not any(link.value(f"SELECT EXISTS (SELECT FROM {relation(table)})") for table in there):
            return
        with link.transaction():
            if link.value("SELECT current_setting('is_superuser')") == "on":
                link.rows("SET LOCAL session_replication_role = 'replica'")  # the copies' triggers stay quiet
            link.rows(f"TRUNCATE {relations(there)}")


def _end_leftovers(link: Link) -> None:
    """Cancels before it terminates: the error of a termination would tell the statement to the log."""
    began_s = time.monotonic()
    while leftovers := link.rows(_LEFTOVERS):
        waited_s = time.monotonic() - began_s
        if waited_s > LEFTOVERS_S_MAX:
            pids = ", ".join(str(pid) for pid, _ in leftovers)
            raise LaneFailed(
                f"{link.endpoint}: pid {pids} of an earlier try does not end; end it, then go on"
            )
        for pid, state in leftovers:
            is_working = state not in ("idle", "idle in transaction")
            verb = "cancel" if is_working and waited_s < LEFTOVERS_S_MAX / 2 else "terminate"
            link.rows(f"SELECT pg_{verb}_backend({pid})")
        time.sleep(POLL_S)  # in the server's own thread


def _oldest_writers(link: Link) -> str:
    rows = link.rows(
        "SELECT format('pid %s of %s in %s, open for %s', pid, usename, datname, "
        "date_trunc('second', now() - xact_start)) FROM pg_stat_activity "
        "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3"
    )
    return "; ".join(text for (text,) in rows) or "none any more"
