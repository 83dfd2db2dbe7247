"""Prepared statements when tables change: as on a direct connection, whichever link comes next."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import asyncpg
import pytest
from support.fixtures import Database
from support.forwarder import LoginForwarder
from support.relay import RunningRelay
from support.wire import (
    FLUSH,
    SYNC,
    Frame,
    WireClient,
    bind,
    close,
    describe,
    execute,
    kinds,
    parse,
    without_tables,
)

from pgshunt.protocol import messages

TABLE = (
    "DROP TABLE IF EXISTS t, old; CREATE TABLE t (id int PRIMARY KEY, v text);"
    "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9) i"
)
RUN = [bind("", "a", "1"), execute(), SYNC]

CHANGES = {
    "a column more": "ALTER TABLE t ADD n int",
    "another type": "ALTER TABLE t ALTER v TYPE varchar(90)",
    "another name": "ALTER TABLE t RENAME v TO w",
    "a column less": "ALTER TABLE t DROP v",
    "nothing that shows": "ALTER TABLE t ALTER v SET NOT NULL",
    "the parameter's type": "ALTER TABLE t ALTER id TYPE bigint",
    "made anew": "ALTER TABLE t RENAME TO old; CREATE TABLE t AS TABLE old",
}


def _prepare(asked: str, name: str = "a") -> list[bytes]:
    """Each session has a text of its own: what one finds out about its statement does not help the others."""
    return [parse(name, f"SELECT * FROM t WHERE id = $1 -- {asked}"), describe("S", name)]


ASKED = {
    "bound": [RUN, RUN],
    "described first": [[describe("S", "a"), SYNC], RUN],
    "in a transaction": [[messages.query(b"BEGIN")], RUN, RUN, [messages.query(b"COMMIT")], RUN],
    "in one write": [[messages.query(b"BEGIN"), *RUN, *RUN, messages.query(b"COMMIT"), *RUN]],
    "flushed": [[bind("", "a", "1"), FLUSH, execute(), SYNC, *RUN]],
    "anew": [RUN, [close("S", "a"), *_prepare("anew"), SYNC, *RUN], RUN],
    "anew at once": [[close("S", "a"), *_prepare("anew at once"), *RUN], RUN],
    "anew, by another name": [
        [*_prepare("anew, by another name", "b"), bind("", "b", "1"), execute(), SYNC],
        RUN,
    ],
}

RUN_UNNAMED = [bind("", "", "1"), execute(), SYNC]
UNNAMED = {
    "unnamed": [RUN_UNNAMED, RUN_UNNAMED],
    "unnamed, not described": [RUN_UNNAMED, RUN_UNNAMED],
    "unnamed, described again": [[describe("S"), SYNC], RUN_UNNAMED],
    "unnamed, flushed": [[bind("", "", "1"), FLUSH, execute(), SYNC, *RUN_UNNAMED]],
    "unnamed, in one write": [[*RUN_UNNAMED, describe("S"), SYNC, *RUN_UNNAMED]],
    "unnamed, anew": [RUN_UNNAMED, [*_prepare("unnamed, anew", ""), *RUN_UNNAMED], RUN_UNNAMED],
}


def _before(asked: str) -> list[list[bytes]]:
    """What a session asks before the change."""
    if asked not in UNNAMED:
        return [[*_prepare(asked), SYNC], RUN]
    described = 1 if "not described" in asked else None
    return [[*_prepare(asked, "")[:described], SYNC], RUN_UNNAMED]


def _hear(client: WireClient, turns: list[list[bytes]]) -> list[Frame]:
    frames: list[Frame] = []
    for turn in turns:
        client.send(*turn)
        for _ in range(turn.count(SYNC) + sum(part[:1] == b"Q" for part in turn)):
            frames += client.until_ready()
    return [_comparable(frame) for frame in frames]


def _comparable(frame: Frame) -> Frame:
    """An error without its line in PostgreSQL's source, columns without their tables' numbers."""
    if frame.kind == "E":
        left_out = b"FLR" if b"\0C25P02\0" in frame.body else b"L"
        return Frame("E", b"\0".join(part for part in frame.body.split(b"\0") if part[:1] not in left_out))
    return without_tables(frame)


@pytest.fixture
def trusted(database: Database) -> Iterator[tuple[str, int]]:
    server = database.server
    with LoginForwarder(server.host, server.port, server.user, server.password) as forwarder:
        yield forwarder.address


@pytest.mark.parametrize("change", CHANGES)
def test_same_answers(change: str, database: Database, trusted: tuple[str, int]) -> None:
    """Changed through the proxy or beside it; run on the link that holds the statement or on another one."""
    asked = [*ASKED, *UNNAMED]
    direct = _play(trusted, database, change, asked, None, inside=False)
    for inside in (True, False):
        for other_link in (True, False):
            if not inside and not other_link:
                # What nobody has told the proxy is found out by an error; only the next Parse is good.
                asked = [name for name in asked if "anew" not in name]
            with RunningRelay(database, config={"pools": {"default_pool_size": 2}}) as relay:
                address = ("127.0.0.1", relay.port)
                relayed = _play(address, database, change, asked, other_link, inside=inside)
            assert relayed == {name: direct[name] for name in asked}, f"{inside=}, {other_link=}"


def _play(
    address: tuple[str, int],
    database: Database,
    change: str,
    asked: list[str],
    other_link: bool | None,
    *,
    inside: bool,
) -> dict[str, list[Frame]]:
    """What each session hears before and after the change. `other_link`: None on direct connections."""
    database.execute(TABLE)
    with ExitStack() as stack:

        def connect() -> WireClient:
            client = stack.enter_context(WireClient(socket.create_connection(address, 10)))
            return client.log_in(database.server.user, database.dbname)

        clients = {name: connect() for name in asked}
        heard = {name: _hear(client, _before(name)) for name, client in clients.items()}
        if other_link:
            holder = connect()
            holder.query("BEGIN")
            holder.query("SELECT 1")
        if inside:
            assert "E" not in kinds(connect().query(CHANGES[change]))
        else:
            database.execute(CHANGES[change])
        turns = ASKED | UNNAMED
        return {name: heard[name] + _hear(client, turns[name]) for name, client in clients.items()}


async def _use_asyncpg(address: tuple[str, int], database: Database, occupy: bool) -> list[object]:
    server = database.server

    async def connect() -> asyncpg.Connection:
        host, port = address
        return await asyncpg.connect(
            host=host, port=port, user=server.user, password=server.password, database=database.dbname
        )

    client, holder, seen = await connect(), await connect(), []
    try:
        prepared = await client.prepare("SELECT * FROM t WHERE id = $1")
        seen += [await prepared.fetchrow(1), await client.fetchrow("SELECT * FROM t LIMIT 1")]
        if occupy:
            await holder.execute("BEGIN; SELECT 1")
        database.execute("ALTER TABLE t ADD n int")
        for ask in (prepared.fetchrow, lambda key: client.fetchrow("SELECT * FROM t WHERE id = $1", key)):
            for _ in range(2):
                try:
                    seen.append(await ask(1))
                except asyncpg.InvalidCachedStatementError as error:
                    seen.append(type(error))
        seen.append(await client.fetchrow("SELECT * FROM t LIMIT 1"))
    finally:
        await client.close()
        await holder.close()
    return seen


@pytest.mark.parametrize("other_link", [False, True])
def test_asyncpg_sees_that_its_statement_is_stale(other_link: bool, database: Database) -> None:
    server = database.server
    database.execute(TABLE)
    direct = asyncio.run(_use_asyncpg((server.host, server.port), database, other_link))
    database.execute(TABLE)
    with RunningRelay(database, config={"pools": {"default_pool_size": 2}}) as relay:
        relayed = asyncio.run(_use_asyncpg(("127.0.0.1", relay.port), database, other_link))
    assert asyncpg.InvalidCachedStatementError in direct
    assert relayed == direct
