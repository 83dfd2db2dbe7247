"""Says what each kind of statement is: a row in `STATEMENTS` for every one that is not plain DDL.

A statement without a row is a definition or a utility: a write of every table it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from pgshunt.routing.alterations import altered, in_schema, relation_of
from pgshunt.routing.effects import DEFINE, INSERT, READ, TRUNCATE
from pgshunt.routing.findings import Findings
from pgshunt.routing.follow import followed
from pgshunt.routing.grammar import pg
from pgshunt.routing.names import qualified
from pgshunt.routing.shape import ALL_STATEMENTS, Kind
from pgshunt.routing.walk import walk

CURSOR_OPT_HOLD: Final = 0x0020  # nodes/parsenodes.h


def examine(found: Findings, node: pg.Node) -> None:
    """Note what one statement does."""
    kind = node.WhichOneof("node")
    statement = getattr(node, kind) if kind else node
    STATEMENTS.get(type(statement), _definition)(found, statement)
    found.alters |= altered(found, statement)


def _query(found: Findings, node: Any) -> None:
    if isinstance(node, pg.SelectStmt):
        found.ordered = bool(node.sort_clause)
    walk(found, node)


def _definition(found: Findings, node: Any) -> None:
    """Of a part of a table, an index or a column's sequence, it is one of the table."""
    walk(found, node)
    belongs = found.catalogue.belongs
    found.writes = {belongs.get(name, name) for name in found.writes | found.reads}
    found.reads.clear()
    found.events = {(table, DEFINE) for table in found.writes}
    found.is_definition = True
    found.write("definition")


def _create_table(found: Findings, node: pg.CreateStmt) -> None:
    _definition(found, node)
    if node.oncommit == pg.ONCOMMIT_DROP:
        found.pins.clear()


def _create_table_as(found: Findings, node: pg.CreateTableAsStmt) -> None:
    walk(found, node.into)
    examine(found, node.query)
    found.write("creates_table")


def _runs_later(found: Findings, node: Any) -> None:
    """What is called in it is called later, by others."""
    _definition(found, node)
    found.calls.clear()
    found.volatile = False


def _drop(found: Findings, node: pg.DropStmt) -> None:
    found.is_definition = True
    found.write("definition")
    found.releases.add("temp_table")
    for item in node.objects:
        if node.remove_type == pg.OBJECT_SCHEMA:
            found.writes.update(in_schema(found, item.string.sval))
        else:
            _defined_object(found, node.remove_type, item)


def _label(found: Findings, node: Any) -> None:
    """COMMENT, SECURITY LABEL."""
    found.is_definition = True
    found.write("definition")
    _defined_object(found, node.objtype, node.object)


def _sequence(found: Findings, node: Any) -> None:
    """CREATE and ALTER SEQUENCE; OWNED BY names a column."""
    _definition(found, node)
    for option in node.options:
        if option.def_elem.defname == "owned_by":
            _defined_object(found, pg.OBJECT_COLUMN, option.def_elem.arg)


def _defined_object(found: Findings, kind: int, item: pg.Node) -> None:
    relation = relation_of(found, kind, item)
    if relation is not None:
        found.writes.add(relation)


def _create_schema(found: Findings, node: pg.CreateSchemaStmt) -> None:
    """What is made in one statement with its schema is made, and found, in it."""
    schema = node.schemaname or node.authrole.rolename
    made = [
        relation
        for element in node.schema_elts
        for relation in (
            element.create_stmt.relation,
            element.view_stmt.view,
            element.create_seq_stmt.sequence,
        )
        if relation.relname
    ]
    relations = {qualified(relation.schemaname or schema, relation.relname): "" for relation in made}
    found.search_path = (schema, *found.search_path)
    found.catalogue = replace(found.catalogue, relations={**found.catalogue.relations, **relations})
    _definition(found, node)


def _lock(found: Findings, node: pg.LockStmt) -> None:
    _definition(found, node)
    found.is_definition = False
    found.locks = True
    found.reason = "locks"


def _truncate(found: Findings, node: pg.TruncateStmt) -> None:
    _definition(found, node)
    found.is_definition = False
    found.events = {(table, TRUNCATE) for table in found.writes}
    found.reason = ""


def _copy(found: Findings, node: pg.CopyStmt) -> None:
    """COPY … FROM STDIN is a write that streams in; a file or program is the server's own, whichever way
    it goes.
    """
    if node.HasField("query"):
        examine(found, node.query)
    walk(found, node.where_clause)
    if node.HasField("relation"):
        found.uses(found.relation(node.relation), INSERT if node.is_from else READ)
    found.local = found.local or "copy"
    if node.filename or node.is_program:
        found.write("server_file")
    elif node.is_from and found.kind is Kind.READ:
        found.kind = Kind.COPY_IN


def _explain(found: Findings, node: pg.ExplainStmt) -> None:
    examine(found, node.query)
    found.local = found.local or "explain"
    # ANALYZE 0 and ANALYZE 1 have one key; the tree does not tell ANALYZE off from ANALYZE 'off'.
    found.literal_sensitive |= any(
        _is_analyze(option) and option.def_elem.HasField("arg") for option in node.options
    )
    if _explains_by_running(node):
        return
    found.reads |= found.writes
    found.writes.clear()
    found.locks = False
    found.pins.clear()
    found.events = {(table, READ) for table in found.reads}
    if not found.volatile:
        found.kind = Kind.READ
        found.reason = "explain"


def _explains_by_running(node: pg.ExplainStmt) -> bool:
    runs = False
    for option in node.options:
        if _is_analyze(option):
            runs = not _is_off(option.def_elem)
    return runs


def _is_analyze(option: pg.Node) -> bool:
    return str(option.def_elem.defname) == "analyze"


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
    walk(found, node.funccall)


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
    if pins:
        found.pins.add(pins)
    found.releases |= releases


TRANSACTION_ONLY: Final = frozenset(
    {"transaction_isolation", "transaction_read_only", "transaction_deferrable"}
)
"""Parameters that begin anew with every transaction."""
PLAIN_VALUES: Final = {
    "standard_conforming_strings": frozenset({"on", "true", "yes", "1"}),
    "client_encoding": frozenset({"utf8", "unicode", "sqlascii", "latin1", "latin9", "win1252"}),
}
"""Values with which a text is cut into tokens as usual, without punctuation and in lower case."""


def _set(found: Findings, node: pg.VariableSetStmt) -> None:
    name = node.name.lower()
    if node.kind == pg.VAR_RESET_ALL:
        found.renames = found.rereads = True
        found.resets.add("*")
        return _session(found, "reset_all")
    if node.kind == pg.VAR_SET_MULTI and name == "session characteristics":
        found.touches |= {f"default_{option.def_elem.defname}" for option in node.args}
        return _session(found, "set")
    if node.kind == pg.VAR_SET_MULTI or name in TRANSACTION_ONLY:
        _transaction_modes(found, node.args)
        return _session(found, "set_transaction")
    if name == "seed":
        return _session(found, "set", pins="seed")
    if node.kind in (pg.VAR_RESET, pg.VAR_SET_DEFAULT) and not node.is_local:
        found.sets(name, local=False)
        found.resets |= found.touches
        found.touches.clear()
        found.obscures = False
        return _session(found, "reset")
    found.sets(name, local=node.is_local)
    if found.obscures:
        found.literal_sensitive = True
        found.obscures = not _is_plain(name, node.args)
    if name == "search_path":
        found.literal_sensitive = True
        found.path = tuple(value.a_const.sval.sval for value in node.args)
    return _session(found, "set_local" if node.is_local else "set")


def _is_plain(name: str, values: Any) -> bool:
    value = values[0].a_const.sval.sval if len(values) == 1 else ""
    return "".join(filter(str.isalnum, value.lower())) in PLAIN_VALUES[name]


def _discard(found: Findings, node: pg.DiscardStmt) -> None:
    everything = frozenset({"temp_table", "listen", "advisory_lock", "hold_cursor", "prepare"})
    released = {pg.DISCARD_ALL: everything, pg.DISCARD_TEMP: frozenset({"temp_table"})}
    _session(found, "discard", releases=released.get(node.target, frozenset()))
    if node.target == pg.DISCARD_ALL:
        found.renames = found.rereads = True
        found.resets |= {"*", "role", "session_authorization"}


def _listen(found: Findings, node: pg.ListenStmt) -> None:
    _session(found, "listen", pins="listen")
    found.meets = True


def _unlisten(found: Findings, node: pg.UnlistenStmt) -> None:
    _session(found, "unlisten", releases=frozenset({"listen"}))


def _notify(found: Findings, node: pg.NotifyStmt) -> None:
    found.write("notify")
    found.meets = True


def _load(found: Findings, node: pg.LoadStmt) -> None:
    _session(found, "load", pins="load")


SHOWS_ROUTE: Final = "pgshunt.route"
"""What SHOW answers with the route of the session's last statement: the proxy's own, no server knows it."""


def _show(found: Findings, node: pg.VariableShowStmt) -> None:
    _session(found, "show")
    if node.name.lower() == SHOWS_ROUTE:
        found.kind = Kind.SHOW_ROUTE


def _set_constraints(found: Findings, node: pg.ConstraintsSetStmt) -> None:
    _session(found, "set_constraints")


def _prepare(found: Findings, node: pg.PrepareStmt) -> None:
    inner = Findings(found.search_path, found.catalogue)
    examine(inner, node.query)
    found.prepares.add(node.name)
    found.prepared = followed(inner)
    found.literal_sensitive = inner.literal_sensitive
    _session(found, "prepare")


def _execute(found: Findings, node: pg.ExecuteStmt) -> None:
    """A write unless it is known what was prepared; `volatile` tells of its parameters."""
    found.write("execute")
    walk(found, node)
    found.executes.add(node.name)


def _deallocate(found: Findings, node: pg.DeallocateStmt) -> None:
    found.deallocates = ALL_STATEMENTS if node.isall else node.name
    if node.isall:
        _session(found, "deallocate_all", releases=frozenset({"prepare"}))
    else:
        _session(found, "deallocate")


def _declare_cursor(found: Findings, node: pg.DeclareCursorStmt) -> None:
    examine(found, node.query)
    found.local = "cursor"
    found.reason = found.reason or "cursor"
    if node.options & CURSOR_OPT_HOLD:
        found.pins.add("hold_cursor")


def _fetch(found: Findings, node: pg.FetchStmt) -> None:
    # A cursor over a volatile query writes when it is fetched from.
    found.local = "cursor"
    found.write("cursor")


def _close(found: Findings, node: pg.ClosePortalStmt) -> None:
    _session(found, "cursor", releases=frozenset({"hold_cursor"}))


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
    pg.CreateFunctionStmt: _runs_later,
    pg.ViewStmt: _runs_later,
    pg.RuleStmt: _runs_later,
    pg.CreateSchemaStmt: _create_schema,
    pg.CreateSeqStmt: _sequence,
    pg.AlterSeqStmt: _sequence,
    pg.DropStmt: _drop,
    pg.CommentStmt: _label,
    pg.SecLabelStmt: _label,
}
