"""Runs the supervisor's own SQL: a connection and a thread for each server and purpose, every wait bounded.

pg8000 blocks, and its connections belong to one thread at a time. `Server.run` hands a function to its
thread and waits without blocking the event loop:

    rows = await server.run(lambda link: link.rows("SELECT 1"), timeout_s=2)

`Link` alone (from `connect`) serves code that lives in a thread anyway, as the heartbeats do.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from pg8000.exceptions import DatabaseError, InterfaceError
from pg8000.native import Connection, PreparedStatement

from pgshunt.config.model import Control, ServerTls
from pgshunt.config.tls import connecting
from pgshunt.migration.aside import Aside, Crowded
from pgshunt.routing.table import Endpoint

Result = TypeVar("Result")

CONNECT_TIMEOUT_S: Final = 5.0
GRACE_S: Final = 0.5
"""The server's statement_timeout fires first and says more; the socket's is for a server that is gone."""

# Users create things in their databases: an operator or a function of theirs, found on the path, would run
# with our rights (CVE-2018-1058), and so would what a value says where a backslash can end a literal.
_OURS_ONLY: Final = "SET search_path = pg_catalog, pg_temp; SET standard_conforming_strings = on"

# What pg8000 raises, besides its own InterfaceError, when the server vanishes in the middle of a message or
# speaks something else.
_BROKEN: Final = (InterfaceError, OSError, struct.error, AttributeError, LookupError, ValueError)


class ServerError(Exception):
    """A server refused or failed: `sqlstate`, `endpoint` (its name), `hint` (the server's, or empty)."""

    def __init__(self, endpoint: str, sqlstate: str, message: str, detail: str = "", hint: str = "") -> None:
        super().__init__(f"{endpoint}: {message} ({sqlstate})" + (f"; {detail}" if detail else ""))
        self.endpoint = endpoint
        self.sqlstate = sqlstate
        self.message = message
        self.hint = hint


class Unreachable(ServerError):
    """No connection, or it was lost, or no answer in time: whether the work was done is not known."""

    def __init__(self, endpoint: str, message: str) -> None:
        super().__init__(endpoint, "08006", message)


class Link:
    """One connection to a server, in autocommit; used by one thread at a time.

    Every method raises ServerError.
    """

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self.endpoint = endpoint
        self.broken = False
        self._connection = connection
        self._statement_timeout_ms = 0
        self._prepared: dict[str, PreparedStatement] = {}

    def rows(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """Runs SQL; without parameters it may be several statements, whose rows come in one list."""
        with self._translated():
            return list(self._connection.run(sql, **parameters) or [])

    def prepared(self, sql: str, **parameters: Any) -> list[list[Any]]:
        """The same for SQL that is run again and again: parsed and planned once on this connection."""
        with self._translated():
            statement = self._prepared.get(sql)
            if statement is None:
                statement = self._prepared[sql] = self._connection.prepare(sql)
            return list(statement.run(**parameters) or [])

    def value(self, sql: str, **parameters: Any) -> Any:
        """The first column of the first row; None if there is no row."""
        rows = self.rows(sql, **parameters)
        return rows[0][0] if rows else None

    @contextmanager
    def transaction(self, modes: str = "") -> Iterator[Link]:
        """BEGIN … COMMIT around the block; ROLLBACK when it raises.

        `modes` as in "ISOLATION LEVEL REPEATABLE READ".
        """
        self.rows(f"BEGIN {modes}")
        try:
            yield self
        except BaseException:
            if not self.broken:
                self.rows("ROLLBACK")
            raise
        self.rows("COMMIT")

    def version(self) -> int:
        """server_version_num: 150018 for 15.18."""
        return int(self.value("SHOW server_version_num"))

    def limit(self, timeout_s: float) -> None:
        """Bounds each of the next statements, at the server and on the socket."""
        timeout_ms = max(1, int(timeout_s * 1000))
        with self._translated():
            self._socket.settimeout(timeout_s + GRACE_S)
            if timeout_ms != self._statement_timeout_ms:
                self._connection.run(f"SET statement_timeout = {timeout_ms}")
                self._statement_timeout_ms = timeout_ms

    def is_idle(self) -> bool:
        """Whether nothing waits to be read: on an idle connection that could only be its end."""
        if self.broken or self._socket is None:  # pg8000 forgets the socket of a connection it found lost
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Ends the connection at once; from any thread, also while another waits for an answer."""
        self.broken = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            return  # already closed by the other side or by close()

    def close(self) -> None:
        self.broken = True
        try:
            self._connection.close()
        except _BROKEN:
            return  # it was gone already, which is what was asked for

    @property
    def _socket(self) -> socket.socket:
        # pg8000 has no public way to bound a single statement or to interrupt one.
        return self._connection._usock  # type: ignore[no-any-return]

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self.broken:
            raise Unreachable(self.endpoint, "the connection was lost")
        try:
            yield
        except DatabaseError as error:
            raise self._server_error(error) from None
        except TimeoutError:
            self.broken = True
            raise Unreachable(self.endpoint, "no answer in time") from None
        except _BROKEN as error:
            self.broken = True
            raise Unreachable(self.endpoint, f"the connection was lost: {error}") from None

    def _server_error(self, error: DatabaseError) -> ServerError:
        fields = error.args[0] if error.args and isinstance(error.args[0], dict) else {"M": str(error)}
        # FATAL and PANIC end the session; the socket tells so only at the next read.
        self.broken = self.broken or fields.get("V") in ("FATAL", "PANIC")
        return ServerError(
            self.endpoint,
            fields.get("C", "XX000"),
            fields.get("M", ""),
            fields.get("D", ""),
            fields.get("H", ""),
        )


def connect(
    endpoint: Endpoint,
    control: Control,
    purpose: str,
    timeout_s: float = CONNECT_TIMEOUT_S,
    settings: Mapping[str, str] | None = None,
) -> Link:
    """Logs in as the control role; `purpose` ends up in pg_stat_activity.application_name. Names without a
    schema mean what is in pg_catalog.

    Raises ServerError.
    """
    try:
        connection = Connection(
            control.user,
            host=endpoint.host,
            port=endpoint.port,
            database=endpoint.dbname,
            password=control.password.reveal() if control.password else None,
            timeout=timeout_s,
            ssl_context=_ssl_context(endpoint.tls),
            application_name=f"pgshunt {purpose}",
            startup_params=dict(settings or {}),
        )
    except DatabaseError as error:
        fields = error.args[0] if isinstance(error.args[0], dict) else {}
        raise ServerError(
            endpoint.name,
            fields.get("C", "08001"),
            fields.get("M", "login refused"),
            hint=fields.get("H", ""),
        ) from None
    except _BROKEN as error:
        where = f"{endpoint.host}:{endpoint.port}"
        if control.password is None and isinstance(error, AttributeError):  # pg8000 has no word for it
            raise ServerError(
                endpoint.name,
                "28000",
                f'{where} asks for a password of "{control.user}", and none is given',
                hint="Give one: control.password_file or control.password_env; for init, PGPASSWORD.",
            ) from None
        reason = error.__cause__ or error
        raise Unreachable(endpoint.name, f"cannot connect to {where}: {reason}") from None
    link = Link(connection, endpoint.name)
    try:
        link.rows(_OURS_ONLY)
    except ServerError:
        link.close()
        raise
    return link


@contextmanager
def connected(endpoint: Endpoint, control: Control, purpose: str, timeout_s: float) -> Iterator[Link]:
    """A connection for a few questions, each of which may take so long; closed behind them.

    Raises ServerError.
    """
    link = connect(endpoint, control, purpose)
    try:
        link.limit(timeout_s)
        yield link
    finally:
        link.close()


def _ssl_context(tls: ServerTls) -> ssl.SSLContext | bool | None:
    """pg8000's word for a mode: False does without, None takes what the server offers."""
    if tls.mode == "disable":
        return False
    return None if tls.mode == "prefer" else connecting(tls)


class Server:
    """A connection to one endpoint that is made when needed, kept, and made anew after it was lost."""

    def __init__(
        self,
        endpoint: Endpoint,
        control: Control,
        purpose: str,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.control = control
        self.purpose = purpose
        self._settings = dict(settings or {})
        self._link: Link | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False
        self._thread = Aside(f"{purpose} {endpoint.name}")

    async def run(self, work: Callable[[Link], Result], timeout_s: float = 10.0) -> Result:
        """Runs `work` in this server's thread and returns what it returns; one at a time.

        `timeout_s` bounds each statement, and the whole from its turn on. Raises ServerError, or what
        `work` raises.
        """
        async with self._turn:
            broken_off = threading.Event()
            try:
                given = self._thread.submit(partial(self._work, work, timeout_s, broken_off))
            except Crowded as crowded:
                raise Unreachable(self.endpoint.name, f"it cannot be asked now: {crowded}") from crowded
            future = asyncio.wrap_future(given)
            try:
                await asyncio.wait({future}, timeout=timeout_s + 2 * GRACE_S)
            finally:
                is_late = not future.done()
                if is_late:  # or we were cancelled: what has not begun must not begin, what has is broken off
                    given.cancel()
                    future.cancel()
                    broken_off.set()
                    self._abort()
            if is_late:
                raise Unreachable(self.endpoint.name, f"no answer within {timeout_s:g} s ({self.purpose})")
            return future.result()

    async def close(self) -> None:
        """Ends the connection; work in progress fails with Unreachable."""
        self._is_closed = True
        self._abort()

    def _work(self, work: Callable[[Link], Result], timeout_s: float, broken_off: threading.Event) -> Result:
        link = self._link
        if link is None or not link.is_idle():
            if link is not None:
                link.close()
            timeout_connect_s = min(timeout_s, CONNECT_TIMEOUT_S)
            link = self._link = connect(
                self.endpoint, self.control, self.purpose, timeout_connect_s, self._settings
            )
        link.limit(timeout_s)
        if self._is_closed or broken_off.is_set():  # while it was being made: there was nothing to abort
            link.close()
            raise Unreachable(self.endpoint.name, f"no longer wanted ({self.purpose})")
        return work(link)

    def _abort(self) -> None:
        if self._link is not None:
            self._link.abort()
