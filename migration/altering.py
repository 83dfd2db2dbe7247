"""Adds columns to a table and to its copies together: to all of them, or to none.

Each server changes its table in a transaction of its own; the copies' are opened first and committed last. No
copy lacks a column of the source for longer than a commit takes, and rows that bring it wait for the lock
meanwhile; what fails at one side leaves nothing behind at the other. A commit whose answer is lost is asked
about at the source, and done again at a copy: see docs/decisions/0016.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

from pgshunt.config.model import Control
from pgshunt.migration.servers import Link, Server, ServerError, Unreachable
from pgshunt.migration.sql import literal, quoted, relation
from pgshunt.routing.additions import Addition, Column
from pgshunt.routing.table import Endpoint

log = logging.getLogger("pgshunt.migration")

LOCK_MS_MAX: Final = 800
"""Those who use the table wait behind us as long, at its copies and its source together: less than what makes
a read slow."""
DEADLOCK_MS: Final = 100
"""A vacuum of the server's own that holds the table is sent away after this; only a superuser may say so."""
ATTEMPTS: Final = 6
PAUSE_S: Final = 0.5
HOLD_S_MAX: Final = 5.0
TRY_S_MAX: Final = 15.0
"""No attempt begins later: somebody waits for the answer."""
DOUBT_S_MAX: Final = 12.0
"""How long the source is asked what became of a commit: longer than it lets a transaction be idle."""
ASK_S_MAX: Final = 2.0
LOCK_NOT_AVAILABLE: Final = "55P03"
IN_DOUBT: Final = "08007"
NO_SUCH_TRANSACTION: Final = "22023"

# pg_get_expr prints a default as the server has understood it.
_COLUMNS: Final = """
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attidentity::text || a.attgenerated::text
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass({table}) AND a.attnum > 0 AND NOT a.attisdropped
"""

_TABLE: Final = """
SELECT c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)),
       pg_has_role({user}, c.relowner, 'USAGE'), c.relreplident = 'f'
FROM pg_class c WHERE c.oid = to_regclass({table})
"""


Lost = Callable[[Endpoint, Addition], None]
"""lost(copy, addition): the copy may lack these columns, and the source may have them; see `complete`."""


class Impossible(Exception):
    """What the client is to be told. The columns are nowhere, but with SQLSTATE 08007: then nobody knows."""

    def __init__(self, sqlstate: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint


@dataclass(frozen=True, slots=True)
class _Plan:
    """`missing` are to be added at the source, `wanted` to be there at the copies. `others`: the source
    has them already, defined otherwise.

    `taken`: the first that the source has already although it must not; empty if there is none.
    """

    missing: tuple[Column, ...]
    wanted: tuple[Column, ...]
    others: tuple[Column, ...]
    taken: str


def statement(table: str, columns: Sequence[Column]) -> str:
    """The SQL that adds them."""
    added = (f"ADD COLUMN {quoted(column.name)} {column.definition}" for column in columns)
    return f"ALTER TABLE {relation(table)} {', '.join(added)}"


async def add_columns(
    addition: Addition, user: str, source: Endpoint, copies: Sequence[Endpoint], control: Control, lost: Lost
) -> None:
    """Returns when they are at the source, and at all copies but those that `lost` was called for.

    `user` must be an owner of the table. Raises Impossible, ServerError: then the source is as it was.
    """
    begun_s = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        is_last = attempt == ATTEMPTS or time.monotonic() - begun_s > TRY_S_MAX
        try:
            return await _attempt(addition, user, source, copies, control, lost, is_last)
        except ServerError as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE or is_last:
                raise
        await asyncio.sleep(PAUSE_S)  # in which those who waited behind us get on
    raise AssertionError("the last attempt returns or raises")


async def complete(addition: Addition, copy: Server) -> None:
    """Adds to a copy what its source has and it may lack. Raises Impossible, ServerError."""
    held = await copy.run(partial(_hold, addition=addition, lock_ms=LOCK_MS_MAX // 2), HOLD_S_MAX)
    await copy.run(partial(_commit, held=held), HOLD_S_MAX)


async def _attempt(
    addition: Addition,
    user: str,
    source: Endpoint,
    copies: Sequence[Endpoint],
    control: Control,
    lost: Lost,
    is_last: bool,
) -> None:
    shared, *own = (Server(endpoint, control, "alter") for endpoint in (source, *copies))
    hold = partial(_hold, lock_ms=LOCK_MS_MAX // (1 + len(own)), also_behind_vacuum=is_last)
    try:
        plan = await shared.run(partial(_plan, addition=addition, user=user), HOLD_S_MAX)
        if plan.taken and not plan.wanted:
            raise _duplicate(plan.taken, addition.table)
        wanted, missing = (replace(addition, columns=each) for each in (plan.wanted, plan.missing))
        held = [await server.run(partial(hold, addition=wanted), HOLD_S_MAX) for server in own]
        for server in own if plan.others else ():
            await server.run(partial(_require_present, addition=addition, columns=plan.others), HOLD_S_MAX)
        is_known = True
        if plan.missing and not plan.taken:
            at_source = await shared.run(partial(hold, addition=missing, user=user), HOLD_S_MAX)
            is_known = await _commit_at_source(shared, at_source, missing)
        for server, each in zip(own, held, strict=True):
            try:
                await server.run(partial(_commit, held=each), HOLD_S_MAX)
            except ServerError as error:
                log.warning("%s may lack columns of %s: %s", server.endpoint.name, addition.table, error)
                lost(server.endpoint, wanted)
        if plan.taken:
            raise _duplicate(plan.taken, addition.table)
        if not is_known:
            raise Impossible(
                IN_DOUBT,
                f"the connection was lost while columns of {addition.table} were being added",
                "Its copies have them, and the shared database may: look there, and add what is missing "
                "with IF NOT EXISTS.",
            )
    finally:
        for server in (shared, *own):
            await server.close()  # what is not committed is rolled back


def _plan(link: Link, addition: Addition, user: str) -> _Plan:
    with _undone(link):
        _require_named(link, addition, user)
    with _undone(link):
        return _found(link, addition, user)


@contextmanager
def _undone(link: Link) -> Iterator[None]:
    """A transaction that leaves nothing behind, and waits for no standby."""
    link.rows("BEGIN")
    try:
        yield
    finally:
        if not link.broken:
            link.rows("ROLLBACK")


def _require_named(link: Link, addition: Addition, user: str) -> None:
    """Raises Impossible unless the server, too, takes the user's word for this table."""
    _become(link, user)
    link.rows(f"SET LOCAL search_path = {', '.join(map(quoted, addition.path)) or chr(39) * 2}")
    meant = literal(relation(addition.table))
    named = literal(addition.written) if addition.written else meant
    if not link.value(
        f"SELECT pg_catalog.to_regclass({named}) IS NOT DISTINCT FROM pg_catalog.to_regclass({meant})"
    ):
        raise Impossible(
            "0A000",
            f"{addition.written} is not {addition.table} at the shared database",
            "Name it with its schema.",
        )


def _found(link: Link, addition: Addition, user: str) -> _Plan:
    facts = link.rows(_TABLE.format(user=literal(user), table=literal(relation(addition.table))))
    if not facts:
        raise Impossible("42P01", f'relation "{addition.table}" does not exist')
    ((is_plain, may_alter, sends_whole_rows),) = facts
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
    if sends_whole_rows and any(_described(link, column).default for column in missing):
        # A row that was changed before is looked for by all its columns, and would have another value there.
        raise Impossible(
            "0A000",
            f"{addition.table} has REPLICA IDENTITY FULL, so a column with a default cannot be added while "
            "it is being moved",
            "Add it without a default, or do it before the move or behind it.",
        )
    present = [column for column in addition.columns if column.name in existing]
    alike = tuple(column for column in present if existing[column.name] == _described(link, column))
    taken = next((column.name for column in present if not column.missing_ok), "")
    others = tuple(column for column in present if column.missing_ok and column not in alike)
    return _Plan(missing, alike if taken else (*missing, *alike), others, taken)


def _require_present(link: Link, addition: Addition, columns: Sequence[Column]) -> None:
    """Those that the source has otherwise defined cannot be made as they are there."""
    existing = _columns(link, relation(addition.table))
    for column in columns:
        if column.name not in existing:
            raise Impossible(
                "0A000",
                f'{addition.table} has another column "{column.name}" already, which {link.endpoint} lacks',
                "Define it as it is there.",
            )


def _become(link: Link, user: str) -> None:
    """For the transaction that is open: from here on the server asks what the user may."""
    try:
        link.rows(f"SET LOCAL ROLE {quoted(user)}")
    except ServerError as error:
        if link.broken:
            raise
        raise Impossible(
            "42501",
            f"columns cannot be added for {user}: {error.message}",
            f'Let the control role act for it: GRANT "{user}" TO the role of `control.user`.',
        ) from error


@dataclass(frozen=True, slots=True)
class _Held:
    """An open transaction: its connection, and its number at that server."""

    link: Link
    number: int


def _hold(
    link: Link, addition: Addition, lock_ms: int, also_behind_vacuum: bool = False, user: str = ""
) -> _Held:
    """Opens a transaction with the columns that are not there yet, added by `user` if one is named."""
    link.rows("BEGIN")
    try:
        # Should we come to hang, the server lets go of the table.
        idle_ms_max = int(1000 * (2 * HOLD_S_MAX + DOUBT_S_MAX))
        link.rows(f"SET LOCAL idle_in_transaction_session_timeout = {idle_ms_max}")
        link.rows(
            f"SELECT set_config('deadlock_timeout', '{DEADLOCK_MS}', true) "
            "FROM pg_roles WHERE rolname = current_user AND rolsuper"
        )
        if also_behind_vacuum:
            lock_ms += int(link.value("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'"))
        link.rows(f"SET LOCAL lock_timeout = {lock_ms}")
        number = int(link.value("SELECT txid_current()"))
        _add(link, addition, user)
    except BaseException:
        if not link.broken:
            link.rows("ROLLBACK")
        raise
    return _Held(link, number)


def _add(link: Link, addition: Addition, user: str) -> None:
    existing = _columns(link, relation(addition.table))
    for column in addition.columns:
        if column.name in existing and existing[column.name] != _described(link, column):
            raise Impossible(
                "0A000",
                f'{addition.table} has another column "{column.name}" at {link.endpoint} already',
                "Drop it there, and repeat the statement.",
            )
    if missing := [column for column in addition.columns if column.name not in existing]:
        if user:
            _become(link, user)
        link.rows(statement(addition.table, missing))


async def _commit_at_source(server: Server, held: _Held, addition: Addition) -> bool:
    """Whether it is known to be committed. Raises ServerError when it is known not to be.

    A commit that waits, for a synchronous standby or a network, is under way as long as the server says so.
    """
    try:
        await server.run(partial(_commit, held=held), HOLD_S_MAX)
        return True
    except ServerError as error:
        if not held.link.broken:
            raise
        lost = error
    end_s = time.monotonic() + DOUBT_S_MAX
    while time.monotonic() < end_s:
        try:
            are_there = await server.run(
                partial(_are_there, addition=addition, number=held.number), ASK_S_MAX
            )
        except ServerError as error:
            log.info("what became of a commit cannot be asked: %s", error)
        else:
            if are_there is not None:
                if are_there:
                    return True
                raise lost
        await asyncio.sleep(PAUSE_S)
    return False


def _are_there(link: Link, addition: Addition, number: int) -> bool | None:
    """Whether the columns are; None while the transaction that adds them may still be committed."""
    try:
        if link.value(f"SELECT txid_status({number})") == "in progress":
            return None
    except ServerError as error:  # a server that has taken over, and never heard of it
        if error.sqlstate != NO_SUCH_TRANSACTION:
            raise
    return {column.name for column in addition.columns} <= _columns(link, relation(addition.table)).keys()


def _commit(link: Link, held: _Held) -> None:
    if link is not held.link:  # the server has made a new one, where there is nothing to commit
        raise Unreachable(link.endpoint, "the connection was lost")
    link.rows("COMMIT")


class _Definition(NamedTuple):
    type: str
    is_not_null: bool
    default: str
    generated: str


def _columns(link: Link, table: str) -> Mapping[str, _Definition]:
    return {name: _Definition(*rest) for name, *rest in link.rows(_COLUMNS.format(table=literal(table)))}


def _described(link: Link, column: Column) -> _Definition:
    """A column as this server would have it, in the terms of `_columns`."""
    link.rows(f"CREATE TEMP TABLE pgshunt_described ({quoted(column.name)} {column.definition})")
    described = _columns(link, "pg_temp.pgshunt_described")[column.name]
    link.rows("DROP TABLE pg_temp.pgshunt_described")
    return described


def _duplicate(name: str, table: str) -> Impossible:
    return Impossible("42701", f'column "{name}" of relation "{table.partition(".")[2]}" already exists')
