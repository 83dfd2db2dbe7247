"""TLS between the proxy and its servers: links, cancel requests and the control role's connections.

Under every mode, and with servers that answer a request for it as they should not.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.certificates import Authority, start_encrypting
from support.fixtures import Database
from support.relay import RunningRelay
from support.wire import WireClient, sqlstate

from pgshunt.config.model import Control, ListenTls, ServerTls
from pgshunt.config.secret import Secret
from pgshunt.demo.postgres import PostgresServer, Server, Servers
from pgshunt.migration.servers import ServerError, connect
from pgshunt.protocol import messages
from pgshunt.proxy.connect import LinkError, open_link, send_cancel
from pgshunt.routing.table import Endpoint

TIMEOUT_MS = 10_000
SSL_OF_OURS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@dataclass(frozen=True, slots=True)
class Encrypting:
    """A server with TLS, and what is needed to talk to it."""

    server: PostgresServer
    authority: Authority
    database: Database

    def tls(self, mode: str, **more: Any) -> ServerTls:
        return ServerTls.model_validate({"mode": mode} | more)

    def endpoint(self, tls: ServerTls, host: str = "127.0.0.1") -> Endpoint:
        return Endpoint("shared", "shared", host, self.server.port, "postgres", "primary", tls)


@pytest.fixture(scope="module")
def encrypting(servers: Servers) -> Iterator[Encrypting]:
    """Its certificate is for 127.0.0.1 and postgres.test, not for localhost."""
    directory = servers.directory / "certificates"
    directory.mkdir()
    authority = Authority(directory)
    pair = authority.issue("server", "postgres.test", "127.0.0.1", "postgres.test")
    settings = {
        "ssl_cert_file": str(pair.certificate),
        "ssl_key_file": str(pair.key),
        "ssl_ca_file": str(authority.file),
        "wal_level": "logical",
    }
    own = (directory, pair.certificate, pair.key, authority.file)
    server = start_encrypting(servers, "encrypting", settings, own)
    yield Encrypting(server, authority, Database(server, "postgres"))
    server.stop("immediate")


@pytest.fixture
def strange(tmp_path: Path) -> Authority:
    """Has signed nothing of anybody's."""
    return Authority(tmp_path, "strange")


# --- links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "ca", "encrypted"),
    [
        ("disable", None, False),
        ("prefer", None, True),
        ("require", None, True),
        ("require", "own", True),
        ("verify-ca", "own", True),
        ("verify-full", "own", True),
    ],
)
def test_modes(encrypting: Encrypting, mode: str, ca: str | None, encrypted: bool) -> None:
    tls = encrypting.tls(mode, **({"ca_file": encrypting.authority.file} if ca else {}))
    with (
        RunningRelay(encrypting.database, tls=tls) as relay,
        psycopg.connect(relay.dsn(), sslmode="disable") as client,
    ):
        assert client.execute(SSL_OF_OURS).fetchone() == (encrypted,)


def failure(endpoint: Endpoint, server: Server | None = None) -> LinkError:
    """Why no link can be opened."""
    user, password = (server.user, server.password) if server else ("alice", "secret")

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        opened = await open_link(loop, endpoint, user, "postgres", None, password, TIMEOUT_MS)
        opened.socket.close()

    with pytest.raises(LinkError) as raised:
        asyncio.run(scenario())
    return raised.value


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_strange_authority_is_not_trusted(encrypting: Encrypting, strange: Authority, mode: str) -> None:
    error = failure(encrypting.endpoint(encrypting.tls(mode, ca_file=strange.file)), encrypting.server)
    assert (error.sqlstate, error.infrastructure) == ("08001", True)
    assert "self-signed certificate in certificate chain" in error.message


def test_the_name_counts_in_verify_full_only(encrypting: Encrypting) -> None:
    full = encrypting.tls("verify-full", ca_file=encrypting.authority.file)
    error = failure(encrypting.endpoint(full, "localhost"), encrypting.server)
    assert error.sqlstate == "08001" and "Hostname mismatch" in error.message
    with (
        RunningRelay(
            encrypting.database, tls=encrypting.tls("verify-ca", ca_file=encrypting.authority.file)
        ) as relay,
        psycopg.connect(relay.dsn()) as client,
    ):
        assert client.execute(SSL_OF_OURS).fetchone() == (True,)


def test_a_client_is_told_why_its_server_is_not_trusted(encrypting: Encrypting, strange: Authority) -> None:
    tls = encrypting.tls("verify-full", ca_file=strange.file)
    with (
        RunningRelay(encrypting.database, tls=tls) as relay,
        pytest.raises(psycopg.OperationalError, match="failed: self-signed certificate"),
    ):
        psycopg.connect(relay.dsn()).close()


def test_files_are_read_again_when_that_is_asked_for(
    encrypting: Encrypting, strange: Authority, tmp_path: Path
) -> None:
    """Links that are open go on; every user here has a link of its own, being another application."""
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(encrypting.authority.file.read_bytes())
    tls = encrypting.tls("verify-full", ca_file=trusted)
    with RunningRelay(encrypting.database, tls=tls) as relay, psycopg.connect(relay.dsn()) as client:
        trusted.write_bytes(strange.file.read_bytes())
        psycopg.connect(relay.dsn(), application_name="not yet").close()
        relay.call(lambda it: it.reload_tls(ListenTls()))
        with pytest.raises(psycopg.OperationalError, match="failed: self-signed certificate"):
            psycopg.connect(relay.dsn(), application_name="now").close()
        assert client.execute(SSL_OF_OURS).fetchone() == (True,)


def test_a_server_without_tls(postgres: Server) -> None:
    endpoint = Endpoint("shared", "shared", postgres.host, postgres.port, "postgres", "primary")
    error = failure(replace(endpoint, tls=ServerTls(mode="require")), postgres)
    assert error.sqlstate == "08001" and error.hint is not None
    assert "does not support TLS, and tls.mode is require" in error.message
    with (
        RunningRelay(Database(postgres, "postgres"), tls=ServerTls(mode="prefer")) as relay,
        psycopg.connect(relay.dsn()) as client,
    ):
        assert client.execute(SSL_OF_OURS).fetchone() == (False,)


def test_our_certificate_is_shown(encrypting: Encrypting) -> None:
    own = encrypting.authority.issue("pgshunt", "pgshunt")
    tls = encrypting.tls("require", certificate_file=own.certificate, key_file=own.key)
    with RunningRelay(encrypting.database, tls=tls) as relay, psycopg.connect(relay.dsn()) as client:
        shown = client.execute("SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert shown == ("/CN=pgshunt",)


def test_streams_of_all_kinds(encrypting: Encrypting) -> None:
    """Large rows, COPY both ways, a pipeline, and an answer that its reader takes slowly."""
    with (
        RunningRelay(encrypting.database, tls=encrypting.tls("require")) as relay,
        psycopg.connect(relay.dsn(), autocommit=True) as client,
    ):
        (long,) = client.execute("SELECT repeat('x', 3000000)").fetchone() or ("",)
        assert len(long) == 3_000_000
        assert client.execute("SELECT length(%s)", ["y" * 3_000_000]).fetchone() == (3_000_000,)
        with client.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE copied (word text)")
            with cursor.copy("COPY copied FROM STDIN") as copy:
                for _ in range(3000):
                    copy.write_row(("word" * 250,))
            with cursor.copy("COPY copied TO STDOUT") as copy:
                assert sum(len(block) for block in copy) == 3000 * 1001
        with client.pipeline():
            cursors = [client.execute("SELECT %s::int, repeat('z', 500)", [n]) for n in range(500)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(500))  # type: ignore[index]


def test_a_cancel_takes_the_way_of_its_link(encrypting: Encrypting) -> None:
    with (
        RunningRelay(encrypting.database, tls=encrypting.tls("require")) as relay,
        WireClient(relay.connect()) as client,
    ):
        client.log_in(encrypting.server.user, "postgres")
        client.send(messages.query(b"SELECT pg_sleep(30)"))
        relay.wait_for(lambda: sleeps(encrypting), "it sleeps")
        with relay.connect() as another:
            another.sendall(messages.cancel_request(client.process_id, client.secret_key))
            assert sqlstate(client.until_ready()) == "57014"


def sleeps(encrypting: Encrypting) -> bool:
    return encrypting.server.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    ) == [[1]]


# --- the control role -------------------------------------------------------------------------------------


def control_of(server: Server) -> Control:
    return Control(user=server.user, password=Secret(server.password))


@pytest.mark.parametrize(("mode", "encrypted"), [("disable", False), ("prefer", True), ("verify-full", True)])
def test_the_control_role_keeps_the_mode(encrypting: Encrypting, mode: str, encrypted: bool) -> None:
    files = {"ca_file": encrypting.authority.file} if mode == "verify-full" else {}
    link = connect(encrypting.endpoint(encrypting.tls(mode, **files)), control_of(encrypting.server), "test")
    assert link.value(SSL_OF_OURS) is encrypted
    link.close()


def test_the_control_role_trusts_no_strange_server(encrypting: Encrypting, strange: Authority) -> None:
    endpoint = encrypting.endpoint(encrypting.tls("verify-full", ca_file=strange.file))
    with pytest.raises(ServerError, match="certificate verify failed"):
        connect(endpoint, control_of(encrypting.server), "test")


# --- servers that misbehave -------------------------------------------------------------------------------


class Answering:
    """Accepts one connection, reads its first packet, answers with `said`, and keeps what comes then."""

    def __init__(self, said: bytes, context: ssl.SSLContext | None = None) -> None:
        self._said, self._context = said, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.first = self.then = b""

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()

    def endpoint(self, mode: str) -> Endpoint:
        host, port = self._listener.getsockname()
        return Endpoint("auth_db", "auth_db", host, port, "auth_db", "primary", ServerTls(mode=mode))  # type: ignore[arg-type]

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            self.first = connection.recv(1024)
            connection.sendall(self._said)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            try:
                self.then = connection.recv(1024)
            except OSError:
                return
            finally:
                connection.close()


ERROR = messages.error_response("28000", "believe me", severity="FATAL")


@pytest.mark.parametrize(
    ("said", "mode", "sqlstate"),
    [
        (ERROR, "prefer", "08P01"),  # CVE-2024-10977: not even the message of an unauthenticated server
        (b"S" + messages.authentication_ok(), "require", "08P01"),  # CVE-2021-23222
        (b"N" + messages.authentication_ok(), "prefer", "08P01"),
        (b"N", "require", "08001"),
        (b"X", "prefer", "08P01"),
    ],
)
def test_only_s_and_n_answer_the_request(said: bytes, mode: str, sqlstate: str) -> None:
    with Answering(said) as server:
        error = failure(server.endpoint(mode))
        assert error.sqlstate == sqlstate
        assert "believe me" not in error.message
    assert server.first == messages.ssl_request()
    assert server.then == b""


def test_plaintext_instead_of_a_handshake_is_no_part_of_the_stream() -> None:
    """The server's login, in the clear behind `S`: a man in the middle's, not the server's."""

    class Late(Answering):
        def _serve(self) -> None:
            connection, _ = self._listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"S")
                connection.recv(1024)  # the ClientHello
                connection.sendall(messages.authentication_ok() + messages.ready_for_query(b"I"))

    with Late(b"") as server:
        error = failure(server.endpoint("require"))
    assert error.sqlstate == "08001" and "TLS with 127.0.0.1 failed" in error.message


def test_a_cancel_request_is_encrypted_too(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server", "server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with Answering(b"S", context) as server:
        asyncio.run(_cancel(server.endpoint("require")))
    assert server.first == messages.ssl_request()
    assert server.then == messages.cancel_request(7, b"keys")


async def _cancel(endpoint: Endpoint) -> None:
    await send_cancel(asyncio.get_running_loop(), endpoint, 7, b"keys", TIMEOUT_MS)
