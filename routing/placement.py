"""Says where each table is in one epoch: the database that owns it, and those that hold a copy to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pgshunt.routing.names import SYSTEM_SCHEMAS, is_temporary, last_part, quoted
from pgshunt.routing.table import MOVED, SHARED, RoutingTable, Service


@dataclass(frozen=True, slots=True)
class Copies:
    """What one service's own database may be asked for in place of the owner: the tables it holds, and its
    endpoints by index.
    """

    service: int
    percent: int
    tables: frozenset[str]
    endpoints: tuple[int, ...]


def _nothing() -> Mapping[str, frozenset[str]]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Placement:
    """For each table: the database that owns it (the only place to write) and the copies that may be read.

    `services` maps a table, and what goes with it, to the index of the service it belongs to, `owners` to a
    database, `frozen` a table that must stay as it is defined to the index of the service for whose copy it
    must; `owner_endpoints` maps a database to its primary's index, `replicas` to those of the replicas that
    take reads. `copies` draw reads from the owner; `held` has for each database the tables of other owners
    that it holds a copy of, which may be read there by a statement that needs it. `views` are known of the
    shared database, and are looked for wherever all their tables are. `moved` has, by its last name alone,
    the first of the tables of that name that another database than the shared one owns.
    """

    owners: Mapping[str, str]
    services: Mapping[str, int]
    copies: tuple[Copies, ...]
    owner_endpoints: Mapping[str, int]
    replicas: Mapping[str, tuple[int, ...]]
    frozen: Mapping[str, int]
    held: Mapping[str, frozenset[str]] = field(default_factory=_nothing)
    views: frozenset[str] = frozenset()
    moved: Mapping[str, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        moved: dict[str, str] = {}
        for name in sorted(name for name, owner in self.owners.items() if owner != SHARED):
            moved.setdefault(last_part(name), name)
        object.__setattr__(self, "moved", MappingProxyType(moved))

    @property
    def parted(self) -> bool:
        """Whether some table is owned by another database than the shared one."""
        return bool(self.moved)

    def owner(self, table: str) -> str:
        """The database that owns `table`; what nobody owns stays on the shared database."""
        return self.owners.get(table, SHARED)

    def owners_of(self, tables: Iterable[str]) -> set[str]:
        """The databases that own `tables`. A view is where its tables are, which are used with it."""
        named = set(tables)
        return {self.owner(name) for name in named - self.views or named}

    def has(self, database: str, tables: Iterable[str]) -> bool:
        """Whether it owns or holds all of `tables`."""
        named = set(tables)
        rest = named - self.views or named
        held = self.held.get(database, frozenset())
        return all(self.owner(name) == database or name in held for name in rest)

    @classmethod
    def of(
        cls,
        table: RoutingTable,
        wholes: Mapping[str, str] = MappingProxyType({}),
        views: frozenset[str] = frozenset(),
    ) -> Placement:
        """Derive the placement of one epoch. What goes with a table (Catalogue.wholes) is where that is.

        Raises ValueError if a service has moved to a database without a primary.
        """
        services: dict[str, int] = {}
        replicas: dict[str, tuple[int, ...]] = {}
        for i, endpoint in enumerate(table.endpoints):
            if endpoint.role == "replica" and endpoint.weight:
                replicas[endpoint.database] = (*replicas.get(endpoint.database, ()), i)
        for index, service in enumerate(table.services):
            for name in service.tables:
                services.setdefault(name, index)
        for part in wholes:
            if (of := _whole(part, services, wholes)) is not None:
                services[part] = of
        homes = [service.database if service.stage in MOVED else SHARED for service in table.services]
        owners = {name: homes[index] for name, index in services.items()}
        primaries = {
            endpoint.database: i for i, endpoint in enumerate(table.endpoints) if endpoint.role == "primary"
        }
        if missing := set(owners.values()) - primaries.keys() - {SHARED}:
            raise ValueError(f"services have moved to {', '.join(sorted(missing))}, which has no primary")
        return cls(
            owners=MappingProxyType(owners),
            services=MappingProxyType(services),
            copies=tuple(_copies(table)),
            owner_endpoints=MappingProxyType(primaries),
            replicas=MappingProxyType(replicas),
            frozen=MappingProxyType(_frozen(table, services)),
            held=MappingProxyType(_held(table, services, owners)),
            views=views - owners.keys(),
        )


def placed(tables: Iterable[str]) -> frozenset[str]:
    """Those of `tables` that are somewhere: system relations are everywhere, and what the catalogue does not
    know is a temporary table or none.
    """
    return frozenset(name for name in tables if not is_unknown(name) and not _is_everywhere(name))


def is_unknown(table: str) -> bool:
    """Whether it is a name without a schema, because the catalogue has it nowhere on the search path."""
    return table == quoted(last_part(table))


def _is_everywhere(table: str) -> bool:
    schema = table.partition(".")[0]
    return schema in SYSTEM_SCHEMAS or is_temporary(schema)


def _whole(part: str, services: Mapping[str, int], wholes: Mapping[str, str]) -> int | None:
    """The service of what this goes with, or its own."""
    for _ in range(len(wholes) + 1):  # no more steps than there are parts
        if part in services or part not in wholes:
            break
        part = wholes[part]
    return services.get(part)


def _copies(table: RoutingTable) -> Iterable[Copies]:
    for index, service in enumerate(table.services):
        endpoints = tuple(
            i for i, endpoint in enumerate(table.endpoints) if endpoint.database == service.database
        )
        if endpoints and _takes_reads(service):
            yield Copies(index, min(service.reads_percent, 100), frozenset(service.copied), endpoints)


def _takes_reads(service: Service) -> bool:
    """Whether its own database is read before it owns anything."""
    return service.stage == "reading" and service.reads_percent > 0 and service.database != SHARED


def _held(
    table: RoutingTable, services: Mapping[str, int], owners: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    held: dict[str, set[str]] = {}
    known = {endpoint.database for endpoint in table.endpoints if endpoint.role == "primary"}
    for index, service in enumerate(table.services):
        if service.stage in MOVED or _takes_reads(service):
            held.setdefault(service.database, set()).update(service.copied)
        if service.stage == "switched":
            own = (name for name in service.copied if services.get(name) == index)
            held.setdefault(SHARED, set()).update(own)
    return {
        database: frozenset(name for name in names if owners.get(name, SHARED) != database)
        for database, names in held.items()
        if database in known
    }


def _frozen(table: RoutingTable, services: Mapping[str, int]) -> dict[str, int]:
    """Tables that a lane carries: all of a service that is moving, what it refers to even afterwards."""
    frozen: dict[str, int] = {}
    for index, service in enumerate(table.services):
        if service.stage == "shared" or service.ddl == "owner":
            continue
        carried = {*service.tables, *service.external_refs, *service.copied}
        if service.stage == "completed":
            carried = {name for name in carried if services.get(name) != index}
        frozen.update(dict.fromkeys(sorted(carried), index))
    return frozen
