"""psycopg2: simple queries only, transactions by itself, cursors in SQL, COPY, function calls.

Not its cancel(): it keeps the interpreter's lock until the server has answered, and here that is a thread.
"""

from __future__ import annotations

import datetime
import io
import select
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from drivers.sides import Run, Sides

Connection = psycopg2.extensions.connection


def told(error: psycopg2.Error) -> Any:
    diagnosis = error.diag
    fields = ("severity", "sqlstate", "message_primary", "message_detail", "message_hint", "constraint_name")
    return type(error).__name__, [getattr(diagnosis, field) for field in fields]


def refused(connection: Connection, sql: str, *values: Any) -> Any:
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error) as caught:
        cursor.execute(sql, values or None)
    return told(caught.value)


def asked(connection: Connection, sql: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, values or None)
        return cursor.statusmessage, cursor.rowcount, cursor.fetchall() if cursor.description else None


def transactions(connection: Connection, run: Run) -> Any:
    balance = "SELECT sum(balance) FROM account WHERE session = %s"
    insert = "INSERT INTO account VALUES (%s, %s, 'transacted', 1)"
    answers = [asked(connection, insert, run.number, 500)]
    answers.append(asked(connection, "SAVEPOINT here"))
    answers.append(refused(connection, insert, run.number, 500))
    answers.append(refused(connection, "SELECT 1"))
    answers.append(asked(connection, "ROLLBACK TO here"))
    connection.commit()
    with connection:
        answers.append(asked(connection, insert, run.number, 501))
    with pytest.raises(psycopg2.IntegrityError), connection:
        asked(connection, insert, run.number, 501)
    connection.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
    answers.append(asked(connection, "SHOW transaction_isolation"))
    answers.append(refused(connection, insert, run.number, 502))
    connection.rollback()
    connection.set_session(isolation_level="DEFAULT", readonly=False, deferrable=False)
    answers.append(asked(connection, balance, run.number))
    return answers, connection.get_transaction_status()


def autocommit(connection: Connection, run: Run) -> Any:
    connection.autocommit = True
    answers = [
        asked(connection, "UPDATE account SET balance = 7 WHERE id = 1 AND session = %s", run.number),
        refused(connection, "SELECT 1 / 0"),
        asked(connection, "SELECT 1; SELECT 'last'"),
        refused(connection, "INSERT INTO account VALUES (-7, 1, 'x', 1); SELECT 1 / 0"),
        asked(connection, "SELECT count(*) FROM account WHERE session = -7"),
        connection.get_transaction_status(),
    ]
    connection.autocommit = False
    return answers


def cursors(connection: Connection, run: Run) -> Any:
    answers = []
    with connection.cursor("walk", scrollable=True) as cursor:
        cursor.itersize = 7
        cursor.execute("SELECT generate_series(1, 40)")
        answers += [cursor.fetchmany(3), cursor.fetchone()]
        cursor.scroll(-2)
        answers += [cursor.fetchone(), list(cursor)]
    connection.commit()
    with connection.cursor("held", withhold=True) as cursor:
        cursor.execute("SELECT id FROM account WHERE session = %s ORDER BY id LIMIT 9", [run.number])
        connection.commit()
        answers.append(cursor.fetchall())
    connection.commit()
    return answers


def copies(connection: Connection, run: Run) -> Any:
    answers: list[Any] = []
    with connection.cursor() as cursor:
        lines = "".join(f"{run.number}\t{1000 + n}\tcopied {n}\t{n}\n" for n in range(3000))
        cursor.copy_from(io.StringIO(lines), "account")
        answers.append(cursor.rowcount)
        out = io.StringIO()
        cursor.copy_expert(
            f"COPY (SELECT * FROM account WHERE session = {run.number} ORDER BY id) TO STDOUT", out
        )
        answers.append(out.getvalue())
    connection.commit()
    for source in (io.StringIO("x\t1\tx\t1\n" * 2000), Broken()):
        with connection.cursor() as cursor, pytest.raises(psycopg2.Error) as caught:
            cursor.copy_expert("COPY account FROM STDIN", source)
        answers.append((type(caught.value).__name__, caught.value.pgcode))
        connection.rollback()
    return answers, asked(connection, "SELECT count(*) FROM account WHERE session = %s", run.number)


class Broken(io.StringIO):
    """A file that cannot be read: psycopg2 ends the COPY with CopyFail."""

    def read(self, size: int | None = -1) -> str:
        raise RuntimeError("no more data")


def types(connection: Connection, run: Run) -> Any:
    psycopg2.extras.register_uuid(conn_or_curs=connection)
    psycopg2.extras.register_composite("place", connection)
    row = (
        run.number,
        psycopg2.extras.Json({"a": [1, None, "é"]}),
        ["x", None, 'quote " and , comma'],
        psycopg2.Binary(bytes(range(256)) * 400),
        datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC),
        (3, Decimal("2.50"), "über"),
        0.1 + 0.2,
        uuid.UUID(int=run.number),
        psycopg2.extras.NumericRange(1, 9),
    )
    asked(connection, "DELETE FROM document WHERE session = %s", run.number)
    asked(
        connection,
        "INSERT INTO document VALUES (%s, 1, %s, %s, %s, %s, 'élan', %s::place, %s, %s, %s::int4range)",
        *row,
    )
    connection.commit()
    _, _, [found] = asked(connection, "SELECT * FROM document WHERE session = %s", run.number)
    return [bytes(value) if isinstance(value, memoryview) else repr(value) for value in found]


def errors(connection: Connection, run: Run) -> Any:
    answers = []
    for sql in (
        "SELEC 1",
        "SELECT nope FROM account",
        "SELECT * FROM nowhere",
        "INSERT INTO account VALUES (-1, 1, NULL, 1)",
        "INSERT INTO account VALUES (-1, 1, 'x', -5)",
        "DO $$ BEGIN RAISE EXCEPTION 'own words' USING ERRCODE = 'PG001', HINT = 'a hint'; END $$",
    ):
        answers.append(refused(connection, sql))
        connection.rollback()
    answers.append(asked(connection, "SELECT announce('hello')"))
    return answers, connection.notices


def many(connection: Connection, run: Run) -> Any:
    rows = [(run.number, 2000 + n, "many", n) for n in range(1000)]
    with connection.cursor() as cursor:
        returned = psycopg2.extras.execute_values(
            cursor, "INSERT INTO account VALUES %s RETURNING id", rows, page_size=90, fetch=True
        )
    connection.commit()
    return returned


def listened(connection: Connection, run: Run) -> Any:
    channel = f"psycopg2_{run.number}"
    connection.autocommit = True
    asked(connection, f"LISTEN {channel}")
    asked(connection, "SELECT pg_notify(%s, 'hello')", channel)
    while not connection.notifies:
        assert select.select([connection], [], [], 30)[0], "no notification came"
        connection.poll()
    news = connection.notifies.pop()
    asked(connection, "UNLISTEN *")
    connection.autocommit = False
    return news.channel, news.payload, news.pid == connection.info.backend_pid


def settings(connection: Connection, run: Run) -> Any:
    answers = [
        asked(connection, f"SET app.tenant_id = '{run.number}'"),
        asked(connection, "SET LOCAL work_mem = '5MB'"),
    ]
    connection.commit()
    answers.append(asked(connection, "SELECT current_setting('app.tenant_id'), current_setting('work_mem')"))
    connection.set_client_encoding("LATIN1")
    answers.append(asked(connection, "SELECT 'é', length('é')"))
    answers.append((connection.encoding, connection.get_parameter_status("client_encoding")))
    connection.set_client_encoding("UTF8")
    connection.reset()
    return answers, asked(connection, "SELECT current_setting('app.tenant_id', true)")


def large_objects(connection: Connection, run: Run) -> Any:
    """Function call messages."""
    large = connection.lobject(0, "wb")
    written = [large.write(bytes(range(256)) * 500), large.tell(), large.seek(10)]
    large.close()
    again = connection.lobject(large.oid, "rwb")
    again.seek(100)
    read = [again.read(50), again.truncate(1000), again.seek(0, 2)]
    again.unlink()
    connection.commit()
    with pytest.raises(psycopg2.Error) as caught:
        connection.lobject(large.oid, "rb")
    connection.rollback()
    return written, read, caught.value.pgcode


Part = Callable[[Connection, Run], Any]

PARTS: tuple[Part, ...] = (
    transactions,
    autocommit,
    cursors,
    copies,
    types,
    errors,
    many,
    listened,
    settings,
    large_objects,
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_same_as_direct(part: Part, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        connection = psycopg2.connect(**run.keywords, dbname=run.database.dbname)
        try:
            return part(connection, run)
        finally:
            connection.close()

    sides.compare(programme)
