"""Follows what a statement calls and uses through the code of the database: adds what its functions, and the
triggers, rules, defaults, checks, policies and view definitions of its tables do, and what those do in turn.

What a trigger does besides writing is of no interest to routing, since its statement writes anyway: of it
only the tables, as far as they can be told, and what is left behind in the session are added.
"""

from __future__ import annotations

from typing import Final

from pgshunt.routing.effects import ANY, NO_CODE, NO_EFFECTS, READ, Effects
from pgshunt.routing.findings import Findings
from pgshunt.routing.names import last_part, qualified, quoted, resolve
from pgshunt.routing.shape import Kind, Shape

Path = tuple[str, ...]

# How much of what a piece of code does is told of the statement: what it leaves in the session; also the
# tables it uses; everything.
STATE: Final = 0
TABLES: Final = 1
EVERYTHING: Final = 2

STEPS_MAX: Final = 10_000
"""Pieces of code one statement is followed through; what makes more run is taken to do anything."""


def followed(found: Findings, effects: Effects = NO_EFFECTS) -> Shape:
    """The shape of a statement, with what it makes run; `effects` are those of code that it holds itself."""
    if found.calls or found.is_definition or effects is not NO_EFFECTS or _reacts(found):
        _Walk(found).run(effects)
    return found.shape()


def _reacts(found: Findings) -> bool:
    """Whether the use of a table may make anything run."""
    if found.catalogue.recent is not NO_CODE:
        return True
    reactions = found.catalogue.code.reactions
    return bool(reactions) and any(
        event in reactions.get(table, event if "." not in table else "") for table, event in found.events
    )


class _Walk:
    """`_pending` are pieces of code still to be looked at: effects, the path names in them are looked for on
    if they bring none, and how much of them is told. `_anywhere`: names may mean whatever has them, in any
    schema.
    """

    def __init__(self, found: Findings) -> None:
        self._found = found
        catalogue = found.catalogue
        self._codes = (catalogue.code,) if catalogue.recent is NO_CODE else (catalogue.code, catalogue.recent)
        self._pending: list[tuple[Effects, Path, int]] = []
        self._seen: set[tuple[str, Path, int]] = set()
        self._anywhere = False

    def run(self, effects: Effects) -> None:
        found = self._found
        self._follow(effects)
        if found.renames and found.sets_local | found.touches | found.resets:
            # One piece of code may have changed the path on which the names in another are looked for.
            self._anywhere = True
            self._seen.clear()
            self._follow(effects)
        if found.strange and (found.pins or found.sets_local or found.touches or found.resets):
            # The state that is known of would have it taken for one whose effects are known.
            found.pins.add("function")

    def _follow(self, effects: Effects) -> None:
        found = self._found
        path = () if self._anywhere else found.search_path
        self._pending.append((effects, path, EVERYTHING))
        for name in sorted(found.calls):
            self._call(name, path, EVERYTHING)
        for table, event in sorted(found.events):
            self._use(table, event, path, EVERYTHING)
        if found.is_definition:
            self._define()
        while self._pending:
            if len(self._seen) > STEPS_MAX:
                found.pins.add("function")
                found.volatile = found.anywhere = True
                _write(found, "function")
                break
            self._add(*self._pending.pop())

    def _call(self, name: str, path: Path, depth: int) -> None:
        if (name, path, depth) in self._seen:
            return
        self._seen.add((name, path, depth))
        if depth == EVERYTHING:
            self._found.local = self._found.local or "function"
        candidates = self._candidates(name, path)
        if not candidates and not self._is_system(name):
            self._found.strange = True
            if depth == EVERYTHING:
                self._found.volatile = True
                _write(self._found, f"volatile:{last_part(name)}")
        for full, effects in candidates:
            self._found.runs.add(full)
            if effects is not NO_EFFECTS:
                self._pending.append((effects, path, depth))

    def _is_system(self, name: str) -> bool:
        catalogue, last = self._found.catalogue, last_part(name)
        return name == quoted(last) and (last in catalogue.code.system or last in catalogue.safe_functions)

    def _candidates(self, name: str, path: Path) -> list[tuple[str, Effects]]:
        """The functions a name may mean; on a path that is not known, those of that name in any schema."""
        last = last_part(name)
        found = []
        for code in self._codes:
            names = {name, quoted(last)}
            if name == quoted(last):
                names.update(qualified(schema, last) for schema in path)
                names.update(() if path else code.functions_named.get(last, ()))
            found += [(full, code.functions[full]) for full in names if full in code.functions]
        return found

    def _use(self, table: str, event: str, path: Path, depth: int) -> None:
        """A table is used. Where it is written to, it is of no interest what else its triggers do; and where
        it is not known which one it is, which tables they use.
        """
        last = last_part(table)
        depth = STATE if table == ANY else depth if event == READ else min(depth, TABLES)
        for number, code in enumerate(self._codes):
            names = {table, quoted(last)}
            if table == ANY:
                names = set(code.reactions)
            elif table == quoted(last) and not path:
                names.update(code.reactions_named.get(last, ()))
            for name in names & code.reactions.keys():
                key = (f"{event}{number} {name}", path, depth)
                if event in code.reactions[name] and key not in self._seen:
                    self._seen.add(key)
                    self._pending.append((code.reactions[name][event], path, depth))

    def _define(self) -> None:
        for code in self._codes:
            self._pending.append((code.definitions, self._found.search_path, TABLES))

    def _add(self, effects: Effects, path: Path, depth: int) -> None:
        found = self._found
        if effects.path is not None and not self._anywhere:
            path = effects.path
        found.pins |= effects.pins
        found.releases |= effects.releases
        for name in effects.sets:
            found.sets(name, local=False)
        for name in effects.sets_local:
            found.sets(name, local=True)
        found.resets |= effects.resets
        found.signals |= effects.signals
        if "*" in effects.resets:
            found.renames = found.rereads = True
        if depth >= TABLES:
            found.locks |= effects.locks
        if depth == EVERYTHING:
            found.time_dependent |= effects.time_dependent
            found.meets |= effects.meets
            found.anywhere |= effects.anywhere
            if effects.volatile:
                found.volatile = True
                _write(found, "function")
        for table, events in effects.tables.items():
            self._table(table, events, path, depth)
        for name in effects.calls:
            self._call(name, path, depth)
        if effects.defines and ("", (), STATE) not in self._seen:
            self._seen.add(("", (), STATE))
            self._define()

    def _table(self, table: str, events: str, path: Path, depth: int) -> None:
        found = self._found
        if table == quoted(last_part(table)) and table != ANY:
            table = resolve("", last_part(table), path, found.catalogue.relations)
        if depth >= TABLES:
            if table != ANY:
                found.uses(table, events)
            if events != READ:
                _write(found, "function")
        for event in events:
            self._use(table, event, path, depth)


def _write(found: Findings, reason: str) -> None:
    """It writes; what it was stays told where it was no plain read."""
    if found.kind is Kind.READ:
        found.write(reason)
