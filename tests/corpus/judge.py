"""Compares what the classifier says of a statement with what PostgreSQL was seen to do."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import Enum
from typing import Final

from corpus.observe import READ, Behind, Observed

from pgshunt.routing.lexer import strip
from pgshunt.routing.names import SYSTEM_SCHEMAS
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue


class Verdict(Enum):
    EQUAL = "equal"
    CONSERVATIVE = "conservative"
    """It names more, or is taken for a write, or stays at the owner: the answer is right."""
    UNSAFE = "unsafe"


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    cause: str = ""
    names: tuple[str, ...] = ()


EQUAL: Final = Judgement(Verdict.EQUAL)
OPAQUE: Final = frozenset({"code_block", "procedure", "execute", "cursor"})
CONTROL: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT})
"""What they fire was named by statements before."""

FUNCTION: Final = re.compile(rb"\s*CREATE\s+(OR\s+REPLACE\s+)?(FUNCTION|PROCEDURE)\b", re.IGNORECASE)
"""What it may read is checked when it is made."""

Relations = Set[frozenset[str]]


def judge(
    sql: bytes, shape: Shape, seen: Observed, behind: Behind, catalogue: Catalogue, temporary: bool
) -> Judgement:
    """`temporary`: the session is pinned because of a temporary table."""
    system = {names for names in seen.modes if _schemas(names) <= SYSTEM_SCHEMAS}
    own = {names for names in seen.modes if "pg_temp" in _schemas(names)}
    opened = set(seen.modes) - system - own
    written = {names for names in opened if seen.modes[names] - {READ}}
    reads, writes = (_stand_for(names, opened) for names in (shape.reads, shape.writes))
    reach, written_reach = behind.reach(reads | writes), behind.reach(writes)
    views = any(catalogue.relations.get(name) == "v" for name in reach)
    wrote = bool(written) or (seen.wrote and not views and not own)

    if own and not temporary and "temp_table" not in shape.pins and shape.local != "temp_table":
        return _found(Verdict.UNSAFE, "a temporary table without a pin", own)
    if shape.splittable and system and not views:
        return _found(Verdict.UNSAFE, "a system table in a plain read", system)
    if not shape.writing and wrote and shape.kind not in CONTROL and shape.local is None:
        return _found(Verdict.UNSAFE, "a write taken for a read", written)
    if shape.kind is Kind.UNKNOWN:
        return _found(Verdict.CONSERVATIVE, f"unknown: {shape.reason}", opened)
    opaque = shape.volatile or shape.kind in CONTROL or shape.reason in OPAQUE or behind.opaque & reach
    missed = {names for names in opened if not names & (reach | seen.unknown)}
    as_read = {names for names in written if not names & written_reach} if shape.writing else set()
    if missed and not opaque:
        if shape.kind is Kind.READ and shape.local is not None:
            cause = f"stays at the owner, not all is named: {shape.local}"
            return _found(Verdict.CONSERVATIVE, cause, missed)
        if FUNCTION.match(sql):
            return _found(Verdict.CONSERVATIVE, "the body of a function", missed)
        if shape.defines and {_last(name) for names in missed for name in names} <= set(map(_last, writes)):
            return _found(
                Verdict.CONSERVATIVE, "made in another schema than where one of that name is", missed
            )
        if shape.reason == "definition" and not any(_stands_in(sql, names) for names in missed):
            return _found(Verdict.CONSERVATIVE, "a definition that changes what it does not name", missed)
        return _found(Verdict.UNSAFE, "a relation that is not named", missed)
    if as_read and not opaque and not shape.locks:
        return _found(Verdict.UNSAFE, "a written relation that is named as read", as_read)
    if shape.writing and opened and not wrote:
        return _found(Verdict.CONSERVATIVE, f"taken for a write: {shape.reason}", opened)
    # A definition may name a relation and not lock it (GRANT).
    spare = set() if shape.defines else (reads | writes) - seen.held
    spare -= {name for names in seen.modes for name in names}
    temporaries = {_last(name) for names in own for name in names}
    if more := {
        name
        for name in spare
        if catalogue.relations.get(name) not in (None, "S") and _last(name) not in temporaries
    }:
        cause = f"names more: {shape.reason or shape.kind.name.lower()}"
        return _found(Verdict.CONSERVATIVE, cause, {frozenset(more)})
    return EQUAL


def _stand_for(names: Set[str], opened: Relations) -> set[str]:
    """A name without a schema is that of a relation that is being made, or of an index: it stands for those
    that end in it. So does one in pg_catalog that is not there.
    """
    found = set(names)
    for name in names:
        if "." not in name or name.startswith("pg_catalog."):
            found |= {full for others in opened for full in others if _last(full) == _last(name)}
    return found


def _stands_in(sql: bytes, names: frozenset[str]) -> bool:
    """Whether the text has the name of a relation, outside its literals."""
    words = (strip(sql) or sql).lower()
    return any(re.search(rb"\b%s\b" % re.escape(_last(name).lower().encode()), words) for name in names)


def _schemas(names: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _found(verdict: Verdict, cause: str, relations: Relations) -> Judgement:
    return Judgement(verdict, cause, tuple(sorted(" = ".join(sorted(names)) for names in relations)))
