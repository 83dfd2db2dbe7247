"""Statements made from a small grammar that knows what it names: the classifier finds just that in the text
as it is made, in what PostgreSQL's grammar makes of it again, and with other literals.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from postgast import deparse, parse

from pgshunt.routing._shapes import ShapeCache
from pgshunt.routing.classify import classify, resolver
from pgshunt.routing.lexer import strip
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue

PATH = ("public", "audit")
RELATIONS = {
    "public.users": "r",
    "public.Users": "r",
    "public.roles": "r",
    "audit.logs": "r",
    "audit.users": "r",
}
CATALOGUE = Catalogue(version=1, relations=RELATIONS, safe_functions=frozenset({"lower", "count"}))
EXAMPLES = settings(max_examples=300, deadline=None)


@dataclass(frozen=True)
class Made:
    """A piece of SQL, and the tables it reads and writes."""

    sql: str
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()


TABLES = (
    *(
        Made(sql, frozenset({"public.users"}))
        for sql in ("users", "USERS", 'public."users"', 'U&"\\0075sers"')
    ),
    Made('"Users"', frozenset({"public.Users"})),
    Made("roles", frozenset({"public.roles"})),
    *(Made(sql, frozenset({"audit.logs"})) for sql in ("logs", "audit . logs", 'audit."logs"')),
    Made("audit.users", frozenset({"audit.users"})),
)
NUMBERS = ("1", "-1", "0.5e3", "$1", "0x1F", "NULL")
STRINGS = ("'a'", "'it''s'", "E'\\''", "$$roles$$", "$a$ 'x $a$", "B'01'", "'public.roles'", "'-- /*'")
LITERALS = tuple(Made(sql) for sql in NUMBERS + STRINGS)
SPACES = (" ", "\n", "\t ", " -- 'x\n", " /* DELETE FROM roles */ ", "/* /* 1 */ */ ")

# {t}: a table, {w}: one to write, {s}: a source of rows, {e}: an expression, {l}: a literal, {q}: a query
QUERIES = (
    "SELECT {e} FROM {s}",
    "SELECT a FROM {s} JOIN {s} AS j USING (a) WHERE {e}",
    "SELECT {e} FROM {s} GROUP BY a HAVING {e}",
    "SELECT a FROM {s} UNION ALL (SELECT {e} FROM {s})",
    "SELECT a FROM {s} ORDER BY {e} LIMIT 5",
    "WITH c AS (SELECT {e}) SELECT a FROM c, {s} x",
    "WITH roles AS (SELECT {e}) SELECT a FROM roles",
    "VALUES ({e}), ({e}), ({l})",
)
EXPRESSIONS = (
    "{l}",
    "a",
    "({q})",
    "lower({l})",
    "a IN ({l}, {l}, {l})",
    "a IN ({q})",
    "CASE WHEN a = {l} THEN {l} END",
    "ARRAY[{l}, a]",
)
CHANGES = (
    "INSERT INTO {w} (a) {q}",
    "INSERT INTO {w} VALUES ({l}, {l}), ({l}, {l})",
    "UPDATE {w} SET a = {l}, b = ({q}) WHERE b = {l}",
    "DELETE FROM {w} USING {t} AS u WHERE a = {l}",
    "WITH c AS (DELETE FROM {w} RETURNING a) SELECT * FROM c, ({q}) AS q",
    "MERGE INTO {w} AS m USING ({q}) AS q ON m.a = {l} WHEN MATCHED THEN DELETE",
)


class Maker:
    """Fills templates in; below `depth` nothing holds a query any more."""

    def __init__(self, die: random.Random) -> None:
        self.die = die

    def query(self, depth: int = 2) -> Made:
        return self.filled(self.die.choice(QUERIES), depth)

    def change(self) -> Made:
        return self.filled(self.die.choice(CHANGES), 1)

    def filled(self, template: str, depth: int) -> Made:
        parts = re.split(r"\{(\w)\}", template)
        made = [self.part(part, depth) if place % 2 else Made(part) for place, part in enumerate(parts)]
        return Made(
            "".join(part.sql for part in made),
            frozenset().union(*(part.reads for part in made)),
            frozenset().union(*(part.writes for part in made)),
        )

    def part(self, kind: str, depth: int) -> Made:
        match kind:
            case "l":
                return self.die.choice(LITERALS)
            case "e":
                return self.filled(self.die.choice(EXPRESSIONS if depth else EXPRESSIONS[:2]), depth)
            case "q":
                return self.query(depth - 1) if depth else self.filled("SELECT a FROM {t}", 0)
            case "s" if depth and self.die.random() < 0.3:
                return self.filled("({q})", depth)  # without an alias, as of PostgreSQL 16
            case "w":
                return Made((table := self.die.choice(TABLES)).sql, writes=table.reads)
            case _:
                return self.die.choice(TABLES)


MAKERS = st.randoms(use_true_random=False).map(Maker)


def shape_of(sql: str) -> Shape:
    return classify(sql, PATH, CATALOGUE)


@given(MAKERS)
@EXAMPLES
def test_a_query_reads_the_tables_it_names(maker: Maker) -> None:
    query = maker.query()
    shape = shape_of(query.sql)
    assert (shape.kind, shape.reads, shape.writes, shape.reason) == (Kind.READ, query.reads, frozenset(), "")
    assert shape.splittable == bool(query.reads)


@given(MAKERS)
@EXAMPLES
def test_a_change_writes_the_tables_it_names(maker: Maker) -> None:
    change = maker.change()
    shape = shape_of(change.sql)
    assert (shape.kind, shape.reads, shape.writes) == (Kind.WRITE, change.reads, change.writes)


@given(MAKERS)
@EXAMPLES
def test_a_statement_written_out_again_is_the_same(maker: Maker) -> None:
    for statement in (maker.query(), maker.change()):
        assert shape_of(deparse(parse(statement.sql))) == shape_of(statement.sql)


@given(MAKERS)
@EXAMPLES
def test_no_text_takes_the_shape_of_another(maker: Maker) -> None:
    """Whatever came before, and whatever the texts share of their keys."""
    cache = ShapeCache(resolver(CATALOGUE))
    path = cache.search_path(PATH)
    shapes: dict[bytes, Shape] = {}
    for statement in [maker.query(1) for _ in range(4)] + [maker.change() for _ in range(4)]:
        for other in (statement.sql, with_other_literals(statement.sql, maker.die)):
            shape = cache.find(other.encode(), path.number).shape
            assert (shape.reads, shape.writes) == (statement.reads, statement.writes), other
            key = strip(other.encode())
            assert key is None or shapes.setdefault(key, shape) == shape, other


def with_other_literals(sql: str, die: random.Random) -> str:
    """The same statement with other literals and other space."""
    for literal in STRINGS[:6]:
        sql = sql.replace(literal, die.choice(STRINGS[:4]))
    return die.choice(SPACES) + sql.replace(" FROM ", die.choice(SPACES) + "FROM ") + die.choice(SPACES)
