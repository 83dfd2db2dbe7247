"""The one door to PostgreSQL's grammar (libpg_query 18, through postgast); nothing else knows either.

It gives the tree as messages, whose classes `pg` holds, and keeps texts out that would hurt.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from postgast import PgQueryError
from postgast import parse_plpgsql as _parse_plpgsql
from postgast.errors import check_error
from postgast.native import lib

from pgshunt.routing._nodes import read
from pgshunt.routing._shapes import strip_bytes
from pgshunt.routing.tree import classes

if TYPE_CHECKING:
    from postgast import pg_query_pb2 as pg
else:
    pg = classes()

__all__ = ["Unreadable", "parse", "parse_plpgsql", "pg", "strings"]

TEXT_BYTES_MAX: Final = 256 * 1024
"""Longer texts are not parsed."""

KEY_BYTES_MAX: Final = 16 * 1024
"""Nor are texts of which more than this is left without literals: libpg_query writes its tree out by
recursion, and has no guard against the end of the stack."""

LEVELS_MAX: Final = 2000
"""Nor those that may be deeper than this. Measured: what is left (4,000 times NOT, 1,800 subselects) takes
less than 1 MiB of stack, which a thread has."""
NESTED_MAX: Final = 1000
"""Nor is a tree read whose JSON is deeper."""
_LEVEL: Final = re.compile(rb"[-+*/<>=~!@#%^&|`\x01]++|\[|::")


# libpg_query closes a brace too many for each variable that only triggers have (TG_OP …).
_REPEATED: Final = re.compile(r"(?<=[\[,])\{\}\},")


class Unreadable(Exception):
    """There is no tree. `every_literal` says that other literals in the same text would not help."""

    def __init__(self, reason: str, *, every_literal: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.every_literal = every_literal


def parse(sql: bytes, key: bytes | None = None) -> pg.ParseResult:
    """The tree of a text; `key`, where it is known, is what is left of it without its literals.

    Raises Unreadable: too_large, too_deep, not_utf8 or unparsable.
    """
    if key is None:
        key = strip_bytes(sql) or sql
    if len(sql) > TEXT_BYTES_MAX or len(key) > KEY_BYTES_MAX:
        raise Unreadable("too_large")
    if len(key) > 2 * LEVELS_MAX and len(_LEVEL.findall(key)) > LEVELS_MAX:
        raise Unreadable("too_deep", every_literal=True)
    if b"\0" in sql:
        # libpg_query would take the text to end there.
        raise Unreadable("unparsable")
    try:
        sql.decode("utf-8")
        return pg.ParseResult(read(_parse(sql), NESTED_MAX))
    except UnicodeDecodeError as error:
        raise Unreadable("not_utf8") from error
    except (PgQueryError, ValueError) as error:
        raise Unreadable("unparsable") from error
    except RecursionError as error:
        # How deep the tree is does not depend on the literals.
        raise Unreadable("too_deep", every_literal=True) from error


def _parse(sql: bytes) -> bytes:
    """The tree in JSON."""
    result = lib.pg_query_parse(sql)
    try:
        check_error(result)
        tree: bytes = result.parse_tree
        return tree
    finally:
        lib.pg_query_free_parse_result(result)


def parse_plpgsql(definition: str) -> dict[str, Any]:
    """The tree of one function or code block, as libpg_query's JSON has it. Raises Unreadable."""
    if "\0" in definition:
        raise Unreadable("unparsable")
    try:
        try:
            functions = _parse_plpgsql(definition)
        except json.JSONDecodeError as error:
            functions = json.loads(_REPEATED.sub("{},", error.doc))
    except (PgQueryError, json.JSONDecodeError, UnicodeEncodeError) as error:
        raise Unreadable("unparsable") from error
    except RecursionError as error:
        raise Unreadable("too_deep") from error
    if len(functions) != 1 or not functions[0].get("PLpgSQL_function", {}).get("action"):
        raise Unreadable("unparsable")
    tree: dict[str, Any] = functions[0]["PLpgSQL_function"]
    return tree


def strings(nodes: Any) -> list[str]:
    """The parts of a dotted name; other nodes in it (a star, a subscript) count as ""."""
    return [node.string.sval for node in nodes]
