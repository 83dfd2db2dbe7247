"""Writes the head of a PL/pgSQL function anew, so that its body can be parsed without a database's types."""

from __future__ import annotations

from typing import Final

from pgshunt.routing.grammar import pg

# PL/pgSQL's parser needs types only to tell a record from a scalar and to check what RETURN may hold.
_SCALAR_NAMES: Final = """
    bool int2 int4 int8 float4 float8 numeric text varchar bpchar date timestamp timestamptz time interval
    uuid json jsonb bytea regclass oid name
"""
_SCALARS: Final = frozenset(_SCALAR_NAMES.split())


MODES: Final = {
    pg.FUNC_PARAM_IN: "",
    pg.FUNC_PARAM_OUT: "OUT",
    pg.FUNC_PARAM_INOUT: "INOUT",
    pg.FUNC_PARAM_VARIADIC: "",
    pg.FUNC_PARAM_TABLE: "TABLE",
    pg.FUNC_PARAM_DEFAULT: "",
}


def header_like(node: pg.CreateFunctionStmt) -> str:
    """The head of a function with the same parameters, of types that are known without a catalogue."""
    parameters = []
    returned: list[str] = []
    for item in node.parameters:
        parameter = item.function_parameter
        mode = MODES[parameter.mode]
        kind = _type(parameter.arg_type)
        name = '"' + parameter.name.replace('"', '""') + '"' if parameter.name else ""
        if mode == "TABLE":
            returned.append(f"{name} {kind if kind != 'record' else 'text'}")
        else:
            if mode in ("OUT", "INOUT") and kind == "record":
                kind = "text"
            parameters.append(f"{mode} {name} {'pgshunt_row' if kind == 'record' else kind}")
    head = f"({', '.join(parameters)})"
    if node.is_procedure:
        return f"CREATE PROCEDURE pgshunt{head} LANGUAGE plpgsql AS"
    result = f"TABLE({', '.join(returned)})"
    if not returned:
        last = node.return_type.names[-1].string.sval if node.HasField("return_type") else ""
        result = last if last in ("trigger", "event_trigger", "void") else "text"
        if node.return_type.setof:
            result = "SETOF text"
        if any(parameter.startswith(("OUT", "INOUT")) for parameter in parameters):
            result = "SETOF record" if node.return_type.setof else ""
    returns = f" RETURNS {result}" if result else ""
    return f"CREATE FUNCTION pgshunt{head}{returns} LANGUAGE plpgsql AS"


def _type(node: pg.TypeName) -> str:
    last = node.names[-1].string.sval if node.names else ""
    if node.array_bounds or last.startswith("_"):
        return "text[]"
    if last.startswith("any"):
        return "text[]" if "array" in last or last == "any" else "text"
    return last if last in _SCALARS and not node.pct_type else "record"
