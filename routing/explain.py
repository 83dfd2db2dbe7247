"""Explains a route in words: what the statement does, where its tables are, where it goes, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from pgshunt.routing.classify import classify
from pgshunt.routing.decide import Plan, Proven, Refused, Split, decide
from pgshunt.routing.grammar import Unreadable, parse, pg
from pgshunt.routing.names import SYSTEM_SCHEMAS, is_temporary, resolve, split_search_path
from pgshunt.routing.placement import Placement
from pgshunt.routing.reason import Reason
from pgshunt.routing.shape import Shape
from pgshunt.routing.table import Catalogue, Endpoint, RoutingTable


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far an endpoint may lie behind in s, None: not known; and why it takes no reads, None: it does."""

    lag_s: float | None = None
    withheld: Reason | None = None


FreshnessOf = Callable[[int], Freshness]
"""By endpoint index."""


def nobody_knows(index: int) -> Freshness:
    """The freshness of any endpoint where nobody watches it."""
    return Freshness()


@dataclass(frozen=True, slots=True)
class Taken:
    """A decision that was made: the endpoint's index, and the epoch it was made in."""

    endpoint: int
    reason: Reason
    epoch: int


@dataclass(frozen=True, slots=True)
class TableAt:
    """Where one table is: its service ("" for nobody's), the database that owns it, the databases with
    copies that may be read. `access`: reads, writes or makes. `known` is False for one that the catalogue
    lacks although it should be there.
    """

    name: str
    access: str
    service: str
    owner: str
    copies: tuple[str, ...]
    known: bool = True
    temporary: bool = False

    @property
    def sentence(self) -> str:
        if self.temporary:
            return f"{self.name}: temporary, this session's own, on {self.owner}"
        owner = f"owned by {self.service}" if self.service else "nobody's"
        copies = f", copies in {', '.join(self.copies)}" if self.copies else ""
        unknown = "" if self.known else ", not in the catalogue: mistyped, or not on the search path"
        return f"{self.name}: {owner}, on {self.owner}{copies}{unknown}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that takes a share of such reads. `lag_s` is None for the owner's primary, too, which
    needs no proof; `withheld` is the reason code why it takes none for now, else "".
    """

    endpoint: str
    percent: float
    is_owner: bool
    lag_s: float | None
    withheld: str

    @property
    def sentence(self) -> str:
        if self.is_owner:
            return f"{self.endpoint}: {self.percent:g} %, the owner"
        fresh = "freshness unknown" if self.lag_s is None else f"{1000 * self.lag_s:.0f} ms behind"
        withheld = f", takes no reads now ({self.withheld})" if self.withheld else ""
        return f"{self.endpoint}: {self.percent:g} %, {fresh}{withheld}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One explained route. `runs` are the functions that it calls, or views and triggers for it. `choice`
    names endpoints with their share of the calls in percent. `refusal` is the error of a statement that is
    refused: message and hint; else it is empty.
    """

    kind: str
    traits: tuple[str, ...]
    runs: tuple[str, ...]
    tables: tuple[TableAt, ...]
    service: str
    candidates: tuple[Candidate, ...]
    choice: tuple[tuple[str, float], ...]
    pins: tuple[str, ...]
    reason: str
    sentence: str
    epoch: int
    refusal: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def facts(self) -> Iterator[tuple[str, str]]:
        """The explanation as (what, text)."""
        traits = f" ({', '.join(self.traits)})" if self.traits else ""
        yield "shape", f"{self.kind}{traits}"
        if self.runs:
            yield "runs", ", ".join(self.runs)
        for table in self.tables:
            yield table.access, table.sentence
        for candidate in self.candidates:
            yield "candidate", candidate.sentence
        yield "route", ", ".join(f"{name} {percent:g} %" for name, percent in self.choice)
        yield "reason", f"{self.reason}: {self.sentence}"
        yield from zip(("error", "hint"), self.refusal, strict=False)
        if self.pins:
            what = ", ".join(self.pins)
            yield "pinned", f"{what}: the session keeps its server connection until that is gone."
        yield "epoch", str(self.epoch)

    def lines(self) -> list[str]:
        """The explanation as text, one fact a line."""
        return [f"{what:<10} {text}" for what, text in self.facts()]


def explain(
    sql: str,
    table: RoutingTable,
    catalogue: Catalogue,
    search_path: tuple[str, ...] | None = None,
    freshness_of: FreshnessOf = nobody_knows,
) -> Explanation:
    """Explain the route of `sql` in this epoch. Without `search_path` it is the shared database's default."""
    catalogue = catalogue.holding(table)
    path = split_search_path(catalogue.search_path) if search_path is None else search_path
    made = {
        resolve(relation.schemaname, relation.relname, path, catalogue.relations): relation
        for relation in _made(sql)
    }
    return explain_shape(classify(sql, path, catalogue), table, catalogue, freshness_of, made=made)


def explain_shape(
    shape: Shape,
    table: RoutingTable,
    catalogue: Catalogue,
    freshness_of: FreshnessOf = nobody_knows,
    taken: Taken | None = None,
    made: Mapping[str, pg.RangeVar] = MappingProxyType({}),
) -> Explanation:
    """Explain where statements of this shape go, or, with `taken`, where one of them went. `made`: the tables
    and views that the statement makes.
    """
    placement = Placement.of(table, catalogue.wholes(), catalogue.views())
    plan = decide(shape, table, placement)
    reason = plan.reason if taken is None else taken.reason
    return Explanation(
        kind=shape.kind.name.lower(),
        traits=_traits(shape),
        runs=tuple(sorted(shape.runs)),
        tables=tuple(
            _table_at(name, shape, table, placement, catalogue, made) for name in sorted(shape.tables)
        ),
        service=table.services[plan.service].name if plan.service >= 0 else "",
        candidates=tuple(_candidates(plan, table, freshness_of)),
        choice=_choice(plan, table) if taken is None else ((table.endpoints[taken.endpoint].name, 100),),
        pins=tuple(sorted(shape.pins)),
        reason=reason.code,
        sentence=reason.sentence,
        epoch=table.epoch if taken is None else taken.epoch,
        refusal=(plan.message, plan.hint) if isinstance(plan, Refused) else (),
    )


def _traits(shape: Shape) -> tuple[str, ...]:
    said = {
        "takes locks": shape.locks,
        "volatile": shape.volatile,
        "tells the time": shape.time_dependent,
        f"sets: {', '.join(sorted(shape.touches | shape.resets))}": shape.touches or shape.resets,
        f"tied to the server: {shape.local}": shape.local and shape.local != "hint",
        "asks for the primary": shape.local == "hint",
        "literals matter": shape.literal_sensitive,
        "calls a function that the catalogue does not know": shape.strange,
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
        copies=tuple(database for database, names in placement.held.items() if name in names),
        known=name in catalogue.relations or not expected,
        temporary=is_temporary(schema) or (name in made and made[name].relpersistence == "t"),
    )


def _candidates(plan: Plan, table: RoutingTable, freshness_of: FreshnessOf) -> Iterator[Candidate]:
    if isinstance(plan, Proven):
        for place in plan.places:
            yield _candidate(
                table.endpoints[place.endpoint],
                100 if place is plan.places[0] else 0,
                freshness_of(place.endpoint),
            )
    if not isinstance(plan, Split):
        return
    owners = (plan.baseline, *plan.replicas)
    for indexes, percent in ((plan.candidates, plan.percent), (owners, 100 - plan.percent)):
        # What has no weight is read where nothing else can be, and so is the owner, whatever the weights say.
        total = sum(table.endpoints[index].weight for index in indexes)
        for index in indexes if percent else ():
            endpoint, is_owner = table.endpoints[index], index == plan.baseline
            share = percent * endpoint.weight / total if total else percent if index == indexes[0] else 0
            fresh = Freshness() if is_owner else freshness_of(index)
            yield _candidate(endpoint, share, fresh, is_owner)


def _candidate(endpoint: Endpoint, percent: float, fresh: Freshness, is_owner: bool = False) -> Candidate:
    withheld = "" if fresh.withheld is None else fresh.withheld.code
    return Candidate(endpoint.name, round(percent, 1), is_owner, fresh.lag_s, withheld)


def _choice(plan: Plan, table: RoutingTable) -> tuple[tuple[str, float], ...]:
    if isinstance(plan, Refused):
        return (("refused", 100),)
    if isinstance(plan, Proven):
        return ((" or ".join(table.endpoints[place.endpoint].name for place in plan.places), 100),)
    if not isinstance(plan, Split):
        return ((table.endpoints[plan.endpoint].name, 100),)
    choices = []
    owners = (plan.baseline, *plan.replicas)
    for indexes, percent in ((plan.candidates, plan.percent), (owners, 100 - plan.percent)):
        if percent:
            choices.append((" or ".join(table.endpoints[index].name for index in indexes), percent))
    return tuple(choices)
