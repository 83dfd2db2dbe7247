"""A statement with the shape it must have: a field that a row does not name has its default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgshunt.routing.shape import Kind, Shape


@dataclass(frozen=True)
class Row:
    sql: str
    shape: Shape


def row(sql: str, kind: Kind, reads: str = "", writes: str = "", **traits: Any) -> Row:
    """`reads` and `writes` list names, those without a schema in public."""

    def names(text: str) -> frozenset[str]:
        return frozenset(
            name.lstrip("=") if name[0] == "=" or "." in name else f"public.{name}" for name in text.split()
        )

    return Row(sql, Shape(kind, names(reads), names(writes), **traits))


def read(sql: str, reads: str = "", **traits: Any) -> Row:
    return row(sql, Kind.READ, reads, **traits)


def write(sql: str, writes: str = "", reads: str = "", **traits: Any) -> Row:
    defines = traits.get("reason") == "definition" and traits.get("local") != "temp_table"
    return row(sql, Kind.WRITE, reads, writes, defines=defines, **traits)


def session(sql: str, reason: str, **traits: Any) -> Row:
    return row(sql, Kind.SESSION, reason=reason, **traits)


def volatile(sql: str, function: str, reads: str = "", writes: str = "", **traits: Any) -> Row:
    return write(sql, writes, reads, volatile=True, reason=f"volatile:{function}", **traits)
