"""A client that speaks the protocol by hand, so that a test can send what no driver would."""

from __future__ import annotations

import socket
from typing import NamedTuple

from pgshunt.protocol import messages
from pgshunt.protocol.errors import read_error


class Frame(NamedTuple):
    kind: str
    body: bytes


class WireClient:
    """Blocking; every read has the socket's timeout. Use as a context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = b""
        self.parameters: dict[str, str] = {}
        self.process_id = 0
        self.secret_key = b""

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def log_in(self, user: str, dbname: str, **parameters: str) -> WireClient:
        """Logs in without a password; ends behind ReadyForQuery."""
        pairs = {b"user": user.encode(), b"database": dbname.encode()}
        pairs |= {name.encode(): value.encode() for name, value in parameters.items()}
        self.send(messages.startup_message(pairs))
        for frame in self.until_ready():
            if frame.kind == "S":
                name, value, _ = frame.body.split(b"\0")
                self.parameters[name.decode()] = value.decode()
            elif frame.kind == "K":
                self.process_id, self.secret_key = int.from_bytes(frame.body[:4]), frame.body[4:]
            elif frame.kind == "E":
                raise AssertionError(read_error(frame.body))
        return self

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frame(self) -> Frame:
        """The next message; raises EOFError when the connection has been closed."""
        while len(self._received) < 5 or len(self._received) < 1 + int.from_bytes(self._received[1:5]):
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("connection closed")
            self._received += data
        size = 1 + int.from_bytes(self._received[1:5])
        frame = Frame(chr(self._received[0]), self._received[5:size])
        self._received = self._received[size:]
        return frame

    def until_ready(self) -> list[Frame]:
        """Messages up to ReadyForQuery, or up to the end of the connection."""
        frames = []
        try:
            while not frames or frames[-1].kind != "Z":
                frames.append(self.frame())
        except (EOFError, ConnectionResetError):
            frames.append(Frame("", b"closed"))
        return frames

    def query(self, sql: str) -> list[Frame]:
        self.send(messages.query(sql.encode()))
        return self.until_ready()

    def value(self, sql: str) -> str | None:
        """The first column of the first row."""
        for frame in self.query(sql):
            if frame.kind == "E":
                raise AssertionError(read_error(frame.body))
            if frame.kind == "D":
                length = int.from_bytes(frame.body[2:6], signed=True)
                return None if length < 0 else frame.body[6 : 6 + length].decode()
        raise AssertionError("no row")


def kinds(frames: list[Frame]) -> str:
    """The messages' types in order, rows and notices of the server left as they are."""
    return "".join(frame.kind for frame in frames)


def sqlstate(frames: list[Frame]) -> str:
    """The SQLSTATE of the first error."""
    return next(read_error(frame.body).sqlstate or "" for frame in frames if frame.kind == "E")


def hint(frames: list[Frame]) -> str:
    """What the first error advises."""
    return next(read_error(frame.body).hint or "" for frame in frames if frame.kind == "E")


def without_tables(frame: Frame) -> Frame:
    """A RowDescription without its tables' numbers, which differ from database to database."""
    if frame.kind != "T":
        return frame
    body, at = bytearray(frame.body), 2
    for _ in range(int.from_bytes(frame.body[:2])):
        at = frame.body.index(0, at) + 1
        body[at : at + 4] = bytes(4)
        at += 18
    return Frame("T", bytes(body))


def parse(name: str, sql: str) -> bytes:
    return _message(b"P", name.encode() + b"\0" + sql.encode() + b"\0" + b"\0\0")


def bind(portal: str, name: str, *values: str) -> bytes:
    parameters = b"".join(len(v.encode()).to_bytes(4) + v.encode() for v in values)
    head = portal.encode() + b"\0" + name.encode() + b"\0" + b"\0\0" + len(values).to_bytes(2)
    return _message(b"B", head + parameters + b"\0\0")


def describe(kind: str, name: str = "") -> bytes:
    return _message(b"D", kind.encode() + name.encode() + b"\0")


def execute(portal: str = "", rows_max: int = 0) -> bytes:
    return _message(b"E", portal.encode() + b"\0" + rows_max.to_bytes(4))


def close(kind: str, name: str = "") -> bytes:
    return _message(b"C", kind.encode() + name.encode() + b"\0")


def function_call(oid: int, *values: str) -> bytes:
    arguments = b"".join(len(value).to_bytes(4) + value.encode() for value in values)
    return _message(b"F", oid.to_bytes(4) + b"\0\0" + len(values).to_bytes(2) + arguments + b"\0\0")


SYNC = b"S\0\0\0\x04"
FLUSH = b"H\0\0\0\x04"
TERMINATE = b"X\0\0\0\x04"


def copy_data(data: bytes) -> bytes:
    return _message(b"d", data)


COPY_DONE = b"c\0\0\0\x04"


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body
