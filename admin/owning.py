"""Keeps what each service owns as the catalogue has it: which tables its patterns stand for now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgshunt.admin.table import routing_table
from pgshunt.config.model import Config
from pgshunt.config.ownership import Ownership, assign
from pgshunt.routing.table import Catalogue, RoutingTable

Tell = Callable[..., object]
"""tell(kind, service, **detail): an event."""


class Owning:
    """`contested` says in a sentence each which tables belong to nobody because several services' patterns
    match them.
    """

    def __init__(self, config: Config, tell: Tell) -> None:
        self.contested: tuple[str, ...] = ()
        self._tell = tell
        self._ownership = assign(config.services, ())

    def look(self, config: Config, catalogue: Catalogue) -> RoutingTable | None:
        """The routing table as configured, if services own other tables than when it was last looked."""
        before, tables = self._ownership, catalogue.tables()
        found = self._ownership = assign(config.services, tables)
        if found == before:
            return None
        self._tell_changes(before, found)
        self.contested = tuple(
            f"{table} matches patterns of {' and '.join(claims)}, so it is nobody's: name it in one of them"
            for table, claims in found.contested.items()
        )
        return routing_table(config, tables)

    def _tell_changes(self, before: Ownership, found: Ownership) -> None:
        for name, tables in found.tables.items():
            known = before.tables[name]
            detail: dict[str, Any] = {
                "added": [table for table in tables if table not in known],
                "gone": [table for table in known if table not in tables],
            }
            if any(detail.values()):
                self._tell("tables_changed", name, **detail)
        for table, claims in found.contested.items():
            if table not in before.contested:
                self._tell("table_contested", "", table=table, services=list(claims))
