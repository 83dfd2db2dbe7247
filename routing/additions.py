"""Reads the one change of a moving table that goes to both databases: ALTER TABLE … ADD COLUMN.

What comes out is SQL of our own making, never the client's text, and the same under every search_path and
setting: built-in types, and defaults that are constants and mean the same on both servers at any time.
Anything else is None, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgshunt.routing.grammar import Unreadable, parse, pg, strings
from pgshunt.routing.names import resolve
from pgshunt.routing.table import Catalogue

NUMBERS: Final = frozenset({"int2", "int4", "int8", "numeric", "float4", "float8"})
WORDS: Final = frozenset({"text", "varchar", "bpchar", "json", "jsonb", "uuid", "bool"}) | NUMBERS
"""Types that a string constant makes the same value of everywhere; 'now' makes none of a date."""

_NUMBER: Final = re.compile(r"-?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)

_NEW_NUMBER: Final = re.compile(rb"(?<![\w\"'])\d+(_|[xob])", re.IGNORECASE)
"""1_000 and 0x10 are numbers since PostgreSQL 16; before, they are something else."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column to add. `definition` is SQL, from its type on; `missing_ok`: IF NOT EXISTS."""

    name: str
    definition: str
    missing_ok: bool


@dataclass(frozen=True, slots=True)
class Addition:
    """Columns to add to one table, which is named as in the catalogue.

    `written`: SQL that names it as the statement does, to be looked for on `path`; empty: by its full name.
    """

    table: str
    columns: tuple[Column, ...]
    written: str = ""
    path: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        columns = [[column.name, column.definition, column.missing_ok] for column in self.columns]
        return {"table": self.table, "columns": columns, "written": self.written, "path": list(self.path)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Addition:
        columns = tuple(Column(*column) for column in data["columns"])
        return cls(str(data["table"]), columns, str(data["written"]), tuple(map(str, data["path"])))


def read_addition(sql: bytes, search_path: Sequence[str], catalogue: Catalogue) -> Addition | None:
    """What a text adds to a plain table; None if it does anything else, or may mean something else."""
    if not sql.isascii() or _NEW_NUMBER.search(sql) or "pg_catalog" in search_path:
        return None
    try:
        statements = parse(sql).stmts
    except Unreadable:
        return None
    if len(statements) != 1 or not statements[0].stmt.HasField("alter_table_stmt"):
        return None
    statement = statements[0].stmt.alter_table_stmt
    relation = statement.relation
    table = resolve(relation.schemaname, relation.relname, search_path, catalogue.relations)
    family = {*catalogue.parents, *catalogue.parents.values()}
    if (
        relation.catalogname
        or statement.objtype != pg.OBJECT_TABLE
        or catalogue.relations.get(table) != "r"
        or table in family
    ):
        return None
    columns = [_column(item.alter_table_cmd, catalogue) for item in statement.cmds]
    found = tuple(column for column in columns if column is not None)
    if not found or len(found) < len(columns) or len({column.name for column in found}) < len(found):
        return None
    written = ".".join(_quoted(part) for part in (relation.schemaname, relation.relname) if part)
    return Addition(table, found, written, tuple(search_path))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _column(command: pg.AlterTableCmd, catalogue: Catalogue) -> Column | None:
    if command.subtype != pg.AT_AddColumn:
        return None
    node = getattr(command, "def").column_def
    kind = _type(node.type_name, catalogue)
    odd = node.compression or node.storage_name or node.identity or node.generated or node.fdwoptions
    if kind is None or odd or node.HasField("coll_clause"):
        return None
    default, not_null, null = "", False, False
    for item in node.constraints:
        constraint = item.constraint
        if constraint.contype == pg.CONSTR_DEFAULT and not default:
            default = _constant(constraint.raw_expr, kind, catalogue)
            if not default:
                return None
        elif constraint.contype == pg.CONSTR_NOTNULL and not (constraint.conname or constraint.is_no_inherit):
            not_null = True
        elif constraint.contype == pg.CONSTR_NULL:
            null = True
        else:
            return None
    if not_null and (null or default in ("", "NULL")):
        return None  # rows that come through the lane before it is there at the source have no value for it
    rest = (f" DEFAULT {default}" if default else "") + (" NOT NULL" if not_null else "")
    return Column(node.colname, kind.sql + rest, command.missing_ok)


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    sql: str
    is_array: bool


def _type(node: pg.TypeName, catalogue: Catalogue) -> _Type | None:
    names = strings(node.names)
    if names[:-1] not in ([], ["pg_catalog"]) or names[-1] not in catalogue.types or node.setof:
        return None  # serial is no type
    if names[-1].startswith(("reg", "pg_")):
        return None  # numbers of objects, which are others in each database; rows of the server's own tables
    sizes = [item.a_const for item in node.typmods]
    if node.pct_type or not all(size.HasField("ival") for size in sizes):
        return None
    numbers = f"({', '.join(str(size.ival.ival) for size in sizes)})" if sizes else ""
    name = names[-1].replace('"', '""')
    return _Type(
        names[-1], f'pg_catalog."{name}"{numbers}{"[]" * len(node.array_bounds)}', bool(node.array_bounds)
    )


def _constant(node: pg.Node, kind: _Type, catalogue: Catalogue) -> str:
    """A constant as SQL; empty if it is none, or may not mean the same everywhere."""
    if node.HasField("type_cast"):
        if _type(node.type_cast.type_name, catalogue) != kind:
            return ""
        node = node.type_cast.arg
    if not node.HasField("a_const"):
        return ""
    constant = node.a_const
    if constant.isnull:
        return "NULL"
    if constant.HasField("sval"):
        text = constant.sval.sval
        usable = kind.name in WORDS and "\\" not in text
        return "'" + text.replace("'", "''") + "'" if usable else ""
    if kind.is_array:
        return ""
    if constant.HasField("boolval"):
        return ("true" if constant.boolval.boolval else "false") if kind.name == "bool" else ""
    number = str(constant.ival.ival) if constant.HasField("ival") else constant.fval.fval
    return number if kind.name in NUMBERS and _NUMBER.fullmatch(number) else ""
