"""Adds columns to a table and to its copies together: to all of them, or to none.

Each server changes its table in a transaction of its own; the copies' are opened first and committed last. No
copy lacks a column of the source for longer than a commit takes, and rows that bring it wait for the lock
meanwhile; what fails at one side leaves nothing behind at the other. What may happen between the commits is
made up for: see `_commit_at`, and docs/decisions/0016.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pgshunt.config.model import Control
from pgshunt.migration.servers import Link, Server, ServerError, Unreachable
from pgshunt.migration.sql import literal, quoted, relation
from pgshunt.routing.additions import Addition, Column
from pgshunt.routing.table import Endpoint

log = logging.getLogger("pgshunt.migration")

LOCK_MS_MAX: Final = 400
"""Those who use the table wait behind us as long, at the copy and then at the source: together less than what
makes a read slow."""
ATTEMPTS: Final = 6
PAUSE_S: Final = 0.5
HOLD_S_MAX: Final = 5.0
LOCK_NOT_AVAILABLE: Final = "55P03"

# pg_get_expr prints a default as the server has understood it.
_COLUMNS: Final = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attidentity::text || a.attgenerated::text
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped
"""

_TABLE: Final = """
SELECT c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)),
       pg_has_role({user}, c.relowner, 'USAGE')
FROM pg_class c WHERE c.oid = to_regclass({table})
"""


class Impossible(Exception):
    """The columns are nowhere; what the client is to be told."""

    def __init__(self, sqlstate: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint


@dataclass(frozen=True, slots=True)
class _Plan:
    """`missing` are to be added at the source, `wanted` to be there at the copies.

    `taken`: the first that the source has already although it must not; empty if there is none.
    """

    missing: tuple[Column, ...]
    wanted: tuple[Column, ...]
    taken: str


def statement(table: str, columns: Sequence[Column]) -> str:
    """The SQL that adds them."""
    added = (f"ADD COLUMN {quoted(column.name)} {column.definition}" for column in columns)
    return f"ALTER TABLE {relation(table)} {', '.join(added)}"


async def add_columns(
    addition: Addition, user: str, source: Endpoint, copies: Sequence[Endpoint], control: Control
) -> list[str]:
    """Returns when they are at the source, and at all copies but those named: these could not be reached any
    more. `user` must be an owner of the table. Raises Impossible, ServerError: then nothing has changed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _attempt(addition, user, source, copies, control)
        except ServerError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE or attempt == ATTEMPTS:
                raise
        await asyncio.sleep(PAUSE_S)  # in which those who waited behind us get on
    raise AssertionError("the last attempt returns or raises")


async def _attempt(
    addition: Addition, user: str, source: Endpoint, copies: Sequence[Endpoint], control: Control
) -> list[str]:
    shared, *own = (Server(endpoint, control, "alter") for endpoint in (source, *copies))
    try:
        plan = await shared.run(partial(_plan, addition=addition, user=user), HOLD_S_MAX)
        if plan.taken and not plan.wanted:
            raise _duplicate(plan.taken, addition.table)
        hold_wanted = partial(_hold, addition=addition, columns=plan.wanted)
        held = [await server.run(hold_wanted, HOLD_S_MAX) for server in own]
        if plan.missing and not plan.taken:
            hold_missing = partial(_hold, addition=addition, columns=plan.missing)
            link = await shared.run(hold_missing, HOLD_S_MAX)
            await _commit_at_source(shared, link, addition, user)
        lacking = [
            server.endpoint.name
            for server, link in zip(own, held, strict=True)
            if not await _commit_at(server, link, addition, plan.wanted)
        ]
        if plan.taken:
            raise _duplicate(plan.taken, addition.table)
        return lacking
    finally:
        for server in (shared, *own):
            await server.close()  # what is not committed is rolled back


def _plan(link: Link, addition: Addition, user: str) -> _Plan:
    facts = link.rows(_TABLE.format(user=literal(user), table=literal(relation(addition.table))))
    if not facts:
        raise Impossible("42P01", f'relation "{addition.table}" does not exist')
    ((is_plain, may_alter),) = facts
    if not may_alter:
        raise Impossible("42501", f"must be owner of table {addition.table.partition('.')[2]}")
    if not is_plain:
        raise Impossible(
            "0A000",
            f"columns of {addition.table} cannot be added in both databases: it has a child, or is one",
            "Do it before the move or behind it.",
        )
    existing = _columns(link, relation(addition.table))
    missing = tuple(column for column in addition.columns if column.name not in existing)
    present = [column for column in addition.columns if column.name in existing]
    alike = tuple(column for column in present if existing[column.name] == _described(link, column))
    taken = next((column.name for column in present if not column.missing_ok), "")
    return _Plan(missing, alike if taken else (*missing, *alike), taken)


def _hold(link: Link, addition: Addition, columns: Sequence[Column]) -> Link:
    """Opens a transaction with the columns that are not there yet."""
    link.rows("BEGIN")
    try:
        _add(link, addition, columns)
    except BaseException:
        if not link.broken:
            link.rows("ROLLBACK")
        raise
    return link


def _add(link: Link, addition: Addition, columns: Sequence[Column]) -> None:
    link.rows(f"SET LOCAL lock_timeout = {LOCK_MS_MAX}")
    # Should we come to hang, the server lets go of the table.
    link.rows(f"SET LOCAL idle_in_transaction_session_timeout = {int(2000 * HOLD_S_MAX)}")
    existing = _columns(link, relation(addition.table))
    for column in columns:
        if column.name in existing and existing[column.name] != _described(link, column):
            raise Impossible(
                "0A000",
                f'{addition.table} has another column "{column.name}" at {link.endpoint} already',
                "Drop it there, and repeat the statement.",
            )
    if missing := [column for column in columns if column.name not in existing]:
        link.rows(statement(addition.table, missing))


async def _commit_at_source(server: Server, held: Link, addition: Addition, user: str) -> None:
    """Raises ServerError when it is not committed, Impossible when nobody can know."""
    try:
        await server.run(partial(_commit, held=held), HOLD_S_MAX)
    except Unreachable as lost:
        try:
            if (await server.run(partial(_plan, addition=addition, user=user), HOLD_S_MAX)).missing:
                raise
        except ServerError as error:
            if error is lost:
                raise
            raise Impossible(
                "08007",
                f"the connection was lost while columns of {addition.table} were being added: {error}",
                "They may be in the shared database, and its copies lack them: repeat the statement.",
            ) from error


async def _commit_at(server: Server, held: Link, addition: Addition, columns: Sequence[Column]) -> bool:
    """Whether the columns are there. The source has them, so a transaction that was lost is done again."""
    for _ in range(ATTEMPTS):
        try:
            await server.run(partial(_commit, held=held), HOLD_S_MAX)
        except ServerError as error:
            log.warning(
                "columns of %s are still to be added at %s: %s", addition.table, server.endpoint.name, error
            )
        else:
            return True
        await asyncio.sleep(PAUSE_S)  # a server that was lost is seldom back at once
        try:
            held = await server.run(partial(_hold, addition=addition, columns=columns), HOLD_S_MAX)
        except (ServerError, Impossible):
            continue
    return False


def _commit(link: Link, held: Link) -> None:
    if link is not held:  # the server has made a new one, where there is nothing to commit
        raise Unreachable(link.endpoint, "the connection was lost")
    link.rows("COMMIT")


def _columns(link: Link, table: str) -> Mapping[str, tuple[Any, ...]]:
    return {name: tuple(rest) for name, *rest in link.rows(_COLUMNS.format(table=literal(table)))}


def _described(link: Link, column: Column) -> tuple[Any, ...]:
    """A column as this server would have it, in the terms of `_columns`."""
    link.rows(f"CREATE TEMP TABLE pgshunt_described ({quoted(column.name)} {column.definition})")
    described = _columns(link, "pg_temp.pgshunt_described")[column.name]
    link.rows("DROP TABLE pg_temp.pgshunt_described")
    return described


def _duplicate(name: str, table: str) -> Impossible:
    return Impossible("42701", f'column "{name}" of relation "{table.partition(".")[2]}" already exists')
