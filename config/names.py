"""Spells names of tables, and patterns of them, the way the routing table does: folded, with their schema."""

import re
from collections.abc import Callable
from typing import Final

DEFAULT_SCHEMA: Final = "public"

_IDENTIFIER: Final = r'(?:"(?:[^"]|"")+"|[A-Za-z_\u0080-\uffff][\w$]*)'
_PATTERN: Final = re.compile(rf"(?:(?P<schema>{_IDENTIFIER})\.)?(?P<table>[A-Za-z_*\u0080-\uffff][\w$*]*)")
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
    return f"{_schema(match)}.{_stored(match['table'])}"


def pattern(text: str) -> str:
    """`auth_*` → `public.auth_*`, `Billing.*` → `billing.*`: `*` stands for any characters of a table's name.

    Raises ValueError for what is none.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or "*" not in match["table"]:
        raise ValueError(f"{text!r} is not a pattern of table names")
    return f"{_schema(match)}.{match['table'].lower()}"


def is_pattern(name: str) -> bool:
    """Of what `qualified` or `pattern` has written: no table that can be named has a `*` in its name."""
    return "*" in name


def matcher(pattern: str) -> Callable[[str], bool]:
    """Says of a table, spelled as `qualified` does, whether it matches what `pattern` has written."""
    schema, _, wanted = pattern.rpartition(".")
    matches = re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL).fullmatch
    prefix = f"{schema}."
    return lambda table: table.startswith(prefix) and matches(_unquoted(table[len(prefix) :])) is not None


def _schema(match: re.Match[str]) -> str:
    return _stored(match["schema"]) if match["schema"] else DEFAULT_SCHEMA


def _unquoted(stored: str) -> str:
    return stored[1:-1].replace('""', '"') if stored.startswith('"') else stored


def _stored(identifier: str) -> str:
    if not identifier.startswith('"'):
        return identifier.lower()
    inner = identifier[1:-1].replace('""', '"')
    return identifier if "." in inner or '"' in inner else inner
