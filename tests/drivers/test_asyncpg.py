"""asyncpg, as it comes: it prepares everything, introspects types, and cancels by timeout."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from drivers.sides import Run, Sides

Connection = Any  # asyncpg has no types

SUM = "SELECT count(*), sum(balance) FROM account WHERE session = $1"


def told(error: asyncpg.PostgresError) -> tuple[Any, ...]:
    """What a programme can learn from an error."""
    return type(error).__name__, *(
        getattr(error, name, None)
        for name in (
            "sqlstate",
            "severity",
            "message",
            "detail",
            "hint",
            "constraint_name",
            "table_name",
            "position",
        )
    )


async def refused(connection: Connection, sql: str, *values: Any) -> tuple[Any, ...]:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.execute(sql, *values)
    return (*told(caught.value), connection.is_in_transaction())


async def fetched(connection: Connection, run: Run) -> Any:
    rows = await connection.fetch(
        "SELECT id, owner, balance FROM account WHERE session = $1 ORDER BY id", run.number
    )
    return (
        [tuple(row.items()) for row in rows],
        await connection.fetchrow("SELECT 1 AS a, NULL::text AS b, $1::int8[] AS c", [1, 2, None]),
        await connection.fetchval("SELECT owner FROM account WHERE session = $1 AND id = 3", run.number),
        await connection.execute(
            "UPDATE account SET owner = 'new' WHERE session = $1 AND id < 4", run.number
        ),
        await connection.execute("SELECT 1; SELECT 2"),
    )


async def prepared(connection: Connection, run: Run) -> Any:
    statement = await connection.prepare("SELECT owner, $2::text FROM account WHERE session = $1 AND id = $3")
    described = (
        [parameter.name for parameter in statement.get_parameters()],
        [(column.name, column.type.name) for column in statement.get_attributes()],
    )
    return described, [await statement.fetchrow(run.number, f"é{number}", number) for number in range(1, 15)]


async def more_than_are_kept(connection: Connection, run: Run) -> Any:
    """The connection below keeps five statements and closes the others at the server."""
    return [
        await connection.fetchval(f"SELECT {number} + count(*) FROM account WHERE session = $1", run.number)
        for _ in range(3)
        for number in range(8)
    ]


async def many(connection: Connection, run: Run) -> Any:
    rows = [(run.number, 100 + number, f"many {number}", Decimal(number)) for number in range(300)]
    await connection.executemany("INSERT INTO account VALUES ($1, $2, $3, $4)", rows)
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await connection.executemany(
            "INSERT INTO account VALUES ($1, $2, $3, $4)", [(run.number, 900, "x", 1), rows[0]]
        )
    return told(caught.value), await connection.fetchrow(SUM, run.number)


async def transactions(connection: Connection, run: Run) -> Any:
    answers = []
    async with connection.transaction():
        await connection.execute("UPDATE account SET balance = 1 WHERE session = $1", run.number)
        try:
            async with connection.transaction():
                await connection.execute("UPDATE account SET balance = 2 WHERE session = $1", run.number)
                await connection.execute("INSERT INTO account VALUES ($1, 1, 'twice', 0)", run.number)
        except asyncpg.UniqueViolationError as error:
            answers.append(told(error))
        answers.append(await connection.fetchrow(SUM, run.number))
    transaction = connection.transaction(isolation="serializable", readonly=True)
    await transaction.start()
    answers.append(await connection.fetchval("SHOW transaction_isolation"))
    answers.append(await refused(connection, "DELETE FROM account WHERE session = $1", run.number))
    answers.append(await refused(connection, "SELECT 1"))
    await transaction.rollback()
    return answers, await connection.fetchrow(SUM, run.number)


async def cursors(connection: Connection, run: Run) -> Any:
    async with connection.transaction():
        walked = [row[0] async for row in connection.cursor("SELECT generate_series(1, 120)", prefetch=25)]
        cursor = await connection.cursor("SELECT id FROM account WHERE session = $1 ORDER BY id", run.number)
        pieces = [await cursor.fetch(2), await cursor.forward(3), await cursor.fetchrow()]
    return walked, pieces


async def copies(connection: Connection, run: Run) -> Any:
    records = [(run.number, 1000 + number, f"tab\t{number}", Decimal(number)) for number in range(3000)]
    tag = await connection.copy_records_to_table(
        "account", records=records, columns=["session", "id", "owner", "balance"]
    )
    pieces: list[bytes] = []

    async def keep(piece: bytes) -> None:
        pieces.append(piece)

    out = await connection.copy_from_query(
        "SELECT * FROM account WHERE session = $1 ORDER BY id", run.number, output=keep, format="csv"
    )
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.copy_records_to_table("account", records=[(run.number, 1, "twice", Decimal(1))])
    return tag, out, b"".join(pieces), told(caught.value), await connection.fetchrow(SUM, run.number)


async def types(connection: Connection, run: Run) -> Any:
    """enum, composite and arrays of them make asyncpg read the catalogue."""
    row = (
        run.number,
        1,
        '{"a": [1, null, "é"]}',
        ["x", None, 'quote "'],
        bytes(range(256)) * 400,
        datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "élan",
        (3, Decimal("2.50"), "über"),
        0.1 + 0.2,
        uuid.UUID(int=run.number),
        asyncpg.Range(1, 9),
    )
    await connection.execute(
        "INSERT INTO document VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)", *row
    )
    found = await connection.fetchrow("SELECT * FROM document WHERE session = $1", run.number)
    composites = await connection.fetchval(
        "SELECT array_agg(spot) FROM document WHERE session = $1", run.number
    )
    moods = await connection.fetchval("SELECT $1::mood[]", ["calm", "busy"])
    described = await connection.prepare("SELECT spot, feeling FROM document")
    return (
        [(name, repr(value)) for name, value in found.items()],
        [tuple(composite.items()) for composite in composites],
        moods,
        [(column.type.name, column.type.kind, column.type.schema) for column in described.get_attributes()],
    )


async def errors(connection: Connection, run: Run) -> Any:
    answers = []
    for sql in (
        "SELEC 1",
        "SELECT nope FROM account",
        "SELECT * FROM nowhere",
        "SELECT 1 / 0",
        "SELECT 'x'::int",
    ):
        answers.append(await refused(connection, sql))
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.fetch("SELECT 1 / $1::int", 0)
    answers.append(told(caught.value))
    with pytest.raises(asyncpg.DataError):
        await connection.fetch("SELECT $1::int", "not a number")
    return answers, await connection.fetchval("SELECT 'alive'")


async def notices(connection: Connection, run: Run) -> Any:
    heard: list[Any] = []
    connection.add_log_listener(lambda _, message: heard.append((message.severity, message.message)))
    length = await connection.fetchval("SELECT announce($1)", f"hello {run.number}")
    return length, heard


async def cancelled(connection: Connection, run: Run) -> Any:
    """A task that is cancelled cancels its statement at the server; the connection goes on."""
    mark = f"asyncpg {run.port} {run.number}"
    task = asyncio.create_task(connection.fetch(f"SELECT pg_sleep(60) /* {mark} */"))
    await asyncio.to_thread(run.until_running, mark)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return await connection.fetchval("SELECT 'alive'")


async def timed_out(connection: Connection, run: Run) -> Any:
    """asyncpg cancels what takes too long, be it at the server or still waiting for a link."""
    answers = []
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await connection.fetch("SELECT pg_sleep(60)", timeout=0.2)
        answers.append(await connection.fetchval("SELECT 'alive'"))
    return answers


async def altered(connection: Connection, run: Run) -> Any:
    """A prepared statement's result type changes: the server refuses the plan, the driver prepares anew."""
    table = f"changing_{run.number}"
    await connection.execute(
        f"DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (a int); INSERT INTO {table} VALUES (1)"
    )
    answers = [tuple(await connection.fetchrow(f"SELECT * FROM {table}")) for _ in range(2)]
    await connection.execute(f"ALTER TABLE {table} ALTER a TYPE text, ADD b text DEFAULT 'new'")
    answers.append(tuple(await connection.fetchrow(f"SELECT * FROM {table}")))
    await connection.execute(f"DROP TABLE {table}")
    return answers


async def listening(connection: Connection, run: Run) -> Any:
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def hear(_: Any, __: int, channel: str, payload: str) -> None:
        heard.set_result((channel, payload))

    await connection.add_listener(f"news_{run.number}", hear)
    await connection.execute(f"NOTIFY news_{run.number}, 'hello'")
    answer = await asyncio.wait_for(heard, 30)
    await connection.remove_listener(f"news_{run.number}", hear)
    return answer


Part = Callable[[Connection, Run], Awaitable[Any]]

PARTS: tuple[Part, ...] = (
    fetched,
    prepared,
    more_than_are_kept,
    many,
    transactions,
    cursors,
    copies,
    types,
    errors,
    notices,
    cancelled,
    timed_out,
    listening,
)


async def connected(part: Part, run: Run) -> Any:
    connection = await asyncpg.connect(
        **run.keywords, database=run.database.dbname, ssl=False, statement_cache_size=5
    )
    try:
        return await part(connection, run)
    finally:
        await connection.close()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_same_as_direct(part: Part, sides: Sides) -> None:
    sides.compare(lambda run: asyncio.run(connected(part, run)))


def test_a_table_altered_behind_a_prepared_statement(sides: Sides) -> None:
    """Sessions after each other, so that each stays on one link, whose server holds the plan it refuses."""
    sides.compare(lambda run: asyncio.run(connected(altered, run)), at_once=1)


def test_a_pool_and_its_reset_query(sides: Sides) -> None:
    """Each connection given back is reset: pg_advisory_unlock_all(), CLOSE ALL, UNLISTEN *, RESET ALL."""

    async def programme(run: Run) -> Any:
        async with asyncpg.create_pool(
            **run.keywords, database=run.database.dbname, ssl=False, min_size=1, max_size=3
        ) as pool:

            async def turn(number: int) -> Any:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(
                        "UPDATE account SET balance = balance + 1 WHERE session = $1 AND id = $2",
                        run.number,
                        number,
                    )
                    return await connection.fetchval(
                        "SELECT balance FROM account WHERE session = $1 AND id = $2", run.number, number
                    )

            balances = await asyncio.gather(*(turn(number) for number in range(1, 13)))
            async with pool.acquire() as connection:
                await connection.execute("SET work_mem = '9MB'")
            async with pool.acquire() as connection:
                return (
                    balances,
                    await connection.fetchval("SHOW work_mem"),
                    await connection.fetchrow(SUM, run.number),
                )

    sides.compare(lambda run: asyncio.run(programme(run)))
