"""Says what a definition adds to the code of a database, so that it is known before the catalogue is read
again: a function and what it does, and what runs when a table is used from then on.

Nothing is ever taken away here; what a statement replaces or drops goes on counting until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from pgshunt.routing.bodies import Reader
from pgshunt.routing.effects import CHANGES, EVENTS, NO_CODE, Code, Effects, added
from pgshunt.routing.findings import Findings
from pgshunt.routing.grammar import pg, strings
from pgshunt.routing.names import qualified, quoted


def made(found: Findings, node: pg.Node) -> Code | None:
    """What the statement makes that was found to be a definition; None if no code is made by it."""
    kind = node.WhichOneof("node")
    statement = getattr(node, kind) if kind else node
    code = DEFINITIONS.get(type(statement), _uses)(found, statement)
    return None if code == NO_CODE else code


def _function(found: Findings, node: pg.CreateFunctionStmt) -> Code:
    effects = Reader(found.catalogue).created(node)
    # Of several of one name the new one may come first, and it need not be read: `_candidates` adds them up.
    return Code(functions=MappingProxyType({_full(strings(node.funcname)): effects}))


def _trigger(found: Findings, node: pg.CreateTrigStmt) -> Code:
    called = Effects(calls=frozenset({_full(strings(node.funcname))}) | found.calls)
    return _reactions({table: dict.fromkeys(CHANGES, called) for table in found.writes})


def _event_trigger(found: Findings, node: pg.CreateEventTrigStmt) -> Code:
    return Code(definitions=Effects(calls=frozenset({_full(strings(node.funcname))})))


def _rule(found: Findings, node: pg.RuleStmt) -> Code:
    effects = replace(Reader(found.catalogue).rule_of(node), path=found.search_path)
    return _reactions({found.relation(node.relation): dict.fromkeys(EVENTS, effects)})


def _view(found: Findings, node: pg.ViewStmt) -> Code:
    effects = replace(Reader(found.catalogue).query(node.query), path=found.search_path)
    return _reactions({found.relation(node.view): dict.fromkeys(EVENTS, effects)})


def _rename(found: Findings, node: pg.RenameStmt) -> Code:
    return _moved(found, node, node.rename_type, [node.newname])


def _set_schema(found: Findings, node: pg.AlterObjectSchemaStmt) -> Code:
    return _moved(found, node, node.object_type, [node.newschema, node.relation.relname])


def _moved(found: Findings, node: Any, kind: Any, name: list[str]) -> Code:
    """The new name stands for the old one, too."""
    if kind in FUNCTIONS:
        old = strings(node.object.object_with_args.objname)
        new = _full([*name[:1], old[-1]] if len(name) > 1 else [*old[:-1], *name])
        return Code(functions=MappingProxyType({new: Effects(calls=frozenset({_full(old)}))}))
    if not node.HasField("relation"):
        return NO_CODE
    used = {event: Effects(tables={found.relation(node.relation): event}) for event in EVENTS}
    return _reactions({_full(name): used})


def _uses(found: Findings, node: Any) -> Code:
    """What is called in a definition may be called when its table is used; of several tables one may now be
    part of another.
    """
    tables = found.writes
    joins = isinstance(node, pg.AlterTableStmt) or (isinstance(node, pg.CreateStmt) and node.inh_relations)
    if not found.calls and (not joins or len(tables) < 2):
        return NO_CODE
    calls = frozenset(found.calls)
    return _reactions(
        {
            table: {
                event: Effects(calls=calls, tables=_others(tables if joins else set(), table, event))
                for event in EVENTS
            }
            for table in tables
        }
    )


def _others(tables: set[str], table: str, event: str) -> Mapping[str, str]:
    return MappingProxyType(dict.fromkeys(tables - {table}, event))


def _nothing(found: Findings, node: Any) -> Code:
    return NO_CODE


def _reactions(reactions: Mapping[str, Mapping[str, Effects]]) -> Code:
    return added(NO_CODE, Code(reactions=reactions))


def _full(parts: list[str]) -> str:
    return qualified(parts[-2], parts[-1]) if len(parts) > 1 else quoted(parts[-1])


FUNCTIONS: Final = frozenset(
    {pg.OBJECT_FUNCTION, pg.OBJECT_PROCEDURE, pg.OBJECT_ROUTINE, pg.OBJECT_AGGREGATE}
)

DEFINITIONS: Final[dict[type, Callable[[Findings, Any], Code]]] = {
    pg.CreateFunctionStmt: _function,
    pg.CreateTrigStmt: _trigger,
    pg.CreateEventTrigStmt: _event_trigger,
    pg.RuleStmt: _rule,
    pg.ViewStmt: _view,
    pg.RenameStmt: _rename,
    pg.AlterObjectSchemaStmt: _set_schema,
    pg.DropStmt: _nothing,
    pg.VacuumStmt: _nothing,
    pg.GrantStmt: _nothing,
    pg.CommentStmt: _nothing,
}
