"""psycopg 3, as it comes: every part runs directly and through the proxy and must see the same values."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from drivers.sides import Run, Sides
from psycopg.rows import dict_row
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

Connection = psycopg.Connection[tuple[Any, ...]]


def connected(run: Run, **options: Any) -> Connection:
    return psycopg.connect(**run.keywords, dbname=run.database.dbname, **options)


def told(error: psycopg.Error) -> tuple[Any, ...]:
    """What a programme can learn from an error."""
    diagnosis = error.diag
    return (
        type(error).__name__,
        error.sqlstate,
        diagnosis.severity,
        diagnosis.message_primary,
        diagnosis.message_detail,
        diagnosis.message_hint,
        diagnosis.constraint_name,
        diagnosis.statement_position,
    )


def refused(connection: Connection, sql: str, *values: Any) -> tuple[Any, ...]:
    """The error a statement must end with, and the transaction's state behind it."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(sql, values)
    return (*told(caught.value), connection.info.transaction_status.name)


def simple(connection: Connection, run: Run) -> Any:
    cursor = connection.execute(
        "SELECT id, owner, balance FROM account WHERE session = %s ORDER BY id", [run.number]
    )
    columns = [
        (column.name, column.type_code, column.internal_size, column.scale)
        for column in cursor.description or ()
    ]
    return columns, cursor.fetchall(), cursor.rowcount, cursor.statusmessage


def several_statements(connection: Connection, run: Run) -> Any:
    cursor = connection.execute("SELECT 1 AS a; SELECT 'x' AS b, NULL AS c; VALUES (1), (2)")
    answers = [(cursor.statusmessage, cursor.fetchall())]
    while cursor.nextset():
        answers.append((cursor.statusmessage, cursor.fetchall()))
    return answers


def prepared_after_five(connection: Connection, run: Run) -> Any:
    """The sixth execution and those behind it use a statement with a name; each lands on any link."""
    answers = [
        connection.execute(
            "SELECT owner FROM account WHERE session = %s AND id = %s", [run.number, identifier]
        ).fetchone()
        for identifier in range(1, 15)
    ]
    return answers, len(connection._prepared._names)


def prepared_at_once(connection: Connection, run: Run) -> Any:
    """More statements than psycopg keeps: it drops the oldest at the server."""
    connection.prepared_max = 3
    answers = []
    for turn in range(3):
        for number in range(6):
            sql = f"SELECT {number} + %s::int, count(*) FROM account WHERE session = %s"
            answers.append(connection.execute(sql, [turn, run.number], prepare=True).fetchone())
    return answers


def prepared_binary(connection: Connection, run: Run) -> Any:
    with connection.cursor(binary=True) as cursor:
        rows = []
        for identifier in range(1, 9):
            cursor.execute(
                "SELECT balance, owner, %b::int8, %b::float8 FROM account WHERE session = %s AND id = %s",
                [identifier, identifier / 7, run.number, identifier],
                prepare=True,
            )
            rows.append(cursor.fetchone())
    return rows


def failing_prepare(connection: Connection, run: Run) -> Any:
    def attempt() -> Any:
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT nope FROM account WHERE session = %s", [run.number], prepare=True)
        connection.rollback()
        return told(caught.value)

    answers = [attempt(), attempt()]
    return answers, connection.execute("SELECT 1 + %s", [1], prepare=True).fetchone()


def deallocated_in_sql(connection: Connection, run: Run) -> Any:
    """What psycopg sends where its libpq is older than 17: SQL against statements of the protocol."""
    result = connection.pgconn.prepare(b"mine", b"SELECT $1::int + 1")
    first = connection.pgconn.exec_prepared(b"mine", [b"4"]).get_value(0, 0)
    dropped = connection.execute("DEALLOCATE mine").statusmessage
    again = refused(connection, "DEALLOCATE mine")
    gone = connection.pgconn.exec_prepared(b"mine", [b"4"]).error_message
    connection.rollback()
    connection.pgconn.prepare(b"mine", b"SELECT 'another'")
    second = connection.pgconn.exec_prepared(b"mine", []).get_value(0, 0)
    return result.status, first, dropped, again, gone, second


def deallocated_all(connection: Connection, run: Run) -> Any:
    for name in (b"one", b"two"):
        connection.pgconn.prepare(name, b"SELECT '" + name + b"'")
    tag = connection.execute("DEALLOCATE ALL").statusmessage
    gone = [connection.pgconn.exec_prepared(name, []).error_message for name in (b"one", b"two")]
    connection.rollback()
    return tag, gone, connection.pgconn.prepare(b"one", b"SELECT 3").status


def prepared_in_sql(connection: Connection, run: Run) -> Any:
    connection.execute("PREPARE sums (int, int) AS SELECT $1 + $2")
    answers = [connection.execute("EXECUTE sums (2, 3)").fetchone()]
    connection.commit()
    answers.append(connection.execute("EXECUTE sums (4, 5)").fetchone())
    tag = connection.execute("DEALLOCATE sums").statusmessage
    return answers, tag, refused(connection, "EXECUTE sums (1, 1)")


def pipelined(connection: Connection, run: Run) -> Any:
    with connection.pipeline() as pipeline:
        cursors = [connection.execute("SELECT %s::int * 2", [number]) for number in range(20)]
        connection.execute("UPDATE account SET owner = 'piped' WHERE session = %s AND id <= 3", [run.number])
        pipeline.sync()
        counted = connection.execute(
            "SELECT count(*) FROM account WHERE owner = 'piped' AND session = %s", [run.number]
        )
        rows = [cursor.fetchone() for cursor in (*cursors, counted)]
    connection.commit()
    return rows


def pipelined_error(connection: Connection, run: Run) -> Any:
    """What stands behind an error in a pipeline is not carried out; behind the next Sync all is well."""
    answers: list[Any] = []
    try:
        with connection.pipeline() as pipeline:
            connection.execute("INSERT INTO account VALUES (%s, 100, 'first', 1)", [run.number])
            bad = connection.execute("SELECT 1 / %s", [0])
            skipped = connection.execute("SELECT 2")
            pipeline.sync()
            for cursor in (bad, skipped):
                try:
                    answers.append(cursor.fetchone())
                except psycopg.Error as error:
                    answers.append((type(error).__name__, error.sqlstate))
    except psycopg.Error as error:
        answers.append((type(error).__name__, error.sqlstate))
    connection.rollback()
    left = connection.execute(
        "SELECT count(*) FROM account WHERE session = %s AND id = 100", [run.number]
    ).fetchone()
    return answers, left


def many(connection: Connection, run: Run) -> Any:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO account VALUES (%s, %s, %s, %s)",
            [(run.number, 200 + number, f"many {number}", Decimal(number) / 4) for number in range(50)],
        )
        inserted = cursor.rowcount
        cursor.executemany(
            "UPDATE account SET balance = balance + 1 WHERE session = %s AND id = %s RETURNING id, balance",
            [(run.number, 200 + number) for number in range(5)],
            returning=True,
        )
        rows = [cursor.fetchone()]
        while cursor.nextset():
            rows.append(cursor.fetchone())
    connection.commit()
    return inserted, rows


def server_side_cursor(connection: Connection, run: Run) -> Any:
    with connection.cursor("walk", scrollable=True) as cursor:
        cursor.execute("SELECT generate_series(1, 100), %s::text", ["é"])
        rows = [cursor.fetchone(), cursor.fetchmany(3)]
        cursor.scroll(10)
        rows.append(cursor.fetchmany(2))
        cursor.scroll(0, mode="absolute")
        rows.append(cursor.fetchone())
        cursor.itersize = 17
        rows.append(sum(row[0] for row in cursor))
    connection.commit()
    return rows


def held_cursor(connection: Connection, run: Run) -> Any:
    """WITH HOLD outlives the transaction: the link stays with the session."""
    cursor = connection.cursor("kept", withhold=True)
    cursor.execute("SELECT id FROM account WHERE session = %s ORDER BY id", [run.number])
    first = cursor.fetchmany(2)
    connection.commit()
    rest = cursor.fetchall()
    cursor.close()
    connection.commit()
    return first, rest


def copied_in(connection: Connection, run: Run) -> Any:
    with connection.cursor() as cursor:
        with cursor.copy("COPY account (session, id, owner, balance) FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((run.number, 1000 + number, f"tab\there {number}", Decimal(number)))
        text = cursor.rowcount
        with cursor.copy("COPY account (session, id, owner, balance) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "int4", "text", "numeric"])
            for number in range(100):
                copy.write_row((run.number, 3000 + number, "binary", Decimal(number)))
        binary = cursor.rowcount
    connection.commit()
    total = connection.execute("SELECT count(*), sum(balance) FROM account WHERE session = %s", [run.number])
    return text, binary, total.fetchone()


def copied_out(connection: Connection, run: Run) -> Any:
    with connection.cursor() as cursor:
        with cursor.copy(
            "COPY (SELECT * FROM account WHERE session = %s ORDER BY id) TO STDOUT", [run.number]
        ) as copy:
            rows = list(copy.rows())
        with cursor.copy("COPY (SELECT generate_series(1, 20000)) TO STDOUT (FORMAT binary)") as copy:
            size = sum(len(block) for block in copy)
    return rows, size


def copy_refused(connection: Connection, run: Run) -> Any:
    answers = []
    cursor = connection.cursor()
    with pytest.raises(psycopg.Error) as caught, cursor.copy("COPY account FROM STDIN") as copy:
        copy.write(b"not a number\t1\tx\t1\n" * 2000)
    answers.append(told(caught.value))
    connection.rollback()
    with pytest.raises(psycopg.Error) as caught, cursor.copy("COPY account FROM STDIN") as copy:
        copy.write(f"{run.number}\t9000\tx\t1\n")
        raise psycopg.DataError("the programme gave up")
    answers.append(str(caught.value))
    connection.rollback()
    left = connection.execute("SELECT count(*) FROM account WHERE session = %s", [run.number]).fetchone()
    return answers, left


def transactions(connection: Connection, run: Run) -> Any:
    count = "SELECT count(*) FROM account WHERE session = %s"
    insert = "INSERT INTO account VALUES (%s, %s, 'transacted', 1)"
    answers = []
    with connection.transaction():
        connection.execute(insert, [run.number, 500])
        with connection.transaction():
            connection.execute(insert, [run.number, 501])
        with connection.transaction(force_rollback=True):
            connection.execute(insert, [run.number, 502])
        try:
            with connection.transaction():
                connection.execute(insert, [run.number, 500])
        except psycopg.errors.UniqueViolation as error:
            answers.append(told(error))
    answers.append(connection.execute(count, [run.number]).fetchone())
    connection.commit()
    connection.execute(insert, [run.number, 503])
    connection.rollback()
    answers.append(connection.execute(count, [run.number]).fetchone())
    connection.commit()
    return answers


def savepoints(connection: Connection, run: Run) -> Any:
    connection.execute("SAVEPOINT outer_one")
    connection.execute("UPDATE account SET balance = 0 WHERE session = %s", [run.number])
    failed = refused(connection, "SELECT 1 / 0")
    inside = refused(connection, "SELECT 1")
    connection.execute("ROLLBACK TO outer_one")
    total = connection.execute("SELECT sum(balance) FROM account WHERE session = %s", [run.number]).fetchone()
    connection.execute("RELEASE outer_one")
    connection.commit()
    return failed, inside, total


def isolation(connection: Connection, run: Run) -> Any:
    answers = []
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    connection.read_only = True
    answers.append(connection.execute("SHOW transaction_isolation").fetchone())
    answers.append(refused(connection, "DELETE FROM account WHERE session = %s", run.number))
    connection.rollback()
    connection.isolation_level = None
    connection.read_only = None
    answers.append(connection.execute("SHOW transaction_isolation").fetchone())
    connection.commit()
    return answers


def autocommit(connection: Connection, run: Run) -> Any:
    connection.rollback()
    connection.autocommit = True
    try:
        states = []
        for sql in (
            "UPDATE account SET balance = 7 WHERE id = 1 AND session = %s",
            "SELECT sum(id) FROM account WHERE session = %s",
        ):
            connection.execute(sql, [run.number])
            states.append(connection.info.transaction_status.name)
        states.append(refused(connection, "SELECT 1 / 0"))
        return states
    finally:
        connection.autocommit = False


def errors(connection: Connection, run: Run) -> Any:
    answers = []
    for sql in (
        "SELEC 1",
        "SELECT nope FROM account",
        "SELECT * FROM nowhere",
        "INSERT INTO account VALUES (-1, 1, NULL, 1)",
        "INSERT INTO account VALUES (-1, 1, 'x', -5)",
        f"INSERT INTO account VALUES ({run.number}, 1, 'x', 5)",
        "SELECT 'x'::int",
        "SELECT pg_catalog.pg_terminate_backend('x')",
        "DO $$ BEGIN RAISE EXCEPTION 'own words'"
        " USING ERRCODE = 'PG001', HINT = 'a hint', DETAIL = 'a detail'; END $$",
    ):
        answers.append(refused(connection, sql))
        answers.append(refused(connection, "SELECT 1"))
        connection.rollback()
    return answers


def notices(connection: Connection, run: Run) -> Any:
    heard: list[Any] = []
    connection.add_notice_handler(
        lambda diagnosis: heard.append((diagnosis.severity, diagnosis.message_primary))
    )
    length = connection.execute("SELECT announce(%s)", [f"hello {run.number}"]).fetchone()
    connection.commit()
    return length, heard


def cancelled(connection: Connection, run: Run) -> Any:
    """The statement ends with 57014, the next one does not; five sessions cancel on two links."""
    answers = []
    connection.rollback()
    with ThreadPoolExecutor(1) as pool:
        for turn in range(2):
            mark = f"psycopg {run.port} {run.number} {turn}"
            running = pool.submit(connection.execute, f"SELECT pg_sleep(60) /* {mark} */")
            run.until_running(mark)
            connection.cancel_safe()
            error = running.exception()
            assert isinstance(error, psycopg.Error)
            answers.append(told(error))
            connection.rollback()
            answers.append(connection.execute("SELECT 'alive'").fetchone())
            connection.rollback()
    return answers


def types(connection: Connection, run: Run) -> Any:
    composite = CompositeInfo.fetch(connection, "place")
    enum = EnumInfo.fetch(connection, "mood")
    assert composite is not None and enum is not None
    register_composite(composite, connection)
    register_enum(enum, connection)
    place = composite.python_type
    assert place is not None
    row = {
        "session": run.number,
        "id": 1,
        "body": Jsonb({"a": [1, None, "é"], "deep": {"b": True}}),
        "tags": ["x", None, 'quote " and , comma'],
        "blob": bytes(range(256)) * 500,
        "written": datetime.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=datetime.UTC),
        "feeling": "élan",
        "spot": place(3, Decimal("2.50"), "über"),
        "ratio": 0.1 + 0.2,
        "token": uuid.UUID(int=run.number),
        "span": Range(1, 9),
    }
    answers = []
    for binary in (False, True):
        connection.execute("DELETE FROM document WHERE session = %s", [run.number])
        mark = "b" if binary else "s"
        values = ", ".join(f"%({name}){'s' if name in ('feeling', 'spot') else mark}" for name in row)
        connection.execute(f"INSERT INTO document ({', '.join(row)}) VALUES ({values})", row)
        with connection.cursor(row_factory=dict_row, binary=binary) as cursor:
            cursor.execute("SELECT * FROM document WHERE session = %s", [run.number])
            found = cursor.fetchone()
        assert found is not None
        answers.append(
            {
                **found,
                "spot": tuple(found["spot"]),
                "feeling": found["feeling"].name,
                "span": str(found["span"]),
            }
        )
    connection.commit()
    return answers


def settings(connection: Connection, run: Run) -> Any:
    """SET lasts beyond the transaction, SET LOCAL does not, a rollback takes SET back."""
    answers = []
    connection.execute("SET LOCAL work_mem = '5MB'")
    answers.append(connection.execute("SHOW work_mem").fetchone())
    connection.commit()
    answers.append(connection.execute("SHOW work_mem").fetchone())
    connection.execute(f"SET app.tenant_id = '{run.number}'")
    connection.commit()
    answers.append(connection.execute("SELECT current_setting('app.tenant_id')").fetchone())
    connection.execute("SET timezone = 'Asia/Tokyo'")
    connection.rollback()
    answers.append(
        (connection.execute("SHOW timezone").fetchone(), connection.info.parameter_status("TimeZone"))
    )
    return answers


def temporary_table(connection: Connection, run: Run) -> Any:
    connection.execute("CREATE TEMP TABLE scratch (n int)")
    connection.commit()
    connection.execute("INSERT INTO scratch VALUES (%s)", [run.number])
    connection.commit()
    return connection.execute("SELECT * FROM scratch").fetchall()


Part = Callable[[Connection, Run], Any]

PARTS: tuple[Part, ...] = (
    simple,
    several_statements,
    prepared_after_five,
    prepared_at_once,
    prepared_binary,
    failing_prepare,
    deallocated_in_sql,
    deallocated_all,
    pipelined,
    pipelined_error,
    many,
    server_side_cursor,
    copied_in,
    copied_out,
    copy_refused,
    transactions,
    savepoints,
    isolation,
    autocommit,
    errors,
    notices,
    cancelled,
    types,
    held_cursor,
    settings,
    prepared_in_sql,
    temporary_table,
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_same_as_direct(part: Part, sides: Sides) -> None:
    def programme(run: Run) -> Any:
        with connected(run) as connection:
            try:
                return part(connection, run)
            finally:
                connection.rollback()

    sides.compare(programme)


def test_one_connection_for_everything(sides: Sides) -> None:
    """What one part leaves behind must not show in the next."""

    def programme(run: Run) -> Any:
        answers = {}
        with connected(run) as connection:
            for part in PARTS:
                answers[part.__name__] = part(connection, run)
                connection.rollback()
        return answers

    sides.compare(programme)


def test_what_the_server_said_at_login(sides: Sides) -> None:
    def programme(run: Run) -> Any:
        with connected(
            run, application_name=f"programme {run.number}", options="-c work_mem=7MB -c DateStyle=German"
        ) as connection:
            reported = (
                "server_version",
                "server_encoding",
                "client_encoding",
                "TimeZone",
                "DateStyle",
                "application_name",
                "is_superuser",
                "session_authorization",
                "integer_datetimes",
                "standard_conforming_strings",
            )
            asked = connection.execute(
                "SELECT current_setting('work_mem'), current_setting('application_name'),"
                " DATE '2024-02-29'::text"
            )
            return {name: connection.info.parameter_status(name) for name in reported}, asked.fetchone()

    sides.compare(programme)
