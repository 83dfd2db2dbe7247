"""Explains a route without a running pgshunt: as the configuration plans it, every service in `reading`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from pgshunt.admin.table import routing_table
from pgshunt.admin.viewpoint import Viewpoint
from pgshunt.config.model import Config
from pgshunt.migration.catalogue import read_catalogue, read_search_path
from pgshunt.migration.servers import connected
from pgshunt.routing.explain import explain
from pgshunt.routing.table import RoutingTable

READ_S_MAX: Final = 30.0


def explain_offline(config: Config, sql: str, user: str, search_path: str) -> dict[str, Any]:
    """The same document as the admin API's. Raises ServerError when the shared database cannot be read."""
    shared = routing_table(config).endpoints[0]
    with connected(shared, config.control, "explain", READ_S_MAX) as link:
        catalogue = read_catalogue(link, 1)
        own_path = read_search_path(link, user) if user and not search_path else ""
    table = planned(config, catalogue.tables())
    view = Viewpoint(user, search_path, own_path)
    path = view.path(catalogue.search_path)
    return view.document(explain(sql, table, catalogue, path), path)


def planned(config: Config, tables: Collection[str] = ()) -> RoutingTable:
    """The table with every copy made and `reads` in force. `tables` are those that there are."""
    table = routing_table(config, tables)
    services = tuple(
        replace(
            service,
            stage="reading",
            reads_percent=config.services[service.name].reads,
            copied=(*service.tables, *service.external_refs),
        )
        for service in table.services
    )
    return replace(table, services=services)
