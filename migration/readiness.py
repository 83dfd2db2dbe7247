"""Says what would break behind the switch of one service, and what to do about it. Pure.

Two sources: what was seen to touch tables of several owners (`observed.py`), and what ties the tables
together in the shared database itself (`couplings.py`). Behind the switch the service's tables are written in
its own database only; of other tables that database has those in `external_refs`, and the shared database
keeps copies of the service's tables for as long as the lane back runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pgshunt.migration.couplings import Couplings, Dependent, ForeignKey, Trigger
from pgshunt.migration.observed import Caller, Fact, Observed
from pgshunt.migration.preflight import check_table
from pgshunt.migration.sql import relation
from pgshunt.routing.classify import classify
from pgshunt.routing.crossing import holding
from pgshunt.routing.effects import Code
from pgshunt.routing.names import last_part, split_search_path
from pgshunt.routing.refusal import APART, NAMED_MAX
from pgshunt.routing.table import Catalogue, Service

Remedy = Literal["move_together", "external_ref", "apart", "drop_foreign_key", "own_copy", "look", "alter"]

NOBODY: Final = "nobody"
"""In the place of a service: the tables in no service, which stay on the shared database."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that breaks.

    `what` is the shape of a statement, or an object's name; `others` the owners besides the service; `remedy`
    says in a sentence what `remedies` say in words. `callers`: calls a minute of each, most first.
    `only_look`: nobody can tell from here whether it breaks.
    """

    kind: str
    what: str
    tables: tuple[str, ...]
    others: tuple[str, ...]
    breaks: str
    remedies: tuple[Remedy, ...]
    remedy: str
    calls_per_minute: float = 0.0
    last_at: float | None = None
    callers: tuple[tuple[Caller, float], ...] = ()

    @property
    def only_look(self) -> bool:
        return self.remedies == ("look",)


@dataclass(frozen=True, slots=True)
class Readiness:
    """`findings` in the order of their traffic, what has none behind; `fine`: sentences."""

    findings: tuple[Finding, ...]
    fine: tuple[str, ...]


def assess(
    name: str,
    services: Iterable[Service],
    observed: Observed,
    couplings: Couplings,
    catalogue: Catalogue,
) -> Readiness:
    """`catalogue`: of the shared database."""
    view = View(name, {service.name: service for service in services})
    seen, covered = _seen(view, observed)
    kept, keys_inside = _foreign_keys(view, couplings.foreign_keys)
    objects = [
        *kept,
        *_dependents(view, couplings.dependents),
        *_triggers(view, couplings.triggers, catalogue),
        *_code(view, couplings.triggers, catalogue),
        *_sequences(view, couplings.sequences),
        *_publications(view, couplings.publications),
        *_tables(view, couplings, catalogue.own_types),
    ]
    fine = []
    if covered:
        fine.append(f"external_refs cover {covered} of the statements over several services' tables")
    if keys_inside:
        keys = "1 foreign key stays" if keys_inside == 1 else f"{keys_inside} foreign keys stay"
        fine.append(f"{keys} within the service")
    sound = [table.name for table in couplings.tables.values() if not list(check_table(table))]
    if sound:
        fine.append(f"{len(sound)} of {len(view.service.tables)} tables can be replicated as they are")
    seen.sort(key=lambda finding: -finding.calls_per_minute)
    return Readiness((*seen, *objects), tuple(fine))


@dataclass(frozen=True, slots=True)
class View:
    """The owners of tables as one service sees them."""

    name: str
    services: Mapping[str, Service]

    @property
    def service(self) -> Service:
        return self.services[self.name]

    def owner(self, table: str) -> str:
        return next((name for name, one in self.services.items() if table in one.tables), NOBODY)

    def mine(self, tables: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(table for table in set(tables) if self.owner(table) == self.name))

    def foreign(self, tables: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(table for table in set(tables) if self.owner(table) != self.name))

    def others(self, tables: Iterable[str]) -> tuple[str, ...]:
        """The owners of what is not this service's; nobody last."""
        owners = {self.owner(table) for table in tables} - {self.name}
        return tuple(sorted(owners, key=lambda owner: (owner == NOBODY, owner)))

    def lacking(self, holder: str, tables: Iterable[str]) -> tuple[str, ...]:
        """Those of the tables that the database of `holder` would not have."""
        one = self.services[holder]
        return tuple(sorted(set(tables) - {*one.tables, *one.external_refs}))


# -- what was seen ----------------------------------------------------------------------------------------


def _seen(view: View, observed: Observed) -> tuple[list[Finding], int]:
    """What breaks, and how many facts `external_refs` take care of already."""
    findings, covered = [], 0
    for fact in observed:
        if not view.mine(fact.tables) or not view.foreign(fact.tables):
            continue
        if (judged := _judge(view, fact)) is None:
            covered += 1
            continue
        breaks, remedies, remedy = judged
        callers = tuple((caller, observed.per_minute(calls)) for caller, calls in fact.ranked())
        findings.append(
            Finding(
                kind=fact.kind,
                what=fact.text,
                tables=tuple(sorted(fact.tables)),
                others=view.others(fact.tables),
                breaks=breaks,
                remedies=remedies,
                remedy=remedy,
                calls_per_minute=observed.per_minute(fact.calls),
                last_at=fact.last_at,
                callers=callers,
            )
        )
    return findings, covered


_Judged = tuple[str, tuple[Remedy, ...], str]


def _judge(view: View, fact: Fact) -> _Judged | None:
    """What breaks about a fact, and what to do; None: nothing."""
    if view.mine(fact.writes) and view.foreign(fact.writes):
        unit = "transaction" if fact.kind == "transaction" else "statement"
        breaks = f"one {unit} would write to two databases: it is refused"
        return breaks, *_written_together(view, fact.writes)
    if fact.writes and not view.mine(fact.writes):
        return _read_by_others(view, fact, view.others(fact.writes)[0])
    users = set(view.service.users)
    if fact.writes or not users or any(user in users for user, _ in fact.callers):
        lacking = view.lacking(view.name, fact.tables)
        if not lacking:
            return None
        reads = "it reads" if fact.writes else "a read of"
        return (
            f"{reads} tables that its own database does not have: {_named(lacking)}",
            ("external_ref",),
            f"add external_refs: [{_named(lacking)}] to {view.name}",
        )
    return _read_by_others(view, fact, view.others(fact.tables)[0])


def _written_together(view: View, writes: Iterable[str]) -> tuple[tuple[Remedy, ...], str]:
    others = view.others(writes)
    together = [f"move it together with {owner}" for owner in others if owner != NOBODY]
    unowned = [table for table in view.foreign(writes) if view.owner(table) == NOBODY]
    if unowned:
        together.append(f"give {_named(unowned)} to {view.name}, if nobody else writes it")
    advice = f"{' and '.join(together)}; {APART}"
    return ("move_together", "apart"), advice


def _read_by_others(view: View, fact: Fact, reader: str) -> _Judged | None:
    """Somebody else's statement, which runs where `reader` is at home."""
    mine = view.mine(fact.tables)
    if reader != NOBODY and not view.lacking(reader, mine):
        return None
    breaks = f"{reader if reader != NOBODY else 'the shared database'} reads {_named(mine)} from a copy only"
    if reader == NOBODY:
        return (
            f"{breaks}, which is gone when the move is completed",
            ("move_together", "own_copy"),
            f"give {_named(view.foreign(fact.tables))} to {view.name}, or keep the copy of {_named(mine)}",
        )
    return (
        f"{breaks}, which is gone when the move is completed",
        ("external_ref", "move_together"),
        f"add external_refs: [{_named(mine)}] to {reader}, or move it together with {reader}",
    )


# -- what stands in the database ---------------------------------------------------------------------------


def _foreign_keys(view: View, keys: Iterable[ForeignKey]) -> tuple[list[Finding], int]:
    """Those that leave or enter the service, and how many do neither."""
    crossing: list[Finding] = []
    inside = 0
    for key in keys:
        tables = (key.child, key.parent)
        others = view.others(tables)
        if not others:
            inside += 1
            continue
        child, parent = _named((key.child,)), _named((key.parent,))
        if view.mine((key.child,)):
            has_copy = not view.lacking(view.name, (key.parent,))
            where = "it checks against a copy" if has_copy else f"it cannot be made without {parent}"
            breaks = f"{child} moves, {parent} stays: {where}, and deletes of {parent} do not reach it"
            advice = "drop it"
            if not has_copy:
                advice += f", and add external_refs: [{parent}] to look rows up"
        else:
            breaks = f"{parent} moves, {child} stays: its rows are checked against a copy that may be late"
            advice = f"ALTER TABLE {child} DROP CONSTRAINT {key.name} before the switch"
        if others[0] != NOBODY:
            advice += f"; or move it together with {others[0]}"
        crossing.append(
            Finding(
                "foreign_key",
                f"{key.name}: {key.child} → {key.parent}",
                tables,
                others,
                breaks,
                ("drop_foreign_key", "move_together"),
                advice,
            )
        )
    return crossing, inside


def _dependents(view: View, dependents: Iterable[Dependent]) -> Iterator[Finding]:
    for each in dependents:
        others = view.others(each.tables)
        lacking = view.lacking(view.name, each.tables)
        if others:
            yield Finding(
                each.kind.replace(" ", "_"),
                each.name,
                each.tables,
                others,
                f"it stands on tables of {', '.join((view.name, *others))}",
                ("external_ref", "move_together"),
                f"with external_refs: [{_named(lacking)}] it can stand in the service's own database"
                if lacking
                else "make it in the service's own database, which has all its tables",
            )


def _triggers(view: View, triggers: Iterable[Trigger], catalogue: Catalogue) -> Iterator[Finding]:
    """A write runs what it makes run: which tables that touches is asked of the classifier of statements."""
    path = split_search_path(catalogue.search_path)
    for table in sorted({trigger.table for trigger in triggers}):
        runs = [trigger for trigger in triggers if trigger.table == table]
        what = ", ".join(f"{trigger.name} ({trigger.function})" for trigger in runs)
        name = relation(table)
        write = f"INSERT INTO {name} DEFAULT VALUES; UPDATE {name} SET x = 1; DELETE FROM {name}"
        shape = classify(write, path, catalogue)
        touched = holding(shape.tables, catalogue.relations)
        if others := view.others(touched):
            yield Finding(
                "trigger",
                f"on {table}: {what}",
                touched,
                others,
                f"writes to {_named((table,))} touch {_named(view.foreign(touched))} as well",
                ("move_together", "external_ref"),
                "as for a statement: external_refs where they are read, one service where they are written",
            )
        elif "function" in shape.pins:
            yield Finding(
                "trigger",
                f"on {table}: {what}",
                (table,),
                (),
                "its code cannot be read: it runs with the tables of the service's own database",
                ("look",),
                "see which tables it names: those of others as for statements",
            )


def _code(view: View, triggers: Iterable[Trigger], catalogue: Catalogue) -> Iterator[Finding]:
    """Functions that meet other sessions elsewhere than in tables, and those of which nobody can tell what
    they use: behind the switch calls of them are refused. What a trigger runs is run.
    """
    fired = {trigger.function for trigger in triggers}
    unread = []
    for name in _telling(catalogue.code):
        shape = classify(f"SELECT {relation(name)}()", (), catalogue)
        tables = holding(shape.tables, catalogue.relations)
        mine = view.mine(tables)
        if shape.anywhere and name not in fired:
            unread.append(name)
        if not shape.meets:
            continue
        if name in fired:
            breaks = (
                "it notifies or locks in the service's own database, while sessions LISTEN at the shared one"
            )
        elif mine:
            breaks = (
                "it uses LISTEN, NOTIFY or advisory locks, the shared database's: calls of it are refused"
            )
        else:
            breaks = "it notifies or locks, which is refused in a transaction that uses the service's tables"
        yield Finding(
            "function",
            name,
            mine,
            view.others(tables),
            breaks,
            ("apart",) if mine or name in fired else ("look",),
            "notify and lock in a statement and a transaction of their own",
        )
    if unread:
        more = f" and {len(unread) - NAMED_MAX} more" if len(unread) > NAMED_MAX else ""
        yield Finding(
            "function",
            ", ".join(unread[:NAMED_MAX]) + more,
            (),
            (),
            "nobody can tell which tables it uses: whoever calls it is refused once tables have moved",
            ("look",),
            "write out the names of its tables, or call it with /* pgshunt: primary */ where it uses no "
            "others than the statement names",
        )


def _telling(code: Code) -> list[str]:
    """Functions that do so themselves or call one that does."""
    found = {name for name, effects in code.functions.items() if effects.meets or effects.anywhere}
    while found:
        named = found | {last_part(name) for name in found}
        more = {name for name, effects in code.functions.items() if not named.isdisjoint(effects.calls)}
        if more <= found:
            break
        found |= more
    return sorted(found)


def _sequences(view: View, sequences: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for name, tables in sequences.items():
        if others := view.others(tables):
            yield Finding(
                "sequence",
                name,
                tuple(tables),
                others,
                "two databases would count on their own and give the same number twice",
                ("alter",),
                f"give {_named(view.mine(tables))} a sequence of its own first",
            )


def _publications(view: View, publications: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for name, tables in publications.items():
        yield Finding(
            "publication",
            name,
            tuple(tables),
            (),
            "its subscribers would see what the lane brings back, and nothing once the move is completed",
            ("own_copy",),
            f"publish {_named(tables)} from the service's own database, and subscribe there",
        )


def _tables(view: View, couplings: Couplings, own_types: frozenset[str]) -> Iterator[Finding]:
    for name in sorted(set(view.service.tables) - set(couplings.tables)):
        yield Finding(
            "table",
            name,
            (name,),
            (),
            "the shared database does not have it",
            ("alter",),
            f"correct tables of {view.name}",
        )
    for name, table in couplings.tables.items():
        for problem in check_table(table):
            yield Finding("table", name, (name,), (), problem.message, ("alter",), problem.remedy)
    for name in sorted(own_types & set(view.service.tables)):
        yield Finding(
            "type",
            name,
            (name,),
            (),
            "it has a column of a type made in the database: clients that remember its OID must look again",
            ("look",),
            "restart the service's clients behind the switch",
        )


def _named(tables: Iterable[str]) -> str:
    """As the configuration names tables: without the schema where it is public."""
    return ", ".join(table.removeprefix("public.") for table in tables)
