"""Logs raw clients in at PostgreSQL: they send a startup packet, the password exchange is done for them.

With it a test compares a direct connection with one through the relay byte for byte, although the test
servers ask for a password.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

from pgshunt.protocol import messages
from pgshunt.protocol.login import Login
from pgshunt.protocol.messages import StartupRequest


class LoginForwarder:
    """Accepts on `address` and connects every client to one server as one user."""

    def __init__(self, host: str, port: int, user: str, password: str) -> None:
        self._server = (host, port)
        self._user, self._password = user, password
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> LoginForwarder:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in (self._listener, *self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                connection.close()
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads = [*(known for known in self._threads if known.is_alive()), thread]
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(client)
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        length = int.from_bytes(_exactly(client, 4))
        request = messages.read_startup(_exactly(client, length - 4))
        assert isinstance(request, StartupRequest)
        parameters = {
            key: value for key, value in request.parameters.items() if key not in (b"user", b"database")
        }
        server = socket.create_connection(self._server, 30)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.append(server)
        login = Login(self._user, request.parameters[b"database"].decode(), parameters, self._password)
        server.sendall(login.start())
        result = None
        while result is None:
            answer, result = login.receive(server.recv(65536))
            server.sendall(answer)
        welcome = [messages.parameter_status(name, value) for name, value in result.parameters.items()]
        client.sendall(
            b"".join([messages.authentication_ok(), *welcome])
            + messages.backend_key_data(result.process_id, result.secret_key)
            + messages.ready_for_query(b"I")
        )
        answers = self._spawn(_pump, server, client)
        _pump(client, server)
        answers.join()
        for connection in (client, server):
            self._connections.remove(connection)
            connection.close()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copies until the source ends, then ends the sink."""
    with suppress(OSError):  # one of them is gone, and the other hears of it
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
