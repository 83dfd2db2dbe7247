"""Gives four PostgreSQL drivers one face: run a statement, get tuples or a Failure.

Each speaks the protocol in a way of its own, which is why the demo uses them all: psycopg async prepares what
it repeats, asyncpg prepares everything, pg8000 sends unnamed statements, psycopg's ClientCursor simple ones.
Statements have $1, $2, … for parameters. The blocking drivers run in a thread of their own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import asyncpg
import pg8000.exceptions
import pg8000.native
import psycopg
import psycopg.rows

from pgshunt.demo.services import Driver

LOST = "08006"  # connection_failure: what a driver that names no SQLSTATE means when its connection is gone
CONNECT_TIMEOUT_S = 10

Row = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """All that a service knows of its database: the proxy's address and its own login."""

    host: str
    port: int
    user: str
    password: str
    dbname: str


class Failure(Exception):
    """A statement failed: its SQLSTATE, and whether the connection is lost with it."""

    def __init__(self, sqlstate: str | None, message: object, *, lost: bool) -> None:
        self.sqlstate = sqlstate or LOST
        self.lost = lost
        super().__init__(f"{self.sqlstate}: {message}".strip())


class Session(Protocol):
    """One connection, in autocommit; BEGIN and COMMIT are statements like others."""

    async def run(self, sql: str, *parameters: Any) -> list[Row]:
        """The rows, [] if there are none. Raises Failure."""

    async def close(self) -> None:
        """Says goodbye if the connection still stands; never raises."""


async def connect(driver: Driver, address: Address) -> Session:
    """A connected session. Raises Failure."""
    return await CONNECT[driver](address)


class PsycopgAsyncSession:
    """psycopg 3 on asyncio: extended protocol; a statement used five times is prepared."""

    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, address: Address) -> Session:
        try:
            connection = await psycopg.AsyncConnection.connect(
                **_libpq(address), cursor_factory=psycopg.AsyncRawCursor
            )
        except psycopg.Error as error:
            raise Failure(error.sqlstate, error, lost=True) from error
        return cls(connection)

    async def run(self, sql: str, *parameters: Any) -> list[Row]:
        try:
            cursor = await self._connection.execute(sql, parameters or None)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise Failure(error.sqlstate, error, lost=self._connection.broken) from error

    async def close(self) -> None:
        await self._connection.close()


class AsyncpgSession:
    """asyncpg: every statement is a named prepared one, results are binary."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, address: Address) -> Session:
        try:
            return cls(
                await asyncpg.connect(
                    host=address.host,
                    port=address.port,
                    user=address.user,
                    password=address.password,
                    database=address.dbname,
                    timeout=CONNECT_TIMEOUT_S,
                )
            )
        except (asyncpg.PostgresError, OSError, TimeoutError, asyncpg.InterfaceError) as error:
            raise Failure(getattr(error, "sqlstate", None), error, lost=True) from error

    async def run(self, sql: str, *parameters: Any) -> list[Row]:
        try:
            return [tuple(row) for row in await self._connection.fetch(sql, *parameters)]
        except (
            *(asyncpg.PostgresError, asyncpg.InterfaceError, OSError),
            asyncpg.InternalClientError,  # a connection that was lost in the middle of Parse
        ) as error:
            lost = self._connection.is_closed() or isinstance(error, OSError)
            raise Failure(getattr(error, "sqlstate", None), error, lost=lost) from error

    async def close(self) -> None:
        self._connection.terminate()


class _ThreadSession:
    """What the blocking drivers share: a thread that does all they do."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class PsycopgSession(_ThreadSession):
    """psycopg 3 with ClientCursor: values are written into the text, sent as simple queries."""

    _connection: psycopg.Connection[Row]

    @classmethod
    async def connect(cls, address: Address) -> Session:
        session = cls()
        try:
            session._connection = await session._in_thread(
                lambda: psycopg.Connection.connect(**_libpq(address), cursor_factory=psycopg.ClientCursor)
            )
        except psycopg.Error as error:
            session._thread.shutdown(wait=False)
            raise Failure(error.sqlstate, error, lost=True) from error
        return session

    async def run(self, sql: str, *parameters: Any) -> list[Row]:
        return await self._in_thread(lambda: self._run(sql, parameters))

    def _run(self, sql: str, parameters: Row) -> list[Row]:
        try:
            named = {f"p{number}": value for number, value in enumerate(parameters, 1)}
            cursor = self._connection.execute(_percent_style(sql) if parameters else sql, named or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise Failure(error.sqlstate, error, lost=self._connection.broken) from error

    async def close(self) -> None:
        await self._in_thread(self._connection.close)
        self._thread.shutdown(wait=False)


class Pg8000Session(_ThreadSession):
    """pg8000: pure Python, unnamed statements, text."""

    _connection: pg8000.native.Connection

    @classmethod
    async def connect(cls, address: Address) -> Session:
        session = cls()
        try:
            session._connection = await session._in_thread(
                lambda: pg8000.native.Connection(
                    address.user,
                    host=address.host,
                    port=address.port,
                    password=address.password,
                    database=address.dbname,
                    timeout=None,
                )
            )
        except (pg8000.exceptions.Error, OSError) as error:
            session._thread.shutdown(wait=False)
            raise _pg8000_failure(error, lost=True) from error
        return session

    async def run(self, sql: str, *parameters: Any) -> list[Row]:
        return await self._in_thread(lambda: self._run(sql, parameters))

    def _run(self, sql: str, parameters: Row) -> list[Row]:
        try:
            named = {f"p{number}": value for number, value in enumerate(parameters, 1)}
            return [tuple(row) for row in self._connection.run(_colon_style(sql), **named) or ()]
        except (pg8000.exceptions.Error, OSError) as error:
            raise _pg8000_failure(error) from error

    async def close(self) -> None:
        try:
            await self._in_thread(self._connection.close)
        except (pg8000.exceptions.Error, OSError):
            pass  # pg8000 says goodbye on a broken connection too, and complains that nobody listens
        self._thread.shutdown(wait=False)


CONNECT = {
    "psycopg_async": PsycopgAsyncSession.connect,
    "psycopg": PsycopgSession.connect,
    "asyncpg": AsyncpgSession.connect,
    "pg8000": Pg8000Session.connect,
}


def _libpq(address: Address) -> dict[str, Any]:
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "dbname": address.dbname,
        "autocommit": True,
        "connect_timeout": CONNECT_TIMEOUT_S,
    }


def _pg8000_failure(error: Exception, *, lost: bool = False) -> Failure:
    """pg8000 gives the server's fields as a dictionary; anything else it raises is about the connection."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    fatal = fields.get("S") in ("FATAL", "PANIC")
    return Failure(fields.get("C"), fields.get("M", error), lost=lost or fatal or not fields)


@cache
def _percent_style(sql: str) -> str:
    return re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%"))


@cache
def _colon_style(sql: str) -> str:
    return re.sub(r"\$(\d+)", r":p\1", sql)
