"""Resolves names of relations the way PostgreSQL does: through the search path, system schemas first.

A resolved name is "schema.name". A part that holds a dot or a double quote is written quoted, so that no two
relations share a name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from functools import lru_cache
from typing import Final

NAME_LENGTH_MAX: Final = 63
SYSTEM_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema", "pg_toast"})

_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s",.]+))\s*')
_WORD: Final = re.compile(r"[\w$]+")
_LAST_QUOTED: Final = re.compile(r'(?:^|\.)"((?:[^"]|"")*)"$')


def qualified(schema: str, name: str) -> str:
    """Names in string literals may be of any length; those longer than PostgreSQL's are not kept."""
    if len(schema) > NAME_LENGTH_MAX or len(name) > NAME_LENGTH_MAX:
        return f"{quoted(schema)}.{quoted(name)}"
    return _qualified(schema, name)


@lru_cache(maxsize=8192)
def _qualified(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"


def last_part(full: str) -> str:
    """The name alone of what `qualified` or `resolve` has written."""
    quoted = _LAST_QUOTED.search(full)
    return full.rpartition(".")[2] if quoted is None else quoted[1].replace('""', '"')


def resolve(schema: str, name: str, search_path: Iterable[str], relations: Container[str]) -> str:
    """The full name of a relation; `name` alone if it is unqualified and the catalogue has it nowhere on the
    path.

    "$user" is skipped: the schema of that name is on the path of a session only if it exists, which the
    caller knows and resolves.
    """
    if schema:
        return qualified(schema, name)
    for candidate in search_path:
        full = qualified(candidate, name)
        if full in relations:
            return full
    # pg_catalog is searched before the path; of its names only the reserved prefix is known here.
    return qualified("pg_catalog", name) if name.startswith("pg_") else quoted(name)


def as_user(user: str, search_path: Iterable[str]) -> tuple[str, ...]:
    """The path as this user's sessions see it."""
    return tuple(user if schema == "$user" else schema for schema in search_path)


def is_system(schema: str, name: str) -> bool:
    """Whether the answer of this relation is about the server it is asked from. Any unqualified pg_… name
    may be one.
    """
    return (
        schema in SYSTEM_SCHEMAS or schema.startswith("pg_toast") or (not schema and name.startswith("pg_"))
    )


def is_temporary(schema: str) -> bool:
    return schema == "pg_temp" or schema.startswith("pg_temp_")


def split_qualified(text: str) -> tuple[str, str] | None:
    """Schema ("" if none) and name of a relation as a string literal gives it ('public."Users"'); None if
    it is not a name.
    """
    parts = _split(text, ".")
    if parts is None or not 1 <= len(parts) <= 2:
        return None
    return ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])


def named(text: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that stand in a text as words or in double quotes, wherever that is."""
    words = set(_WORD.findall(text))
    words |= {word.lower() for word in words}
    return [name for name in names if name in words or '"{}"'.format(name.replace('"', '""')) in text]


def split_search_path(text: str) -> tuple[str, ...]:
    """The schemas of a search_path as SHOW prints it. An unreadable one is empty: then no unqualified name
    resolves.
    """
    return tuple(part for part in _split(text, ",") or () if part)


def _split(text: str, separator: str) -> list[str] | None:
    parts = []
    at = 0
    while True:
        part = _PART.match(text, at)
        if part is None:
            return None
        parts.append(part[1].replace('""', '"') if part[1] is not None else part[2].lower())
        at = part.end()
        if at == len(text):
            return parts
        if text[at] != separator:
            return None
        at += 1


def quoted(part: str) -> str:
    """One part of a full name."""
    if "." in part or '"' in part:
        doubled = part.replace('"', '""')
        return f'"{doubled}"'
    return part
