"""Explains a route in words: what the statement does, where its tables are, where it goes, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pgshunt.routing.classify import classify
from pgshunt.routing.decide import Plan, Reason, Split, decide
from pgshunt.routing.names import SYSTEM_SCHEMAS, split_search_path
from pgshunt.routing.shape import Shape
from pgshunt.routing.table import Catalogue, Placement, RoutingTable

SENTENCES = {
    Reason.OWNER_WRITE: "A write goes to the owner of what it writes.",
    Reason.OWNER_READ: "No database but the owner holds everything this reads and takes reads now.",
    Reason.SPLIT: "A plain read, and a copy holds every table it names.",
    Reason.UNOWNED: "Nobody owns these tables, so they stay on the shared database.",
    Reason.NO_TABLE: "It names no table.",
    Reason.UNKNOWN: "It could not be understood, so it is treated as a write.",
    Reason.TOO_LARGE: "It is too large to be parsed, so it is treated as a write.",
    Reason.VOLATILE: "It calls something that may write.",
    Reason.LOCKS: "It locks rows or tables, which only the owner can do.",
    Reason.SERVER_LOCAL: "Its answer depends on the server it is asked from.",
    Reason.SEVERAL_SERVICES: "It reads tables of several services, and no copy holds all of them.",
    Reason.TRANSACTION: "Transaction control goes where the transaction runs.",
    Reason.SESSION: "It is about the session, not about tables.",
}


@dataclass(frozen=True, slots=True)
class TableAt:
    """Where one table is: its service ("" for nobody's), the database that owns it, the databases with
    copies that take reads. `known` is False for one that the catalogue lacks.
    """

    name: str
    access: str
    service: str
    owner: str
    copies: tuple[str, ...]
    known: bool = True


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explained route. `choice` names endpoints with their share of the calls in percent."""

    kind: str
    traits: tuple[str, ...]
    tables: tuple[TableAt, ...]
    service: str
    choice: tuple[tuple[str, int], ...]
    reason: str
    sentence: str
    epoch: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The explanation as text, one fact a line."""
        traits = f" ({', '.join(self.traits)})" if self.traits else ""
        lines = [f"shape      {self.kind}{traits}"]
        for table in self.tables:
            owner = f"owned by {table.service}" if table.service else "nobody's"
            copies = f", copies in {', '.join(table.copies)}" if table.copies else ""
            unknown = "" if table.known else ", not in the catalogue: mistyped, or not on the search path"
            lines.append(f"{table.access:<10} {table.name}: {owner}, on {table.owner}{copies}{unknown}")
        lines.append(f"route      {', '.join(f'{name} {percent} %' for name, percent in self.choice)}")
        lines.append(f"reason     {self.reason}: {self.sentence}")
        return lines


def explain(
    sql: str, table: RoutingTable, catalogue: Catalogue, search_path: tuple[str, ...] | None = None
) -> Explanation:
    """Explain the route of `sql` in this epoch. Without `search_path` it is the shared database's default."""
    path = split_search_path(catalogue.search_path) if search_path is None else search_path
    shape = classify(sql, path, catalogue)
    placement = Placement.of(table)
    plan = decide(shape, table, placement)
    return Explanation(
        kind=shape.kind.name.lower(),
        traits=_traits(shape),
        tables=tuple(_table_at(name, shape, table, placement, catalogue) for name in sorted(shape.tables)),
        service=table.services[plan.service].name if plan.service >= 0 else "",
        choice=_choice(plan, table),
        reason=plan.reason.code,
        sentence=SENTENCES[plan.reason],
        epoch=table.epoch,
    )


def _traits(shape: Shape) -> tuple[str, ...]:
    said = {
        "takes locks": shape.locks,
        "volatile": shape.volatile,
        "tells the time": shape.time_dependent,
        f"pins the session: {', '.join(sorted(shape.pins))}": shape.pins,
        f"sets: {', '.join(sorted(shape.touches | shape.resets))}": shape.touches or shape.resets,
        f"tied to the server: {shape.local}": shape.local,
        "literals matter": shape.literal_sensitive,
        "read only": shape.read_only,
        f"{shape.statements} statements": shape.statements > 1,
        shape.reason: shape.reason not in ("", "locks", *shape.pins, shape.local),
    }
    return tuple(trait for trait, holds in said.items() if holds)


def _table_at(
    name: str, shape: Shape, table: RoutingTable, placement: Placement, catalogue: Catalogue
) -> TableAt:
    service = placement.services.get(name)
    of_the_system = name.partition(".")[0] in SYSTEM_SCHEMAS
    return TableAt(
        name=name,
        access="writes" if name in shape.writes else "reads",
        service="" if service is None else table.services[service].name,
        owner=placement.owner(name),
        copies=tuple(table.services[c.service].database for c in placement.copies if name in c.tables),
        known=name in catalogue.relations or of_the_system or not catalogue.relations,
    )


def _choice(plan: Plan, table: RoutingTable) -> tuple[tuple[str, int], ...]:
    if not isinstance(plan, Split):
        return ((table.endpoints[plan.endpoint].name, 100),)
    names = " or ".join(table.endpoints[index].name for index in plan.candidates)
    rest = ((table.endpoints[plan.baseline].name, 100 - plan.percent),) if plan.percent < 100 else ()
    return ((names, plan.percent), *rest)
