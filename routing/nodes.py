"""Reads the nodes of a parse tree out of libpg_query's JSON, and comes by them; `_nodes.pyx` is the same,
compiled.

A node, in JSON `{"ColumnRef": {"fields": […]}}`, is a tuple of its kind and its fields; a String is its text
alone, and a place where no node is has no fields. Where in the text something stands is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from postgast import pg_query_pb2 as schema

Fields = dict[str, Any]
Node = tuple[str, Fields] | str | Fields
Names = frozenset[str]
Stack = list[tuple[Node, Names]]
"""What is still to come, so that depth costs memory and not the C stack: nodes, each with the names of the
CTEs visible there."""
Visit = Callable[[Any, Fields, Names, Stack], None]

NODE: Final = "Node"
LEAVES: Final = frozenset({"A_Const", "String", "ParamRef", "A_Star", "Integer", "Float", "Boolean", "Alias"})
"""Kinds of message in which there is nothing."""

READ_BY_VISITS: Final[dict[str, Names]] = {
    "SelectStmt": frozenset({"withClause"}),
    **dict.fromkeys(
        ("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"), frozenset({"withClause", "relation"})
    ),
    "FuncCall": frozenset({"funcname"}),
    "TypeName": frozenset({"names"}),
    "A_Expr": frozenset({"name"}),
    "SubLink": frozenset({"operName"}),
    "SortBy": frozenset({"useOp"}),
}
"""Fields that the visit of a node sees to itself."""

FIELDS: Final = {
    name: {
        field.json_name: field.message_type.name
        for field in descriptor.fields
        if field.message_type is not None
        and not {name, field.message_type.name} & LEAVES
        and field.json_name not in READ_BY_VISITS.get(name, ())
    }
    for name, descriptor in schema.DESCRIPTOR.message_types_by_name.items()
}
"""For each kind of message the fields that are come by, and the kinds of what is in them."""


def read(text: bytes, levels_max: int) -> Any:
    """The tree of a JSON text. Raises RecursionError if it is deeper, ValueError if it is no JSON."""
    return _read(json.loads(text.decode()), levels_max)


def _read(value: Any, levels: int) -> Any:
    if not isinstance(value, dict | list):
        return value
    if levels == 0:
        raise RecursionError("the tree is too deep")
    if isinstance(value, list):
        return [_read(inner, levels - 1) for inner in value]
    fields = {
        name: _read(inner, levels - 1)
        for name, inner in value.items()
        if name != "location" or isinstance(inner, str)  # of a tablespace
    }
    for kind, inner in fields.items():
        if kind[0].isupper():
            return inner.get("sval", "") if kind == "String" else (kind, inner)
    return fields


def push_fields(kind: str, fields: Fields, names: Names, stack: Stack) -> None:
    """What is in a message comes next."""
    inner = FIELDS[kind]
    for name, value in fields.items():
        if name not in inner:
            continue
        if isinstance(value, list):
            stack += [(node, names) for node in value if isinstance(node, tuple)]
        elif isinstance(value, tuple):
            stack.append((value, names))
        elif isinstance(value, dict) and inner[name] != NODE:
            stack.append(((inner[name], value), names))


def come_by(found: object, root: Node, names: Names, visits: Mapping[str, Visit]) -> None:
    """Call for each node in `root` the visit of its kind; what is in one that has none comes next."""
    stack: Stack = [(root, names)]
    while stack:
        node, names = stack.pop()
        if not isinstance(node, tuple):
            continue
        kind, fields = node
        if kind in visits:
            visits[kind](found, fields, names, stack)
        else:
            push_fields(kind, fields, names, stack)
