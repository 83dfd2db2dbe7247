"""Breaks a service's own database in the ways the guard watches for, and mends it again.

All is done at the target, by its administrator, without the proxy's knowledge. But for the crash, no fault
touches the lane: what the shared database commits keeps arriving.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pgshunt.demo.postgres import PostgresServer, Server
from pgshunt.demo.services import ACTIVE_ROWS, SERVICES, SHARED_DBNAME

AUTH = next(service for service in SERVICES if service.name == "auth_service")
HELD_BACK_S = 1.4  # past the guard's 1000 ms

# Rows of users the workload never asks for. A client that got one of these would be told a lie, which no
# rollback takes back; verification has to find them first.
DORMANT = f"user_id > {ACTIVE_ROWS}"


class Fault(Protocol):
    """One way to break auth_service's database: a title for the reader, and what the guard calls it."""

    title: str
    trigger: str

    def inject(self) -> None: ...

    def repair(self) -> None: ...


@dataclass(slots=True)
class Errors:
    """The role loses its rights: every read fails with 42501, at the primary and its replica."""

    target: Server
    title: str = field(default="auth_db refuses every read (rights revoked)", init=False)
    trigger: str = field(default="error_rate", init=False)

    def inject(self) -> None:
        self.target.execute(f"REVOKE SELECT ON {', '.join(AUTH.tables)} FROM {AUTH.name}", AUTH.database)

    def repair(self) -> None:
        self.target.execute(f"GRANT SELECT ON {', '.join(AUTH.tables)} TO {AUTH.name}", AUTH.database)


@dataclass(slots=True)
class Latency:
    """Every read of users waits inside PostgreSQL.

    Done by a row security policy. Its sub-select does not depend on the row, so it runs once a statement, and
    the role that applies the lane is exempt. A lock would be simpler, but would hold the lane back as well.
    """

    target: Server
    title: str = field(default=f"auth_db holds every read of users back for {HELD_BACK_S} s", init=False)
    trigger: str = field(default="latency", init=False)

    def inject(self) -> None:
        self.target.execute(
            f"""
            CREATE POLICY held_back ON users TO {AUTH.name}
                USING ((SELECT pg_sleep({HELD_BACK_S})) IS NOT NULL) WITH CHECK (true);
            ALTER TABLE users ENABLE ROW LEVEL SECURITY
            """,
            AUTH.database,
        )

    def repair(self) -> None:
        self.target.execute(
            "ALTER TABLE users DISABLE ROW LEVEL SECURITY; DROP POLICY held_back ON users", AUTH.database
        )


@dataclass(slots=True)
class Divergence:
    """Somebody works at the copy: tokens gain rights, others vanish. Mended by copying these rows again."""

    shared: Server
    target: Server
    title: str = field(default="somebody changes and deletes tokens directly in auth_db", init=False)
    trigger: str = field(default="consistency", init=False)

    def inject(self) -> None:
        self.target.execute(
            f"""
            UPDATE tokens SET scopes = '{{openid,admin}}' WHERE {DORMANT} AND id % 4 = 0;
            DELETE FROM tokens WHERE {DORMANT} AND id % 4 = 1
            """,
            AUTH.database,
        )

    def repair(self) -> None:
        rows = io.BytesIO()
        source = self.shared.connect(SHARED_DBNAME)
        source.run(f"COPY (SELECT * FROM tokens WHERE {DORMANT}) TO STDOUT", stream=rows)
        source.close()
        rows.seek(0)
        target = self.target.connect(AUTH.database)
        target.run("BEGIN")
        target.run("SET LOCAL session_replication_role = replica")
        target.run(f"DELETE FROM tokens WHERE {DORMANT}")
        target.run("COPY tokens FROM STDIN", stream=rows)
        target.run("COMMIT")
        target.close()


@dataclass(slots=True)
class Crash:
    """The servers of the database are gone, at once and without goodbye."""

    servers: Sequence[PostgresServer]
    title: str = field(default="all servers of auth_db crash", init=False)
    trigger: str = field(default="error_rate", init=False)

    def inject(self) -> None:
        for server in self.servers:
            server.kill()

    def repair(self) -> None:
        for server in self.servers:
            server.start()


def faults(shared: Server, primary: PostgresServer, replica: PostgresServer) -> tuple[Fault, ...]:
    """In the order of the story."""
    return Errors(primary), Latency(primary), Divergence(shared, primary), Crash((primary, replica))
