"""Links are opened on real servers within their deadline, and every way it can fail has its SQLSTATE."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace

import pytest
import uvloop
from support.fixtures import Server

from pgshunt.demo.postgres import PostgresServer, Servers
from pgshunt.protocol import messages
from pgshunt.proxy import connect
from pgshunt.proxy.connect import LinkError, OpenedLink, open_link, send_cancel
from pgshunt.routing.table import Endpoint

TIMEOUT_MS = 20_000

Run = Callable[[Callable[[asyncio.AbstractEventLoop], Awaitable[object]]], object]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on a loop of either kind; workers use uvloop."""

    def run_scenario(scenario: Callable[[asyncio.AbstractEventLoop], Awaitable[object]]) -> object:
        async def main() -> object:
            return await scenario(asyncio.get_running_loop())

        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main())

    return run_scenario


def endpoint_of(server: Server) -> Endpoint:
    return Endpoint("shared", "shared", server.host, server.port, "postgres", "primary")


async def open_as_superuser(
    loop: asyncio.AbstractEventLoop, server: Server, password: str | None = None, dbname: str = "postgres"
) -> OpenedLink:
    return await open_link(
        loop,
        endpoint_of(server),
        server.user,
        dbname,
        {b"application_name": b"test_connect"},
        server.password if password is None else password,
        TIMEOUT_MS,
    )


async def ask(loop: asyncio.AbstractEventLoop, link: OpenedLink, sql: bytes) -> bytes:
    """Everything the server says up to ReadyForQuery."""
    await loop.sock_sendall(link.socket, messages.query(sql))
    said = b""
    while said[-6:-1] != b"Z\0\0\0\5":
        data = await loop.sock_recv(link.socket, 65_536)
        assert data, f"server closed the link after {said!r}"
        said += data
    return said


def failure(run: Run, scenario: Callable[[asyncio.AbstractEventLoop], Awaitable[object]]) -> LinkError:
    with pytest.raises(LinkError) as raised:
        run(scenario)
    return raised.value


def test_a_link_is_ready_for_its_first_query(run: Run, postgres: Server) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        link = await open_as_superuser(loop, postgres)
        with closing(link.socket):
            assert not link.socket.getblocking()
            assert link.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert link.leftover == b""
            assert len(link.secret_key) >= 4
            assert link.parameters[b"application_name"] == b"test_connect"
            assert b"server_version" in link.parameters
            own = await ask(loop, link, b"SELECT pg_backend_pid() = %d" % link.process_id)
            assert b"\0\0\0\x01t" in own

    run(scenario)


def test_a_wrong_password_is_refused_in_the_servers_words(run: Run, postgres: Server) -> None:
    error = failure(run, lambda loop: open_as_superuser(loop, postgres, password="wrong"))
    assert error.sqlstate == "28P01" and error.infrastructure
    assert error.message == f'password authentication failed for user "{postgres.user}"'
    assert error.error_frame is not None and error.error_frame.startswith(b"E")


def test_a_missing_database_is_the_servers_failure(run: Run, postgres: Server) -> None:
    error = failure(run, lambda loop: open_as_superuser(loop, postgres, dbname="nowhere"))
    assert error.sqlstate == "3D000" and error.infrastructure


def test_a_setting_the_server_does_not_know_is_not(run: Run, postgres: Server) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        setting = {b"no_such_setting": b"1"}
        await open_link(
            loop, endpoint_of(postgres), postgres.user, "postgres", setting, postgres.password, TIMEOUT_MS
        )

    error = failure(run, scenario)
    assert error.sqlstate == "42704" and not error.infrastructure


def test_an_oversized_startup_packet_is_not_sent(run: Run, postgres: Server) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        await open_link(loop, endpoint_of(postgres), "u" * 10_000, "postgres", None, None, TIMEOUT_MS)

    error = failure(run, scenario)
    assert error.sqlstate == "54000" and not error.infrastructure


def test_a_unix_socket_is_a_host_that_is_a_directory(run: Run, servers: Servers) -> None:
    server = next((own for own in servers.members if own.name == "links"), None) or servers.start("links")

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        endpoint = replace(endpoint_of(server), host=str(servers.directory))
        link = await open_link(loop, endpoint, server.user, "postgres", None, server.password, TIMEOUT_MS)
        with closing(link.socket):
            assert link.socket.family == socket.AF_UNIX
            assert b"SELECT 1" in await ask(loop, link, b"SELECT 1")

    run(scenario)


def test_a_full_server_says_53300(run: Run, servers: Servers) -> None:
    server = servers.start("full", {"max_connections": "5", "superuser_reserved_connections": "0"})
    try:
        links: list[OpenedLink] = []

        async def scenario(loop: asyncio.AbstractEventLoop) -> None:
            for _ in range(20):
                links.append(await open_as_superuser(loop, server))

        error = failure(run, scenario)
        assert error.sqlstate == "53300" and error.infrastructure
        for link in links:
            link.socket.close()
    finally:
        forget(servers, server)


def test_a_stopped_server_cannot_be_reached(run: Run, servers: Servers) -> None:
    server = servers.start("stopped")
    try:
        server.stop()
        error = failure(run, lambda loop: open_as_superuser(loop, server))
        assert error.sqlstate == "08001" and error.infrastructure
        assert error.error_frame is None
        assert f"{server.host}:{server.port}" in error.message
        directory = replace(endpoint_of(server), host=str(servers.directory))
        for endpoint in (endpoint_of(server), directory):
            cancelled = failure(run, lambda loop, to=endpoint: send_cancel(loop, to, 1, b"keys", TIMEOUT_MS))
            assert cancelled.sqlstate == "08001"
    finally:
        forget(servers, server)


def forget(servers: Servers, server: PostgresServer) -> None:
    server.remove()
    servers.members.remove(server)


def test_a_cancel_request_reaches_its_query_and_no_other(run: Run, postgres: Server) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        sleeper, watcher = await open_as_superuser(loop, postgres), await open_as_superuser(loop, postgres)
        with closing(sleeper.socket), closing(watcher.socket):
            sleeping = asyncio.ensure_future(ask(loop, sleeper, b"SELECT pg_sleep(60)"))
            asleep = b"SELECT 'asleep' FROM pg_stat_activity WHERE pid = %d AND wait_event = 'PgSleep'"
            while b"SELECT 1\0" not in await ask(loop, watcher, asleep % sleeper.process_id):
                continue  # Another system is polled; pytest's timeout is the deadline.
            endpoint = endpoint_of(postgres)
            wrong_key = bytes(byte ^ 1 for byte in sleeper.secret_key)
            await send_cancel(loop, endpoint, sleeper.process_id, wrong_key, TIMEOUT_MS)
            assert b"SELECT 1\0" in await ask(loop, watcher, asleep % sleeper.process_id)
            await send_cancel(loop, endpoint, sleeper.process_id, sleeper.secret_key, TIMEOUT_MS)
            assert b"C57014\0" in await sleeping
            assert b"SELECT 1\0" in await ask(loop, sleeper, b"SELECT 1")

    run(scenario)


# --- servers that misbehave -------------------------------------------------------------------------------


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def link_to(run: Run, behave: Behaviour, timeout_ms: float = TIMEOUT_MS) -> object:
    """Opens a link to a server that reads the startup packet, behaves, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4)) - 4)
        await behave(reader, writer)
        writer.close()

    async def scenario(loop: asyncio.AbstractEventLoop) -> object:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            endpoint = Endpoint("auth_db", "auth_db", host, port, "auth_db", "primary")
            return await open_link(loop, endpoint, "alice", "auth_db", None, "secret", timeout_ms)

    return run(scenario)


def saying(said: bytes) -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    return behave


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client gives up."""
    assert await reader.read() == b""


OK = messages.authentication_ok()


def test_what_comes_behind_the_login_is_not_lost(run: Run) -> None:
    ready = messages.backend_key_data(1, b"k" * 32) + messages.ready_for_query(b"I")
    shutdown = messages.error_response("57P01", "terminating connection", severity="FATAL")
    link = link_to(run, saying(OK + ready + shutdown))
    assert isinstance(link, OpenedLink)
    with closing(link.socket):
        behind = link.leftover
        link.socket.setblocking(True)
        while data := link.socket.recv(1024):
            behind += data
    assert behind == shutdown
    assert link.secret_key == b"k" * 32


@pytest.mark.parametrize(
    ("behave", "timeout_ms", "sqlstate"),
    [
        (saying(b""), TIMEOUT_MS, "08006"),
        (saying(OK), TIMEOUT_MS, "08006"),
        (stay_silent, 50, "08006"),
        (saying(OK + OK), TIMEOUT_MS, "08P01"),
        (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), TIMEOUT_MS, "08P01"),
        (saying(messages.frame(ord("R"), bytes((0, 0, 0, 3)))), TIMEOUT_MS, "28000"),
        (saying(messages.error_response("57P03", "the database system is starting up")), TIMEOUT_MS, "57P03"),
        (saying(messages.frame(ord("E"), b"")), TIMEOUT_MS, "XX000"),
    ],
)
def test_a_server_that_misbehaves_is_the_endpoints_failure(
    run: Run, behave: Behaviour, timeout_ms: float, sqlstate: str
) -> None:
    with pytest.raises(LinkError) as raised:
        link_to(run, behave, timeout_ms)
    assert raised.value.sqlstate == sqlstate
    assert raised.value.infrastructure


def test_a_login_that_is_cancelled_leaves_no_socket(run: Run) -> None:
    """The server sees the end of the connection; `stay_silent` waits for it."""
    ended: list[bool] = []

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        end = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(8)
            opening.cancel()
            await reader.read()
            ended.append(reader.at_eof())
            end.set()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            endpoint = Endpoint("auth_db", "auth_db", host, port, "auth_db", "primary")
            opening = asyncio.ensure_future(
                open_link(loop, endpoint, "alice", "auth_db", None, "secret", TIMEOUT_MS)
            )
            with pytest.raises(asyncio.CancelledError):
                await opening
            await end.wait()

    run(scenario)
    assert ended == [True]


def test_a_name_without_address_cannot_be_reached(run: Run) -> None:
    endpoint = Endpoint("auth_db", "auth_db", "no-such-host.invalid", 5432, "auth_db", "primary")

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        await open_link(loop, endpoint, "alice", "auth_db", None, None, TIMEOUT_MS)

    error = failure(run, scenario)
    assert error.sqlstate == "08001"
    assert "no-such-host.invalid" in error.message


def test_every_address_of_a_name_is_tried(
    run: Run, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one refuses, as ::1 does where a server listens on 127.0.0.1 only."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refusing = closed.getsockname()

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        async def resolve(*_: object) -> list[connect.Address]:
            return [(socket.AF_INET, refusing), (socket.AF_INET, (postgres.host, postgres.port))]

        monkeypatch.setattr(connect, "_resolve", resolve)
        link = await open_as_superuser(loop, postgres)
        link.socket.close()

    run(scenario)
