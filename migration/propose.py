"""Proposes services for the tables of a shared database: by schemas, rights, names and foreign keys. Pure.

It is a first draft for people to correct, so each rule is one that can be said in a sentence:

- a schema besides `public` is a service;
- tables that only one login role may write are that role's, if there are several such roles;
- tables whose names begin with the same word are one service (`order_items`, `order_notes`, `orders`);
- a table on which none depends belongs to the table it must refer to; of several such, to the one that the
  fewest tables refer to: what all refer to (`users`) is context, not belonging. So does one whose rows are
  deleted with it;
- what one transaction was seen to write moves together, but for tables that are written together with those
  of three or more others: an audit log is context, too.

A table that remains alone stays where it is, on the shared database.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pgshunt.migration.survey import Name, Reference, Survey

NAME_LENGTH_MAX = 48  # config.values.SERVICE_NAME
COMPANIONS_MAX = 2
"""Services that one table may be written together with and still move with them."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """One service. `external_refs`: tables of others that its foreign keys name; `why`: the rule's words."""

    name: str
    why: str
    tables: tuple[Name, ...]
    external_refs: tuple[Name, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """`unowned`: tables of no service."""

    services: tuple[Proposed, ...]
    unowned: tuple[Name, ...]


def propose(survey: Survey, together: Iterable[frozenset[Name]] = ()) -> Proposal:
    """Services in the order of their names. `together`: tables that transactions were seen to write."""
    schemas = _by_schema(survey.tables)
    named = _by_writer(survey.writers) | schemas
    named |= _by_first_word(table for table in survey.tables if table not in named)
    parents = _belonging(survey.tables, survey.references)
    members: dict[str, list[Name]] = defaultdict(list)
    whys: dict[str, str] = {}
    for table in survey.tables:
        root = _root(table, parents, named)
        name, why = named.get(root, (root.table, f"tables that depend on {root.table}"))
        members[_identifier(name)].append(table)
        whys.setdefault(_identifier(name), why)
    for guest, host in _merging(members, together).items():
        tables = members.pop(guest)
        whys[host] += f"; {', '.join(table.table for table in tables)}: written in the same transactions"
        members[host] = sorted(members[host] + tables)
    services = {name: tables for name, tables in members.items() if len(tables) > 1 or tables[0] in schemas}
    owned = {table for tables in services.values() for table in tables}
    return Proposal(
        tuple(
            Proposed(
                name,
                whys[name],
                tuple(tables),
                _named_by(tables, survey.references),
                tuple(sorted({role for table in tables for role in survey.writers.get(table, ())})),
            )
            for name, tables in sorted(services.items())
        ),
        tuple(table for table in survey.tables if table not in owned),
    )


Named = dict[Name, tuple[str, str]]
"""Table → name of its service, and why."""


def _by_schema(tables: Iterable[Name]) -> Named:
    """Nothing if all tables are in one schema, whatever it is called."""
    if len({table.schema for table in tables}) < 2:
        return {}
    return {table: (table.schema, f"schema {table.schema}") for table in tables if table.schema != "public"}


def _by_writer(writers: Mapping[Name, tuple[str, ...]]) -> Named:
    """Nothing if one role may write everything, as many applications' does."""
    only = {table: roles[0] for table, roles in writers.items() if len(roles) == 1}
    if len(set(only.values())) < 2:
        return {}
    return {table: (role, f"only {role} may write them") for table, role in only.items()}


def _by_first_word(tables: Iterable[Name]) -> Named:
    """The name is the word itself, or that of the table that is called like it: users, not user."""
    words: dict[str, list[Name]] = defaultdict(list)
    for table in tables:
        words[_singular(table.table.partition("_")[0])].append(table)
    named: Named = {}
    for word, alike in words.items():
        if word and len(alike) > 1:
            whole = [table.table for table in alike if _singular(table.table) == word]
            named |= dict.fromkeys(alike, (whole[0] if whole else word, f"names that begin with {word}"))
    return named


def _belonging(tables: Iterable[Name], references: Iterable[Reference]) -> dict[Name, Name]:
    """Table → the one it belongs to."""
    keys = list(references)
    referring = Counter(parent for _, parent in {(key.child, key.parent) for key in keys})
    main: dict[Name, Reference] = {}
    for table in tables:
        required = [key for key in keys if key.child == table and key.required]
        if required:  # min takes the first of equals: the one that comes first in the table
            main[table] = min(required, key=lambda key: (not key.owned, referring[key.parent]))
    depended_on = {key.parent for key in main.values()}
    return {table: key.parent for table, key in main.items() if key.owned or table not in depended_on}


def _root(table: Name, parents: Mapping[Name, Name], named: Named) -> Name:
    """Where belonging leads to: a table with a name of its own, or one that belongs to none."""
    seen = {table}
    while table not in named and table in parents and parents[table] not in seen:
        table = parents[table]
        seen.add(table)
    return table


def _merging(members: Mapping[str, list[Name]], together: Iterable[frozenset[Name]]) -> dict[str, str]:
    """Service → the larger one it becomes part of."""
    home = {table: name for name, tables in members.items() for table in tables}
    known = [[table for table in sorted(tables) if table in home] for tables in together]
    companions: dict[Name, set[str]] = defaultdict(set)
    for tables in known:
        for table in tables:
            companions[table] |= {home[other] for other in tables} - {home[table]}
    host = {name: name for name in members}
    for tables in known:
        names = {host[home[table]] for table in tables if len(companions[table]) <= COMPANIONS_MAX}
        if names:
            largest = min(names, key=lambda name: (-len(members[name]), name))
            host = {name: largest if one in names else one for name, one in host.items()}
    return {name: one for name, one in host.items() if name != one}


def _named_by(tables: list[Name], references: Iterable[Reference]) -> tuple[Name, ...]:
    return tuple(sorted({key.parent for key in references if key.child in tables} - set(tables)))


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y"
    return word if word.endswith("ss") else word.removesuffix("s")


def _identifier(name: str) -> str:
    """As a service may be called: a-z, 0-9 and _; slots are named after it."""
    plain = re.sub(r"[^a-z0-9_]+", "_", name.lower())[:NAME_LENGTH_MAX].strip("_")
    return plain if re.match(r"[a-z]", plain) else f"service_{plain}"
