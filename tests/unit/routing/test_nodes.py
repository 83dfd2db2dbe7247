"""The two ways to read and come by nodes are one: fed the same trees, both give the same, in the same order;
and by everything that is in a tree they come, but for what a visit sees to itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from postgast.native import lib
from support.texts import SQL

from pgshunt.routing import _nodes, nodes
from pgshunt.routing.nodes import LEAVES, READ_BY_VISITS, Fields, Names, Stack
from pgshunt.routing.walk import VISITS

LEVELS_MAX = 100
TWINS = pytest.mark.parametrize("twin", [nodes, _nodes])


def written(sql: str) -> bytes:
    """The tree as libpg_query writes it in JSON."""
    result = lib.pg_query_parse(sql.encode())
    try:
        tree: bytes = result.parse_tree
        return tree
    finally:
        lib.pg_query_free_parse_result(result)


@pytest.mark.parametrize("sql", SQL)
def test_both_read_the_same(sql: str) -> None:
    text = written(sql)
    tree = _nodes.read(text, LEVELS_MAX)
    assert tree == nodes.read(text, LEVELS_MAX)
    assert json.loads(text)["version"] == tree["version"]


@TWINS
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (rb'{"String":{"sval":"a\"\\\u0001\n\u00e9"}}', 'a"\\\x01\né'),
        (b'{"String":{"sval":""}}', ""),
        (b'{"String":{}}', ""),
        (b'{"A_Star":{}}', ("A_Star", {})),
        (b'{"owner":{"location":7},"location":"/x"}', {"owner": {}, "location": "/x"}),
        (b'[{},{"Integer":{"ival":-7,"location":3}},[]]', [{}, ("Integer", {"ival": -7}), []]),
        (
            b'{"sval":{"sval":"\xc3\xa9"},"is":true,"not":false}',
            {"sval": {"sval": "é"}, "is": True, "not": False},
        ),
    ],
)
def test_json_becomes_this(twin: ModuleType, text: bytes, value: object) -> None:
    assert twin.read(text, LEVELS_MAX) == value


@TWINS
@pytest.mark.parametrize("cut", range(1, 60, 4))
def test_what_is_no_whole_json_is_no_tree(twin: ModuleType, cut: int) -> None:
    whole = written("SELECT 'a', 1 FROM t WHERE a")
    with pytest.raises(ValueError, match=r"."):
        twin.read(whole[:-cut], LEVELS_MAX)
    with pytest.raises(ValueError, match=r"."):
        twin.read(whole[:cut], LEVELS_MAX)


@TWINS
@pytest.mark.parametrize("text", [b'{"sval":"\xff"}', rb'{"sval":"\n' + b'\xff"}'])
def test_a_text_that_is_not_utf8_is_no_tree(twin: ModuleType, text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        twin.read(text, LEVELS_MAX)


@TWINS
def test_a_tree_that_is_too_deep_is_not_read(twin: ModuleType) -> None:
    assert twin.read(b"[" * 9 + b"]" * 9, 9)
    with pytest.raises(RecursionError):
        twin.read(b"[" * 10 + b"]" * 10, 9)


@pytest.mark.parametrize("sql", SQL)
def test_both_come_by_the_same(sql: str) -> None:
    assert come_by(nodes, sql) == come_by(_nodes, sql)


def come_by(twin: ModuleType, sql: str) -> list[tuple[Any, ...]]:
    """The visits of the nodes of a text, each of which goes on with what is in its node."""
    visits: list[tuple[Any, ...]] = []

    def visit(kind: str) -> nodes.Visit:
        def note(found: object, fields: Fields, names: Names, stack: Stack) -> None:
            visits.append((found, kind, fields, names))
            twin.push_fields(kind, fields, names | {kind}, stack)

        return note

    noting = {kind: visit(kind) for kind in VISITS}
    for statement in twin.read(written(sql), LEVELS_MAX)["stmts"]:
        twin.come_by("found", statement["stmt"], frozenset({"a"}), noting)
    return visits


@TWINS
@pytest.mark.parametrize("sql", SQL)
def test_every_field_that_is_set_is_come_by(twin: ModuleType, sql: str) -> None:
    stack: Stack = [
        (statement["stmt"], frozenset()) for statement in nodes.read(written(sql), LEVELS_MAX)["stmts"]
    ]
    while stack:
        node, names = stack.pop()
        assert isinstance(node, tuple)
        kind, fields = node
        expected = [] if kind in LEAVES else list(held(kind, fields))
        inner: Stack = []
        twin.push_fields(kind, fields, names, inner)
        # What is no node, but a message of which it is known elsewhere what it is, comes as one.
        assert [item if item in expected else item[1] for item, _ in inner] == expected
        stack += inner


def held(kind: str, fields: Fields) -> Iterator[object]:
    """What is a node, or has fields of its own, in the fields of a node."""
    for field, value in fields.items():
        if field in READ_BY_VISITS.get(kind, ()) or field == "alias":
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, tuple) or (isinstance(item, dict) and item):
                yield item
