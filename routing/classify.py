"""Turns a query text into its shape, with PostgreSQL's own grammar (libpg_query, through postgast).

`STATEMENTS` says what each kind of statement is; one without a row there is DDL or a utility: a write of
every table it names. In doubt a statement is a write or unknown, never a read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

from google.protobuf.message import DecodeError
from postgast import PgQueryError, parse
from postgast import pg_query_pb2 as pg

from pgshunt.routing._shapes import strip_bytes
from pgshunt.routing.names import resolve
from pgshunt.routing.shape import Kind, Shape, unknown
from pgshunt.routing.table import Catalogue
from pgshunt.routing.walk import Findings, strings

TEXT_BYTES_MAX: Final = 256 * 1024
"""Longer texts are not parsed."""

KEY_BYTES_MAX: Final = 16 * 1024
"""Texts with more than this left when literals are stripped are not parsed: libpg_query writes its tree
out by recursion, and `1+1+1…` makes a level of every two bytes. Measured with a stack of 8 MiB: 20,000
levels pass, 30,000 end the process.
"""

CURSOR_OPT_HOLD: Final = 0x0020  # nodes/parsenodes.h


def classify(sql: str, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """The shape of a query text, which may hold any number of statements; they are one unit. Never raises on
    bad SQL.

    `search_path` names the schemas in which this session looks for unqualified tables; "$user" in it is
    skipped.
    """
    return classify_bytes(sql.encode("utf-8", "surrogatepass"), search_path, catalogue)


def classify_bytes(sql: bytes, search_path: tuple[str, ...], catalogue: Catalogue) -> Shape:
    """`classify` for a text as it came; one that is not UTF-8 is unknown, for its names cannot be told."""
    if len(sql) > TEXT_BYTES_MAX:
        return unknown("too_large")
    key = strip_bytes(sql)
    if len(sql if key is None else key) > KEY_BYTES_MAX:
        return unknown("too_large")
    if b"\0" in sql:
        return unknown("unparsable")
    try:
        tree = parse(sql.decode("utf-8"))
    except UnicodeDecodeError:
        return unknown("not_utf8")
    except PgQueryError:
        return unknown("unparsable")
    except DecodeError:
        # The tree nests deeper than protobuf reads (100 levels); that holds for every text of this key.
        return unknown("too_deep", literal_sensitive=False)
    shapes = [_statement(statement.stmt, search_path, catalogue, sql) for statement in tree.stmts]
    if not shapes:
        return Shape(Kind.EMPTY, statements=0)
    return shapes[0] if len(shapes) == 1 else _unit(shapes)


def resolver(catalogue: Catalogue) -> Callable[[bytes, tuple[str, ...]], Shape]:
    """What a ShapeCache calls for a text it does not know."""
    return lambda sql, search_path: classify_bytes(sql, search_path, catalogue)


def _statement(node: pg.Node, search_path: tuple[str, ...], catalogue: Catalogue, sql: bytes) -> Shape:
    found = Findings(search_path, catalogue)
    _examine(found, node)
    if found.kind is Kind.WRITE and b"pg_temp" in sql.lower():
        found.pins = found.pins or "temp_table"
    return Shape(
        kind=found.kind,
        reads=frozenset(found.reads),
        writes=frozenset(found.writes),
        locks=found.locks,
        volatile=found.volatile,
        time_dependent=found.time_dependent,
        pins=found.pins,
        releases=frozenset(found.releases),
        local=found.local,
        literal_sensitive=found.literal_sensitive,
        read_only=found.read_only,
        isolation=found.isolation,
        chain=found.chain,
        setting=found.setting,
        ordered=found.ordered,
        reason=found.reason,
    )


def _examine(found: Findings, node: pg.Node) -> None:
    kind = node.WhichOneof("node")
    statement = getattr(node, kind) if kind else node
    STATEMENTS.get(type(statement), _definition)(found, statement)


# A text of several statements

STRENGTH: Final = (
    Kind.EMPTY,
    Kind.READ,
    Kind.SESSION,
    Kind.COPY_IN,
    Kind.WRITE,
    Kind.UNKNOWN,
)
TRANSACTION_CONTROL: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT})


def _unit(shapes: list[Shape]) -> Shape:
    controls = any(shape.kind in TRANSACTION_CONTROL for shape in shapes)
    settings = {shape.setting for shape in shapes} - {None}
    if settings & {"search_path", "role", "session_authorization", "all", "*"} and any(
        s.tables for s in shapes
    ):
        # The names after it may mean other tables than they do now.
        return unknown("search_path")
    kind = Kind.WRITE if controls else max((shape.kind for shape in shapes), key=STRENGTH.index)
    return Shape(
        kind=kind,
        reads=_union(shape.reads for shape in shapes),
        writes=_union(shape.writes for shape in shapes),
        locks=any(shape.locks for shape in shapes),
        volatile=any(shape.volatile for shape in shapes),
        time_dependent=any(shape.time_dependent for shape in shapes),
        pins=next((shape.pins for shape in shapes if shape.pins), None),
        releases=_union(shape.releases for shape in shapes),
        local=next((shape.local for shape in shapes if shape.local), None),
        literal_sensitive=any(shape.literal_sensitive for shape in shapes),
        setting=settings.pop() if len(settings) == 1 else "*" if settings else None,
        statements=len(shapes),
        reason="transaction_block"
        if controls
        else next((shape.reason for shape in shapes if shape.reason), ""),
    )


def _union(sets: Any) -> frozenset[str]:
    return reduce(frozenset.union, sets, frozenset())


# One row a kind of statement


def _query(found: Findings, node: Any) -> None:
    if isinstance(node, pg.SelectStmt):
        found.ordered = bool(node.sort_clause)
    found.walk(node)


def _definition(found: Findings, node: Any) -> None:
    found.walk(node)
    found.writes |= found.reads
    found.reads.clear()
    found.write("definition")


def _create_table(found: Findings, node: pg.CreateStmt) -> None:
    _definition(found, node)
    if node.oncommit == pg.ONCOMMIT_DROP:
        found.pins = None


def _create_table_as(found: Findings, node: pg.CreateTableAsStmt) -> None:
    found.walk(node.into)
    _examine(found, node.query)
    found.write("creates_table")


RELATIONS: Final = frozenset(
    {
        pg.OBJECT_TABLE,
        pg.OBJECT_VIEW,
        pg.OBJECT_MATVIEW,
        pg.OBJECT_SEQUENCE,
        pg.OBJECT_FOREIGN_TABLE,
        pg.OBJECT_INDEX,
    }
)
PARTS_OF_RELATIONS: Final = frozenset({pg.OBJECT_TRIGGER, pg.OBJECT_RULE, pg.OBJECT_POLICY})


def _drop(found: Findings, node: pg.DropStmt) -> None:
    found.write("definition")
    for item in node.objects:
        parts = strings(item.list.items)
        if node.remove_type in PARTS_OF_RELATIONS:
            parts = parts[:-1]
        elif node.remove_type not in RELATIONS:
            continue
        schema = parts[-2] if len(parts) > 1 else ""
        found.writes.add(resolve(schema, parts[-1], found.search_path, found.catalogue.relations))


def _lock(found: Findings, node: pg.LockStmt) -> None:
    _definition(found, node)
    found.locks = True
    found.reason = "locks"


def _truncate(found: Findings, node: pg.TruncateStmt) -> None:
    _definition(found, node)
    found.reason = ""


def _copy(found: Findings, node: pg.CopyStmt) -> None:
    """COPY … FROM STDIN is a write that streams in; a file or program is the server's own, whichever way
    it goes.
    """
    if node.HasField("query"):
        _examine(found, node.query)
    found.walk(node.where_clause)
    if node.HasField("relation"):
        (found.writes if node.is_from else found.reads).add(found.relation(node.relation))
    found.local = found.local or "copy"
    if node.filename or node.is_program:
        found.write("server_file")
    elif node.is_from and found.kind is Kind.READ:
        found.kind = Kind.COPY_IN


def _explain(found: Findings, node: pg.ExplainStmt) -> None:
    _examine(found, node.query)
    found.local = found.local or "explain"
    if _explains_by_running(node):
        return
    found.reads |= found.writes
    found.writes.clear()
    found.locks = False
    found.pins = None
    if not found.volatile:
        found.kind = Kind.READ
        found.reason = "explain"


def _explains_by_running(node: pg.ExplainStmt) -> bool:
    runs = False
    for option in node.options:
        if option.def_elem.defname == "analyze":
            runs = not _is_off(option.def_elem)
    return runs


def _is_off(option: pg.DefElem) -> bool:
    """Whether an option says no, as defGetBoolean reads it; one that is not readable counts as yes."""
    if not option.HasField("arg"):
        return False
    kind: str = option.arg.WhichOneof("node")
    if kind == "integer":
        return int(option.arg.integer.ival) == 0
    return kind == "string" and str(option.arg.string.sval).lower() in ("false", "off")


def _call_procedure(found: Findings, node: pg.CallStmt) -> None:
    found.write("procedure")
    found.volatile = True
    found.walk(node.funccall)


def _do(found: Findings, node: pg.DoStmt) -> None:
    found.volatile = True
    found.literal_sensitive = True
    found.write("code_block")


TRANSACTION: Final = {
    pg.TRANS_STMT_BEGIN: (Kind.BEGIN, ""),
    pg.TRANS_STMT_START: (Kind.BEGIN, "start"),
    pg.TRANS_STMT_COMMIT: (Kind.COMMIT, ""),
    pg.TRANS_STMT_ROLLBACK: (Kind.ROLLBACK, ""),
    pg.TRANS_STMT_SAVEPOINT: (Kind.SAVEPOINT, "savepoint"),
    pg.TRANS_STMT_RELEASE: (Kind.SAVEPOINT, "release"),
    pg.TRANS_STMT_ROLLBACK_TO: (Kind.SAVEPOINT, "rollback_to"),
}
TWO_PHASE: Final = (Kind.WRITE, "two_phase")


def _transaction(found: Findings, node: pg.TransactionStmt) -> None:
    found.kind, found.reason = TRANSACTION.get(node.kind, TWO_PHASE)
    found.chain = node.chain
    _transaction_modes(found, node.options)


def _transaction_modes(found: Findings, options: Any) -> None:
    for option in options:
        value = option.def_elem.arg.a_const
        if option.def_elem.defname == "transaction_read_only":
            found.read_only = bool(value.ival.ival)
        elif option.def_elem.defname == "transaction_isolation":
            found.isolation = value.sval.sval


def _session(
    found: Findings, reason: str, pins: str | None = None, releases: frozenset[str] = frozenset()
) -> None:
    found.kind = Kind.SESSION
    found.reason = reason
    found.pins = pins
    found.releases |= releases


def _set(found: Findings, node: pg.VariableSetStmt) -> None:
    found.setting = node.name.lower()
    if node.kind == pg.VAR_SET_MULTI and node.name != "SESSION CHARACTERISTICS":
        found.setting = None
        _session(found, "set_transaction")
        _transaction_modes(found, node.args)
    elif node.kind == pg.VAR_RESET_ALL:
        found.setting = "all"
        _session(found, "reset_all", releases=frozenset({"set", "reset"}))
    elif node.kind == pg.VAR_RESET:
        _session(found, "reset", pins="reset")
    else:
        found.literal_sensitive = True
        _session(found, "set_local" if node.is_local else "set", pins=None if node.is_local else "set")


def _discard(found: Findings, node: pg.DiscardStmt) -> None:
    everything = frozenset(
        {"set", "reset", "temp_table", "listen", "advisory_lock", "hold_cursor", "prepare"}
    )
    released = {pg.DISCARD_ALL: everything, pg.DISCARD_TEMP: frozenset({"temp_table"})}
    found.setting = "all" if node.target == pg.DISCARD_ALL else None
    _session(found, "discard", releases=released.get(node.target, frozenset()))


def _listen(found: Findings, node: pg.ListenStmt) -> None:
    _session(found, "listen", pins="listen")


def _unlisten(found: Findings, node: pg.UnlistenStmt) -> None:
    _session(found, "unlisten", releases=frozenset() if node.conditionname else frozenset({"listen"}))


def _notify(found: Findings, node: pg.NotifyStmt) -> None:
    found.write("notify")


def _load(found: Findings, node: pg.LoadStmt) -> None:
    _session(found, "load", pins="load")


def _show(found: Findings, node: pg.VariableShowStmt) -> None:
    _session(found, "show")


def _set_constraints(found: Findings, node: pg.ConstraintsSetStmt) -> None:
    _session(found, "set_constraints")


def _prepare(found: Findings, node: pg.PrepareStmt) -> None:
    _examine(found, node.query)
    _session(found, "prepare", pins="prepare")


def _execute(found: Findings, node: pg.ExecuteStmt) -> None:
    found.walk(node)
    found.volatile = True
    found.write("execute")
    found.pins = "prepare"


def _deallocate(found: Findings, node: pg.DeallocateStmt) -> None:
    if node.isall:
        _session(found, "deallocate_all", releases=frozenset({"prepare"}))
    else:
        _session(found, "deallocate", pins="prepare")


def _declare_cursor(found: Findings, node: pg.DeclareCursorStmt) -> None:
    _examine(found, node.query)
    found.local = "cursor"
    found.reason = found.reason or "cursor"
    if node.options & CURSOR_OPT_HOLD:
        found.pins = "hold_cursor"


def _fetch(found: Findings, node: pg.FetchStmt) -> None:
    # A cursor over a volatile query writes when it is fetched from.
    found.local = "cursor"
    found.write("cursor")


def _close(found: Findings, node: pg.ClosePortalStmt) -> None:
    _session(found, "cursor", releases=frozenset() if node.portalname else frozenset({"hold_cursor"}))


STATEMENTS: Final[dict[type, Callable[[Findings, Any], None]]] = {
    pg.SelectStmt: _query,
    pg.InsertStmt: _query,
    pg.UpdateStmt: _query,
    pg.DeleteStmt: _query,
    pg.MergeStmt: _query,
    pg.TransactionStmt: _transaction,
    pg.VariableSetStmt: _set,
    pg.VariableShowStmt: _show,
    pg.ConstraintsSetStmt: _set_constraints,
    pg.DiscardStmt: _discard,
    pg.ListenStmt: _listen,
    pg.UnlistenStmt: _unlisten,
    pg.NotifyStmt: _notify,
    pg.LoadStmt: _load,
    pg.PrepareStmt: _prepare,
    pg.ExecuteStmt: _execute,
    pg.DeallocateStmt: _deallocate,
    pg.DeclareCursorStmt: _declare_cursor,
    pg.FetchStmt: _fetch,
    pg.ClosePortalStmt: _close,
    pg.CopyStmt: _copy,
    pg.ExplainStmt: _explain,
    pg.LockStmt: _lock,
    pg.TruncateStmt: _truncate,
    pg.CallStmt: _call_procedure,
    pg.DoStmt: _do,
    pg.CreateStmt: _create_table,
    pg.CreateTableAsStmt: _create_table_as,
    pg.DropStmt: _drop,
}
