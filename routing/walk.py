"""Walks a parse tree and notes what it does: the tables it reads and writes, and what its calls, casts and
columns imply.

The walk keeps its own stack, so that depth costs memory, not the C stack. Each item on it is a node and the
names of the CTEs visible there. What a node means is a row in `VISITS`; a node without one is only walked
through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pgshunt.routing.effects import DELETE, IMPLICITLY, INSERT, READ, UPDATE
from pgshunt.routing.functions import OWN, effect_of
from pgshunt.routing.grammar import pg
from pgshunt.routing.names import is_system, is_temporary, qualified, quoted, resolve, split_qualified
from pgshunt.routing.shape import Kind, Shape
from pgshunt.routing.table import Catalogue

Names = frozenset[str]
Stack = list[tuple[Any, Names]]

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
    {pg.AEXPR_BETWEEN, pg.AEXPR_NOT_BETWEEN, pg.AEXPR_BETWEEN_SYM, pg.AEXPR_NOT_BETWEEN_SYM}
)
COMPARING: Final[Names] = frozenset({"<", "<=", ">", ">="})
"""Operators that are meant where BETWEEN stands."""
EQUALS: Final[Names] = frozenset({"="})
"""That of IN (SELECT …), USING, NATURAL, and CASE … WHEN."""
RENAMING: Final = frozenset({"search_path", "role", "session_authorization"})
"""Parameters with which a name may mean another table."""
REREADING: Final = frozenset(
    {
        "array_nulls",
        "backslash_quote",
        "bytea_output",
        "client_encoding",
        "datestyle",
        "default_text_search_config",
        "intervalstyle",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "standard_conforming_strings",
        "timezone",
        "timezone_abbreviations",
        "transform_null_equals",
        "xmloption",
    }
)
"""Parameters with which the literals of a statement are read as it is prepared."""
OBSCURING: Final = frozenset({"client_encoding", "standard_conforming_strings"})
"""Parameters with which a text may be cut into other tokens."""


class Findings:
    """What a walk has noted of one statement so far; the fields are those of Shape.

    And what `follow` goes on from: `calls` are the functions called that are not PostgreSQL's own, as named;
    `events` pairs of a table and a way to use it; `sets_local` parameters set until the transaction ends.
    """

    def __init__(self, search_path: tuple[str, ...], catalogue: Catalogue) -> None:
        self.search_path = search_path
        self.catalogue = catalogue
        self.kind = Kind.READ
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.locks = False
        self.volatile = False
        self.time_dependent = False
        self.pins: set[str] = set()
        self.releases: set[str] = set()
        self.local: str | None = None
        self.literal_sensitive = False
        self.read_only: bool | None = None
        self.isolation: str | None = None
        self.chain = False
        self.touches: set[str] = set()
        self.resets: set[str] = set()
        self.creates: set[str] = set()
        self.renames = False
        self.rereads = False
        self.obscures = False
        self.deallocates: str | None = None
        self.prepares: set[str] = set()
        self.executes: set[str] = set()
        self.prepared: Shape | None = None
        self.signals = False
        self.meets = False
        self.alters: set[str] = set()
        self.ordered = False
        self.reason = ""
        self.strange = False
        self.is_definition = False
        self.calls: set[str] = set()
        self.volatile_calls: set[str] = set()
        self.events: set[tuple[str, str]] = set()
        self.sets_local: set[str] = set()
        self.runs: set[str] = set()
        self.ranges: set[str] = set()
        self.columns: set[str] = set()

    def shape(self) -> Shape:
        if not self.ranges.isdisjoint(self.columns):
            # A whole row, whose type is the table's own.
            self.local = self.local or "own_types"
        return Shape(
            kind=self.kind,
            reads=frozenset(self.reads),
            writes=frozenset(self.writes),
            locks=self.locks,
            volatile=self.volatile,
            time_dependent=self.time_dependent,
            pins=frozenset(self.pins),
            releases=frozenset(self.releases),
            local=self.local,
            literal_sensitive=self.literal_sensitive,
            read_only=self.read_only,
            isolation=self.isolation,
            chain=self.chain,
            touches=frozenset(self.touches),
            resets=frozenset(self.resets),
            creates=frozenset(self.creates),
            renames=self.renames,
            rereads=self.rereads,
            obscures=self.obscures,
            deallocates=self.deallocates,
            prepares=frozenset(self.prepares),
            executes=frozenset(self.executes),
            prepared=self.prepared,
            signals=self.signals,
            meets=self.meets,
            defines=self.reason == "definition" and self.local != "temp_table",
            alters=frozenset(self.alters),
            ordered=self.ordered,
            strange=self.strange,
            runs=frozenset(self.runs),
            repeatable=not (self.calls or self.volatile_calls),
            reason=self.reason,
        )

    def named(self, schema: str, name: str) -> str:
        """The full name of a relation that is called so."""
        full = resolve(schema, name, self.search_path, self.catalogue.relations)
        return full if "." in full else resolve(schema, name, self.search_path, self.catalogue.belongs)

    def relation(self, node: pg.RangeVar) -> str:
        """The name of the table a RangeVar stands for, with what its schema implies noted."""
        if is_temporary(node.schemaname) or node.relpersistence == "t":
            self.pins.add("temp_table")
            self.local = self.local or "temp_table"
        elif is_system(node.schemaname, node.relname):
            self.local = self.local or "system_catalogue"
            if node.relname == "pg_prepared_statements":
                self.pins.add("prepared_statements")
        name = self.named(node.schemaname, node.relname)
        if self.catalogue.relations.get(name) == "S":
            self.local = self.local or "sequence"  # a standby knows of numbers that were not given out yet
        if name in self.catalogue.own_types:
            self.local = self.local or "own_types"
        self.ranges.add(node.alias.aliasname if node.HasField("alias") else node.relname)
        return name

    def sets(self, name: str, *, local: bool) -> None:
        """A parameter gets another value, `local`: until the transaction ends.

        A custom parameter is there, and empty, for the rest of the session even where it was set locally.
        """
        if local:
            self.sets_local.add(name)
            if "." in name:
                self.creates.add(name)
        else:
            self.touches.add(name)
            if name == "session_authorization":
                self.touches.add("role")
        self.renames |= name in RENAMING
        self.rereads |= name in REREADING
        self.obscures |= name in OBSCURING

    def uses(self, table: str, events: str) -> None:
        """A table, by its full name, is used in these ways."""
        for event in events:
            (self.reads if event == READ else self.writes).add(table)
            self.events.add((table, event))

    def write(self, reason: str) -> None:
        self.kind = Kind.WRITE
        self.reason = self.reason or reason

    def walk(self, root: Any) -> None:
        stack: Stack = [(root, NO_NAMES)]
        any_node, visit_of = pg.Node, VISITS.get
        while stack:
            node, names = stack.pop()
            if type(node) is any_node:
                kind = node.WhichOneof("node")
                if kind is None or kind in LEAVES:
                    continue
                node = getattr(node, kind)
            visit = visit_of(type(node))
            if visit is None:
                push_fields(node, names, stack)
            else:
                visit(self, node, names, stack)


FEW: Final = 6
"""ListFields, which knows what is set, takes as long as asking for so many fields one by one."""


class _Fields(dict[Any, tuple[tuple[str, bool], ...] | None]):
    """For each type of node the fields that may hold others, and whether one may hold several; None for a
    type that has many fields.
    """

    def __missing__(self, kind: Any) -> tuple[tuple[str, bool], ...] | None:
        fields = [field for field in kind.DESCRIPTOR.fields if field.message_type is not None]
        found = tuple((field.name, field.is_repeated) for field in fields) if len(fields) <= FEW else None
        self[kind] = found
        return found


FIELDS: Final = _Fields()


def push_fields(node: Any, names: Names, stack: Stack, skip: tuple[str, ...] = ()) -> None:
    """What is in a node comes next."""
    few = FIELDS[type(node)]
    if few is None:
        for field, value in node.ListFields():
            if field.message_type is None or field.name in skip:
                continue
            if field.is_repeated:
                stack.extend([(item, names) for item in value])
            else:
                stack.append((value, names))
        return
    for name, is_repeated in few:
        if name in skip:
            continue
        if is_repeated:
            for item in getattr(node, name):
                stack.append((item, names))
        elif node.HasField(name):
            stack.append((getattr(node, name), names))


def strings(nodes: Any) -> list[str]:
    """The parts of a dotted name; other nodes in it (a star, a subscript) count as ""."""
    return [node.string.sval for node in nodes]


def _with(clause: pg.WithClause, names: Names, stack: Stack) -> Names:
    """Push the queries of a WITH clause; the names its statement sees.

    A CTE sees those before it, itself and later ones only under RECURSIVE: WITH t AS (SELECT … FROM t) reads
    the table t.
    """
    if clause.recursive:
        names |= {cte.common_table_expr.ctename for cte in clause.ctes}
    for node in clause.ctes:
        cte = node.common_table_expr
        stack.append((cte.ctequery, names))
        push_fields(cte, names, stack, skip=("ctequery",))
        names |= {cte.ctename}
    return names


def _select(found: Findings, node: pg.SelectStmt, names: Names, stack: Stack) -> None:
    _casts(found, IMPLICITLY)
    push_fields(node, _with(node.with_clause, names, stack), stack, skip=("with_clause",))


def _change(found: Findings, node: Any, names: Names, stack: Stack) -> None:
    _casts(found, IMPLICITLY)
    # The target is a table even where a CTE has its name.
    if node.relation.relname == "pg_settings" and is_system(node.relation.schemaname, "pg_settings"):
        found.pins.add("set_config")  # an UPDATE of this view sets parameters
    found.uses(found.relation(node.relation), _events_of(node))
    found.write("")
    push_fields(node, _with(node.with_clause, names, stack), stack, skip=("with_clause", "relation"))


def _events_of(node: Any) -> str:
    if isinstance(node, pg.InsertStmt):
        upserts = node.on_conflict_clause.action == pg.ONCONFLICT_UPDATE
        return INSERT + UPDATE if upserts else INSERT
    return {pg.UpdateStmt: UPDATE, pg.DeleteStmt: DELETE}.get(type(node), INSERT + UPDATE + DELETE)


def _range_var(found: Findings, node: pg.RangeVar, names: Names, stack: Stack) -> None:
    if node.schemaname or node.relname not in names:
        found.uses(found.relation(node), READ)


def _into(found: Findings, node: pg.IntoClause, names: Names, stack: Stack) -> None:
    pins = set(found.pins)
    found.writes.add(found.relation(node.rel))
    if node.on_commit == pg.ONCOMMIT_DROP:
        found.pins = pins
    found.is_definition = True
    found.write("creates_table")


def _locking(found: Findings, node: pg.LockingClause, names: Names, stack: Stack) -> None:
    # What stands behind OF are aliases, not tables.
    found.locks = True
    found.reason = found.reason or "locks"


def _call(found: Findings, node: pg.FuncCall, names: Names, stack: Stack) -> None:
    push_fields(node, names, stack, skip=("funcname",))
    *schema, name = strings(node.funcname)
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
    if effect.volatile:
        found.volatile_calls |= {name} - {"set_config"}
        found.volatile = True
        found.write(f"volatile:{name}")
    if effect.releases:
        found.releases.add(effect.releases)
    if effect.sequence and node.args:
        sequence = split_qualified(_constant(node.args[0]) or "")
        if sequence:
            found.writes.add(found.named(*sequence))
    if effect.pins == "set_config":
        _set_config(found, node)
    elif effect.pins:
        found.pins.add(effect.pins)


def _set_config(found: Findings, node: pg.FuncCall) -> None:
    name = _constant(node.args[0]) if len(node.args) == 3 else None
    if name is None:
        found.renames = found.rereads = True
        found.pins.add("set_config")
    else:
        found.sets(name.lower(), local=node.args[2].a_const.boolval.boolval)


def _constant(node: Any) -> str | None:
    """The text of a string literal, through casts ('users_id_seq'::regclass); None if it is anything else."""
    while node.WhichOneof("node") == "type_cast":
        node = node.type_cast.arg
    return str(node.a_const.sval.sval) if node.a_const.HasField("sval") else None


def _casts(found: Findings, name: str) -> None:
    """Something may be cast to a type."""
    casts = found.catalogue.code.casts
    if casts:
        found.calls |= casts.get(name, NO_NAMES)


def _value_function(found: Findings, node: pg.SQLValueFunction, names: Names, stack: Stack) -> None:
    if node.op <= pg.SVFOP_LOCALTIMESTAMP_N:
        found.time_dependent = True
    elif node.op in (pg.SVFOP_CURRENT_CATALOG, pg.SVFOP_CURRENT_SCHEMA):
        found.local = found.local or "server_state"


def _type(found: Findings, node: pg.TypeName, names: Names, stack: Stack) -> None:
    if node.names:
        _casts(found, node.names[-1].string.sval)
    if node.names and strings(node.names)[-1] in REG_TYPES:
        # The literal may name a relation, and an OID is another one on every server.
        found.literal_sensitive = True
        found.local = found.local or "object_identifier"
    elif found.catalogue.types and node.names and strings(node.names)[-1] not in found.catalogue.types:
        found.local = found.local or "own_types"
    push_fields(node, names, stack, skip=("names",))


def _column(found: Findings, node: pg.ColumnRef, names: Names, stack: Stack) -> None:
    fields = node.fields
    last = fields[-1].string.sval
    if len(fields) == 1:
        found.columns.add(last)
    elif last in found.catalogue.code.attributes:
        found.calls |= found.catalogue.code.attributes[last]
    if last in SYSTEM_COLUMNS:
        found.local = found.local or "system_column"


def _indirection(found: Findings, node: pg.A_Indirection, names: Names, stack: Stack) -> None:
    names_of_fields = strings(node.indirection)
    if SYSTEM_COLUMNS.intersection(names_of_fields):
        found.local = found.local or "system_column"
    for name in found.catalogue.code.attributes.keys() & names_of_fields:
        found.calls |= found.catalogue.code.attributes[name]
    push_fields(node, names, stack)


def _expression(found: Findings, node: pg.A_Expr, names: Names, stack: Stack) -> None:
    _operator(found, node.name)
    if node.kind in BETWEEN:
        _operators(found, COMPARING)
    stack.append((node.lexpr, names))
    stack.append((node.rexpr, names))


def _sublink(found: Findings, node: pg.SubLink, names: Names, stack: Stack) -> None:
    if node.oper_name:
        _operator(found, node.oper_name)
    elif node.sub_link_type == pg.ANY_SUBLINK:
        _operators(found, EQUALS)
    push_fields(node, names, stack, skip=("oper_name",))


def _sort(found: Findings, node: pg.SortBy, names: Names, stack: Stack) -> None:
    if node.use_op:
        _operator(found, node.use_op)
    push_fields(node, names, stack, skip=("use_op",))


def _case(found: Findings, node: pg.CaseExpr, names: Names, stack: Stack) -> None:
    if node.HasField("arg"):
        _operators(found, EQUALS)
    push_fields(node, names, stack)


def _join(found: Findings, node: pg.JoinExpr, names: Names, stack: Stack) -> None:
    if node.using_clause or node.is_natural:
        _operators(found, EQUALS)
    push_fields(node, names, stack)


def _operator(found: Findings, parts: Any) -> None:
    """An operator is named: one outside pg_catalog may run any function."""
    if found.catalogue.code.operators:
        _operators(found, frozenset({parts[-1].string.sval}))
    if len(parts) > 1 and parts[0].string.sval != "pg_catalog":
        found.volatile = True
        found.volatile_calls.add("operator")
        found.write("volatile:operator")


def _operators(found: Findings, names: Names) -> None:
    known = found.catalogue.code.operators
    for name in known.keys() & names:
        found.calls |= known[name]


def _sample(found: Findings, node: pg.RangeTableSample, names: Names, stack: Stack) -> None:
    # Which rows are taken depends on where they lie.
    found.local = found.local or "tablesample"
    push_fields(node, names, stack)


def _current_of(found: Findings, node: pg.CurrentOfExpr, names: Names, stack: Stack) -> None:
    found.local = found.local or "cursor"


LEAVES: Final = frozenset(
    {"a_const", "string", "param_ref", "a_star", "integer", "float", "boolean", "alias"}
)

VISITS: Final[dict[type, Callable[[Findings, Any, Names, Stack], None]]] = {
    pg.SelectStmt: _select,
    pg.InsertStmt: _change,
    pg.UpdateStmt: _change,
    pg.DeleteStmt: _change,
    pg.MergeStmt: _change,
    pg.RangeVar: _range_var,
    pg.IntoClause: _into,
    pg.LockingClause: _locking,
    pg.FuncCall: _call,
    pg.SQLValueFunction: _value_function,
    pg.TypeName: _type,
    pg.ColumnRef: _column,
    pg.A_Indirection: _indirection,
    pg.A_Expr: _expression,
    pg.SubLink: _sublink,
    pg.SortBy: _sort,
    pg.CaseExpr: _case,
    pg.JoinExpr: _join,
    pg.RangeTableSample: _sample,
    pg.CurrentOfExpr: _current_of,
}
