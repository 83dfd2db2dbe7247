"""Walks a parse tree and notes what it does: the tables it reads and writes, and what its calls, casts and
columns imply.

It reads the JSON beneath the tree's messages. The walk keeps its own stack, so that depth costs memory, not
the C stack. Each item on it is a node and the names of the CTEs visible there. What a node means is a row in
`VISITS`; a node without one is only walked through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pgshunt.routing.effects import DELETE, IMPLICITLY, INSERT, READ, UPDATE
from pgshunt.routing.findings import Findings
from pgshunt.routing.functions import OWN, effect_of
from pgshunt.routing.names import is_system, is_temporary, qualified, quoted, split_qualified
from pgshunt.routing.tree import NODE, UNSET, Given, Message, inner_kinds

Names = frozenset[str]
Stack = list[tuple[Given, Names]]
Visit = Callable[[Findings, Given, Names, Stack], None]

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

LEAVES: Final = frozenset({"A_Const", "String", "ParamRef", "A_Star", "Integer", "Float", "Boolean", "Alias"})
"""Kinds of node in which there is nothing."""


def walk(found: Findings, root: Message) -> None:
    stack: Stack = [(root.node, NO_NAMES)]
    visit_of = VISITS.get
    while stack:
        node, names = stack.pop()
        for kind, fields in node.items():  # one, or none
            visit = visit_of(kind)
            if visit is not None:
                visit(found, fields, names, stack)
            elif kind not in LEAVES:
                push_fields(kind, fields, names, stack)


def push_fields(kind: str, fields: Given, names: Names, stack: Stack) -> None:
    """What is in a node comes next, but for what its visit reads itself."""
    inner = INNER[kind]
    for field, value in fields.items():
        inner_kind = inner.get(field)
        if inner_kind is None:
            continue
        if type(value) is list:
            for item in value:
                stack.append((item, names))
        elif inner_kind == NODE:
            stack.append((value, names))
        else:
            stack.append(({inner_kind: value}, names))


def string(node: Given) -> str:
    """A part of a dotted name; other nodes in it (a star, a subscript) count as ""."""
    text: str = node.get("String", UNSET).get("sval", "")
    return text


def strings(nodes: Sequence[Given]) -> list[str]:
    """The parts of a dotted name."""
    return [node.get("String", UNSET).get("sval", "") for node in nodes]


def _with(clause: Given, names: Names, stack: Stack) -> Names:
    """Push the queries of a WITH clause; the names its statement sees.

    A CTE sees those before it, itself and later ones only under RECURSIVE: WITH t AS (SELECT … FROM t) reads
    the table t.
    """
    named = [(node, frozenset({node["CommonTableExpr"]["ctename"]})) for node in clause["ctes"]]
    if "recursive" in clause:
        names = names.union(*(name for _, name in named))
    for node, name in named:
        stack.append((node, names))
        names |= name
    return names


def _select(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    _casts(found, IMPLICITLY)
    if "withClause" in node:
        names = _with(node["withClause"], names, stack)
    push_fields("SelectStmt", node, names, stack)


def _changing(kind: str, events: str) -> Visit:
    """A visit of a statement that changes its `relation`."""

    def change(found: Findings, node: Given, names: Names, stack: Stack) -> None:
        _casts(found, IMPLICITLY)
        # The target is a table even where a CTE has its name.
        relation = node["relation"]
        if relation["relname"] == "pg_settings" and is_system(relation.get("schemaname", ""), "pg_settings"):
            found.pins.add("set_config")  # an UPDATE of this view sets parameters
        upserts = node.get("onConflictClause", UNSET).get("action") == "ONCONFLICT_UPDATE"
        found.uses(found.relation_given(relation), events + UPDATE if upserts else events)
        found.write("")
        if "withClause" in node:
            names = _with(node["withClause"], names, stack)
        push_fields(kind, node, names, stack)

    return change


def _range_var(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if "schemaname" in node or node["relname"] not in names:
        found.uses(found.relation_given(node), READ)


def _into(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    pins = set(found.pins)
    found.writes.add(found.relation_given(node["rel"]))
    if node["onCommit"] == "ONCOMMIT_DROP":
        found.pins = pins
    found.is_definition = True
    found.write("creates_table")


def _locking(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    # What stands behind OF are aliases, not tables.
    found.locks = True
    found.reason = found.reason or "locks"


def _call(found: Findings, node: Given, names: Names, stack: Stack) -> None:
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


def _set_config(found: Findings, arguments: Sequence[Given]) -> None:
    name = _constant(arguments[0]) if len(arguments) == 3 else None
    if name is None:
        found.renames = found.rereads = True
        found.pins.add("set_config")
    else:
        is_local = arguments[2].get("A_Const", UNSET).get("boolval", UNSET)
        found.sets(name.lower(), local=is_local.get("boolval", False))


def _constant(node: Given) -> str | None:
    """The text of a string literal, through casts ('users_id_seq'::regclass); None if it is anything else."""
    while "TypeCast" in node:
        node = node["TypeCast"]["arg"]
    constant = node.get("A_Const", UNSET)
    return constant["sval"].get("sval", "") if "sval" in constant else None


def _casts(found: Findings, name: str) -> None:
    """Something may be cast to a type."""
    casts = found.catalogue.code.casts
    if casts:
        found.calls |= casts.get(name, NO_NAMES)


def _value_function(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if node["op"] in TIMES:
        found.time_dependent = True
    elif node["op"] in ("SVFOP_CURRENT_CATALOG", "SVFOP_CURRENT_SCHEMA"):
        found.local = found.local or "server_state"


def _type(found: Findings, node: Given, names: Names, stack: Stack) -> None:
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


def _column(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    fields = node["fields"]
    last = string(fields[-1])
    if len(fields) == 1:
        found.columns.add(last)
    elif last in found.catalogue.code.attributes:
        found.calls |= found.catalogue.code.attributes[last]
    if last in SYSTEM_COLUMNS:
        found.local = found.local or "system_column"


def _indirection(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    names_of_fields = strings(node["indirection"])
    if SYSTEM_COLUMNS.intersection(names_of_fields):
        found.local = found.local or "system_column"
    for name in found.catalogue.code.attributes.keys() & names_of_fields:
        found.calls |= found.catalogue.code.attributes[name]
    push_fields("A_Indirection", node, names, stack)


def _expression(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    _operator(found, node["name"])
    if node["kind"] in BETWEEN:
        _operators(found, COMPARING)
    push_fields("A_Expr", node, names, stack)


def _sublink(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if "operName" in node:
        _operator(found, node["operName"])
    elif node["subLinkType"] == "ANY_SUBLINK":
        _operators(found, EQUALS)
    push_fields("SubLink", node, names, stack)


def _sort(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if "useOp" in node:
        _operator(found, node["useOp"])
    push_fields("SortBy", node, names, stack)


def _case(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if "arg" in node:
        _operators(found, EQUALS)
    push_fields("CaseExpr", node, names, stack)


def _join(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    if "usingClause" in node or "isNatural" in node:
        _operators(found, EQUALS)
    push_fields("JoinExpr", node, names, stack)


def _operator(found: Findings, parts: Sequence[Given]) -> None:
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


def _sample(found: Findings, node: Given, names: Names, stack: Stack) -> None:
    # Which rows are taken depends on where they lie.
    found.local = found.local or "tablesample"
    push_fields("RangeTableSample", node, names, stack)


def _current_of(found: Findings, node: Given, names: Names, stack: Stack) -> None:
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
"""Fields by which the walk does not come."""

INNER: Final[dict[str, dict[str, str]]] = {
    kind: {
        field: inner
        for field, inner in fields.items()
        if inner not in LEAVES and field not in READ_BY_VISITS.get(kind, NO_NAMES)
    }
    for kind, fields in inner_kinds().items()
}
"""For each kind of node the fields by which the walk comes, and what is in them."""
