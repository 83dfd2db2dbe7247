"""A service on its way to a database of its own: lane, heartbeat and verification on two real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from pgshunt.config.model import Control
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import Server as Postgres
from pgshunt.migration.heartbeat import Heartbeat, Watched
from pgshunt.migration.lane import Lane
from pgshunt.migration.rows import ROWS_SETTINGS
from pgshunt.migration.schema import copy_schema, drop_copies
from pgshunt.migration.servers import Server
from pgshunt.migration.verify import Pace, Verifier
from pgshunt.routing.table import Endpoint
from support.fixtures import Database

TARGET = 1
"""Endpoint index of the service's own database in these tests; 0 is the shared one."""

EAGER = Pace(rows_per_chunk=500, duty=1.0, chunk_pause_s_min=0.0, pass_pause_s=0.0, fence_timeout_s=5.0)


def endpoint(database: Database, name: str) -> Endpoint:
    return Endpoint(name, name, database.server.host, database.server.port, database.dbname, "primary")


CONTROL = Control(user="pgshunt_control", password=Secret("it's a \\ secret"))
"""One role for all servers, as in a configuration; its password tests every quoting."""

_CREATE_CONTROL = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgshunt_control') THEN
        CREATE ROLE pgshunt_control SUPERUSER LOGIN PASSWORD 'it''s a \\ secret';
    END IF;
END $$
"""


@contextmanager
def databases(
    pair: tuple[Postgres, Postgres], shared_dbname: str, own_dbname: str = ""
) -> Iterator[tuple[Database, Database]]:
    """A database on each server, under one name unless told; lanes that a failed test left there go too."""
    shared, own = Database(pair[0], shared_dbname), Database(pair[1], own_dbname or shared_dbname)
    for database in (shared, own):
        database.server.execute(_CREATE_CONTROL)
        # Before 16 a server starts one subscription in this time, by default 5 s.
        database.server.execute("ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'")
        database.server.execute("SELECT pg_reload_conf()")
        database.server.execute(f"CREATE DATABASE {database.dbname} TEMPLATE template0")
    try:
        yield shared, own
    finally:
        for (subscription,) in own.execute(
            "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
            "WHERE datname = current_database()"
        ):
            own.execute(f'ALTER SUBSCRIPTION "{subscription}" DISABLE')
            own.execute(f'ALTER SUBSCRIPTION "{subscription}" SET (slot_name = NONE)')
            own.execute(f'DROP SUBSCRIPTION "{subscription}"')
        own.server.execute(f"DROP DATABASE {own.dbname} WITH (FORCE)")
        slots = "FROM pg_replication_slots WHERE database = :name"
        shared.server.execute(f"SELECT pg_terminate_backend(active_pid) {slots}", name=shared.dbname)
        shared.server.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}", name=shared.dbname)
        shared.server.execute(f"DROP DATABASE {shared.dbname} WITH (FORCE)")


@dataclass(slots=True)
class Moving:
    """Everything that runs for one service, ready to be looked at and disturbed."""

    lane: Lane
    heartbeat: Heartbeat
    source: Server
    target: Server
    tables: tuple[str, ...]
    verify_source: Server
    verify_target: Server

    def verifier(self, pace: Pace = EAGER) -> Verifier:
        async def fence(moment_ns: int, timeout_s: float) -> bool:
            return await self.heartbeat.waiting(TARGET, moment_ns, timeout_s)

        return Verifier(self.tables, self.verify_source, self.verify_target, fence, pace)


@asynccontextmanager
async def moving(
    shared: Database, own: Database, service: str, tables: tuple[str, ...], drop: bool = True
) -> AsyncIterator[Moving]:
    """The service's tables copied, streaming, and their heartbeat seen at the target."""
    ends = endpoint(shared, "shared"), endpoint(own, "own_db")
    source, target = (Server(end, CONTROL, "lane") for end in ends)
    readers = [Server(end, CONTROL, "verify", ROWS_SETTINGS) for end in ends]
    heartbeat = Heartbeat(ends[0], CONTROL, lambda index, moment_ns: None)
    lane = Lane(service, tables, source, target)
    try:
        await copy_schema(source, target, tables)
        await lane.ensure_publication()
        await lane.ensure_slot()
        await lane.ensure_subscription()
        heartbeat.watch({TARGET: Watched(TARGET, ends[1], frozenset({service}))})
        await lane.wait_ready(30)
        yield Moving(lane, heartbeat, source, target, tables, *readers)
    finally:
        heartbeat.stop()
        if drop:
            await lane.drop()
            await target.run(lambda link: drop_copies(link, tables))
        for server in (source, target, *readers):
            await server.close()
