"""Decides where a statement of some shape runs, in one epoch of the routing table.

Made once per shape and epoch; the data plane then only reads the plan. What can change between two
statements (a die for the percentage, freshness, a dead endpoint, the transaction one is in) is left to it.
Both name their reasons in the words of `reason.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from pgshunt.routing import refusal
from pgshunt.routing.crossing import written
from pgshunt.routing.names import last_part, named
from pgshunt.routing.placement import Copies, Placement, is_unknown, placed
from pgshunt.routing.reason import Reason
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import SHARED, RoutingTable


class PlanKind(IntEnum):
    """The same numbers stand in `_shapes.pxd`."""

    FIXED = 0
    SPLIT = 1
    REFUSED = 2
    PROVEN = 3


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always this endpoint. `service` is the index of the service whose tables it is about, -1 for none or
    several.
    """

    kind: ClassVar[PlanKind] = PlanKind.FIXED
    endpoint: int
    service: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Split:
    """`percent` of the calls go to one of `candidates`, copies elsewhere; the rest stay at the owner's
    database: at `baseline`, its primary, or at one of its `replicas`. All are endpoint indexes. What is not
    fresh enough is passed over.

    `after` says whose writes it must hold besides the session's own: the places of services in the board's
    rows of writes, which is one more than their index; 0 stands for writes that may be anybody's.
    """

    kind: ClassVar[PlanKind] = PlanKind.SPLIT
    service: int
    percent: int
    baseline: int
    candidates: tuple[int, ...]
    replicas: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    reason: Reason = Reason.SPLIT


@dataclass(frozen=True, slots=True)
class Refused:
    """Not run at all: the client gets an error (SQLSTATE 0A000) in place of an answer, and an open
    transaction fails as by any other error. `endpoint` is where the session's link is, if it needs one.
    """

    kind: ClassVar[PlanKind] = PlanKind.REFUSED
    endpoint: int
    service: int
    reason: Reason
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint whose database has all tables of a statement, some as copies. `after`: as in Split, of
    those whose tables are copies there.
    """

    endpoint: int
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Proven:
    """At the first of `places` whose copies hold whatever they must; nowhere else. While none does it is
    refused, in the words of `message` and `hint`.
    """

    kind: ClassVar[PlanKind] = PlanKind.PROVEN
    service: int
    places: tuple[Place, ...]
    message: str
    hint: str
    reason: Reason = Reason.TOGETHER


Plan = Fixed | Split | Refused | Proven

_BY_KIND: Final = {
    Kind.EMPTY: Reason.NO_TABLE,
    Kind.BEGIN: Reason.TRANSACTION,
    Kind.COMMIT: Reason.TRANSACTION,
    Kind.ROLLBACK: Reason.TRANSACTION,
    Kind.SAVEPOINT: Reason.TRANSACTION,
    Kind.SESSION: Reason.SESSION,
    Kind.SHOW_ROUTE: Reason.SESSION,
    Kind.UNKNOWN: Reason.UNKNOWN,
}


def decide(shape: Shape, table: RoutingTable, placement: Placement) -> Plan:
    """The plan for `shape`. In doubt it is the owner, and where nobody owns anything the shared database.

    A plain read is split if one service that is in stage reading holds copies of all its tables and owns at
    least one of them: a copy kept only as an external_ref of somebody else draws no reads from its owner's
    service. The replicas of the owner hold whatever it holds. What concerns tables of several owners goes to
    a database that has all of them, if the copies among them are fresh.
    """
    shared = placement.owner_endpoints.get(SHARED, 0)
    service = _service(shape, placement)
    home = SHARED
    if placement.parted:
        meant = {placement.moved.get(last_part(name)) for name in shape.tables if is_unknown(name)} - {None}
        if meant:
            return Refused(shared, service, Reason.OBSCURE, *refusal.obscure(sorted(filter(None, meant))))
        if unread := shape.unread and named(shape.unread.decode(errors="replace"), placement.moved):
            told = refusal.unread(sorted(placement.moved[name] for name in unread))
            return Refused(shared, service, Reason.ANYWHERE, *told)
        if shape.anywhere:
            return Refused(shared, service, Reason.ANYWHERE, *refusal.anywhere(shape))
        tables = placed(shape.tables | shape.alters)
        owners = {placement.owner(name) for name in tables}
        if owners - {SHARED} and shape.meets:
            told = refusal.shared_only(tables, table, placement)
            return Refused(shared, service, Reason.SHARED_ONLY, *told)
        if len(owners) > 1:
            frozen = _frozen(shape, table, placement, shared)
            return frozen or _together(shape, tables, table, placement)
        home = owners.pop() if owners else SHARED
    baseline = placement.owner_endpoints.get(home, 0)
    if shape.splittable:
        copies = _best_copies(shape.reads, placement)
        replicas = placement.replicas.get(home, ())
        after = _after(shape.reads, table, placement)
        if copies is not None:
            return Split(copies.service, copies.percent, baseline, copies.endpoints, replicas, after)
        if replicas:
            return Split(service, 0, baseline, (), replicas, after, Reason.REPLICA)
    return _frozen(shape, table, placement, shared) or Fixed(baseline, service, _reason(shape, placement))


def needs(shape: Shape, database: str, table: RoutingTable, placement: Placement) -> tuple[int, ...] | None:
    """Of what others have written, what its copies must hold for such a statement to run at a database (as
    Split.after says it). None: it must not run there. What is written must be owned there, and what may be
    more than a plain read of tables goes to an owner of something it names.
    """
    tables = placed(shape.tables | shape.alters)
    owners = {placement.owner(name) for name in tables}
    writing = placement.owners_of(placed(written(shape) | shape.alters))
    if writing - {database} or not placement.has(database, tables):
        return None
    plain = shape.splittable and not tables & placement.views
    if not (plain or writing or database in owners) or (shape.meets and database != SHARED):
        return None
    return _after(frozenset(name for name in tables if placement.owner(name) != database), table, placement)


def is_tied(shape: Shape, placement: Placement) -> bool:
    """Whether it matters at which database such a statement runs, once its transaction runs at one."""
    return placement.parted and (shape.meets or bool(placed(shape.tables | shape.alters)))


def _together(
    shape: Shape, tables: frozenset[str], table: RoutingTable, placement: Placement
) -> Proven | Refused:
    """Where `tables`, of several owners, are used together: at one of those that have all of them."""
    service = _service(shape, placement)
    ready = {
        database: after
        for database in sorted(placement.owner_endpoints)
        if (after := needs(shape, database, table, placement)) is not None
    }
    if not ready:
        writing = placement.owners_of(placed(written(shape) | shape.alters))
        told = refusal.several_owners(tables, writing, table, placement)
        shared = placement.owner_endpoints.get(SHARED, 0)
        return Refused(shared, service, Reason.SEVERAL_OWNERS, *told)

    views = tables & placement.views

    def owned(database: str) -> tuple[bool, int]:
        # That the shared database has a view is known, and of others hoped.
        return bool(views) and database == SHARED, sum(placement.owner(name) == database for name in tables)

    return Proven(
        service,
        tuple(
            Place(placement.owner_endpoints[database], ready[database])
            for database in sorted(ready, key=owned, reverse=True)
        ),
        *refusal.not_fresh(tables, table, placement),
    )


def _frozen(shape: Shape, table: RoutingTable, placement: Placement, endpoint: int) -> Refused | None:
    for name in sorted(shape.alters & placement.frozen.keys()):
        service = placement.services.get(name, placement.frozen[name])
        return Refused(endpoint, service, Reason.FROZEN, *refusal.frozen(name, table, placement))
    return None


def _best_copies(tables: frozenset[str], placement: Placement) -> Copies | None:
    """Of the copies that hold all of `tables`, those of the service that owns most of them; None if there
    are none.
    """

    def owned(copies: Copies) -> int:
        return sum(placement.services.get(name) == copies.service for name in tables)

    complete = [copies for copies in placement.copies if tables <= copies.tables and owned(copies)]
    return max(complete, key=owned, default=None)


def _after(tables: frozenset[str], table: RoutingTable, placement: Placement) -> tuple[int, ...]:
    """Of the services that own `tables`, those of which no session may read less than any has written."""
    found = sorted(
        1 + service
        for service in _services(tables, placement)
        if table.services[service].causality == "service"
    )
    return (0, *found) if found else ()


def _services(tables: frozenset[str], placement: Placement) -> set[int]:
    return {placement.services[name] for name in tables if name in placement.services}


def _service(shape: Shape, placement: Placement) -> int:
    """The one service that owns what is written, else what is read; -1 if it is none or several."""
    services = _services(shape.writes, placement) or _services(shape.reads, placement)
    return services.pop() if len(services) == 1 else -1


def _reason(shape: Shape, placement: Placement) -> Reason:
    if shape.reason == "too_large":
        return Reason.TOO_LARGE
    if shape.kind in _BY_KIND:
        return _BY_KIND[shape.kind]
    services = _services(shape.tables, placement)
    if shape.volatile and not shape.writes:
        return Reason.VOLATILE
    if shape.tables and not services:
        return Reason.UNOWNED
    if shape.writing:
        return Reason.LOCKS if shape.kind is Kind.READ else Reason.OWNER_WRITE
    if shape.local is not None:
        return Reason.HINT if shape.local == "hint" else Reason.SERVER_LOCAL
    if not shape.tables:
        return Reason.NO_TABLE
    return Reason.OWNER_READ if len(services) == 1 else Reason.SEVERAL_SERVICES
