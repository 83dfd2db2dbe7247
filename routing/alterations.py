"""Says whose definition a statement changes: which tables are not the same behind it.

An index, the sequence of a column, and the type of one are part of their table; what CASCADE takes along
counts as named. Not meant are statements that leave a table as it is for all who read and write it (VACUUM,
CLUSTER, COMMENT, storage parameters, statistics). Rights and policies are meant: they decide what a reader
is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pgshunt.routing.effects import READ, TRUNCATE
from pgshunt.routing.grammar import pg, strings
from pgshunt.routing.names import qualified, resolve

if TYPE_CHECKING:
    from pgshunt.routing.findings import Findings

HARMLESS: Final = frozenset(
    {
        pg.AT_SetStatistics,
        pg.AT_SetOptions,
        pg.AT_ResetOptions,
        pg.AT_SetStorage,
        pg.AT_SetCompression,
        pg.AT_ValidateConstraint,
        pg.AT_ClusterOn,
        pg.AT_DropCluster,
        pg.AT_SetTableSpace,
        pg.AT_SetRelOptions,
        pg.AT_ResetRelOptions,
    }
)
"""What ALTER TABLE may do to the table without anybody but the planner noticing (nodes/parsenodes.h)."""

INHERITING: Final = frozenset({pg.AT_AddInherit, pg.AT_DropInherit})
PARTITIONING: Final = frozenset({pg.AT_AttachPartition, pg.AT_DetachPartition})
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
PARTS_OF_RELATIONS: Final = frozenset(
    {pg.OBJECT_TRIGGER, pg.OBJECT_RULE, pg.OBJECT_POLICY, pg.OBJECT_COLUMN, pg.OBJECT_TABCONSTRAINT}
)
TYPES: Final = frozenset({pg.OBJECT_TYPE, pg.OBJECT_DOMAIN, pg.OBJECT_DOMCONSTRAINT, pg.OBJECT_ATTRIBUTE})
STANDING_ALONE: Final = frozenset(
    {
        pg.OBJECT_CONVERSION,
        pg.OBJECT_EVENT_TRIGGER,
        pg.OBJECT_PUBLICATION,
        pg.OBJECT_STATISTIC_EXT,
        pg.OBJECT_TRANSFORM,
    }
)
"""Objects on which nothing of a table depends: CASCADE takes none along."""

DROPPED_MAX: Final = 256
"""Objects in one DROP that are looked at; of more it is taken to concern every relation."""

ONLY_NUMBERS: Final = frozenset({"restart", "last_value"})
"""Options of ALTER SEQUENCE that say what it gives out next, and leave it as it is defined."""


def altered(found: Findings, statement: Any) -> set[str]:
    """The relations whose definition `statement` changes."""
    named = ALTERS.get(type(statement))
    if named is None:
        return set()
    catalogue = found.catalogue
    relations = {catalogue.belongs.get(name, name) for name in named(found, statement)}
    return relations.union(*(catalogue.typed.get(name, ()) for name in relations))


def _relation(found: Findings, node: Any) -> Iterator[str]:
    if node.HasField("relation"):  # else it is of a type, a schema, a function …
        yield _name(found, node.relation)


def _renamed(found: Findings, node: Any) -> Iterable[str]:
    """RENAME TO, SET SCHEMA."""
    kind = node.object_type if isinstance(node, pg.AlterObjectSchemaStmt) else node.rename_type
    if kind == pg.OBJECT_SCHEMA:
        return in_schema(found, node.subname)
    if kind in TYPES and not node.HasField("relation"):
        return [_type(found, strings(node.object.list.items))]
    return _relation(found, node)


def _alter_table(found: Findings, node: pg.AlterTableStmt) -> Iterator[str]:
    """Of an index, a sequence, a view or a composite type, too."""
    commands = [item.alter_table_cmd for item in node.cmds]
    table = _name(found, node.relation)
    if any(command.subtype not in HARMLESS for command in commands):
        yield table
        if node.relation.inh:
            yield from _children(found, table)
    if any(command.behavior == pg.DROP_CASCADE for command in commands):
        yield from _referring(found, table)
    for command in commands:
        other = getattr(command, "def")
        if command.subtype in INHERITING:
            yield _name(found, other.range_var)
        elif command.subtype in PARTITIONING:
            yield _name(found, other.partition_cmd.name)


def _alter_type(found: Findings, node: Any) -> Iterator[str]:
    yield _type(found, strings(node.type_name))


def _alter_sequence(found: Findings, node: Any) -> Iterator[str]:
    options = {option.def_elem.defname: option.def_elem.arg for option in node.options}
    if isinstance(node, pg.AlterSeqStmt) and not options.keys() <= ONLY_NUMBERS:
        yield _name(found, node.sequence)
    if "owned_by" in options and (owner := relation_of(found, pg.OBJECT_COLUMN, options["owned_by"])):
        yield owner


def _policy(found: Findings, node: Any) -> Iterator[str]:
    yield _name(found, node.table)


def _create_table(found: Findings, node: pg.CreateStmt) -> Iterator[str]:
    """A child or partition is part of what its parents are."""
    for parent in node.inh_relations:
        yield _name(found, parent.range_var)


def _create_foreign_table(found: Findings, node: pg.CreateForeignTableStmt) -> Iterator[str]:
    return _create_table(found, node.base_stmt)


def _drop(found: Findings, node: pg.DropStmt) -> Iterator[str]:
    cascades = node.behavior == pg.DROP_CASCADE
    if len(node.objects) > DROPPED_MAX:
        yield from found.catalogue.relations
        return
    for item in node.objects:
        if node.remove_type == pg.OBJECT_SCHEMA:
            yield from _dropped_schema(found, item.string.sval, cascades)
        elif node.remove_type in TYPES:
            yield _type(found, strings(item.type_name.names))
        elif relation := relation_of(found, node.remove_type, item):
            is_part = node.remove_type in PARTS_OF_RELATIONS
            yield from (relation,) if is_part else _dropped_relation(found, relation, cascades)
        elif cascades and node.remove_type not in STANDING_ALONE:
            yield from found.catalogue.relations  # whatever depends on it goes with it
            return


def _dropped_relation(found: Findings, relation: str, cascades: bool) -> Iterator[str]:
    yield relation
    yield from _children(found, relation)
    if cascades:
        yield from _referring(found, relation)


def _dropped_schema(found: Findings, schema: str, cascades: bool) -> Iterator[str]:
    prefix = qualified(schema, "")
    if cascades and any(name.startswith(prefix) for name in found.catalogue.code.functions):
        yield from found.catalogue.relations
    for name in in_schema(found, schema):
        yield from _dropped_relation(found, name, cascades)
    yield from (name for name in found.catalogue.typed if name.startswith(prefix))


def _everything(found: Findings, node: Any) -> Iterable[str]:
    """Of whom, cannot be told: what a role owns may be any table."""
    return found.catalogue.relations


def _reindex(found: Findings, node: pg.ReindexStmt) -> Iterable[str]:
    if node.HasField("relation"):
        return _relation(found, node)
    if node.kind == pg.REINDEX_OBJECT_SCHEMA:
        return in_schema(found, node.name)
    return () if node.kind == pg.REINDEX_OBJECT_SYSTEM else found.catalogue.relations


def _extension_contents(found: Findings, node: pg.AlterExtensionContentsStmt) -> Iterator[str]:
    if node.objtype in TYPES:
        yield _type(found, strings(node.object.type_name.names))
    elif relation := relation_of(found, node.objtype, node.object):
        yield relation


def _grant(found: Findings, node: pg.GrantStmt) -> Iterator[str]:
    if node.objtype != pg.OBJECT_TABLE:
        return
    for item in node.objects:
        if node.targtype == pg.ACL_TARGET_ALL_IN_SCHEMA:
            yield from in_schema(found, item.string.sval)
        elif item.HasField("range_var"):
            yield _name(found, item.range_var)


def relation_of(found: Findings, kind: int, item: pg.Node) -> str | None:
    """The relation that an object is, or is part of; None for others, and where none is named."""
    parts = strings(item.list.items)
    if kind in PARTS_OF_RELATIONS:
        parts = parts[:-1]
    elif kind not in RELATIONS:
        return None
    if not parts:
        return None  # OWNED BY NONE
    name = found.named(parts[-2] if len(parts) > 1 else "", parts[-1])
    return found.catalogue.belongs.get(name, name)


def _name(found: Findings, relation: pg.RangeVar) -> str:
    name = found.named(relation.schemaname, relation.relname)
    return name if "." in name else _type(found, [relation.relname])


def _type(found: Findings, parts: list[str]) -> str:
    return resolve(parts[-2] if len(parts) > 1 else "", parts[-1], found.search_path, found.catalogue.typed)


def in_schema(found: Findings, schema: str) -> Iterable[str]:
    """The relations of a schema."""
    prefix = qualified(schema, "")
    return (name for name in found.catalogue.relations if name.startswith(prefix))


def _children(found: Findings, table: str) -> set[str]:
    """What inherits from a table or is a partition of it, and so on: to read it is to read them."""
    return _reached(found, table, READ)


def _referring(found: Findings, table: str) -> set[str]:
    """What has a foreign key to a table, and so on: TRUNCATE names them."""
    return _reached(found, table, TRUNCATE)


def _reached(found: Findings, table: str, event: str) -> set[str]:
    relations, reactions = found.catalogue.relations, found.catalogue.code.reactions
    reached: set[str] = set()
    pending = [table]
    while pending:
        name = pending.pop()
        if relations.get(name) in HOLDING and event in reactions.get(name, ()):
            new = reactions[name][event].tables.keys() - reached - {table}
            reached |= new
            pending += new
    return reached


HOLDING: Final = frozenset({"r", "p", "f"})
"""Kinds of relation (pg_class.relkind) that have children and are referred to; a view reads without them."""

ALTERS: Final[dict[type, Callable[[Findings, Any], Iterable[str]]]] = {
    pg.AlterTableStmt: _alter_table,
    pg.AlterEnumStmt: _alter_type,
    pg.AlterDomainStmt: _alter_type,
    pg.AlterTypeStmt: _alter_type,
    pg.AlterSeqStmt: _alter_sequence,
    pg.CreateSeqStmt: _alter_sequence,
    pg.AlterObjectDependsStmt: _relation,
    pg.AlterExtensionContentsStmt: _extension_contents,
    pg.RenameStmt: _renamed,
    pg.AlterObjectSchemaStmt: _renamed,
    pg.CreateTrigStmt: _relation,
    pg.RuleStmt: _relation,
    pg.IndexStmt: _relation,
    pg.ReindexStmt: _reindex,
    pg.CreatePolicyStmt: _policy,
    pg.AlterPolicyStmt: _policy,
    pg.CreateStmt: _create_table,
    pg.CreateForeignTableStmt: _create_foreign_table,
    pg.DropStmt: _drop,
    pg.DropOwnedStmt: _everything,
    pg.ReassignOwnedStmt: _everything,
    pg.GrantStmt: _grant,
}
