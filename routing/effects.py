"""Says what code that is kept in a database does when a statement makes it run: its functions by name, and
what a table's triggers, rules, defaults, checks and policies run when it is used.

Only what one piece of code does itself stands here, with the functions it calls and the tables it uses;
`follow` goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final

from pgshunt.routing.names import last_part

READ: Final = "r"
INSERT: Final = "i"
UPDATE: Final = "u"
DELETE: Final = "d"
TRUNCATE: Final = "t"
DEFINE: Final = "x"
CHANGES: Final = INSERT + UPDATE + DELETE + TRUNCATE
EVENTS: Final = READ + CHANGES + DEFINE
"""The ways to use a table, a letter each. Nothing reacts to a table's definition but event triggers."""

ANY: Final = "*"
"""In the place of a table's name: one that cannot be told."""

IMPLICITLY: Final = "*"
"""In the place of a cast's type: wherever a value of another type stands."""

VERIFIABLE: Final = frozenset({"temp_table", "listen", "advisory_lock", "hold_cursor"})
"""Causes of pins of which a server can be asked whether they still hold (proxy/settings.py asks)."""


def _no_tables() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Effects:
    """What one piece of code does. Names are as the code has them: "schema.name", or "name" for one that is
    looked for on `path`.

    `tables` gives for each table the ways in which it is used (EVENTS). `path` is the search path the code
    brings along; None: its caller's, (): not known. `sets` are configuration parameters that keep another
    value behind the transaction, `sets_local` those that do until it ends; the other fields are as in Shape.
    """

    calls: frozenset[str] = frozenset()
    tables: Mapping[str, str] = field(default_factory=_no_tables)
    sets: frozenset[str] = frozenset()
    sets_local: frozenset[str] = frozenset()
    resets: frozenset[str] = frozenset()
    pins: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()
    locks: bool = False
    volatile: bool = False
    time_dependent: bool = False
    signals: bool = False
    meets: bool = False
    anywhere: bool = False
    defines: bool = False
    path: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Without what is as usual."""
        told: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, frozenset):
                value = sorted(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            if value or (each.name == "path" and value is not None):
                told[each.name] = value
        return told

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Effects:
        values = dict(data)
        for name in ("calls", "sets", "sets_local", "resets", "pins", "releases"):
            values[name] = frozenset(values.get(name, ()))
        values["tables"] = MappingProxyType(dict(values.get("tables", {})))
        if values.get("path") is not None:
            values["path"] = tuple(values["path"])
        return cls(**values)


NO_EFFECTS: Final = Effects()
OPAQUE: Final = Effects(pins=frozenset({"function"}), volatile=True, anywhere=True)
"""Of code that cannot be read: it may do anything, to any table."""


def merged(first: Effects, second: Effects) -> Effects:
    """What two pieces of code do that go by one name (overloads), or run one behind the other."""
    if first == second:
        return first
    tables = dict(first.tables)
    for name, events in second.tables.items():
        tables[name] = united(tables.get(name, ""), events)
    return Effects(
        calls=first.calls | second.calls,
        tables=MappingProxyType(tables),
        sets=first.sets | second.sets,
        sets_local=first.sets_local | second.sets_local,
        resets=first.resets | second.resets,
        pins=first.pins | second.pins,
        releases=first.releases | second.releases,
        locks=first.locks or second.locks,
        volatile=first.volatile or second.volatile,
        time_dependent=first.time_dependent or second.time_dependent,
        signals=first.signals or second.signals,
        meets=first.meets or second.meets,
        anywhere=first.anywhere or second.anywhere,
        defines=first.defines or second.defines,
        path=first.path if first.path == second.path else (),
    )


def united(first: str, second: str) -> str:
    """Events of either, in the order of EVENTS."""
    return "".join(event for event in EVENTS if event in first or event in second)


Reactions = Mapping[str, Mapping[str, Effects]]


def _by_last_part(names: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for full in names:
        last = last_part(full)
        found[last] = (*found.get(last, ()), full)
    return MappingProxyType(found)


@dataclass(frozen=True, slots=True)
class Code:
    """All code of a database that statements can make run.

    `functions` holds every function outside pg_catalog by "schema.name", overloads merged; `system` the names
    of those in pg_catalog that are neither immutable nor stable, or have a namesake elsewhere. `reactions`
    holds for a table and each way to use it what runs then. In both, "name" alone is in some schema, not
    known in which. `operators` are the functions behind operators, `casts` those behind casts, by the type
    they lead to; `attributes` those that a row can be asked for as if they were columns of it, by their last
    name; `definitions` is what runs at DDL. `stamp` changes when any of it may have.
    """

    system: frozenset[str] = frozenset()
    functions: Mapping[str, Effects] = field(default_factory=lambda: MappingProxyType({}))
    reactions: Reactions = field(default_factory=lambda: MappingProxyType({}))
    operators: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    casts: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    attributes: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    definitions: Effects = NO_EFFECTS
    stamp: str = ""
    functions_named: Mapping[str, tuple[str, ...]] = field(init=False, compare=False, repr=False)
    reactions_named: Mapping[str, tuple[str, ...]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions_named", _by_last_part(self.functions))
        object.__setattr__(self, "reactions_named", _by_last_part(self.reactions))

    def to_dict(self) -> dict[str, Any]:
        """Functions with the same effects stand together: most have none."""
        return {
            "system": sorted(self.system),
            "plain": [name for name, effects in self.functions.items() if effects == NO_EFFECTS],
            "functions": {
                name: effects.to_dict() for name, effects in self.functions.items() if effects != NO_EFFECTS
            },
            "reactions": {
                table: {event: effects.to_dict() for event, effects in events.items()}
                for table, events in self.reactions.items()
            },
            "operators": {name: sorted(functions) for name, functions in self.operators.items()},
            "casts": {name: sorted(functions) for name, functions in self.casts.items()},
            "attributes": {name: sorted(functions) for name, functions in self.attributes.items()},
            "definitions": self.definitions.to_dict(),
            "stamp": self.stamp,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Code:
        functions = dict.fromkeys(data["plain"], NO_EFFECTS)
        functions |= {name: Effects.from_dict(effects) for name, effects in data["functions"].items()}
        return cls(
            system=frozenset(data["system"]),
            functions=MappingProxyType(functions),
            reactions=MappingProxyType(
                {
                    table: {event: Effects.from_dict(effects) for event, effects in events.items()}
                    for table, events in data["reactions"].items()
                }
            ),
            operators=MappingProxyType(
                {name: frozenset(functions) for name, functions in data["operators"].items()}
            ),
            casts=MappingProxyType({name: frozenset(functions) for name, functions in data["casts"].items()}),
            attributes=MappingProxyType(
                {name: frozenset(functions) for name, functions in data["attributes"].items()}
            ),
            definitions=Effects.from_dict(data["definitions"]),
            stamp=data["stamp"],
        )


NO_CODE: Final = Code()


def added(code: Code, made: Code) -> Code:
    """What there may be when `made` was made besides, or in the place of what had its names."""
    functions = dict(code.functions)
    for name, effects in made.functions.items():
        functions[name] = merged(functions[name], effects) if name in functions else effects
    reactions = {table: dict(events) for table, events in code.reactions.items()}
    for table, events in made.reactions.items():
        known = reactions.setdefault(table, {})
        for event, effects in events.items():
            known[event] = merged(known[event], effects) if event in known else effects
    return Code(
        system=code.system,
        functions=MappingProxyType(functions),
        reactions=MappingProxyType(reactions),
        operators=code.operators,
        casts=code.casts,
        attributes=code.attributes,
        definitions=merged(code.definitions, made.definitions),
        stamp=code.stamp,
    )
