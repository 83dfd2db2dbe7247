"""SQL that reads a table's rows as keys and hashes, so that two databases can be compared.

A row is hashed as text: that is the same on every version of PostgreSQL and, unlike comparing values, tells
1.0 from 1.00. ROWS_SETTINGS makes the text independent of how the servers are configured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pgshunt.migration.catalogue import read_columns, read_keys
from pgshunt.migration.servers import Link
from pgshunt.migration.sql import literal, quoted, relation

Key = tuple[str, ...]

ROWS_SETTINGS: Final[Mapping[str, str]] = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "search_path": "pg_catalog",
    # An error instead of rows silently left out by a policy.
    "row_security": "off",
    "default_transaction_read_only": "on",
    "idle_in_transaction_session_timeout": "60s",
}

SEEDS: Final = (0x70677368, 0x756E7431)


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's columns and its key, as SQL; without a key a table can only be compared as a whole."""

    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    key_types: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """A row as text, its columns named one by one: the copy may have them in another order."""
        row = ", ".join(f"t.{quoted(column)}" for column in self.columns)
        return f'ROW({row})::text COLLATE "C"'

    @property
    def hashed(self) -> str:
        return f"hashtextextended({self.text}, {SEEDS[0]})"

    @property
    def key_list(self) -> str:
        return ", ".join(f"t.{quoted(column)}" for column in self.key)

    @property
    def key_texts(self) -> str:
        return ", ".join(f"t.{quoted(column)}::text" for column in self.key)

    def key_row(self, key: Key) -> str:
        """A key as SQL: literals cast to the columns' types."""
        values = (f"{literal(text)}::{kind}" for text, kind in zip(key, self.key_types, strict=True))
        return f"({', '.join(values)})"

    def between(self, after: Key | None, up_to: Key | None) -> str:
        """The condition for the keys in (after, up_to]; None is no bound."""
        bounds = []
        if after is not None:
            bounds.append(f"({self.key_list}) > {self.key_row(after)}")
        if up_to is not None:
            bounds.append(f"({self.key_list}) <= {self.key_row(up_to)}")
        return " AND ".join(bounds) or "true"


@dataclass(frozen=True, slots=True)
class Sum:
    """What a set of rows hashes to, whatever their order.

    `versions`: the same of where and by whom they were written.
    """

    rows: int
    hashes: tuple[int, int]
    versions: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Version:
    """One row as one server has it now.

    `version` (xmin and ctid) changes with every change. `is_untouched`: no transaction has updated, deleted
    or locked this version, not even one whose commit cannot be seen yet.
    """

    hashed: int
    version: str
    is_untouched: bool = field(compare=False)


def next_key(link: Link, layout: Layout, after: Key | None, rows: int, up_to: Key | None) -> Key | None:
    """The key `rows` further on; None if there are fewer up to `up_to`. Raises ServerError."""
    found = link.rows(
        f"SELECT {layout.key_texts} FROM {relation(layout.table)} t WHERE {layout.between(after, up_to)} "
        f"ORDER BY {layout.key_list} OFFSET {rows - 1} LIMIT 1"
    )
    return tuple(found[0]) if found else None


def sum_of(link: Link, layout: Layout, after: Key | None, up_to: Key | None) -> Sum:
    """Count and hashes of the rows in a range of keys. Raises ServerError."""
    # OFFSET 0 keeps the planner from making each row's text once for every hash.
    ((rows, *hashes),) = link.rows(
        f"SELECT count(*), {_xor(SEEDS[0])}, {_xor(SEEDS[1])} FROM (SELECT {layout.text} AS row "
        f"FROM {relation(layout.table)} t WHERE {layout.between(after, up_to)} OFFSET 0) texts"
    )
    return Sum(rows, (hashes[0], hashes[1]))


def whole_sum_of(link: Link, layout: Layout) -> Sum:
    """The same for a table without a key, and the hash of its rows' versions. Raises ServerError."""
    # Equal rows cancel each other in an XOR, not in a sum; the remainder keeps that in a bigint.
    ((rows, xor, total, versions),) = link.rows(
        f"SELECT count(*), {_xor(SEEDS[0])}, "
        f"coalesce(sum(hashtextextended(row, {SEEDS[1]})) % 9223372036854775807, 0)::bigint, "
        "coalesce(bit_xor(hashtextextended(version, 0)), 0) "
        f"FROM (SELECT {layout.text} AS row, concat_ws(' ', t.tableoid, t.xmin, t.ctid) AS version "
        f"FROM {relation(layout.table)} t OFFSET 0) texts"
    )
    return Sum(rows, (xor, total), versions)


def _xor(seed: int) -> str:
    return f"coalesce(bit_xor(hashtextextended(row, {seed})), 0)"


def hashes_of(link: Link, layout: Layout, after: Key | None, up_to: Key | None) -> dict[Key, int]:
    """The hash of every row in a range of keys. Raises ServerError."""
    rows = link.rows(
        f"SELECT {layout.hashed}, {layout.key_texts} FROM {relation(layout.table)} t "
        f"WHERE {layout.between(after, up_to)}"
    )
    return {tuple(key): hashed for hashed, *key in rows}


def versions_of(link: Link, layout: Layout, keys: Sequence[Key]) -> dict[Key, Version]:
    """The rows of these keys, those that exist. Raises ServerError."""
    if not keys:
        return {}
    wanted = ", ".join(layout.key_row(key) for key in keys)
    rows = link.rows(
        f"SELECT {layout.hashed}, concat_ws(' ', t.xmin, t.ctid), t.xmax::text = '0', {layout.key_texts} "
        f"FROM {relation(layout.table)} t WHERE ({layout.key_list}) IN ({wanted})"
    )
    return {tuple(key): Version(hashed, version, untouched) for hashed, version, untouched, *key in rows}


def are_commits_hidden(link: Link) -> bool:
    """Whether a commit that waits for a standby may be at a copy already, but not be visible here."""
    return bool(link.value("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"))


def read_layouts(link: Link, tables: Sequence[str]) -> list[Layout]:
    """The layouts of these tables; partitioned ones are compared as one. Raises ServerError."""
    columns, keys = read_columns(link, tables), read_keys(link, tables)
    return [
        Layout(
            table,
            tuple(name for name, _ in columns[table]),
            tuple(name for name, _ in keys.get(table, ())),
            tuple(kind for _, kind in keys.get(table, ())),
        )
        for table in tables
        if table in columns
    ]
