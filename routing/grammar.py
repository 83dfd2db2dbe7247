"""The one door to PostgreSQL's grammar (libpg_query 18, through postgast); nothing else knows either.

It gives the tree as protobuf messages, whose classes `pg` holds, and keeps texts out that would hurt.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError
from postgast import PgQueryError
from postgast import parse as _parse
from postgast import pg_query_pb2 as pg

from pgshunt.routing._shapes import strip_bytes

__all__ = ["Unreadable", "parse", "pg"]

TEXT_BYTES_MAX: Final = 256 * 1024
"""Longer texts are not parsed."""

KEY_BYTES_MAX: Final = 16 * 1024
"""Nor are texts of which more than this is left without literals: libpg_query writes its tree out by
recursion, and `1+1+1…` makes a level of every two bytes. Measured with a stack of 8 MiB: 20,000 levels pass,
30,000 end the process."""


class Unreadable(Exception):
    """There is no tree. `every_literal` says that other literals in the same text would not help."""

    def __init__(self, reason: str, *, every_literal: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.every_literal = every_literal


def parse(sql: bytes) -> pg.ParseResult:
    """The tree of a text. Raises Unreadable: too_large, too_deep, not_utf8 or unparsable."""
    if len(sql) > TEXT_BYTES_MAX:
        raise Unreadable("too_large")
    key = strip_bytes(sql)
    if len(sql if key is None else key) > KEY_BYTES_MAX:
        raise Unreadable("too_large")
    if b"\0" in sql:
        # libpg_query would take the text to end there.
        raise Unreadable("unparsable")
    try:
        return _parse(sql.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable("not_utf8") from error
    except PgQueryError as error:
        raise Unreadable("unparsable") from error
    except DecodeError as error:
        # Protobuf reads 100 levels; how deep the tree is does not depend on the literals.
        raise Unreadable("too_deep", every_literal=True) from error
