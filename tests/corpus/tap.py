"""Stands between a client and PostgreSQL, lets every simple query run in a transaction of its own, and looks
at what it did before it is committed.

The client (psql, mostly) notices nothing: what it asked is answered as it would be, and a statement that
refuses to run in a transaction is run again without one, unseen.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from corpus.observe import Observed, Observer, Unseen

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error
from pgshunt.routing.names import qualified, split_search_path

CONTROL = (b"BEGIN", b"START", b"COMMIT", b"END", b"ROLLBACK", b"ABORT")
NOT_IN_TRANSACTION = frozenset({"25001", "2D000", "25P01", "0A000"})
"""Refused because of the transaction around it, not because of what it is."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A query text that ran without an error on this search path, and what was seen of it."""

    sql: bytes
    search_path: tuple[str, ...]
    observed: Observed


class Witness(Protocol):
    """Is told of statements, by the thread of the session they came from."""

    def before(self, observer: Observer, sql: bytes) -> None:
        """A text is about to run."""

    def report(self, observer: Observer, statement: Statement) -> None:
        """A text ran, and could be looked at."""


class Tap:
    """Accepts clients on `port` of 127.0.0.1; each has a thread. `failures` are defects of the tap or the
    witness. Without `keeps` every statement is rolled back, and none runs without a transaction.
    """

    def __init__(
        self, server: tuple[str, int], dsn: Callable[[str], str], witness: Witness, *, keeps: bool = True
    ) -> None:
        self.server, self.dsn, self.witness, self.keeps = server, dsn, witness, keeps
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.failures: list[BaseException] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(self.server) as server:
                _Session(self, Peer(client), Peer(server)).run()
        except (EOFError, OSError):
            return
        except BaseException as error:  # noqa: BLE001 a defect of the tap is told where it is waited for
            self.failures.append(error)


class Peer:
    """One side of the tap: whole messages in, bytes out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = bytearray()

    def exactly(self, length: int) -> bytes:
        while len(self.received) < length:
            data = self.connection.recv(262_144)
            if not data:
                raise EOFError
            self.received += data
        taken = bytes(self.received[:length])
        del self.received[:length]
        return taken

    def message(self) -> tuple[bytes, bytes]:
        """Type and body of the next message."""
        head = self.exactly(5)
        return head[:1], self.exactly(int.from_bytes(head[1:]) - 4)

    def startup(self) -> bytes:
        """A message without a type, whole."""
        length = self.exactly(4)
        return length + self.exactly(int.from_bytes(length) - 4)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)


class _Session:
    def __init__(self, tap: Tap, client: Peer, server: Peer) -> None:
        self.tap, self.client, self.server = tap, client, server
        self.status = b"I"
        self.pid = 0
        self.user = self.dbname = ""

    def run(self) -> None:
        self._log_in()
        observer = Observer(self.tap.dsn(self.dbname), self.pid)
        try:
            while True:
                kind, body = self.client.message()
                if kind == b"Q":
                    self._query(observer, body)
                else:
                    self.server.send(messages.frame(kind[0], body))
                    if kind in b"FSX":
                        if kind == b"X":
                            return
                        self._answers()
                        self._ready()
        finally:
            observer.close()

    def _log_in(self) -> None:
        startup = self.client.startup()
        while startup[4:8] in (messages.ssl_request()[4:8], messages.gssenc_request()[4:8]):
            self.client.send(b"N")
            startup = self.client.startup()
        pairs = startup[8:].split(b"\0")
        named = dict(zip(pairs[::2], pairs[1::2], strict=False))
        self.user = named[b"user"].decode()
        self.dbname = named.get(b"database", named[b"user"]).decode()
        self.server.send(startup)
        while True:
            kind, body = self.server.message()
            self.client.send(messages.frame(kind[0], body))
            if kind == b"K":
                self.pid = int.from_bytes(body[:4])
            elif kind == b"R" and int.from_bytes(body[:4]) not in (0, 12):
                answer, body = self.client.message()
                self.server.send(messages.frame(answer[0], body))
            elif kind == b"Z":
                return

    def _query(self, observer: Observer, body: bytes) -> None:
        sql = body[:-1]
        if self.status == b"E" or sql.upper().startswith(CONTROL):
            self.server.send(messages.query(sql))
            self._answers()
            self._ready()
            return
        search_path = self._search_path()
        self.tap.witness.before(observer, sql)
        in_block = self.status == b"T"
        before = self._look(observer) if in_block else Observed({})
        if not in_block:
            self._ask(b"BEGIN")
        self.server.send(messages.query(sql))
        refused = self._answers(hold=self.tap.keeps and not in_block)
        if refused is not None:
            self._ask(b"ROLLBACK")
            self.server.send(messages.query(sql))
            self._answers()
            self._ready()
            return
        after = self._look(observer) if self.status == b"T" else None
        if not in_block:
            self._ask(b"COMMIT" if self.status == b"T" and self.tap.keeps else b"ROLLBACK")
        if after is not None and before is not None:
            after = after.without(before) if in_block else after
            self.tap.witness.report(observer, Statement(sql, search_path, after))
        self._ready()

    def _ready(self) -> None:
        self.client.send(messages.ready_for_query(self.status))

    def _answers(self, *, hold: bool = False) -> bytes | None:
        """Pass on what the server answers, but ReadyForQuery. With `hold` an error that the transaction is to
        blame for ends it, and is returned.
        """
        refused = None
        while True:
            kind, body = self.server.message()
            if kind == b"Z":
                self.status = body
                return refused
            if kind == b"E" and hold and read_error(body).sqlstate in NOT_IN_TRANSACTION:
                refused = body
                continue
            self.client.send(messages.frame(kind[0], body))
            if kind == b"G":
                while kind not in b"cf":
                    kind, body = self.client.message()
                    self.server.send(messages.frame(kind[0], body))

    def _ask(self, sql: bytes) -> list[list[str]]:
        """Rows of a query that the client knows nothing of; none after an error."""
        self.server.send(messages.query(sql))
        rows: list[list[str]] = []
        while True:
            kind, body = self.server.message()
            if kind == b"D":
                rows.append(_columns(body))
            elif kind == b"Z":
                self.status = body
                return rows
            elif kind in b"AS":
                self.client.send(messages.frame(kind[0], body))

    def _search_path(self) -> tuple[str, ...]:
        rows = self._ask(
            b"SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role'),"
            b" session_user"
        )
        if not rows:
            return ()
        text, role, user = rows[0]
        user = user if role == "none" else role
        return tuple(user if schema == "$user" else schema for schema in split_search_path(text))

    def _look(self, observer: Observer) -> Observed | None:
        try:
            locks = observer.locks()
        except Unseen:
            return None
        oids = ",".join(str(oid) for oid, _, _ in locks) or "0"
        rows = self._ask(
            b"SELECT c.oid, n.nspname, c.relname, c.relkind,"
            b" pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
            b" FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            b" WHERE c.oid IN (%s, 1259)" % oids.encode()
        )
        if not rows:
            return None
        now = {int(oid): (schema, name, kind) for oid, schema, name, kind, _ in rows}
        modes: dict[frozenset[str], set[str]] = {}
        unknown = set()
        for oid, mode, committed in locks:
            known = [
                relation for relation in (committed, now.get(oid)) if relation and relation[2] in "rpvmfS"
            ]
            names = frozenset(
                _name(schema, name) for schema, name, _ in known if not schema.startswith("pg_toast")
            )
            if committed is None:
                unknown |= names
            if names:
                modes.setdefault(names, set()).add(mode)
        wrote = any(row[4] == "t" for row in rows)
        held = {names: frozenset(held) for names, held in modes.items()}
        return Observed(held, wrote, unknown=frozenset(unknown))


def _name(schema: str, name: str) -> str:
    return qualified("pg_temp" if schema.startswith("pg_temp_") else schema, name)


def _columns(body: bytes) -> list[str]:
    values, at = [], 2
    for _ in range(int.from_bytes(body[:2])):
        length = int.from_bytes(body[at : at + 4], signed=True)
        at += 4
        values.append(body[at : at + max(length, 0)].decode(errors="replace"))
        at += max(length, 0)
    return values
