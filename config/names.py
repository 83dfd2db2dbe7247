"""Spells table names the way the routing table does: folded, and with their schema."""

import re
from typing import Final

DEFAULT_SCHEMA: Final = "public"

_IDENTIFIER: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_\u0080-\uffff][\w$]*)'
_TABLE: Final = re.compile(rf"(?:(?P<schema>{_IDENTIFIER})\.)?(?P<table>{_IDENTIFIER})")


def qualified(name: str) -> str:
    """`users` → `public.users`, `Audit.Logs` → `audit.logs`, `"Users"` → `public.Users`.

    Folding follows PostgreSQL: letters outside double quotes become lower case. Quotes remain only around a
    part that holds a dot or a quote itself, so that no two tables share a spelling. Raises ValueError for
    what is not the name of one table: patterns, and names with a database in front.
    """
    match = _TABLE.fullmatch(name.strip())
    if match is None:
        raise ValueError(f"{name!r} is not the name of one table")
    schema = _stored(match["schema"]) if match["schema"] else DEFAULT_SCHEMA
    return f"{schema}.{_stored(match['table'])}"


def _stored(identifier: str) -> str:
    if not identifier.startswith('"'):
        return identifier.lower()
    inner = identifier[1:-1].replace('""', '"')
    return identifier if "." in inner or '"' in inner else inner
