"""A server that speaks PostgreSQL's protocol as badly as a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pgshunt.protocol import messages
from pgshunt.proxy.welcome import QUESTION

GO_ON, CLOSE, RESET, SILENCE = "go on", "close", "reset", "silence"


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes to send, and what to do behind them."""

    data: bytes = b""
    then: str = GO_ON


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    user: str = "somebody"
    password: str = "no matter"


def frame(kind: str, body: bytes = b"") -> bytes:
    return kind.encode("latin-1") + (len(body) + 4).to_bytes(4) + body


def error(severity: str = "ERROR", sqlstate: str | None = "22012") -> bytes:
    code = b"" if sqlstate is None else b"C" + sqlstate.encode() + b"\0"
    return frame("E", b"S" + severity.encode() + b"\0V" + severity.encode() + b"\0" + code + b"Mbad\0\0")


def row(*values: bytes) -> bytes:
    columns = b"".join(len(value).to_bytes(4) + value for value in values)
    return frame("D", len(values).to_bytes(2) + columns)


READY, IN_TRANSACTION = frame("Z", b"I"), frame("Z", b"T")
COLUMN = frame("T", b"\0\1x\0" + bytes(6) + (25).to_bytes(4) + b"\xff\xff" + b"\xff\xff\xff\xff" + b"\0\0")
ROW = row(b"v")
ROW_DONE = COLUMN + ROW + frame("C", b"SELECT 1\0")
WELCOME = (
    messages.authentication_ok()
    + messages.parameter_status(b"server_version", b"15.0")
    + messages.parameter_status(b"client_encoding", b"UTF8")
    + messages.parameter_status(b"standard_conforming_strings", b"on")
    + messages.backend_key_data(1, b"\0\0\0\1")
    + READY
)

Script = Callable[[str, str], Answer]


@dataclass(slots=True)
class HostileServer:
    """Answers each message with `script(type, statement)`; `login` is what greets a startup packet.

    A ReadyForQuery at the end of an answer tells by itself whether a transaction is open.

    `cancels` counts cancel requests; each is closed as soon as `takes_cancels` is set, which it is.

    Stands where the tests have a real Database: `server` is its address, and its catalogue is empty.
    """

    script: Script
    login: Answer = field(default_factory=lambda: Answer(WELCOME))
    dbname: str = "somewhere"
    heard: list[tuple[str, str]] = field(default_factory=list)
    cancels: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.server = Address("127.0.0.1", self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self.takes_cancels = threading.Event()
        self.takes_cancels.set()

    takes_cancels: threading.Event = field(init=False)
    _listener: socket.socket = field(init=False)
    server: Address = field(init=False)
    _open: list[socket.socket] = field(init=False)

    def execute(self, _sql: str) -> list[list[Any]]:
        return []

    def __enter__(self) -> HostileServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._listener, *self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                if connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as PostgreSQL does
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), _closed_at_its_end(connection):
            startup = _exactly(connection, int.from_bytes(_exactly(connection, 4)) - 4)
            if startup[:4] == (80877102).to_bytes(4):
                self.cancels += 1
                self.takes_cancels.wait()
                connection.close()
                return
            if not self._give(connection, self.login):
                return
            statement, begun = "", False
            while True:
                kind = _exactly(connection, 1).decode("latin-1")
                body = _exactly(connection, int.from_bytes(_exactly(connection, 4)) - 4)
                if kind == "X":
                    connection.close()
                    return
                if kind == "Q":
                    statement = body[:-1].decode()
                elif kind == "P":
                    statement = body.split(b"\0")[1].decode()
                if statement == QUESTION.decode():
                    for value in (b"public", b"read committed"):
                        connection.sendall(COLUMN + row(value) + frame("C", b"SHOW\0"))
                    connection.sendall(READY)
                    continue
                self.heard.append((kind, statement))
                begun = statement.startswith("BEGIN") or (begun and statement not in ("COMMIT", "ROLLBACK"))
                answer = self.script(kind, statement)
                if begun and answer.data.endswith(READY):
                    answer = Answer(answer.data[: -len(READY)] + IN_TRANSACTION, answer.then)
                if not self._give(connection, answer):
                    return

    def _give(self, connection: socket.socket, answer: Answer) -> bool:
        """Whether the connection is still there to be served."""
        connection.sendall(answer.data)
        if answer.then == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if answer.then in (CLOSE, RESET):
            connection.close()
        return answer.then == GO_ON


@contextmanager
def _closed_at_its_end(connection: socket.socket) -> Iterator[None]:
    """A server whose client sends no more closes as well, as PostgreSQL does."""
    try:
        yield
    except EOFError:
        connection.close()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        received = connection.recv(count - len(data))
        if not received:
            raise EOFError
        data += received
    return data
