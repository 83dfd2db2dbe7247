"""Makes the routing table of a configuration: endpoints and services, none of them moved yet."""

from __future__ import annotations

from collections.abc import Iterator

from pgshunt.config.model import Config, Database
from pgshunt.routing.table import SHARED, Endpoint, RoutingTable, Service


def routing_table(config: Config) -> RoutingTable:
    """Epoch 0. The shared primary comes first, then its replicas, then each database in the file's order."""
    endpoints = [*_endpoints(SHARED, config.shared)]
    for name, database in config.databases.items():
        endpoints += _endpoints(name, database)
    services = tuple(
        Service(
            name=name,
            database=service.database,
            tables=service.tables,
            external_refs=service.external_refs,
            users=service.users,
            shadow_writes=service.shadow_writes,
            shadow_percent=service.shadow_percent,
        )
        for name, service in config.services.items()
    )
    return RoutingTable(0, tuple(endpoints), services)


def _endpoints(name: str, database: Database) -> Iterator[Endpoint]:
    primary = database.primary
    yield Endpoint(name, name, primary.host, primary.port, database.dbname, "primary", database.tls)
    for number, replica in enumerate(database.replicas, start=1):
        yield Endpoint(
            f"{name}/{number}", name, replica.host, replica.port, database.dbname, "replica", database.tls
        )
