"""Spells table names the way PostgreSQL stores them: folded, and with their schema."""

import re
from typing import Final

DEFAULT_SCHEMA: Final = "public"

_IDENTIFIER: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_\u0080-\uffff][\w$]*)'
_TABLE: Final = re.compile(rf"(?:(?P<schema>{_IDENTIFIER})\.)?(?P<table>{_IDENTIFIER})")


def qualified(name: str) -> str:
    """`users` → `public.users`, `Audit.Logs` → `audit.logs`, `"Users"` → `public.Users`.

    Folding follows PostgreSQL: letters outside double quotes become lower case. Raises ValueError for what is
    not the name of one table: patterns, names with a database in front, and names with a dot inside, which no
    key of the routing table could tell from a schema.
    """
    match = _TABLE.fullmatch(name.strip())
    if match is None:
        raise ValueError(f"{name!r} is not the name of one table")
    schema = _stored(match["schema"]) if match["schema"] else DEFAULT_SCHEMA
    table = _stored(match["table"])
    if "." in schema or "." in table:
        raise ValueError(f"{name!r} has a dot inside a quoted name, which this version cannot route")
    return f"{schema}.{table}"


def _stored(identifier: str) -> str:
    if identifier.startswith('"'):
        return identifier[1:-1].replace('""', '"')
    return identifier.lower()
