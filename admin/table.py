"""Makes the routing table of a configuration: endpoints and services, none of them moved yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pgshunt.config.model import Address, Config, Database
from pgshunt.config.ownership import assign
from pgshunt.routing.table import SHARED, Endpoint, Role, RoutingTable, Service


def routing_table(config: Config, tables: Collection[str] = ()) -> RoutingTable:
    """Epoch 0. The shared primary comes first, then its replicas, then each database in the file's order.

    `tables` are those that there are: what patterns stand for.
    """
    endpoints = [*_endpoints(SHARED, config.shared)]
    for name, database in config.databases.items():
        endpoints += _endpoints(name, database)
    owned = assign(config.services, tables).tables
    services = tuple(
        Service(
            name=name,
            database=service.database,
            tables=owned[name],
            external_refs=service.external_refs,
            users=service.users,
            shadow_writes=service.shadow_writes,
            shadow_percent=service.shadow_percent,
            causality=service.causality,
            ddl=service.ddl,
        )
        for name, service in config.services.items()
    )
    return RoutingTable(0, tuple(endpoints), services, config.reads.lag_ms_max)


def _endpoints(name: str, database: Database) -> Iterator[Endpoint]:
    def endpoint(name_of_it: str, address: Address, role: Role) -> Endpoint:
        where = (address.host, address.port, database.dbname)
        return Endpoint(name_of_it, name, *where, role, database.tls, address.weight)

    yield endpoint(name, database.primary, "primary")
    for number, replica in enumerate(database.replicas, start=1):
        yield endpoint(f"{name}/{number}", replica, "replica")
