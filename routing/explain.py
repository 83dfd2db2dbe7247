"""Explains a route in words: what the statement does, where its tables are, where it goes, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pgshunt.routing.classify import classify
from pgshunt.routing.decide import Plan, Reason, Split, decide
from pgshunt.routing.grammar import Unreadable, parse, pg
from pgshunt.routing.names import SYSTEM_SCHEMAS, is_temporary, resolve, split_search_path
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
    copies that take reads. `access`: reads, writes or makes. `known` is False for one that the catalogue
    lacks although it should be there.
    """

    name: str
    access: str
    service: str
    owner: str
    copies: tuple[str, ...]
    known: bool = True
    temporary: bool = False

    def __str__(self) -> str:
        if self.temporary:
            return f"{self.access:<10} {self.name}: temporary, this session's own, on {self.owner}"
        owner = f"owned by {self.service}" if self.service else "nobody's"
        copies = f", copies in {', '.join(self.copies)}" if self.copies else ""
        unknown = "" if self.known else ", not in the catalogue: mistyped, or not on the search path"
        return f"{self.access:<10} {self.name}: {owner}, on {self.owner}{copies}{unknown}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explained route. `choice` names endpoints with their share of the calls in percent."""

    kind: str
    traits: tuple[str, ...]
    tables: tuple[TableAt, ...]
    service: str
    choice: tuple[tuple[str, int], ...]
    pins: tuple[str, ...]
    reason: str
    sentence: str
    epoch: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The explanation as text, one fact a line."""
        traits = f" ({', '.join(self.traits)})" if self.traits else ""
        lines = [f"shape      {self.kind}{traits}"]
        lines += map(str, self.tables)
        lines.append(f"route      {', '.join(f'{name} {percent} %' for name, percent in self.choice)}")
        lines.append(f"reason     {self.reason}: {self.sentence}")
        if self.pins:
            what = ", ".join(self.pins)
            lines.append(f"pinned     {what}: the session keeps its server connection until that is gone.")
        return lines


def explain(
    sql: str, table: RoutingTable, catalogue: Catalogue, search_path: tuple[str, ...] | None = None
) -> Explanation:
    """Explain the route of `sql` in this epoch. Without `search_path` it is the shared database's default."""
    path = split_search_path(catalogue.search_path) if search_path is None else search_path
    shape = classify(sql, path, catalogue)
    placement = Placement.of(table)
    plan = decide(shape, table, placement)
    made = {
        resolve(relation.schemaname, relation.relname, path, catalogue.relations): relation
        for relation in _made(sql)
    }
    return Explanation(
        kind=shape.kind.name.lower(),
        traits=_traits(shape),
        tables=tuple(
            _table_at(name, shape, table, placement, catalogue, made) for name in sorted(shape.tables)
        ),
        service=table.services[plan.service].name if plan.service >= 0 else "",
        choice=_choice(plan, table),
        pins=tuple(sorted(shape.pins)),
        reason=plan.reason.code,
        sentence=SENTENCES[plan.reason],
        epoch=table.epoch,
    )


def _traits(shape: Shape) -> tuple[str, ...]:
    said = {
        "takes locks": shape.locks,
        "volatile": shape.volatile,
        "tells the time": shape.time_dependent,
        f"sets: {', '.join(sorted(shape.touches | shape.resets))}": shape.touches or shape.resets,
        f"tied to the server: {shape.local}": shape.local,
        "literals matter": shape.literal_sensitive,
        "read only": shape.read_only,
        f"{shape.statements} statements": shape.statements > 1,
        shape.reason: shape.reason not in ("", "locks", *shape.pins, shape.local),
    }
    return tuple(trait for trait, holds in said.items() if holds)


def _made(sql: str) -> Iterator[pg.RangeVar]:
    """The tables and views that `sql` makes."""
    try:
        statements = parse(sql.encode("utf-8", "surrogatepass")).stmts
    except Unreadable:
        return
    for statement in statements:
        kind = statement.stmt.WhichOneof("node")
        node = getattr(statement.stmt, kind) if kind else None
        match node:
            case pg.CreateStmt():
                yield node.relation
            case pg.ViewStmt():
                yield node.view
            case pg.CreateTableAsStmt():
                yield node.into.rel
            case pg.SelectStmt() if node.HasField("into_clause"):
                yield node.into_clause.rel


def _table_at(
    name: str,
    shape: Shape,
    table: RoutingTable,
    placement: Placement,
    catalogue: Catalogue,
    made: Mapping[str, pg.RangeVar],
) -> TableAt:
    service = placement.services.get(name)
    schema = name.partition(".")[0]
    expected = name not in made and schema not in SYSTEM_SCHEMAS and bool(catalogue.relations)
    return TableAt(
        name=name,
        access="makes" if name in made else "writes" if name in shape.writes else "reads",
        service="" if service is None else table.services[service].name,
        owner=placement.owner(name),
        copies=tuple(table.services[c.service].database for c in placement.copies if name in c.tables),
        known=name in catalogue.relations or not expected,
        temporary=is_temporary(schema) or (name in made and made[name].relpersistence == "t"),
    )


def _choice(plan: Plan, table: RoutingTable) -> tuple[tuple[str, int], ...]:
    if not isinstance(plan, Split):
        return ((table.endpoints[plan.endpoint].name, 100),)
    names = " or ".join(table.endpoints[index].name for index in plan.candidates)
    rest = ((table.endpoints[plan.baseline].name, 100 - plan.percent),) if plan.percent < 100 else ()
    return ((names, plan.percent), *rest)
