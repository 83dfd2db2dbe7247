"""Walks a parse tree and notes what it does: the tables it reads and writes, and what its calls, casts and
columns imply.

It reads the nodes themselves (`nodes.py`), not the messages made of them. What a node means is a row in
`VISITS`; one without is only walked through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pgshunt.routing._nodes import come_by, push_fields
from pgshunt.routing.effects import DELETE, IMPLICITLY, INSERT, READ, UPDATE
from pgshunt.routing.findings import Findings
from pgshunt.routing.functions import OWN, effect_of
from pgshunt.routing.names import is_system, is_temporary, qualified, quoted, split_qualified
from pgshunt.routing.nodes import Fields, Names, Node, Stack, Visit
from pgshunt.routing.tree import Message

SYSTEM_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})
REG_TYPES: Final = frozenset(
    {
        "regclass",
        "regcollation",
        "regconfig",
        "regdatabase",
        "regdictionary",
        "regnamespace",
        "regoper",
        "regoperator",
        "regproc",
        "regprocedure",
        "regrole",
        "regtype",
    }
)
NO_NAMES: Final[Names] = frozenset()
BETWEEN: Final = frozenset(
    {"AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN", "AEXPR_BETWEEN_SYM", "AEXPR_NOT_BETWEEN_SYM"}
)
COMPARING: Final[Names] = frozenset({"<", "<=", ">", ">="})
"""Operators that are meant where BETWEEN stands."""
EQUALS: Final[Names] = frozenset({"="})
"""That of IN (SELECT …), USING, NATURAL, and CASE … WHEN."""
TIMES: Final = frozenset(
    {
        "SVFOP_CURRENT_DATE",
        "SVFOP_CURRENT_TIME",
        "SVFOP_CURRENT_TIME_N",
        "SVFOP_CURRENT_TIMESTAMP",
        "SVFOP_CURRENT_TIMESTAMP_N",
        "SVFOP_LOCALTIME",
        "SVFOP_LOCALTIME_N",
        "SVFOP_LOCALTIMESTAMP",
        "SVFOP_LOCALTIMESTAMP_N",
    }
)


def walk(found: Findings, root: Message) -> None:
    come_by(found, root.node, NO_NAMES, VISITS)


def string(node: Node) -> str:
    """A part of a dotted name; other nodes in it (a star, a subscript) count as ""."""
    return node if isinstance(node, str) else ""


def strings(nodes: Sequence[Node]) -> list[str]:
    """The parts of a dotted name."""
    return [node if isinstance(node, str) else "" for node in nodes]


def _with(clause: Fields, names: Names, stack: Stack) -> Names:
    """Push the queries of a WITH clause; the names its statement sees.

    A CTE sees those before it, itself and later ones only under RECURSIVE: WITH t AS (SELECT … FROM t) reads
    the table t.
    """
    ctes = [(node, node[1]["ctename"]) for node in clause["ctes"]]
    if "recursive" in clause:
        names |= {name for _, name in ctes}
    for node, name in ctes:
        stack.append((node, names))
        names |= {name}
    return names


def _select(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    _casts(found, IMPLICITLY)
    if "withClause" in node:
        names = _with(node["withClause"], names, stack)
    push_fields("SelectStmt", node, names, stack)


def _changing(kind: str, events: str) -> Visit:
    """A visit of a statement that changes its `relation`."""

    def change(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
        _casts(found, IMPLICITLY)
        # The target is a table even where a CTE has its name.
        relation = node["relation"]
        if relation["relname"] == "pg_settings" and is_system(relation.get("schemaname", ""), "pg_settings"):
            found.pins.add("set_config")  # an UPDATE of this view sets parameters
        upserts = node.get("onConflictClause", {}).get("action") == "ONCONFLICT_UPDATE"
        found.uses(found.relation_of_fields(relation), events + UPDATE if upserts else events)
        found.write("")
        if "withClause" in node:
            names = _with(node["withClause"], names, stack)
        push_fields(kind, node, names, stack)

    return change


def _range_var(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "schemaname" in node or node["relname"] not in names:
        found.uses(found.relation_of_fields(node), READ)


def _into(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    pins = set(found.pins)
    found.writes.add(found.relation_of_fields(node["rel"]))
    if node["onCommit"] == "ONCOMMIT_DROP":
        found.pins = pins
    found.is_definition = True
    found.write("creates_table")


def _locking(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    # What stands behind OF are aliases, not tables.
    found.locks = True
    found.reason = found.reason or "locks"


def _call(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    push_fields("FuncCall", node, names, stack)
    *schema, name = strings(node["funcname"])
    catalogue = found.catalogue
    effect = effect_of(schema[-1] if schema else "", name, catalogue.safe_functions, catalogue.code.system)
    if schema and is_temporary(schema[-1]):
        found.pins.add("temp_table")
        found.volatile = True
        found.write(f"volatile:{name}")
    elif effect is OWN or (not schema and catalogue.knows_function(name)):
        found.calls.add(qualified(schema[-1], name) if schema else quoted(name))
    found.time_dependent |= effect.time_dependent
    found.literal_sensitive |= effect.literal_sensitive
    found.local = found.local or effect.local
    found.signals |= effect.signals
    found.meets |= effect.meets
    found.anywhere |= effect.anywhere
    if effect.volatile:
        found.volatile_calls |= {name} - {"set_config"}
        found.volatile = True
        found.write(f"volatile:{name}")
    if effect.releases:
        found.releases.add(effect.releases)
    arguments = node.get("args", ())
    if effect.sequence and arguments:
        sequence = split_qualified(_constant(arguments[0]) or "")
        if sequence:
            found.writes.add(found.named(*sequence))
        else:
            found.anywhere = True
    if effect.pins == "set_config":
        _set_config(found, arguments)
    elif effect.pins:
        found.pins.add(effect.pins)


def _set_config(found: Findings, arguments: Sequence[Node]) -> None:
    name = _constant(arguments[0]) if len(arguments) == 3 else None
    if name is None:
        found.renames = found.rereads = True
        found.pins.add("set_config")
    else:
        is_local = _fields(arguments[2], "A_Const").get("boolval", {})
        found.sets(name.lower(), local=is_local.get("boolval", False))


def _constant(node: Node) -> str | None:
    """The text of a string literal, through casts ('users_id_seq'::regclass); None if it is anything else."""
    while cast := _fields(node, "TypeCast"):
        node = cast["arg"]
    constant = _fields(node, "A_Const")
    return constant["sval"].get("sval", "") if "sval" in constant else None


def _fields(node: Node, kind: str) -> Fields:
    """Of a node of this kind; of others, none."""
    return node[1] if isinstance(node, tuple) and node[0] == kind else {}


def _casts(found: Findings, name: str) -> None:
    """Something may be cast to a type."""
    casts = found.catalogue.code.casts
    if casts:
        found.calls |= casts.get(name, NO_NAMES)


def _value_function(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if node["op"] in TIMES:
        found.time_dependent = True
    elif node["op"] in ("SVFOP_CURRENT_CATALOG", "SVFOP_CURRENT_SCHEMA"):
        found.local = found.local or "server_state"


def _type(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "names" in node:
        name = string(node["names"][-1])
        _casts(found, name)
        if name in REG_TYPES:
            # The literal may name a relation, and an OID is another one on every server.
            found.literal_sensitive = True
            found.local = found.local or "object_identifier"
        elif found.catalogue.types and name not in found.catalogue.types:
            found.local = found.local or "own_types"
    push_fields("TypeName", node, names, stack)


def _column(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    fields = node["fields"]
    last = string(fields[-1])
    if len(fields) == 1:
        found.columns.add(last)
    elif last in found.catalogue.code.attributes:
        found.calls |= found.catalogue.code.attributes[last]
    if last in SYSTEM_COLUMNS:
        found.local = found.local or "system_column"


def _indirection(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    names_of_fields = strings(node["indirection"])
    if SYSTEM_COLUMNS.intersection(names_of_fields):
        found.local = found.local or "system_column"
    for name in found.catalogue.code.attributes.keys() & names_of_fields:
        found.calls |= found.catalogue.code.attributes[name]
    push_fields("A_Indirection", node, names, stack)


def _expression(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    _operator(found, node["name"])
    if node["kind"] in BETWEEN:
        _operators(found, COMPARING)
    push_fields("A_Expr", node, names, stack)


def _sublink(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "operName" in node:
        _operator(found, node["operName"])
    elif node["subLinkType"] == "ANY_SUBLINK":
        _operators(found, EQUALS)
    push_fields("SubLink", node, names, stack)


def _sort(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "useOp" in node:
        _operator(found, node["useOp"])
    push_fields("SortBy", node, names, stack)


def _case(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "arg" in node:
        _operators(found, EQUALS)
    push_fields("CaseExpr", node, names, stack)


def _join(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    if "usingClause" in node or "isNatural" in node:
        _operators(found, EQUALS)
    push_fields("JoinExpr", node, names, stack)


def _operator(found: Findings, parts: Sequence[Node]) -> None:
    """An operator is named: one outside pg_catalog may run any function."""
    if found.catalogue.code.operators:
        _operators(found, frozenset({string(parts[-1])}))
    if len(parts) > 1 and string(parts[0]) != "pg_catalog":
        found.volatile = True
        found.volatile_calls.add("operator")
        found.write("volatile:operator")


def _operators(found: Findings, names: Names) -> None:
    known = found.catalogue.code.operators
    for name in known.keys() & names:
        found.calls |= known[name]


def _sample(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    # Which rows are taken depends on where they lie.
    found.local = found.local or "tablesample"
    push_fields("RangeTableSample", node, names, stack)


def _current_of(found: Findings, node: Fields, names: Names, stack: Stack) -> None:
    found.local = found.local or "cursor"


VISITS: Final[dict[str, Visit]] = {
    "SelectStmt": _select,
    "InsertStmt": _changing("InsertStmt", INSERT),
    "UpdateStmt": _changing("UpdateStmt", UPDATE),
    "DeleteStmt": _changing("DeleteStmt", DELETE),
    "MergeStmt": _changing("MergeStmt", INSERT + UPDATE + DELETE),
    "RangeVar": _range_var,
    "IntoClause": _into,
    "LockingClause": _locking,
    "FuncCall": _call,
    "SQLValueFunction": _value_function,
    "TypeName": _type,
    "ColumnRef": _column,
    "A_Indirection": _indirection,
    "A_Expr": _expression,
    "SubLink": _sublink,
    "SortBy": _sort,
    "CaseExpr": _case,
    "JoinExpr": _join,
    "RangeTableSample": _sample,
    "CurrentOfExpr": _current_of,
}
