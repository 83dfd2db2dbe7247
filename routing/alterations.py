"""Says whose definition a statement changes: which tables are not the same behind it.

Not meant are statements that leave a table as it is for all who read and write it (VACUUM, CLUSTER, COMMENT,
storage parameters, statistics). Rights and policies are meant: they decide what a reader is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pgshunt.routing.grammar import pg
from pgshunt.routing.names import qualified
from pgshunt.routing.walk import strings

if TYPE_CHECKING:
    from pgshunt.routing.walk import Findings

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


def altered(found: Findings, statement: Any) -> set[str]:
    """The relations whose definition `statement` changes."""
    named = ALTERS.get(type(statement))
    return set() if named is None else set(named(found, statement))


def _relation(found: Findings, node: Any) -> Iterator[str]:
    if node.HasField("relation"):  # else it is of a type, a function …
        yield _name(found, node.relation)


def _alter_table(found: Findings, node: pg.AlterTableStmt) -> Iterator[str]:
    commands = [item.alter_table_cmd for item in node.cmds]
    if any(command.subtype not in HARMLESS for command in commands):
        yield _name(found, node.relation)
    for command in commands:
        other = getattr(command, "def")
        if command.subtype in INHERITING:
            yield _name(found, other.range_var)
        elif command.subtype in PARTITIONING:
            yield _name(found, other.partition_cmd.name)


def _policy(found: Findings, node: Any) -> Iterator[str]:
    yield _name(found, node.table)


def _create_table(found: Findings, node: pg.CreateStmt) -> Iterator[str]:
    """A child or partition is part of what its parents are."""
    for parent in node.inh_relations:
        yield _name(found, parent.range_var)


def _drop(found: Findings, node: pg.DropStmt) -> Iterator[str]:
    for item in node.objects:
        if node.remove_type == pg.OBJECT_SCHEMA:
            yield from _in_schema(found, item.string.sval)
            continue
        relation = relation_of(found, node.remove_type, item)
        if relation is not None and node.remove_type != pg.OBJECT_INDEX:  # whose table nobody knows
            yield relation


def _grant(found: Findings, node: pg.GrantStmt) -> Iterator[str]:
    if node.objtype != pg.OBJECT_TABLE:
        return
    for item in node.objects:
        if node.targtype == pg.ACL_TARGET_ALL_IN_SCHEMA:
            yield from _in_schema(found, item.string.sval)
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
    return found.named(parts[-2] if len(parts) > 1 else "", parts[-1])


def _name(found: Findings, relation: pg.RangeVar) -> str:
    return found.named(relation.schemaname, relation.relname)


def _in_schema(found: Findings, schema: str) -> Iterable[str]:
    prefix = qualified(schema, "")
    return (name for name in found.catalogue.relations if name.startswith(prefix))


ALTERS: Final[dict[type, Callable[[Findings, Any], Iterable[str]]]] = {
    pg.AlterTableStmt: _alter_table,
    pg.RenameStmt: _relation,
    pg.AlterObjectSchemaStmt: _relation,
    pg.CreateTrigStmt: _relation,
    pg.RuleStmt: _relation,
    pg.IndexStmt: _relation,
    pg.CreatePolicyStmt: _policy,
    pg.AlterPolicyStmt: _policy,
    pg.CreateStmt: _create_table,
    pg.DropStmt: _drop,
    pg.GrantStmt: _grant,
}
