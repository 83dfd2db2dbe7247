"""Words the errors of statements that no database may run: the tables, their owners, their databases, and the
ways out. Each function returns (message, hint).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from pgshunt.routing.placement import Placement, placed
from pgshunt.routing.shape import Shape
from pgshunt.routing.table import RoutingTable

Told = tuple[str, str]

NAMED_MAX: Final = 8
"""Of tables in one message."""

ADDED: Final = (
    "Only ADD COLUMN is done in both databases: with a built-in type, nullable or with a constant default, "
    "to a plain table, sent alone as a simple query, outside of a transaction block. "
)

APART: Final = "or do it one database after the other, each in a transaction of its own"


def several_owners(
    tables: Collection[str], writing: Collection[str], table: RoutingTable, placement: Placement
) -> Told:
    """No database has all of `tables`, or none owns all that is written: `writing` are those that own it."""
    where = _where(tables, table, placement)
    if len(writing) > 1:
        told = f"the statement writes to tables that different databases own: {where}"
        return told, f"Move these services to one database, {APART}."
    if writing:
        (home,) = writing
        lacking = [name for name in tables if not placement.has(home, (name,))]
        told = f"the statement writes to {home}, which does not hold all the tables it reads: {where}"
        return told, f"{_ways(lacking, (home,), table, placement)}, {APART}."
    homes = {placement.owner(name) for name in tables}
    told = f"no database holds all the tables that the statement uses: {where}"
    return told, f"{_ways(tables, homes, table, placement)}, {APART}."


def not_fresh(tables: Collection[str], table: RoutingTable, placement: Placement) -> Told:
    """A database has all of `tables`, but the copies among them are not known to be complete."""
    return (
        "no database is known to hold all that was written to the tables that the statement uses: "
        + _where(tables, table, placement),
        "Repeat it: the copies are behind. If that lasts, see the lag of their lanes.",
    )


def bound(shape: Shape, database: str, table: RoutingTable, placement: Placement) -> Told:
    """The transaction runs at `database`, and the statement cannot."""
    tables = placed(shape.tables)
    if not tables:
        return (
            "LISTEN, NOTIFY and advisory locks are the shared database's, "
            f"and the transaction runs at {database}",
            "Do it outside of this transaction.",
        )
    lacking = [name for name in tables if not placement.has(database, (name,))]
    return (
        f"the transaction runs at {database}, and the statement uses {_where(tables, table, placement)}",
        f"{_ways(lacking, (database,), table, placement)}, {APART}.",
    )


def kept(shape: Shape, database: str, pins: Iterable[str], table: RoutingTable, placement: Placement) -> Told:
    """The session keeps its link at `database` because of `pins`, and the statement cannot run there."""
    tables = placed(shape.tables)
    what = f"uses {_where(tables, table, placement)}" if tables else "is for the shared database"
    return (
        f"the session keeps its connection to {database} ({', '.join(sorted(pins))}), "
        f"and the statement {what}",
        "Give up first what keeps it (DISCARD ALL does), or use another connection for the statement.",
    )


def shared_only(tables: Collection[str], table: RoutingTable, placement: Placement) -> Told:
    """LISTEN, NOTIFY or advisory locks in one statement with tables that have moved."""
    return (
        "LISTEN, NOTIFY and advisory locks are the shared database's, and the statement uses "
        + _where(tables, table, placement),
        "Do it in a statement and a transaction of its own.",
    )


def obscure(meant: Collection[str]) -> Told:
    """Names without a schema, nowhere on the search path: they may mean tables that have moved."""
    return (
        f"the statement may mean {', '.join(meant)}, which has moved to another database",
        "Name it with its schema: the search path is not known, or does not lead there.",
    )


def anywhere(shape: Shape) -> Told:
    """It may use any table, also one that has moved."""
    runs = f" (it runs {', '.join(sorted(shape.runs)[:NAMED_MAX])})" if shape.runs else ""
    executes = "Prepare and execute it by the protocol's messages, or each alone in a simple query, "
    return (
        f"nobody can tell which tables the statement uses{runs}, and some have moved to another database",
        (
            executes
            if shape.executes
            else "Have it use tables that can be read in it, and in the code it runs, "
        )
        + "or say by the comment /* pgshunt: primary */ in it that it uses none but those of the owner of "
        "the tables it names, and of the shared database if it names none.",
    )


def unread(meant: Collection[str]) -> Told:
    """A text that PostgreSQL 18 cannot parse, and the server of an older version perhaps can."""
    return (
        f"the statement cannot be parsed, and may use {', '.join(list(meant)[:NAMED_MAX])}, "
        "which has moved to another database",
        "Write it as PostgreSQL 18 takes it: a space between a number and the word behind it, names that "
        "have become keywords (system_user, json_exists) in double quotes.",
    )


def frozen(name: str, table: RoutingTable, placement: Placement) -> Told:
    """A lane carries the table, and would break by another definition."""
    mover = table.services[placement.frozen[name]]
    doing = "keeps a copy of it in" if mover.stage == "completed" else "is moving to"
    return (
        f"the definition of {name} cannot change while {mover.name} {doing} {mover.database}",
        f"{ADDED if mover.ddl == 'both' else ''}Do it before the move or behind it. "
        f"With services.{mover.name}.ddl: owner it is done in {_called(placement.owner(name))} alone, "
        "and the same has to be done in the copy by hand.",
    )


def _called(database: str) -> str:
    return "the shared database" if database == "shared" else database


def _where(tables: Collection[str], table: RoutingTable, placement: Placement) -> str:
    """Each table with its owner and database."""
    told = [
        f"{name} ({_owner(name, table, placement)}, on {placement.owner(name)})"
        for name in sorted(tables)[:NAMED_MAX]
    ]
    return ", ".join(told) + (f" and {len(tables) - NAMED_MAX} more" if len(tables) > NAMED_MAX else "")


def _owner(name: str, table: RoutingTable, placement: Placement) -> str:
    service = placement.services.get(name)
    return "nobody's" if service is None else f"owned by {table.services[service].name}"


def _ways(
    tables: Iterable[str], databases: Collection[str], table: RoutingTable, placement: Placement
) -> str:
    """How one of `databases` could come to have `tables`."""
    ways = ["Move these services to one database"]
    for service in table.services:
        others = sorted(name for name in tables if placement.owner(name) != service.database)
        if service.database in databases and others:
            refs = ", ".join(others[:NAMED_MAX])
            ways.append(
                f"or keep a copy of what is only read there (services.{service.name}.external_refs: {refs})"
            )
            break
    return ", ".join(ways)
