"""Asks the databases themselves what happened, so that the story need not take the proxy's word for it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pgshunt.demo.postgres import PostgresServer, Server
from pgshunt.demo.services import SHARED_DBNAME, Service
from pgshunt.demo.world import Databases

_DIGEST = (
    "SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (SELECT row::text AS line FROM {} row) lines"
)


# An entry of a server's log (postgres.py sets its prefix) that tells what a user asked, by the simple or the
# extended protocol. All lines of an entry but the first begin with a tab.
_ASKED = re.compile(r"(\S+)@\S+ LOG:  (?:statement|execute [^:]+): (.*)", re.DOTALL)


class ReadLog:
    """How many reads of a service a server has run, by its own log: nothing the proxy says is in it."""

    def __init__(self, server: PostgresServer, service: Service) -> None:
        self._server = server
        self._user = service.name
        self._reads = {_one_line(sql) for sql in service.reads}
        self._position = self._count = 0

    def count(self) -> int:
        """Since the server was made. A read is in it from the moment it is run, before it is answered."""
        with self._server.log.open(errors="replace") as log:
            log.seek(self._position)
            entries = re.split(r"\n(?!\t)", log.read())
            self._position = log.tell()
        asked = filter(None, map(_ASKED.search, entries))
        self._count += sum(each[1] == self._user and _one_line(each[2]) in self._reads for each in asked)
        return self._count


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


def _one_line(sql: str) -> str:
    return " ".join(sql.split())
