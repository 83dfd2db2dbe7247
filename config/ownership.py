"""Says which of the tables that there are each service owns, by what the configuration names.

A table that is named belongs to the service that names it, whether there is such a table or not, and
whatever patterns match it. Another one belongs to the service whose patterns match it; if those of several
services do, to none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from pgshunt.config.model import Config, Service
from pgshunt.config.names import is_pattern, matcher
from pgshunt.config.problem import Path, Problem, Severity

Claims = Mapping[str, tuple[int, ...]]
"""Services whose patterns match one table, with the places of these patterns in their `tables`."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """`tables` has for each service the tables it owns: those that are named first, in the file's order.
    `contested` has those that patterns of several services match.
    """

    tables: Mapping[str, tuple[str, ...]]
    contested: Mapping[str, Claims]


def assign(services: Mapping[str, Service], tables: Collection[str]) -> Ownership:
    """`tables` are all that there are and that a pattern may match, spelled as in `names.qualified`."""
    owned = {
        name: [table for table in service.tables if not is_pattern(table)]
        for name, service in services.items()
    }
    named = {table for tables in owned.values() for table in tables}
    contested: dict[str, Claims] = {}
    for table, claims in _claims(services, sorted({*tables} - named)):
        if len(claims) == 1:
            owned[next(iter(claims))].append(table)
        else:
            contested[table] = claims
    return Ownership(
        MappingProxyType({name: tuple(dict.fromkeys(tables)) for name, tables in owned.items()}),
        MappingProxyType(contested),
    )


def _claims(services: Mapping[str, Service], tables: Collection[str]) -> Iterator[tuple[str, Claims]]:
    """The tables that patterns match, with these."""
    patterns = [
        (name, place, matcher(text))
        for name, service in services.items()
        for place, text in enumerate(service.tables)
        if is_pattern(text)
    ]
    for table in tables:
        claims: dict[str, tuple[int, ...]] = {}
        for name, place, matches in patterns:
            if matches(table):
                claims[name] = (*claims.get(name, ()), place)
        if claims:
            yield table, claims


def check_tables(config: Config, tables: Collection[str], relations: Collection[str]) -> Iterator[Problem]:
    """What only the shared database can tell: `relations` are all that have a name there, `tables` those of
    them that patterns may match.
    """
    yield from _missing(config, tables, relations)
    yield from _contested(config, tables)
    for name, service in config.services.items():
        for place, text in enumerate(service.tables):
            if is_pattern(text) and not any(map(matcher(text), tables)):
                yield Problem(
                    ("services", name, "tables", place),
                    f"no table matches {text}",
                    "correct it, unless its tables are still to be made",
                    Severity.WARNING,
                )


def _missing(config: Config, tables: Collection[str], relations: Collection[str]) -> Iterator[Problem]:
    for name, service in config.services.items():
        for key, names in (("tables", service.tables), ("external_refs", service.external_refs)):
            for place, table in enumerate(names):
                if not is_pattern(table) and table not in relations:
                    near = get_close_matches(table, tables, n=1, cutoff=0.8)
                    yield Problem(
                        ("services", name, key, place),
                        f"the shared database has no table {table}",
                        f"did you mean {near[0]!r}?" if near else "create it, or correct the name",
                    )


def _contested(config: Config, tables: Collection[str]) -> Iterator[Problem]:
    """One problem for two patterns, however many tables both match."""
    told: set[tuple[Path, Path]] = set()
    for table, claims in assign(config.services, tables).contested.items():
        (first, *_), *others = (
            [("services", name, "tables", place) for place in places] for name, places in claims.items()
        )
        for other, *_ in others:
            if (first, other) in told:
                continue
            told.add((first, other))
            yield Problem(
                other,
                f"{table} matches, and it matches a pattern of {first[1]} too",
                "name it in one of the two: a name goes before all patterns",
                follows_from=(first,),
            )
