"""Asks the databases themselves what happened, so that the story need not take the proxy's word for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pgshunt.demo.postgres import Server
from pgshunt.demo.services import SHARED_DBNAME, Service
from pgshunt.demo.world import Databases

# auth_service reads `roles` only by plain joins, and neither its writes nor the lane touch it: its scans tell
# where reads went. Verification scans it too, but rarely.
TELLTALE = "roles"

_DIGEST = (
    "SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (SELECT row::text AS line FROM {} row) lines"
)


@dataclass(frozen=True, slots=True)
class Scans:
    """Scans of the telltale table since the servers began, by server."""

    shared: int
    primary: int
    replica: int

    def since(self, before: Scans) -> Scans:
        return Scans(
            self.shared - before.shared, self.primary - before.primary, self.replica - before.replica
        )

    @property
    def total(self) -> int:
        return self.shared + self.primary + self.replica

    @property
    def own_percent(self) -> float:
        """The share of the service's own database."""
        return 100 * (self.primary + self.replica) / self.total if self.total else 0.0


def read_scans(databases: Databases) -> Scans:
    """PostgreSQL adds a backend's counts about once a second; what is newer is not in it."""
    sql = f"SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = '{TELLTALE}'"
    places = (
        (databases.shared, SHARED_DBNAME),
        (databases.auth, "auth_db"),
        (databases.auth_replica, "auth_db"),
    )
    return Scans(*(sum(row[0] for row in server.execute(sql, dbname)) for server, dbname in places))


def digests(server: Server, dbname: str, tables: Iterable[str]) -> dict[str, str]:
    """One hash over the rows of each table: equal exactly where the rows are."""
    return {table: server.execute(_DIGEST.format(table), dbname)[0][0] for table in tables}


def row_counts(server: Server, dbname: str, tables: Iterable[str]) -> dict[str, int]:
    return {table: server.execute(f"SELECT count(*) FROM {table}", dbname)[0][0] for table in tables}


def differing_tables(databases: Databases, service: Service) -> list[str]:
    """Tables whose rows are not the same on the shared database, the service's own, and its replica."""
    right = digests(databases.shared, SHARED_DBNAME, service.tables)
    copies = [
        digests(server, service.database, service.tables)
        for server in (databases.auth, databases.auth_replica)
    ]
    return [table for table in service.tables if any(copy[table] != right[table] for copy in copies)]


def streaming_tables(server: Server, dbname: str) -> dict[str, str]:
    """The state of each subscribed table: r is streaming (pg_subscription_rel.srsubstate)."""
    rows = server.execute("SELECT srrelid::regclass::text, srsubstate::text FROM pg_subscription_rel", dbname)
    return {str(table): str(state) for table, state in rows}


def chain_breaks(shared: Server) -> list[tuple[str, int]]:
    """Where the audit log's hash chains do not hold: (chain, position)."""
    return [
        (chain, position) for chain, position in shared.execute("SELECT * FROM audit_breaks()", SHARED_DBNAME)
    ]


def audit_entries(shared: Server) -> int:
    return int(shared.execute("SELECT count(*) FROM audit_logs", SHARED_DBNAME)[0][0])
