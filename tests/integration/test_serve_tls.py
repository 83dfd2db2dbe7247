"""`pgshunt serve` with TLS: certificates are exchanged while it runs, cancel keys find their worker."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.certificates import Authority, Pair
from support.fixtures import Database
from support.serve import Serving, configuration
from support.wire import WireClient

from pgshunt.demo.postgres import Server
from pgshunt.protocol import messages


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def serving(
    postgres: Server, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("serve")
    pair = authority.issue("proxy", "first", "localhost")
    config = configuration(postgres, "postgres")
    config["listen"]["tls"] = files(pair) | {"mode": "require"}
    with Serving(directory, config) as running:
        yield running


def files(pair: Pair) -> dict[str, Any]:
    return {"certificate_file": str(pair.certificate), "key_file": str(pair.key)}


def shown(serving: Serving, authority: Authority) -> str:
    """The common name in the certificate that a new client is shown."""
    context = ssl.create_default_context(cafile=authority.file)
    with socket.create_connection(("127.0.0.1", serving.port), 10) as plain:
        plain.sendall(messages.ssl_request())
        assert plain.recv(1) == b"S"
        with context.wrap_socket(plain, server_hostname="localhost") as tunnel:
            certificate = tunnel.getpeercert() or {}
            return dict(pair for part in certificate["subject"] for pair in part)["commonName"]  # type: ignore[misc]


def reload(serving: Serving, kind: str = "reloaded") -> None:
    before = len(serving.events(kind))
    serving.signal(signal.SIGHUP)
    serving.until(f"it has {kind}", lambda: len(serving.events(kind)) > before)


def test_certificates_are_exchanged_and_old_sessions_live_on(
    serving: Serving, authority: Authority, postgres: Server
) -> None:
    where = {"host": "localhost", "port": serving.port, "dbname": "postgres", "sslmode": "verify-full"}
    login = {"user": postgres.user, "password": postgres.password, "sslrootcert": str(authority.file)}
    with psycopg.connect(**where, **login) as old:  # type: ignore[arg-type]
        assert shown(serving, authority) == "first"
        authority.issue("proxy", "second", "localhost")
        assert shown(serving, authority) == "first"  # nothing is read before it is asked for
        reload(serving)
        serving.until("all workers show the new one", lambda: shown(serving, authority) == "second")
        assert old.execute("SELECT 1").fetchone() == (1,)
        with psycopg.connect(**where, **login) as new:  # type: ignore[arg-type]
            assert new.execute("SELECT 1").fetchone() == (1,)


def test_a_key_that_does_not_belong_is_refused_and_nothing_changes(
    serving: Serving, authority: Authority, tmp_path: Path
) -> None:
    before = shown(serving, authority)
    pair = authority.issue("other", "other", "localhost")
    config = serving.config | {
        "listen": serving.config["listen"] | {"tls": files(pair) | {"mode": "require"}}
    }
    own_key = Path(serving.config["listen"]["tls"]["key_file"])
    config["listen"]["tls"]["key_file"] = str(own_key)
    serving.write(config)
    try:
        reload(serving, "reload_failed")
        assert "key values mismatch" in serving.events("reload_failed")[-1]["detail"]["reason"]
        assert shown(serving, authority) == before
    finally:
        serving.write(serving.config)
    reload(serving)


def test_a_long_key_finds_its_worker(serving: Serving, authority: Authority, postgres: Server) -> None:
    """Whichever worker gets the cancel request: the key goes through the other one's inbox."""
    context = ssl.create_default_context(cafile=authority.file)
    where = f"host=localhost port={serving.port} dbname=postgres sslmode=require max_protocol_version=3.2"
    where += f" user={postgres.user} password={postgres.password}"
    with psycopg.connect(where, autocommit=True) as client:
        pid = client.info.backend_pid
        for _ in range(4):  # accepted by either worker
            with socket.create_connection(("127.0.0.1", serving.port), 10) as plain:
                plain.sendall(messages.ssl_request())
                assert plain.recv(1) == b"S"
                with WireClient(context.wrap_socket(plain, server_hostname="localhost")) as another:
                    another.send(messages.cancel_request(pid & 0xFFFFFFFF, bytes(32)))
                    another.until_ready()
        assert client.execute("SELECT 1").fetchone() == (1,)
        cancel = client.pgconn.cancel_conn()
        client.pgconn.send_query(b"SELECT pg_sleep(30)")
        database = Database(postgres, "postgres")
        serving.until(
            "it sleeps",
            lambda: (
                database.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
                == [[1]]
            ),
        )
        cancel.blocking()
        results = list(iter(client.pgconn.get_result, None))
        assert [result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) for result in results] == [b"57014"]
