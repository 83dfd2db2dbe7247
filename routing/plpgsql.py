"""Cuts the body of a PL/pgSQL function into the SQL it runs, with PostgreSQL's own grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pgshunt.routing.grammar import Unreadable, parse_plpgsql

BODY_BYTES_MAX: Final = 128 * 1024

# The grammar knows no catalogue: a row of a table's type is a record to it only if it is called one. A name
# is looked at once, from its beginning: bodies hold words as long as themselves, such as images in hex.
_NAME: Final = r'(?<![\w$."])[\w$."]++\s*+%\s*+'
_ROW_TYPE: Final = re.compile(_NAME + r"rowtype\b", re.IGNORECASE)
_TYPE_OF: Final = re.compile(_NAME + r"type\b((?:\s*+\[\d*+\])*+)", re.IGNORECASE)
_DOLLARS: Final = re.compile(r"\$pgshunt_(\d{1,9})\$")

ASSIGNMENTS: Final = frozenset({3, 4, 5})
"""parseMode of `a := …`, `a.b := …`, `a.b.c := …`; 2 is that of an expression, 0 of a statement
(parser/parser.h)."""
EXPRESSION: Final = 2
NO_DATUM: Final[tuple[str, dict[str, Any]]] = ("", {})


@dataclass(frozen=True, slots=True)
class Variable:
    """A local variable: its type's name ("" if it is no scalar), and all that is assigned to it (None: not
    all of that is known).
    """

    name: str
    type: str
    assigned: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Body:
    """`statements` and `expressions` run as they are (an expression is given as a SELECT); `computed` are
    expressions of which the value is run.
    """

    statements: tuple[str, ...]
    expressions: tuple[str, ...]
    computed: tuple[str, ...]
    variables: tuple[Variable, ...]


def read_body(body: str, *, header: str) -> Body:
    """The SQL in a body. `header` is what stands before it, up to AS (`DO` for a code block).

    Raises Unreadable.
    """
    if len(body) > BODY_BYTES_MAX:
        raise Unreadable("too_large")
    plain = _ROW_TYPE.sub("record", body)
    attempts = [plain, _TYPE_OF.sub(lambda found: "text" + "[]" * bool(found[1]), plain)]
    unreadable: Unreadable | None = None
    for attempt in dict.fromkeys(attempts):
        try:
            return _cut(parse_plpgsql(f"{header} {_dollar_quoted(attempt)}"))
        except Unreadable as error:
            unreadable = error
    assert unreadable is not None
    raise unreadable


def _dollar_quoted(body: str) -> str:
    taken = [int(number) for number in _DOLLARS.findall(body)]
    tag = f"$pgshunt_{max(taken, default=0) + 1}$"
    return f"{tag}{body}{tag}"


def _cut(function: dict[str, Any]) -> Body:
    statements: list[str] = []
    expressions: list[str] = []
    computed: list[str] = []
    assigned: dict[int, list[str]] = {}
    elsewhere: set[int] = set()
    for kind, node in _nodes(function):
        if kind == "PLpgSQL_stmt_assign":
            _, value = split_assignment(node["expr"]["PLpgSQL_expr"]["query"])
            assigned.setdefault(node.get("varno", 0), []).append(value)
        elif "varno" in node:
            elsewhere.add(node["varno"])
        elif kind == "PLpgSQL_diag_item":
            elsewhere.add(node.get("target", 0))
        elif kind == "PLpgSQL_stmt_call":
            elsewhere.update(range(len(function["datums"])))  # a procedure may assign to what it is given
        if kind in ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"):
            computed.append(node["query"]["PLpgSQL_expr"]["query"])
        if "dynquery" in node:
            computed.append(node["dynquery"]["PLpgSQL_expr"]["query"])
        if kind == "PLpgSQL_expr":
            mode, query = node["parseMode"], node["query"]
            if mode in ASSIGNMENTS:
                expressions.append("SELECT " + ", ".join(split_assignment(query)))
            else:
                (expressions if mode == EXPRESSION else statements).append(
                    f"SELECT {query}" if mode == EXPRESSION else query
                )
    variables = _variables(function, assigned, elsewhere)
    return Body(tuple(statements), tuple(expressions), tuple(computed), variables)


def _variables(
    function: dict[str, Any], assigned: dict[int, list[str]], elsewhere: set[int]
) -> tuple[Variable, ...]:
    """Those of one name count as one. What parameters hold, which no line declares, is not known."""
    found: dict[str, Variable] = {}
    for number, datum in enumerate(function["datums"]):
        kind, details = next(iter(datum.items()), NO_DATUM)
        name = details.get("refname", "").lower()
        if not name:
            continue
        scalar = details.get("datatype", {}).get("PLpgSQL_type", {}).get("typname", "")
        values = None
        if kind == "PLpgSQL_var" and "lineno" in details and number not in elsewhere:
            default = details.get("default_val", {}).get("PLpgSQL_expr", {}).get("query")
            values = (*assigned.get(number, ()), *([] if default is None else [default]))
        if name in found:
            scalar = scalar if scalar == found[name].type else ""
            others = found[name].assigned
            values = None if values is None or others is None else values + others
        found[name] = Variable(name, scalar, values)
    return tuple(found.values())


def _nodes(root: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of the tree with its kind."""
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name.startswith("PLpgSQL_"):
                    yield name, inner
                elif name == "fields":
                    yield from (("field", field) for field in inner)
                stack.append(inner)


def split_assignment(text: str) -> tuple[str, str]:
    """Target and value of `target := value` or `target = value`; subscripts may hold either sign."""
    depth = 0
    quote = ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[(":
            depth += 1
        elif character in "])":
            depth -= 1
        elif character in ":=" and depth == 0:
            return text[:at].strip(), text[at:].lstrip(":").removeprefix("=").strip()
    raise Unreadable("unparsable")
