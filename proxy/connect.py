"""Opens links: from an endpoint's address to a server session that is ready for its first query."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pgshunt.protocol import messages
from pgshunt.protocol.errors import PgError, ServerProtocolError, classify_sqlstate
from pgshunt.protocol.frames import scan
from pgshunt.protocol.login import Channel, Credential, Login, LoginRefused, LoginResult
from pgshunt.proxy.stream import CANNOT_CONNECT, Stream, TlsRefused
from pgshunt.routing.table import Endpoint

CONNECTION_FAILURE = "08006"
ANSWER_BYTES_MAX = 1 << 20
LIMIT_EXCEEDED = "54000"

# A peer that has vanished is noticed within 30 + 3 × 10 seconds, also on a link that nobody uses.
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))

Address = tuple[socket.AddressFamily, "str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]"]


class LinkError(PgError):
    """A link could not be opened, or a cancel request not delivered.

    `infrastructure` tells whether it counts against the endpoint; `error_frame` is the server's
    ErrorResponse as it came, None where the server said nothing.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str,
        detail: str | None = None,
        hint: str | None = None,
        error_frame: bytes | None = None,
    ) -> None:
        super().__init__(message, sqlstate=sqlstate, detail=detail, hint=hint)
        self.error_frame = error_frame

    @property
    def infrastructure(self) -> bool:
        return classify_sqlstate(self.sqlstate) == "infrastructure"


@dataclass(frozen=True, slots=True)
class OpenedLink:
    """A server session at its first ReadyForQuery, `leftover` read behind it."""

    stream: Stream
    process_id: int
    secret_key: bytes = field(repr=False)
    parameters: dict[bytes, bytes]
    leftover: bytes

    @property
    def socket(self) -> socket.socket:
        return self.stream.socket

    @property
    def parameter_frames(self) -> bytes:
        """ParameterStatus for all that the server told at login."""
        return b"".join(messages.parameter_status(name, value) for name, value in self.parameters.items())

    async def answer(self) -> list[tuple[int, bytes]]:
        """Type and body of the messages up to ReadyForQuery. Raises OSError and LinkError."""
        received = b""
        while True:
            data = await self.stream.receive()
            if not data:
                raise ConnectionResetError("server closed the connection")
            received += data
            frames, _, intact = scan(received, ANSWER_BYTES_MAX)
            if not intact:
                raise LinkError("server sent an impossible length", sqlstate="08P01")
            if frames and frames[-1][0] == ord("Z"):
                return [(kind, received[at + 5 : end]) for kind, at, end in frames]


async def open_link(
    loop: asyncio.AbstractEventLoop,
    endpoint: Endpoint,
    user: str,
    database: str,
    parameters: Mapping[bytes, bytes] | None,
    credential: Credential | None,
    timeout_ms: float,
) -> OpenedLink:
    """Connects and logs in, all within `timeout_ms`.

    Raises LinkError: 08001 if the server cannot be reached, 08006 if it goes away or stays silent during
    login, 08P01 if it breaks the protocol, else the SQLSTATE of its refusal (28xxx, 3D000, 53300, 57P03,
    …).
    """
    deadline = loop.time() + timeout_ms / 1000
    stream = Stream(loop, await _connect(loop, endpoint, deadline))
    try:
        async with asyncio.timeout_at(deadline):
            await stream.encrypt(endpoint)
            channel = _channel(stream, endpoint)
            login = Login(user, database, parameters, credential, channel=channel)
            result = await _log_in(stream, login)
    except ValueError as problem:
        stream.socket.close()
        raise LinkError(
            f"no startup packet for {endpoint.name}: {problem}", sqlstate=LIMIT_EXCEEDED
        ) from problem
    except BaseException as failure:
        stream.socket.close()
        if isinstance(failure, OSError | PgError):
            raise _explain(failure, endpoint, timeout_ms) from failure
        raise
    return OpenedLink(stream, result.process_id, result.secret_key, result.parameters, result.leftover)


async def send_cancel(
    loop: asyncio.AbstractEventLoop, endpoint: Endpoint, process_id: int, secret_key: bytes, timeout_ms: float
) -> None:
    """Asks the server to cancel what `process_id` is doing, and waits until it has passed that on.

    The server closes the connection only after it has sent the signal: once this returns, the request can
    no longer hit a later statement unawares. Raises LinkError (08001, 08006) if the server was not reached
    or did not close in time.
    """
    deadline = loop.time() + timeout_ms / 1000
    stream = Stream(loop, await _connect(loop, endpoint, deadline))
    try:
        async with asyncio.timeout_at(deadline):
            await stream.encrypt(endpoint)
            await stream.send(messages.cancel_request(process_id, secret_key))
            while await stream.receive():
                continue  # A server that answers a cancel request has nothing to tell us.
    except ConnectionResetError:
        return  # Closed, if less politely.
    except (OSError, PgError) as failure:
        raise _explain(failure, endpoint, timeout_ms) from failure
    finally:
        stream.socket.close()


async def _connect(loop: asyncio.AbstractEventLoop, endpoint: Endpoint, deadline: float) -> socket.socket:
    """A connected non-blocking socket. Each of several addresses gets an equal share of the time left."""
    failure: OSError = OSError(f"{endpoint.host} has no address")
    try:
        async with asyncio.timeout_at(deadline):
            addresses = await _resolve(loop, endpoint)
        for attempts_left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                async with asyncio.timeout((deadline - loop.time()) / attempts_left):
                    return await _connect_to(loop, address)
            except OSError as refused:
                failure = refused
    except OSError as unresolved:
        failure = unresolved
    reason = "no answer in time" if isinstance(failure, TimeoutError) else str(failure)
    raise LinkError(f"cannot connect to {_where(endpoint)}: {reason}", sqlstate=CANNOT_CONNECT) from failure


async def _resolve(loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> list[Address]:
    """Where the endpoint listens; a host that is a path is the directory of a unix socket, as in libpq."""
    if endpoint.host.startswith("/"):
        return [(socket.AF_UNIX, f"{endpoint.host}/.s.PGSQL.{endpoint.port}")]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, endpoint.host)
            # No name to look up: the loop's resolver threads stay unborn, and a process of one thread pays
            # less for every system call.
            return [(family, (endpoint.host, endpoint.port))]
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


async def _connect_to(loop: asyncio.AbstractEventLoop, address: Address) -> socket.socket:
    family, where = address
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        if family != socket.AF_UNIX:
            _tune(connection)
        await _finish_connect(loop, connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


async def _finish_connect(loop: asyncio.AbstractEventLoop, connection: socket.socket, where: Any) -> None:
    """What loop.sock_connect does, but that of uvloop asks the resolver even about an address."""
    error = connection.connect_ex(where)
    if error == errno.EINPROGRESS:
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(connection.fileno(), _settle, writable)
        try:
            await writable
        finally:
            loop.remove_writer(connection.fileno())
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):  # macOS lacks one of them.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _log_in(stream: Stream, login: Login) -> LoginResult:
    await stream.send(login.start())
    while True:
        data = await stream.receive()
        if not data:
            raise ConnectionResetError("server closed the connection")
        answer, result = login.receive(data)
        if result is not None:
            return result
        if answer:
            await stream.send(answer)


def _channel(stream: Stream, endpoint: Endpoint) -> Channel:
    """What the login can be bound to, and must be."""
    wanted = endpoint.tls.channel_binding
    binding = stream.tls.binding() if stream.tls is not None and wanted != "disable" else None
    return Channel(binding, is_required=wanted == "require")


def _explain(failure: OSError | PgError, endpoint: Endpoint, timeout_ms: float) -> LinkError:
    """What went wrong behind an established connection, in the words of the caller's contract."""
    where = _where(endpoint)
    match failure:
        case LoginRefused():
            return LinkError(
                failure.message,
                sqlstate=failure.sqlstate,
                detail=failure.detail,
                hint=failure.hint,
                error_frame=failure.response,
            )
        case TlsRefused():
            return LinkError(
                f"cannot connect to {where}: {failure.message}", sqlstate=failure.sqlstate, hint=failure.hint
            )
        case ServerProtocolError():
            return LinkError(f"{where} broke the protocol: {failure.message}", sqlstate=failure.sqlstate)
        case TimeoutError():
            return LinkError(f"{where} did not answer within {timeout_ms:g} ms", sqlstate=CONNECTION_FAILURE)
        case _:
            return LinkError(f"lost {where} during login: {failure}", sqlstate=CONNECTION_FAILURE)


def _where(endpoint: Endpoint) -> str:
    return f"{endpoint.name} at {endpoint.host}:{endpoint.port}"
