"""Turns a query text into its shape. In doubt it is a write or unknown, never a read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from typing import Final

from pgshunt.routing._shapes import strip_bytes
from pgshunt.routing.bodies import Reader
from pgshunt.routing.definitions import made
from pgshunt.routing.effects import added
from pgshunt.routing.findings import Findings
from pgshunt.routing.follow import followed
from pgshunt.routing.grammar import KEY_BYTES_MAX, Unreadable, parse, pg
from pgshunt.routing.lexer import HINT, sample
from pgshunt.routing.shape import Kind, Shape, unknown
from pgshunt.routing.statements import examine
from pgshunt.routing.table import Catalogue

LONG_BYTES: Final = 4096
"""Of a longer text a sample of its key is parsed: what its length is due to are literals, mostly."""
WHOLE_BYTES_MAX: Final = 32 * 1024
"""A longer one is not parsed whole either where its literals matter. A worker parses about 1 MB in a second,
and nobody else is served meanwhile."""
_CODE_BLOCK: Final = re.compile(rb"\bdo\b(?! (?:nothing|update)\b)")
"""In a key: DO that is not ON CONFLICT's."""


def classify(sql: str, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """The shape of a query text; all its statements are one unit. Bad SQL is unknown, not an error.

    `search_path` names the schemas in which this session looks for unqualified tables; "$user" is skipped.
    """
    return classify_bytes(sql.encode("utf-8", "surrogatepass"), search_path, catalogue)


def classify_bytes(sql: bytes, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """`classify` for a text as it came; one that is not UTF-8 is unknown, for its names cannot be told."""
    key = strip_bytes(sql)
    if key is None:
        shape = _text(sql, sql.lower(), search_path, catalogue)
        return _hinted(shape) if b"pgshunt:" in sql.lower() else shape
    if len(sql) <= LONG_BYTES or len(key) > KEY_BYTES_MAX:
        shape = _text(sql, key, search_path, catalogue)
    else:
        shape = _long_text(sql, key, search_path, catalogue)
    return _hinted(shape) if HINT in key else shape


def _long_text(sql: bytes, key: bytes, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """The shape of a text that is long by its literals: by a sample of its key where these do not matter."""
    sampled = unknown("too_large")
    if b"??" not in key:
        sampled = _text(sample(key), key, search_path, catalogue)
        if not (sampled.kind is Kind.UNKNOWN or sampled.literal_sensitive or sampled.defines):
            return sampled
    if len(sql) <= WHOLE_BYTES_MAX:
        return _text(sql, key, search_path, catalogue)
    named = frozenset(catalogue.relations.keys() & sampled.tables)
    opaque = sampled.kind is Kind.UNKNOWN or sampled.stateful or sampled.defines or _CODE_BLOCK.search(key)
    if not named or opaque:
        return unknown("too_large")
    # It uses the tables that it names, and perhaps sequences that its literals name. Where these say what is
    # left in the session (set_config, say), their sample leaves something there as well.
    return replace(
        sampled,
        kind=Kind.WRITE,
        reads=sampled.reads & named,
        writes=sampled.writes & named,
        volatile=True,
        literal_sensitive=True,
        reason="too_large",
    )


def resolver(catalogue: Catalogue) -> Callable[[bytes, tuple[str, ...]], Shape]:
    """What a ShapeCache calls for a text it does not know."""
    return lambda sql, search_path: classify_bytes(sql, search_path, catalogue)


def _text(sql: bytes, key: bytes, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """The shape of `sql`; `key` is what is left of it without its literals, or all of it in lower case."""
    try:
        tree = parse(sql, key)
    except Unreadable as unreadable:
        unread = sql if unreadable.reason == "unparsable" else b""
        return unknown(unreadable.reason, literal_sensitive=not unreadable.every_literal, unread=unread)
    temporary = b"pg_temp" in key.lower()
    shapes = []
    for statement in tree.stmts:
        shapes.append(_statement(statement.stmt, search_path, catalogue, temporary))
        if shapes[-1].makes is not None:
            catalogue = catalogue.learned(shapes[-1].makes)
    if not shapes:
        return Shape(Kind.EMPTY, statements=0)
    return shapes[0] if len(shapes) == 1 else _unit(shapes)


def _hinted(shape: Shape) -> Shape:
    """A comment asked for the primary: that of the tables it names, for it uses no others."""
    prepared = _hinted(shape.prepared) if shape.prepared else None
    return replace(shape, local=shape.local or "hint", anywhere=False, prepared=prepared)


def _statement(node: pg.Node, search_path: tuple[str, ...], catalogue: Catalogue, temporary: bool) -> Shape:
    """`temporary`: pg_temp is named somewhere, be it as the schema of a function or type that is created."""
    found = Findings(search_path, catalogue)
    examine(found, node)
    if found.kind is Kind.WRITE and temporary:
        found.pins.add("temp_table")
    if node.HasField("do_stmt"):
        return followed(found, Reader(catalogue).block(node.do_stmt))
    shape = followed(found)
    return replace(shape, makes=made(found, node)) if found.is_definition else shape


# A text of several statements

STRENGTH: Final = (Kind.EMPTY, Kind.READ, Kind.SESSION, Kind.COPY_IN, Kind.WRITE, Kind.UNKNOWN)
TRANSACTION_CONTROL: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT})


def _unit(shapes: list[Shape]) -> Shape:
    controls = any(shape.kind in TRANSACTION_CONTROL for shape in shapes)
    reason = next((shape.reason for shape in shapes if shape.reason), "")
    # A route can be shown by itself only: among others SHOW is the server's.
    kinds = [Kind.SESSION if shape.kind is Kind.SHOW_ROUTE else shape.kind for shape in shapes]
    kind = Kind.WRITE if controls else max(kinds, key=STRENGTH.index)
    # Behind some settings the names may mean other tables than they do now, or the text other statements.
    unclear = any(shape.renames for shape in shapes) and any(shape.tables for shape in shapes)
    obscured = any(shape.obscures for shape in shapes)
    makes = [shape.makes for shape in shapes if shape.makes is not None]
    # What is prepared may be executed in the same text, or later at the same server only.
    uses = [*shapes, *(shape.prepared for shape in shapes if shape.prepared is not None)]
    return Shape(
        kind=Kind.UNKNOWN if unclear or obscured else kind,
        reads=frozenset() if unclear else _union(shape.reads for shape in uses),
        writes=frozenset() if unclear else _union(shape.writes for shape in uses),
        locks=any(shape.locks for shape in shapes),
        volatile=any(shape.volatile for shape in shapes),
        time_dependent=any(shape.time_dependent for shape in shapes),
        pins=_union(shape.pins for shape in shapes) | ({"unreadable"} if obscured else set()),
        prepares=_union(shape.prepares for shape in shapes),
        executes=_union(shape.executes for shape in shapes)
        | {shape.deallocates for shape in shapes if shape.deallocates},
        releases=_union(shape.releases for shape in shapes),
        local=next((shape.local for shape in shapes if shape.local), None),
        literal_sensitive=any(shape.literal_sensitive for shape in shapes),
        touches=_union(shape.touches for shape in shapes),
        resets=_union(shape.resets for shape in shapes),
        creates=_union(shape.creates for shape in shapes),
        renames=any(shape.renames for shape in shapes),
        rereads=any(shape.rereads for shape in shapes),
        obscures=obscured,
        signals=any(shape.signals for shape in shapes),
        meets=any(shape.meets for shape in uses),
        anywhere=unclear or obscured or any(shape.anywhere for shape in uses),
        defines=any(shape.defines for shape in shapes),
        strange=any(shape.strange for shape in shapes),
        runs=_union(shape.runs for shape in shapes),
        makes=reduce(added, makes) if makes else None,
        alters=_union(shape.alters for shape in shapes),
        statements=len(shapes),
        reason="search_path" if unclear else "transaction_block" if controls else reason,
    )


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return reduce(frozenset.union, sets, frozenset())
