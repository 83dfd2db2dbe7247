"""pg8000, native and DB-API: pure Python, unnamed and named statements, its own COPY."""

from __future__ import annotations

import datetime
import io
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pg8000.dbapi
import pg8000.native
import pytest
from drivers.sides import Run, Sides

Native = pg8000.native.Connection
Dbapi = pg8000.dbapi.Connection


def told(error: Exception) -> Any:
    """pg8000 raises the fields of ErrorResponse; file, line and routine are the server's own business."""
    fields = error.args[0]
    return (
        {key: value for key, value in fields.items() if key not in "FLR"}
        if isinstance(fields, dict)
        else fields
    )


def refused(connection: Native, sql: str, **values: Any) -> Any:
    with pytest.raises(pg8000.native.Error) as caught:
        connection.run(sql, **values)
    return told(caught.value)


def rows(connection: Native, run: Run) -> Any:
    found = connection.run(
        "SELECT id, owner, balance FROM account WHERE session = :n ORDER BY id", n=run.number
    )
    return (
        found,
        [(column["name"], column["type_oid"]) for column in connection.columns],
        connection.row_count,
    )


def several_statements(connection: Native, run: Run) -> Any:
    return connection.run("SELECT 1; SELECT 2; CREATE TEMP TABLE gone (a int) ON COMMIT DROP")


def prepared(connection: Native, run: Run) -> Any:
    statement = connection.prepare("SELECT owner, :word FROM account WHERE session = :n AND id = :id")
    answers = [statement.run(word=f"é{number}", n=run.number, id=number) for number in range(1, 15)]
    statement.close()
    again = connection.prepare("SELECT 1")
    return answers, again.run(), again.run()


def transactions(connection: Native, run: Run) -> Any:
    answers = []
    connection.run("START TRANSACTION")
    connection.run("UPDATE account SET balance = 0 WHERE session = :n", n=run.number)
    connection.run("SAVEPOINT here")
    answers.append(refused(connection, "UPDATE account SET balance = -1 WHERE session = :n", n=run.number))
    answers.append(refused(connection, "SELECT 1"))
    connection.run("ROLLBACK TO here")
    answers.append(connection.run("SELECT sum(balance) FROM account WHERE session = :n", n=run.number))
    connection.run("ROLLBACK")
    answers.append(connection.run("SELECT sum(balance) FROM account WHERE session = :n", n=run.number))
    return answers


def copies(connection: Native, run: Run) -> Any:
    data = io.BytesIO("".join(f"{run.number}\t{1000 + n}\tcopied {n}\t{n}\n" for n in range(3000)).encode())
    connection.run("COPY account FROM STDIN", stream=data)
    copied = connection.row_count
    out = io.BytesIO()
    connection.run(
        f"COPY (SELECT * FROM account WHERE session = {run.number} ORDER BY id) TO STDOUT", stream=out
    )
    listed = ["first", "second"]
    connection.run(
        "COPY account (session, id, owner) FROM STDIN (FORMAT csv)",
        stream=[f"{run.number},{5000 + index},{word}\n" for index, word in enumerate(listed)],
    )
    return (
        copied,
        out.getvalue(),
        connection.run("SELECT count(*) FROM account WHERE session = :n", n=run.number),
    )


def copy_refused(connection: Native, run: Run) -> Any:
    with pytest.raises(pg8000.native.Error) as caught:
        connection.run("COPY account FROM STDIN", stream=io.BytesIO(b"x\t1\tx\t1\n" * 5000))
    return told(caught.value), connection.run("SELECT count(*) FROM account WHERE session = :n", n=run.number)


def errors(connection: Native, run: Run) -> Any:
    statements = (
        "SELEC 1",
        "SELECT nope FROM account",
        "SELECT * FROM nowhere",
        "SELECT 1 / 0",
        "SELECT 'x'::int",
    )
    return [refused(connection, sql) for sql in statements], refused(connection, "SELECT 1 / :n", n=0)


def types(connection: Native, run: Run) -> Any:
    values = {
        "session": run.number,
        "id": 1,
        "body": '{"a": [1, null]}',
        "tags": ["x", None, 'quote "'],
        "blob": bytes(range(256)) * 300,
        "written": datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
        "feeling": "élan",
        "spot": ("3", "2.50", "über"),
        "ratio": 0.1 + 0.2,
        "token": uuid.UUID(int=run.number),
        "span": pg8000.Range(1, 9),
    }
    marks = ", ".join(f":{name}" for name in values)
    connection.run(f"INSERT INTO document ({', '.join(values)}) VALUES ({marks})", **values)
    found = connection.run("SELECT * FROM document WHERE session = :n", n=run.number)
    return [[repr(value) for value in row] for row in found]


def notices(connection: Native, run: Run) -> Any:
    length = connection.run("SELECT announce(:words)", words=f"hello {run.number}")
    heard = [
        {key: value for key, value in notice.items() if key not in (b"F", b"L", b"R")}
        for notice in connection.notices
    ]
    return length, heard


Part = Callable[[Native, Run], Any]

PARTS: tuple[Part, ...] = (
    rows,
    several_statements,
    prepared,
    transactions,
    copies,
    copy_refused,
    errors,
    types,
    notices,
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_native_same_as_direct(part: Part, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        connection = Native(**run.keywords, database=run.database.dbname)
        try:
            return part(connection, run)
        finally:
            connection.close()

    sides.compare(programme)


def cursor_rows(connection: Dbapi, run: Run) -> Any:
    cursor = connection.cursor()
    cursor.execute("SELECT id, owner, balance FROM account WHERE session = %s ORDER BY id", (run.number,))
    return cursor.description, cursor.fetchone(), cursor.fetchmany(3), cursor.fetchall(), cursor.rowcount


def commits(connection: Dbapi, run: Run) -> Any:
    """BEGIN is sent with the first statement, by the extended protocol."""
    cursor = connection.cursor()
    insert = "INSERT INTO account VALUES (%s, %s, %s, %s)"
    answers = []
    cursor.executemany(insert, [(run.number, 100 + number, "many", Decimal(number)) for number in range(20)])
    connection.commit()
    cursor.execute(insert, (run.number, 200, "undone", 1))
    connection.rollback()
    try:
        cursor.execute(insert, (run.number, 1, "twice", 1))
    except pg8000.dbapi.DatabaseError as error:
        answers.append(told(error))
    connection.rollback()
    cursor.execute("SELECT count(*), sum(balance) FROM account WHERE session = %s", (run.number,))
    answers.append(cursor.fetchall())
    connection.commit()
    return answers


def autocommits(connection: Dbapi, run: Run) -> Any:
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("UPDATE account SET owner = %s WHERE session = %s", ("all of them", run.number))
    counted = cursor.rowcount
    connection.autocommit = False
    connection.rollback()
    cursor.execute("SELECT DISTINCT owner FROM account WHERE session = %s", (run.number,))
    return counted, cursor.fetchall()


def streams(connection: Dbapi, run: Run) -> Any:
    cursor = connection.cursor()
    data = io.StringIO("".join(f"{run.number}\t{300 + n}\tétream\t1\n" for n in range(10)))
    cursor.execute("COPY account FROM STDIN", stream=data)
    connection.commit()
    out = io.BytesIO()
    cursor.execute(
        f"COPY (SELECT * FROM account WHERE session = {run.number} ORDER BY id) TO STDOUT", stream=out
    )
    return out.getvalue()


DbapiPart = Callable[[Dbapi, Run], Any]

DBAPI_PARTS: tuple[DbapiPart, ...] = (cursor_rows, commits, autocommits, streams)


@pytest.mark.parametrize("part", DBAPI_PARTS, ids=lambda part: part.__name__)
def test_dbapi_same_as_direct(part: DbapiPart, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        connection = pg8000.dbapi.connect(**run.keywords, database=run.database.dbname)
        try:
            return part(connection, run)
        finally:
            connection.close()

    sides.compare(programme)
