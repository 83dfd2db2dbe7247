"""psycopg 3 on asyncio: the parts of it that differ from the blocking driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from drivers.sides import Run, Sides

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def prepared(connection: Connection, run: Run) -> Any:
    connection.prepared_max = 2
    answers = []
    for identifier in range(1, 12):
        for column in ("owner", "balance", "id"):
            cursor = await connection.execute(
                f"SELECT {column} FROM account WHERE session = %s AND id = %s", [run.number, identifier]
            )
            answers.append(await cursor.fetchone())
    return answers


async def pipelined(connection: Connection, run: Run) -> Any:
    async with connection.pipeline():
        cursors = [await connection.execute("SELECT %s::text || 'x'", [str(number)]) for number in range(30)]
        async with connection.cursor() as cursor:
            rows = [(run.number, 700 + number, "piped", number) for number in range(10)]
            await cursor.executemany("INSERT INTO account VALUES (%s, %s, %s, %s)", rows)
    return [await cursor.fetchone() for cursor in cursors], connection.info.transaction_status.name


async def cursors(connection: Connection, run: Run) -> Any:
    async with connection.transaction(), connection.cursor("walk") as cursor:
        cursor.itersize = 7
        await cursor.execute("SELECT generate_series(1, 40)")
        return [row async for row in cursor]


async def copies(connection: Connection, run: Run) -> Any:
    async with connection.transaction(), connection.cursor() as cursor:
        async with cursor.copy("COPY account FROM STDIN") as copy:
            for number in range(500):
                await copy.write_row((run.number, 800 + number, None if number < 0 else "copied", number))
        async with cursor.copy("COPY (SELECT * FROM account ORDER BY session, id) TO STDOUT") as copy:
            lines = [bytes(line) async for line in copy]
    own = f"{run.number}\t".encode()
    return [line for line in lines if line.startswith(own)]


async def transactions(connection: Connection, run: Run) -> Any:
    answers = []
    try:
        async with connection.transaction():
            await connection.execute("UPDATE account SET balance = 0 WHERE session = %s", [run.number])
            async with connection.transaction():
                await connection.execute("UPDATE account SET balance = -1 WHERE session = %s", [run.number])
    except psycopg.errors.CheckViolation as error:
        answers.append((error.sqlstate, error.diag.message_primary, error.diag.constraint_name))
    cursor = await connection.execute("SELECT sum(balance) FROM account WHERE session = %s", [run.number])
    return answers, await cursor.fetchone()


async def cancelled(connection: Connection, run: Run) -> Any:
    """A task that is cancelled cancels its statement at the server; the connection goes on."""
    mark = f"async psycopg {run.port} {run.number}"
    task = asyncio.create_task(connection.execute(f"SELECT pg_sleep(60) /* {mark} */"))
    await asyncio.to_thread(run.until_running, mark)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    status = connection.info.transaction_status.name
    await connection.rollback()
    return status, await (await connection.execute("SELECT 'alive'")).fetchone()


async def notified(connection: Connection, run: Run) -> Any:
    """LISTEN keeps the link; a session notifies itself."""
    channel = f"news_{run.number}"
    await connection.set_autocommit(True)
    await connection.execute(f"LISTEN {channel}")
    await connection.execute("SELECT pg_notify(%s, 'hello')", [channel])
    heard = [
        (notice.channel, notice.payload) async for notice in connection.notifies(timeout=30, stop_after=1)
    ]
    await connection.execute("UNLISTEN *")
    await connection.set_autocommit(False)
    return heard


Part = Callable[[Connection, Run], Awaitable[Any]]

PARTS: tuple[Part, ...] = (prepared, pipelined, cursors, copies, transactions, cancelled, notified)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_same_as_direct(part: Part, sides: Sides) -> None:
    async def programme(run: Run) -> Any:
        async with await psycopg.AsyncConnection.connect(
            **run.keywords, dbname=run.database.dbname
        ) as connection:
            return await part(connection, run)

    sides.compare(lambda run: asyncio.run(programme(run)))
