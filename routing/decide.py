"""Decides where a statement of some shape runs, in one epoch of the routing table.

Made once per shape and epoch; the data plane then only reads the plan. What can change between two
statements (a die for the percentage, freshness, a dead endpoint, the transaction one is in) is left to it.
Both name their reasons in the words of `reason.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from pgshunt.routing.reason import Reason
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import SHARED, Copies, Placement, RoutingTable


class PlanKind(IntEnum):
    """The same numbers stand in `_shapes.pxd`."""

    FIXED = 0
    SPLIT = 1
    REFUSED = 2


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


Plan = Fixed | Split | Refused

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
    """The plan for `shape`. In doubt it is the owner.

    A plain read is split if one service that is in stage reading holds copies of all its tables and owns at
    least one of them: a copy kept only as an external_ref of somebody else draws no reads from its owner's
    service. The replicas of the owner hold whatever it holds.
    """
    baseline = placement.owner_endpoints.get(SHARED, 0)
    if shape.splittable:
        copies = _best_copies(shape.reads, placement)
        replicas = placement.replicas.get(SHARED, ())
        after = _after(shape.reads, table, placement)
        if copies is not None:
            return Split(copies.service, copies.percent, baseline, copies.endpoints, replicas, after)
        if replicas:
            service = _service(shape, placement)
            return Split(service, 0, baseline, (), replicas, after, Reason.REPLICA)
    for name in sorted(shape.alters & placement.frozen.keys()):
        return _frozen(name, table, placement, baseline)
    return Fixed(baseline, _service(shape, placement), _reason(shape, placement))


def _frozen(name: str, table: RoutingTable, placement: Placement, baseline: int) -> Refused:
    mover = table.services[placement.frozen[name]]
    return Refused(
        baseline,
        placement.services.get(name, placement.frozen[name]),
        Reason.FROZEN,
        f"the definition of {name} cannot change while {mover.name} is moving to {mover.database}",
        "Do it before the move or behind it. "
        f"With services.{mover.name}.ddl: owner it is done in the shared database alone, "
        "and the same has to be done in the copy by hand.",
    )


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
