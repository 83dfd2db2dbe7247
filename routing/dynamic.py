"""Says which statements a computed text may be, as EXECUTE in PL/pgSQL runs it.

What is not known of the text is a name or a literal: then it is the same statement whatever it is. In a place
where it may be anything else (a variable of type text that is put in as it is) the text is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pgshunt.routing.grammar import pg

NAME: Final = "pgshunt_any"
"""Stands for a name that is computed."""

TEXTS_MAX: Final = 64
"""So many texts one expression may stand for; more are not looked at."""

TEXT_LENGTH_MAX: Final = 64 * 1024
"""Nor is one that may be longer: variables made of each other grow without bound."""

LITERAL: Final = "'1'"
NUMBER: Final = "1"
# Variables of these types come out as a name or a number, never as anything else.
TYPES: Final = {"regclass": NAME, **dict.fromkeys(("int2", "int4", "int8", "oid", "numeric"), NUMBER)}
QUOTING: Final = {"quote_ident": NAME, "quote_literal": LITERAL, "quote_nullable": LITERAL}
# What a trigger is told of its table; and who names tables may do anything with them already.
TRIGGER_VARIABLES: Final = frozenset({"tg_table_name", "tg_relname", "tg_table_schema", "tg_name", "tg_op"})

_SPECIFIER: Final = re.compile(r"%(?:(\d{1,9})\$)?(-?\d{1,9})?(.)", re.DOTALL)

Variables = Mapping[str, tuple[str, ...]]


class Opaque(Exception):
    """The text may be anything."""


def texts(node: Any, variables: Variables) -> tuple[str, ...]:
    """The texts an expression may have as its value, NAME or a literal where it is not known. Raises Opaque.

    `variables` are the local variables of which it is known, and what they may be.
    """
    kind = node.WhichOneof("node")
    inner: Any = getattr(node, kind) if kind else None
    if kind == "a_const" and inner.HasField("sval"):
        return (str(inner.sval.sval),)
    if kind == "a_const" and inner.HasField("ival"):
        return (str(inner.ival.ival),)
    if kind == "type_cast" and _is_builtin(inner.type_name.names):
        last = inner.type_name.names[-1].string.sval
        if last in TYPES and not inner.type_name.array_bounds:
            return (TYPES[last],)
        if last in ("text", "varchar"):
            return texts(inner.arg, variables)
    if kind == "column_ref" and len(inner.fields) == 1 and inner.fields[0].HasField("string"):
        name = inner.fields[0].string.sval.lower()
        if name in variables:
            return variables[name]
        if name in TRIGGER_VARIABLES:
            return (NAME,)
    if kind == "a_expr" and [part.string.sval for part in inner.name] == ["||"]:
        return _joined([texts(inner.lexpr, variables), texts(inner.rexpr, variables)])
    if kind == "func_call" and _is_builtin(inner.funcname):
        return _call(inner, variables)
    if kind == "case_expr" and inner.HasField("defresult"):
        results = [when.case_when.result for when in inner.args] + [inner.defresult]
        return _bounded(tuple({text for result in results for text in texts(result, variables)}))
    if kind == "coalesce_expr":
        return _bounded(tuple({text for argument in inner.args for text in texts(argument, variables)}))
    raise Opaque


def _is_builtin(names: Any) -> bool:
    """Whether a name may be PostgreSQL's own: those of other schemas do what somebody made them do."""
    return len(names) == 1 or bool(names[0].string.sval == "pg_catalog")


def _call(node: pg.FuncCall, variables: Variables) -> tuple[str, ...]:
    name = node.funcname[-1].string.sval
    if name in QUOTING:
        return (QUOTING[name],)
    if name == "concat":
        return _joined([texts(argument, variables) for argument in node.args])
    if name == "format" and node.args and not node.func_variadic:
        return _format(node, variables)
    if name in ("lower", "upper", "btrim", "rtrim", "ltrim") and len(node.args) == 1:
        found = texts(node.args[0], variables)
        if all(text == NAME for text in found):
            return found
    raise Opaque


def _format(node: pg.FuncCall, variables: Variables) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for template in texts(node.args[0], variables):
        parts: list[tuple[str, ...]] = []
        at = used = 0
        for specifier in _SPECIFIER.finditer(template):
            parts.append((template[at : specifier.start()],))
            at = specifier.end()
            place, width, letter = specifier.groups()
            if letter == "%":
                parts.append(("%",))
                continue
            used = int(place) if place else used + 1
            if width or used >= len(node.args):
                raise Opaque
            match letter:
                case "I":
                    parts.append((NAME,))
                case "L":
                    parts.append((LITERAL,))
                case "s":
                    parts.append(texts(node.args[used], variables))
                case _:
                    raise Opaque
        parts.append((template[at:],))
        found += _joined(parts)
    return _bounded(found)


def _joined(parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    found: tuple[str, ...] = ("",)
    for part in parts:
        found = _bounded(tuple(before + text for before in found for text in part))
    return found


def _bounded(found: tuple[str, ...]) -> tuple[str, ...]:
    if len(found) > TEXTS_MAX or any(len(text) > TEXT_LENGTH_MAX for text in found):
        raise Opaque
    return found
