"""Holds what the data plane routes by: endpoints, services and their stages, and the catalogue. Where each
table is follows from it: placement.py.

Every value here is frozen and travels as JSON between supervisor and workers (`to_dict`, `from_dict`). A
change of any of them is a new epoch; nothing is edited in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from pgshunt.config.model import ServerTls
from pgshunt.routing.effects import NO_CODE, Code, added

Role = Literal["primary", "replica"]
Stage = Literal["shared", "syncing", "shadowing", "reading", "switched", "completed"]
Causality = Literal["session", "service"]
"""Whose writes a read must not precede: the session's own, or any session's of the services it reads."""

SHARED = "shared"
"""Name of the shared database; it owns every table that no service has moved away."""

MOVED: Final[frozenset[Stage]] = frozenset({"switched", "completed"})
"""Stages in which the service's own database owns its tables."""

PLAINTEXT = ServerTls(mode="disable")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server address of a database, and how connections to it are encrypted. Names read "auth_db" for the
    primary and "auth_db/1" for its first replica. `weight` is its share of the database's reads, among the
    weights of all its endpoints; without one an endpoint is read when no other can be.
    """

    name: str
    database: str
    host: str
    port: int
    dbname: str
    role: Role
    tls: ServerTls = PLAINTEXT
    weight: int = 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "database": self.database,
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "role": self.role,
            "tls": self.tls.model_dump(mode="json", exclude_none=True),
            "weight": self.weight,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Endpoint:
        return cls(
            name=data["name"],
            database=data["database"],
            host=data["host"],
            port=int(data["port"]),
            dbname=data["dbname"],
            role=data["role"],
            tls=ServerTls.model_validate(data["tls"]) if "tls" in data else PLAINTEXT,
            weight=int(data.get("weight", 1)),
        )


@dataclass(frozen=True, slots=True)
class Service:
    """What one service owns and how far it has moved. Table names are schema-qualified ("public.users").

    `copied` names the tables the lanes really keep in step: its own tables, in its own database until it owns
    them and in the shared one while it is `switched`; and those of its `external_refs` that are replicated to
    its own database. Only these may be read there; `tables` and `external_refs` say what is meant to be.
    `reads_percent` is 0..100, `shadow_percent` 0.0..100.0.
    """

    name: str
    database: str
    tables: tuple[str, ...]
    external_refs: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    stage: Stage = "shared"
    reads_percent: int = 0
    shadow_writes: Literal["off", "validate"] = "off"
    shadow_percent: float = 100.0
    copied: tuple[str, ...] = ()
    causality: Causality = "session"
    ddl: Literal["refuse", "owner", "both"] = "refuse"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Service:
        return cls(
            name=data["name"],
            database=data["database"],
            tables=tuple(data["tables"]),
            external_refs=tuple(data.get("external_refs", ())),
            users=tuple(data.get("users", ())),
            stage=data.get("stage", "shared"),
            reads_percent=int(data.get("reads_percent", 0)),
            shadow_writes=data.get("shadow_writes", "off"),
            shadow_percent=float(data.get("shadow_percent", 100.0)),
            copied=tuple(data.get("copied", ())),
            causality=data.get("causality", "session"),
            ddl=data.get("ddl", "refuse"),
        )


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """One epoch of the routing table. An endpoint's place in `endpoints` is its index; 0 is the shared
    primary.
    """

    epoch: int
    endpoints: tuple[Endpoint, ...]
    services: tuple[Service, ...] = ()
    lag_ms_max: int = 1000

    def to_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "endpoints": [endpoint.to_dict() for endpoint in self.endpoints],
            "services": [service.to_dict() for service in self.services],
            "lag_ms_max": self.lag_ms_max,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoutingTable:
        return cls(
            epoch=int(data["epoch"]),
            endpoints=tuple(Endpoint.from_dict(endpoint) for endpoint in data["endpoints"]),
            services=tuple(Service.from_dict(service) for service in data.get("services", ())),
            lag_ms_max=int(data.get("lag_ms_max", 1000)),
        )


def _no_relations() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the shared database says about itself, as far as classifying statements needs it.

    `relations` maps "schema.name" to pg_class.relkind. `safe_functions` are the names of which every overload
    in pg_catalog is immutable or stable: a call of anything else may write. `search_path` is the database's
    default, as SHOW prints it. `types` are the names of PostgreSQL's own types; `own_types` are the relations
    with a column of another: its OID, which clients are told with the rows, is another one on every server.
    `parts` are tables that go with another or with an extension: partitions, and what extensions made.
    `belongs` has for an index, or the sequence of a column, the table it is part of, `parents` for a
    partition or another child its parent; `typed` for a type that was made here the tables with columns of
    it, or of what is made of it. `defaults` tells one set of ALTER ROLE's and ALTER DATABASE's settings from
    another, for each role that has some, under the empty name for all. `code` is what its functions, triggers
    and so on do; `recent` what DDL that went through this worker has made since. `definitions` says, for each
    worker, how many transactions with DDL it had seen end before all this was read.
    """

    version: int = 0
    relations: Mapping[str, str] = field(default_factory=_no_relations)
    safe_functions: frozenset[str] = frozenset()
    search_path: str = '"$user", public'
    types: frozenset[str] = frozenset()
    own_types: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    belongs: Mapping[str, str] = field(default_factory=_no_relations)
    typed: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    code: Code = NO_CODE
    recent: Code = NO_CODE
    definitions: tuple[int, ...] = ()
    parents: Mapping[str, str] = field(default_factory=_no_relations)
    defaults: Mapping[str, str] = field(default_factory=_no_relations)

    def learned(self, made: Code) -> Catalogue:
        """With what a statement defines."""
        return replace(self, recent=added(self.recent, made))

    def tables(self) -> frozenset[str]:
        """Those that a service can own for themselves."""
        return frozenset(name for name, kind in self.relations.items() if kind in "rp") - self.parts

    def defaults_of(self, user: str) -> tuple[str | None, str | None]:
        """What a session of this role begins with, as something to compare."""
        return self.defaults.get(user), self.defaults.get("")

    def wholes(self) -> Mapping[str, str]:
        """For each relation that goes with a table: that table, or what it goes with itself."""
        return MappingProxyType({**self.belongs, **self.parents})

    def views(self) -> frozenset[str]:
        return frozenset(name for name, kind in self.relations.items() if kind == "v")

    def holding(self, table: RoutingTable) -> Catalogue:
        """With the tables that have moved away, should the shared database not have them any more."""
        moved = {name for service in table.services if service.stage in MOVED for name in service.tables}
        gone = dict.fromkeys(sorted(moved - self.relations.keys()), "r")
        return replace(self, relations=MappingProxyType({**self.relations, **gone})) if gone else self

    def knows_function(self, name: str) -> bool:
        """Whether there is one of this name, in whatever schema outside pg_catalog."""
        return name in self.code.functions_named or name in self.recent.functions_named

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "relations": dict(self.relations),
            "safe_functions": sorted(self.safe_functions),
            "search_path": self.search_path,
            "types": sorted(self.types),
            "own_types": sorted(self.own_types),
            "parts": sorted(self.parts),
            "belongs": dict(self.belongs),
            "typed": {name: sorted(tables) for name, tables in self.typed.items()},
            "code": self.code.to_dict(),
            "definitions": list(self.definitions),
            "parents": dict(self.parents),
            "defaults": dict(self.defaults),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Catalogue:
        return cls(
            version=int(data["version"]),
            relations=MappingProxyType(dict(data["relations"])),
            safe_functions=frozenset(data["safe_functions"]),
            search_path=data["search_path"],
            types=frozenset(data["types"]),
            own_types=frozenset(data["own_types"]),
            parts=frozenset(data["parts"]),
            belongs=MappingProxyType(dict(data["belongs"])),
            typed=MappingProxyType({name: frozenset(tables) for name, tables in data["typed"].items()}),
            code=Code.from_dict(data["code"]),
            definitions=tuple(data["definitions"]),
            parents=MappingProxyType(dict(data["parents"])),
            defaults=MappingProxyType(dict(data["defaults"])),
        )
