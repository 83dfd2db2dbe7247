"""Fills the shared database and readies the services' own ones: roles, tables, rows, rights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from pgshunt.demo.postgres import Server
from pgshunt.demo.services import SERVICES, SHARED_DBNAME, Service


def create_roles(server: Server, passwords: Mapping[str, str]) -> None:
    """The services' login roles, with the same password on every server."""
    server.execute(
        "; ".join(f"CREATE ROLE {name} LOGIN PASSWORD '{word}'" for name, word in passwords.items())
    )


def create_shared(server: Server, passwords: Mapping[str, str]) -> None:
    """The monolith: everybody's tables, the same some thousand rows every time, what each role may do."""
    create_roles(server, passwords)
    server.execute(f"CREATE DATABASE {SHARED_DBNAME}")
    package = files("pgshunt.demo")
    for script in ("schema.sql", "seed.sql"):
        server.execute((package / script).read_text(), SHARED_DBNAME)
    server.execute("; ".join(grant for service in SERVICES for grant in _grants(service)), SHARED_DBNAME)


def create_own(server: Server, service: Service) -> None:
    """An empty database for one service to move to: roles, tables and rights come with the move.

    It logs every statement, so that what it was asked is known from itself.
    """
    server.execute(f"CREATE DATABASE {service.database}")
    server.execute(f"ALTER DATABASE {service.database} SET log_statement = 'all'")


def _grants(service: Service) -> list[str]:
    own, others = ", ".join(service.tables), ", ".join(service.external_refs)
    return [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {own} TO {service.name}",
        f"GRANT SELECT ON {others} TO {service.name}",
        *(["GRANT INSERT ON audit_logs TO " + service.name] if service.writes_audit else []),
    ]
